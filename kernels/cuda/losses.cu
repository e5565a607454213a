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
            Real small = exp(-fabs(p)), share = one / (one + small);
            *derivative = (p >= 0 ? share : small * share) - t;
            return at_least(p, 0) - p * t + log1p(small);
        }
        case BINARY_CROSS_ENTROPY:
            p = clip_probability(p);
            *derivative = (one - t) / (one - p) - t / p;
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
            *derivative = one - t / p;
            return p - t * log(p);
        default:  // squared errors
            *derivative = 2 * e;
            return e * e;
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
        dpred.put(j, label < 0 || j == label ? -t / p * factor : 0);
    }
    return warp_sum<LANES>(value);
}

// A sum over the outputs of a row, likewise; AT_ONCE rounds of lanes are on their way at a time.
template <int CODE, int LANES>
__device__ inline Real sum_of_outputs(
    const Real* pred, const Real* target, Size outputs, Real parameter, Real factor, Gradient dpred
) {
    const int AT_ONCE = 4;
    Real value = 0, derivative;
    Size fours = in_fours(pred, target, dpred.number, 0, dpred.rounded) ? outputs / 4 : 0;
    Size i = lane() % LANES;
    for (; i + LANES < fours; i += 2 * LANES) {
        Four p[2] = {((const Four*)pred)[i], ((const Four*)pred)[i + LANES]};
        Four t[2] = {((const Four*)target)[i], ((const Four*)target)[i + LANES]};
        for (int n = 0; n < 2; n++) {
            Four d;
            for (int k = 0; k < 4; k++) {
                value += output_loss<CODE>(p[n].at[k], t[n].at[k], parameter, &derivative);
                d.at[k] = derivative * factor;
            }
            dpred.put(4 * (i + n * LANES), d);
        }
    }
    Size j = 4 * fours + lane() % LANES;
    for (; i < fours; i += LANES)
        for (int k = 0; k < 4; k++) {
            value += output_loss<CODE>(pred[4 * i + k], target[4 * i + k], parameter, &derivative);
            dpred.put(4 * i + k, derivative * factor);
        }
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
    double share = code == SUM_SQUARED_ERROR ? 1 : 1.0 / (double)outputs;
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
        default:
            value = sum_of_outputs<MEAN_SQUARED_ERROR, LANES>(
                pred, target, outputs, parameter, factor, dpred
            );
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

// row_loss(row, prediction, target, label, own weight, place of the gradient) for each row, and what
// it adds up to: see loss_rows.
template <typename RowLoss>
__device__ inline void each_row(
    int code, const Real* pred, const int* labels, const Real* target, const Real* weight,
    const double* weight_sum, Size rows, Size outputs, Real* dpred, Bf16* rounded, double* hits,
    double* partial, RowLoss row_loss
) {
    SHARED_SUMS;
    double scale = loss_scale(code != SUM_SQUARED_ERROR, rows, weight_sum), total = 0, right = 0;
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        const Real* p = pred + row * outputs;
        const Real* t = target ? target + row * outputs : 0;
        Gradient d = {dpred ? dpred + row * outputs : 0, rounded ? rounded + row * outputs : 0};
        Size label = labels ? labels[row] : -1;
        double w = weight ? (double)weight[row] : 1;
        double value = row_loss(p, t, label, w * scale, d);
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

// partial[block] = sum of w_i l_i over the block's rows, hits[block] = sum of w_i over those whose
// class is guessed right; dpred the loss's gradient, also rounded. All but partial if wanted.
KERNEL MANY_AT_ONCE loss_rows(
    int code, Real parameter, const Real* pred, const int* labels, const Real* target,
    const Real* weight, const double* weight_sum, Size rows, Size outputs, Real* dpred,
    Bf16* rounded, double* hits, double* partial
) {
    each_row(
        code, pred, labels, target, weight, weight_sum, rows, outputs, dpred, rounded, hits, partial,
        [=](const Real* p, const Real* t, Size label, double own, Gradient d) {
            return row_loss<WARP>(code, parameter, p, t, labels, label, outputs, own, d);
        }
    );
}

// softmax_row for a warp whose lanes keep up to KEPT numbers of the row each, which are read once.
template <int KEPT>
__device__ inline double softmax_row_kept(
    const Real* pred, const Real* target, int label, int outputs, double own, Gradient dpred
) {
    Real kept[KEPT], largest = pred[0], total = 0, shifted = 0, target_sum = 1;
    for (int k = 0; k < KEPT; k++) {
        const int j = lane() + k * WARP;
        kept[k] = j < outputs ? pred[j] : pred[0];
    }
    // a NaN that is passed over here is one in the sum
    for (int k = 0; k < KEPT; k++) largest = kept[k] > largest ? kept[k] : largest;
    largest = warp_largest(largest);
    if (label < 0) {
        target_sum = 0;
        for (int k = 0; k < KEPT; k++) {
            const int j = lane() + k * WARP;
            if (j >= outputs) break;
            target_sum += target[j];
            shifted += target[j] * (kept[k] - largest);
        }
        target_sum = warp_sum(target_sum);
        shifted = warp_sum(shifted);
    } else {
        shifted = pred[label] - largest;
    }
    for (int k = 0; k < KEPT; k++) {
        kept[k] = exp(kept[k] - largest);
        total += lane() + k * WARP < outputs ? kept[k] : 0;
    }
    total = warp_sum(total);
    const Real factor = (Real)own, share = target_sum / total * factor;
    for (int k = 0; k < KEPT && dpred.wanted(); k++) {
        const int j = lane() + k * WARP;
        if (j >= outputs) break;
        Real value = kept[k] * share;
        if (label < 0) value -= target[j] * factor;
        dpred.put(j, j == label ? value - factor : value);
    }
    return target_sum * log(total) - shifted;
}

// loss_rows for softmax_cross_entropy and rows of WARP to 32 WARP outputs: a kernel of its own, since
// what a thread keeps would leave room for fewer threads in the other one.
KERNEL MANY_AT_ONCE softmax_loss_rows(
    const Real* pred, const int* labels, const Real* target, const Real* weight,
    const double* weight_sum, Size rows, Size outputs, Real* dpred, Bf16* rounded, double* hits,
    double* partial
) {
    each_row(
        SOFTMAX_CROSS_ENTROPY, pred, labels, target, weight, weight_sum, rows, outputs, dpred,
        rounded, hits, partial,
        [=](const Real* p, const Real* t, Size label, double own, Gradient d) {
            if (labels && (label < 0 || label >= outputs))
                return row_loss<WARP>(
                    SOFTMAX_CROSS_ENTROPY, 0, p, t, labels, label, outputs, own, d
                );
            const int row_label = (int)label, width = (int)outputs;
            if (width <= 8 * WARP) return softmax_row_kept<8>(p, t, row_label, width, own, d);
            return softmax_row_kept<32>(p, t, row_label, width, own, d);
        }
    );
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
