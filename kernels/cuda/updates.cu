// Penalties, clipping and optimizer steps over flat vectors. Formulas: nnbackend/backends/contract.py.

// UPDATE(w, g, m, v) for each place of up to four vectors; those that are not there are null. The
// new w goes to ``rounded`` as well, if that is there.
template <typename Update>
__device__ inline void for_each(
    Real* w, Real* g, Real* m, Real* v, Bf16* rounded, Size n, const StepState* state, Update update
) {
    if (state && state->stopped) return;
    Size fours = in_fours(w, g, m, v, rounded) ? n / 4 : 0;
    Real none = 0;
    for (Size i = first_index(); i < fours; i += index_step()) {
        Four a = ((Four*)w)[i], b = ((Four*)g)[i], c = {}, d = {};
        if (m) c = ((Four*)m)[i];
        if (v) d = ((Four*)v)[i];
        for (int k = 0; k < 4; k++) update(a.at[k], b.at[k], c.at[k], d.at[k]);
        ((Four*)w)[i] = a;
        if (m) ((Four*)m)[i] = c;
        if (v) ((Four*)v)[i] = d;
        if (rounded) ((FourBf16*)rounded)[i] = rounded_to_bf16s(a);
    }
    for (Size i = 4 * fours + first_index(); i < n; i += index_step()) {
        update(w[i], g[i], m ? m[i] : none, v ? v[i] : none);
        if (rounded) rounded[i] = rounded_to_bf16(w[i]);
    }
}

// Formulas: w and what an optimizer keeps of it, from the gradient g.

__device__ inline void sgd_update(Real lr, Real& w, Real g) { w -= lr * g; }

// v = momentum v - lr g;  w += v, or momentum v - lr g.
__device__ inline void momentum_update(
    Real lr, Real momentum, bool nesterov, Real& w, Real g, Real& v
) {
    v = momentum * v - lr * g;
    w += nesterov ? momentum * v - lr * g : v;
}

__device__ inline void adagrad_update(Real lr, Real eps, Real& w, Real g, Real& c) {
    c += g * g;
    w -= lr * g / (sqrt(c) + eps);
}

__device__ inline void rmsprop_update(
    Real lr, Real rho, Real rest, Real eps, Real& w, Real g, Real& c
) {
    c = rho * c + rest * (g * g);
    w -= lr * g / (sqrt(c) + eps);
}

// Adam with the bias corrections moved out of the vectors into its rate and eps; w is multiplied by
// what a decay leaves of it first.
struct AdamNumbers {
    Real lr, kept, beta1, rest1, beta2, rest2, small;
};

__device__ inline void adam_update(AdamNumbers n, Real& w, Real g, Real& m, Real& v) {
    m = n.beta1 * m + n.rest1 * g;
    v = n.beta2 * v + n.rest2 * (g * g);
    w = w * n.kept - n.lr * m / (sqrt(v) + n.small);
}

// How an optimizer changes parameters.
struct Optimizer {
    int nesterov;
    Real momentum, beta1, rest1, beta2, rest2, rho, rest, eps;

    template <int RULE>  // an UPDATE_ code
    __device__ inline void apply(
        Real rate, Real small, Real keep, Real& w, Real g, Real& m, Real& v
    ) const {
        switch (RULE) {
            case UPDATE_ADAM:
                adam_update({rate, keep, beta1, rest1, beta2, rest2, small}, w, g, m, v);
                break;
            case UPDATE_RMSPROP: rmsprop_update(rate, rho, rest, eps, w, g, m); break;
            case UPDATE_ADAGRAD: adagrad_update(rate, eps, w, g, m); break;
            case UPDATE_MOMENTUM: momentum_update(rate, momentum, nesterov, w, g, m); break;
            case UPDATE_SGD: sgd_update(rate, w, g); break;
            default: w = not_a_number();
        }
    }
};

KERNEL sgd_step(Real* w, Real* g, Size n, double rate, Bf16* rounded, const StepState* state) {
    const Real lr = (Real)(state ? state->rate : rate);
    for_each(w, g, 0, 0, rounded, n, state, [=](Real& w, Real& g, Real&, Real&) {
        sgd_update(lr, w, g);
    });
}

KERNEL momentum_step(
    Real* w, Real* g, Real* velocity, Size n, double rate, Real momentum, int nesterov,
    Bf16* rounded, const StepState* state
) {
    const Real lr = (Real)(state ? state->rate : rate);
    for_each(w, g, velocity, 0, rounded, n, state, [=](Real& w, Real& g, Real& v, Real&) {
        momentum_update(lr, momentum, nesterov, w, g, v);
    });
}

KERNEL adagrad_step(
    Real* w, Real* g, Real* cache, Size n, double rate, Real eps, Bf16* rounded,
    const StepState* state
) {
    const Real lr = (Real)(state ? state->rate : rate);
    for_each(w, g, cache, 0, rounded, n, state, [=](Real& w, Real& g, Real& c, Real&) {
        adagrad_update(lr, eps, w, g, c);
    });
}

KERNEL rmsprop_step(
    Real* w, Real* g, Real* cache, Size n, double rate, Real rho, Real rest, Real eps,
    Bf16* rounded, const StepState* state
) {
    const Real lr = (Real)(state ? state->rate : rate);
    for_each(w, g, cache, 0, rounded, n, state, [=](Real& w, Real& g, Real& c, Real&) {
        rmsprop_update(lr, rho, rest, eps, w, g, c);
    });
}

KERNEL adam_step(
    Real* w, Real* g, Real* m, Real* v, Size n, double rate, double keep, Real beta1, Real rest1,
    Real beta2, Real rest2, double eps, int decays, Bf16* rounded, const StepState* state
) {
    AdamNumbers numbers = {
        (Real)(state ? state->corrected_rate : rate),
        (Real)(!decays ? 1 : state ? state->keep : keep), beta1, rest1, beta2, rest2,
        (Real)(state ? state->corrected_eps : eps)
    };
    for_each(w, g, m, v, rounded, n, state, [=](Real& w, Real& g, Real& m, Real& v) {
        adam_update(numbers, w, g, m, v);
    });
}

// partial[block] = sum of l1 |w| + l2 w^2;  grad += l1 sign(w) + 2 l2 w, if it is wanted.
KERNEL penalty(const Real* w, Size n, double l1, double l2, Real* grad, double* partial) {
    SHARED_SUMS;
    double total = 0;
    Real a = (Real)l1, b = (Real)(2 * l2);
    for (Size i = first_index(); i < n; i += index_step()) {
        Real x = w[i], sign = x > 0 ? 1 : x < 0 ? -1 : x;
        total += l1 * fabs((double)x) + l2 * (double)x * x;
        if (grad) grad[i] += a * sign + b * x;
    }
    total = block_sum(total, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// partial[block] = sum of x^2.
KERNEL sum_squares(const Real* x, Size n, double* partial) {
    SHARED_SUMS;
    double total = 0;
    for (Size i = first_index(); i < n; i += index_step()) total += (double)x[i] * x[i];
    total = block_sum(total, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// x *= min(1, limit / norm), norm^2 the sum of the blocks' sums; every block adds them up alike.
KERNEL scale_to_norm(Real* x, Size n, const double* partial, Size blocks, double limit) {
    SHARED_SUMS;
    double norm = sqrt(sum_of(partial, blocks, sums));
    if (!(norm > limit)) return;
    const Real factor = (Real)(limit / norm);
    for (Size i = first_index(); i < n; i += index_step()) x[i] *= factor;
}
