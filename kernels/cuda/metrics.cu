// The sums behind metrics, float64.

// partial[block] = sum of w_i [row i is right]: within the ``top`` largest, or, by threshold, the
// share of outputs that agree.
KERNEL correct_rows(
    const Real* pred, const int* labels, const Real* target, const Real* weight, Size rows,
    Size outputs, int by_threshold, double threshold, Size top, double* partial
) {
    SHARED_SUMS;
    double total = 0;
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        const Real* p = pred + row * outputs;
        const Real* t = target ? target + row * outputs : 0;
        double hits;
        if (by_threshold) {
            int agreed = 0;
            for (Size j = lane(); j < outputs; j += WARP)
                agreed += (p[j] > threshold) == (t[j] > (Real)0.5);
            hits = warp_sum(agreed) / (double)outputs;
        } else {
            Size label = labels ? labels[row] : row_argmax(t, outputs);
            if (label < 0 || label >= outputs) {
                hits = 0;  // no class
            } else if (top == 1) {
                hits = row_argmax(p, outputs) == label;
            } else {
                int before = 0;
                for (Size j = lane(); j < outputs; j += WARP)
                    before += p[j] > p[label] || (p[j] == p[label] && j < label);
                hits = warp_sum(before) < top;
            }
        }
        if (lane() == 0) total += (weight ? (double)weight[row] : 1) * hits;
    }
    total = block_sum(total, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// predicted and actual class of each row.
KERNEL row_classes(
    const Real* pred, const int* labels, const Real* target, Size rows, Size outputs,
    int* predicted, int* actual
) {
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        Size guess = row_argmax(pred + row * outputs, outputs);
        Size label = labels ? labels[row] : row_argmax(target + row * outputs, outputs);
        if (lane() == 0) {
            predicted[row] = (int)guess;
            actual[row] = (int)label;
        }
    }
}

// out (3, C): weighted hits, predictions and occurrences; a block for each class. By threshold
// each output is a class of its own, otherwise classes are given.
KERNEL class_counts(
    const int* predicted, const int* actual, const Real* pred, const Real* target,
    const Real* weight, double threshold, Size rows, Size classes, double* out
) {
    SHARED_SUMS;
    Size c = blockIdx.x;
    double hits = 0, guesses = 0, occurrences = 0;
    for (Size row = threadIdx.x; row < rows; row += blockDim.x) {
        bool guess, label;
        if (predicted) {
            guess = predicted[row] == c;
            label = actual[row] == c;
        } else {
            guess = pred[row * classes + c] > threshold;
            label = target[row * classes + c] > (Real)0.5;
        }
        double w = weight ? (double)weight[row] : 1;
        hits += guess && label ? w : 0;
        guesses += guess ? w : 0;
        occurrences += label ? w : 0;
    }
    hits = block_sum(hits, sums);
    guesses = block_sum(guesses, sums);
    occurrences = block_sum(occurrences, sums);
    if (threadIdx.x == 0) {
        out[c] = hits;
        out[classes + c] = guesses;
        out[2 * classes + c] = occurrences;
    }
}

// out (4, O): sums of w |e|, w e^2, w t, w t^2; a block for each output.
KERNEL regression_sums(
    const Real* pred, const Real* target, const Real* weight, Size rows, Size outputs, double* out
) {
    SHARED_SUMS;
    Size j = blockIdx.x;
    double values[4] = {0, 0, 0, 0};
    for (Size row = threadIdx.x; row < rows; row += blockDim.x) {
        double t = target[row * outputs + j], e = pred[row * outputs + j] - t;
        double w = weight ? (double)weight[row] : 1;
        values[0] += w * fabs(e);
        values[1] += w * e * e;
        values[2] += w * t;
        values[3] += w * t * t;
    }
    for (int k = 0; k < 4; k++) {
        double total = block_sum(values[k], sums);
        if (threadIdx.x == 0) out[k * outputs + j] = total;
    }
}
