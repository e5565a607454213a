// Losses and their gradients in one pass; a warp, or a lane, takes a row. Formulas:
// nnbackend/backends/contract.py.

// Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken.
#define CLIP ((Real)1e-7)

// Sum of the weights: one block.
KERNEL sum_weights(const Real* weight, Size rows, double* out) {
    SHARED_SUMS;
    double value = sum_of(weight, rows, sums);
    if (threadIdx.x == 0) out[0] = value;
}

// What turns a sum over rows into the loss: 1 / sum of the weights for a mean.
__device__ inline double loss_scale(int average, Size rows, const double* weight_sum) {
    if (!average) return 1;
    double total = weight_sum ? *weight_sum : (double)rows;
    return total > 0 ? 1 / total : 0;
}

__device__ inline Real clip_probability(Real p) {
    return at_most(at_least(p, CLIP), (Real)1 - CLIP);
}

// A row of the loss's gradient, and the same rounded; each where there is a place for it.
struct Gradient {
    Real* number;
    Bf16* rounded;

    __device__ inline bool wanted() const { return number || rounded; }
    __device__ inline void put(Size j, Real value) const {
        if (number) number[j] = value;
        if (rounded) rounded[j] = rounded_to_bf16(value);
    }
    __device__ inline void put(Size j, Four values) const {
        if (number) *(Four*)(number + j) = values;
        if (rounded) *(FourBf16*)(rounded + j) = rounded_to_bf16s(values);
    }
};

// A loss that is a sum over outputs, for one of them.
template <int CODE>
__device__ inline Real output_loss(Real p, Real t, Real parameter, Real* derivative) {
    const Real one = 1;
    Real e = p - t;
    switch (CODE) {
        case SIGMOID_CROSS_ENTROPY: {
            Real small = exp(-fabs(p)), share = near_quotient(one, one + small);
            *derivative = (p >= 0 ? share : small * share) - t;
            return at_least(p, 0) - p * t + log1p_of_share(small);
        }
        case BINARY_CROSS_ENTROPY:
            p = clip_probability(p);
            *derivative = near_quotient(one - t, one - p) - near_quotient(t, p);
            return -(t * log(p) + (one - t) * log(one - p));
        case MEAN_ABSOLUTE_ERROR:
            *derivative = e > 0 ? one : e < 0 ? -one : e;
            return fabs(e);
        case HUBER: {
            Real near = at_most(at_least(e, -parameter), parameter);
            *derivative = near;
            return near * (e - near / 2);
        }
        case POISSON:
            p = at_least(p, CLIP);
            *derivative = one - t / p;  // p may be beyond what near_quotient is for
            return p - t * log(p);
        case MEAN_SQUARED_ERROR:
        case SUM_SQUARED_ERROR:
            *derivative = 2 * e;
            return e * e;
        default: return *derivative = not_a_number();
    }
}

// -sum of t log softmax(p) over a row, and its gradient times own; label < 0 where rows of t are.
template <int LANES>
__device__ inline double softmax_row(
    const Real* pred, const Real* target, Size label, Size outputs, double own, Gradient dpred
) {
    Real largest = pred[0], total = 0, shifted = 0, target_sum = label >= 0 ? 1 : 0;
    for (Size j = lane() % LANES; j < outputs; j += LANES) largest = larger(largest, pred[j]);
    largest = warp_largest<LANES>(largest);
    for (Size j = lane() % LANES; j < outputs; j += LANES) {
        Real z = pred[j] - largest;
        total += exp(z);
        if (label < 0) {
            target_sum += target[j];
            shifted += target[j] * z;
        }
    }
    total = warp_sum<LANES>(total);
    if (label < 0) {
        target_sum = warp_sum<LANES>(target_sum);
        shifted = warp_sum<LANES>(shifted);
    } else {
        shifted = pred[label] - largest;
    }
    if (dpred.wanted()) {
        Real factor = (Real)own, share = target_sum / total;
        for (Size j = lane() % LANES; j < outputs; j += LANES) {
            Real t = label < 0 ? target[j] : (Real)(j == label);
            dpred.put(j, (exp(pred[j] - largest) * share - t) * factor);
        }
    }
    return target_sum * log(total) - shifted;
}

// -sum of t log p over a row of probabilities, likewise.
template <int LANES>
__device__ inline double categorical_row(
    const Real* pred, const Real* target, Size label, Size outputs, double own, Gradient dpred
) {
    Real value = 0, factor = (Real)own;
    for (Size j = lane() % LANES; j < outputs; j += LANES) {
        Real p = clip_probability(pred[j]);
        Real t = label < 0 ? target[j] : (Real)(j == label);
        if (label < 0 || j == label) value -= t * log(p);
        dpred.put(j, label < 0 || j == label ? near_quotient(-t, p) * factor : 0);
    }
    return warp_sum<LANES>(value);
}

// A sum over the outputs of a row, likewise: in fours, the next of which are on their way while a lane
// works on one (two of float, as many as there are registers for); or AT_ONCE numbers at a time.
template <int CODE, int LANES>
__device__ inline Real sum_of_outputs(
    const Real* pred, const Real* target, Size outputs, Real parameter, Real factor, Gradient dpred
) {
    constexpr int AT_ONCE = 4, AHEAD = sizeof(Real) == sizeof(float) ? 2 : 1;
    Real value = 0, derivative;
    Size fours = in_fours(pred, target, dpred.number, 0, dpred.rounded) ? outputs / 4 : 0;
    Four p[AHEAD], t[AHEAD];
    auto fetch = [&](int place, Size i) {
        if (i >= fours) return;
        p[place] = ((const Four*)pred)[i];
        t[place] = ((const Four*)target)[i];
    };
    const Size first = lane() % LANES;
    for (int n = 0; n < AHEAD; n++) fetch(n, first + n * LANES);
    for (Size start = first; start < fours; start += AHEAD * LANES)
        for (int n = 0; n < AHEAD; n++) {
            const Size i = start + n * LANES;
            if (i >= fours) break;
            const Four own = p[n], wanted = t[n];
            fetch(n, i + AHEAD * LANES);
            Four d;
            for (int k = 0; k < 4; k++) {
                value += output_loss<CODE>(own.at[k], wanted.at[k], parameter, &derivative);
                d.at[k] = derivative * factor;
            }
            dpred.put(4 * i, d);
        }
    Size j = 4 * fours + first;
    for (; j + (AT_ONCE - 1) * LANES < outputs; j += AT_ONCE * LANES) {
        Real p[AT_ONCE], t[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            p[k] = pred[j + k * LANES];
            t[k] = target[j + k * LANES];
        }
        for (int k = 0; k < AT_ONCE; k++) {
            value += output_loss<CODE>(p[k], t[k], parameter, &derivative);
            dpred.put(j + k * LANES, derivative * factor);
        }
    }
    for (; j < outputs; j += LANES) {
        value += output_loss<CODE>(pred[j], target[j], parameter, &derivative);
        dpred.put(j, derivative * factor);
    }
    return value;
}

// A mean (or sum) over the outputs of a row, likewise.
template <int LANES>
__device__ inline double output_row(
    int code, const Real* pred, const Real* target, Size outputs, Real parameter, double own,
    Gradient dpred
) {
    double share = AVERAGES(code) ? 1.0 / (double)outputs : 1;
    Real factor = (Real)(own * share), value;
#define OF_OUTPUTS(name)                                                                        \
    case name:                                                                                  \
        value = sum_of_outputs<name, LANES>(pred, target, outputs, parameter, factor, dpred);   \
        break
    switch (code) {
        OF_OUTPUTS(SIGMOID_CROSS_ENTROPY);
        OF_OUTPUTS(BINARY_CROSS_ENTROPY);
        OF_OUTPUTS(MEAN_ABSOLUTE_ERROR);
        OF_OUTPUTS(HUBER);
        OF_OUTPUTS(POISSON);
        case SUM_SQUARED_ERROR:  // for each output the same
            OF_OUTPUTS(MEAN_SQUARED_ERROR);
        default: value = not_a_number();
    }
    return warp_sum<LANES>(value) * share;
}

// The loss of a row, by LANES lanes. A label that is no class makes it NaN.
template <int LANES>
__device__ inline double row_loss(
    int code, Real parameter, const Real* pred, const Real* target, bool by_label, Size label,
    Size outputs, double own, Gradient dpred
) {
    if (by_label && (label < 0 || label >= outputs)) {
        for (Size j = lane() % LANES; j < outputs; j += LANES) dpred.put(j, not_a_number());
        return not_a_number();
    }
    if (code == SOFTMAX_CROSS_ENTROPY)
        return softmax_row<LANES>(pred, target, label, outputs, own, dpred);
    if (code == CATEGORICAL_CROSS_ENTROPY)
        return categorical_row<LANES>(pred, target, label, outputs, own, dpred);
    return output_row<LANES>(code, pred, target, outputs, parameter, own, dpred);
}

// loss.of(prediction, target, label, own weight, place of the gradient, the warp's next row or null)
// for each row, and what it adds up to: see loss_rows. A mean is one over ``batch_rows``, or their
// weights.
template <typename Loss>
__device__ inline void each_row(
    Loss loss, int code, const Real* pred, const int* labels, const Real* target,
    const Real* weight, const double* weight_sum, Size rows, Size batch_rows, Size outputs,
    Real* dpred, Bf16* rounded, double* hits, double* partial
) {
    SHARED_SUMS;
    double scale = loss_scale(AVERAGES(code), batch_rows, weight_sum);
    double total = 0, right = 0;
    if (first_warp() < rows) loss.fetch(pred + first_warp() * outputs);
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        const Real* p = pred + row * outputs;
        const Real* t = target ? target + row * outputs : 0;
        const Real* next = row + warp_step() < rows ? p + warp_step() * outputs : 0;
        Gradient d = {dpred ? dpred + row * outputs : 0, rounded ? rounded + row * outputs : 0};
        Size label = labels ? labels[row] : -1;
        double w = weight ? (double)weight[row] : 1;
        double value = loss.of(p, t, label, w * scale, d, next);
        if (hits) {
            bool hit = row_argmax(p, outputs) == (labels ? label : row_argmax(t, outputs));
            if (lane() == 0 && hit) right += w;
        }
        if (lane() == 0) total += w * value;
    }
    total = block_sum(total, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
    if (!hits) return;
    right = block_sum(right, sums);
    if (threadIdx.x == 0) hits[blockIdx.x] = right;
}

// Any loss, of rows that are read when their turn comes.
struct AnyLoss {
    int code;
    Real parameter;
    bool by_label;
    Size outputs;

    __device__ inline void fetch(const Real*) {}
    __device__ inline double of(
        const Real* pred, const Real* target, Size label, double own, Gradient d, const Real*
    ) {
        return row_loss<WARP>(code, parameter, pred, target, by_label, label, outputs, own, d);
    }
};

// partial[block] = sum of w_i l_i over the block's rows, hits[block] = sum of w_i over those whose
// class is guessed right; dpred the loss's gradient, also rounded. All but partial if wanted.
KERNEL MANY_AT_ONCE loss_rows(
    int code, Real parameter, const Real* pred, const int* labels, const Real* target,
    const Real* weight, const double* weight_sum, Size rows, Size batch_rows, Size outputs,
    Real* dpred, Bf16* rounded, double* hits, double* partial
) {
    each_row(
        AnyLoss{code, parameter, labels != 0, outputs}, code, pred, labels, target, weight,
        weight_sum, rows, batch_rows, outputs, dpred, rounded, hits, partial
    );
}

// softmax_row, by lanes that keep up to KEPT numbers of the row each, which are read once, and have
// those of the warp's next row on their way meanwhile; in fours where rows can be read so.
template <int KEPT, bool IN_FOURS>
struct KeptSoftmax {
    static const int ROUNDS = KEPT / 4;
    bool by_label;
    int outputs;
    Four ahead[ROUNDS];

    // The place of a round's k-th number.
    __device__ inline static int place(int round, int k) {
        return IN_FOURS ? 4 * (lane() + round * WARP) + k : lane() + (4 * round + k) * WARP;
    }
    // What lies beyond the row adds nothing to any sum.
    __device__ inline void fetch(const Real* pred) {
        for (int round = 0; round < ROUNDS; round++)
            if (IN_FOURS && place(round, 0) < outputs)
                ahead[round] = ((const Four*)pred)[lane() + round * WARP];
            else
                for (int k = 0; k < 4; k++) {
                    const int j = place(round, k);
                    ahead[round].at[k] = j < outputs ? pred[j] : minus_infinity();
                }
    }
    __device__ inline double of(
        const Real* pred, const Real* target, Size label, double own, Gradient d, const Real* next
    ) {
        Four kept[ROUNDS];
        for (int round = 0; round < ROUNDS; round++) kept[round] = ahead[round];
        if (next) fetch(next);
        if (by_label && (label < 0 || label >= outputs))
            return row_loss<WARP>(
                SOFTMAX_CROSS_ENTROPY, 0, pred, target, true, label, outputs, own, d
            );
        return of_row(kept, pred, target, (int)label, own, d);
    }
    __device__ inline double of_row(
        Four* kept, const Real* pred, const Real* target, int label, double own, Gradient d
    ) const {
        Real largest = minus_infinity(), total = 0, shifted = 0, target_sum = 1;
        // a NaN that is passed over here is one in the sum
        for (int round = 0; round < ROUNDS; round++)
            for (int k = 0; k < 4; k++) largest = fmax(largest, kept[round].at[k]);
        largest = warp_largest(largest);
        if (label < 0) {
            target_sum = 0;
            for (int round = 0; round < ROUNDS; round++)
                for (int k = 0; k < 4; k++) {
                    const int j = place(round, k);
                    if (j >= outputs) break;
                    target_sum += target[j];
                    shifted += target[j] * (kept[round].at[k] - largest);
                }
            target_sum = warp_sum(target_sum);
            shifted = warp_sum(shifted);
        } else {
            shifted = pred[label] - largest;
        }
        for (int round = 0; round < ROUNDS; round++)
            for (int k = 0; k < 4; k++) {
                kept[round].at[k] = exp(kept[round].at[k] - largest);
                total += kept[round].at[k];
            }
        total = warp_sum(total);
        const Real factor = (Real)own, share = target_sum / total * factor;
        for (int round = 0; round < ROUNDS && d.wanted(); round++) {
            if (place(round, 0) >= outputs) break;
            Four values;
            for (int k = 0; k < 4; k++) {
                const int j = place(round, k);
                Real value = kept[round].at[k] * share;
                if (label < 0 && j < outputs) value -= target[j] * factor;
                values.at[k] = j == label ? value - factor : value;
            }
            if (IN_FOURS)
                d.put(place(round, 0), values);
            else
                for (int k = 0; k < 4 && place(round, k) < outputs; k++)
                    d.put(place(round, k), values.at[k]);
        }
        return target_sum * log(total) - shifted;
    }
};

// loss_rows for softmax_cross_entropy and rows of WARP to 32 WARP outputs: a kernel of its own, since
// what a thread keeps would leave room for fewer threads in the other one.
KERNEL KEEPS_A_LOT softmax_loss_rows(
    const Real* pred, const int* labels, const Real* target, const Real* weight,
    const double* weight_sum, Size rows, Size batch_rows, Size outputs, Real* dpred, Bf16* rounded,
    double* hits, double* partial
) {
    // doubles fill the lines of memory one by one as well
    constexpr bool FLOATS = sizeof(Real) == sizeof(float);
    const bool fours = FLOATS && outputs % 4 == 0 && in_fours(pred, dpred, 0, 0, rounded);
#define UP_TO(kept, in_fours)                                                                    \
    if (outputs <= kept * WARP && fours == in_fours) {                                           \
        each_row(                                                                                \
            KeptSoftmax<kept, in_fours>{labels != 0, (int)outputs, {}}, SOFTMAX_CROSS_ENTROPY,   \
            pred, labels, target, weight, weight_sum, rows, batch_rows, outputs, dpred, rounded, \
            hits, partial                                                                        \
        );                                                                                       \
        return;                                                                                  \
    }
    UP_TO(8, false)
    UP_TO(32, false)
    if constexpr (FLOATS) {
        UP_TO(8, true)
        UP_TO(32, true)
    }
}

// loss = scale times the sum of the blocks' sums: one block.
KERNEL finish_loss(
    int average, const double* partial, Size n, const double* weight_sum, Size rows, double* loss
) {
    SHARED_SUMS;
    double value = sum_of(partial, n, sums);
    if (threadIdx.x == 0)
        *loss = value * loss_scale(average, rows, weight_sum);
}
