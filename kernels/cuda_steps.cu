// Rows of a data set, and what a captured training step begins and ends with.
//
// A captured step runs again and again with the same arguments. What changes from one run of steps
// to the next lies in an array ``run`` of addresses and sizes, whose places are named by
// _cuda_kernels.RUN; what changes from step to step lies in the StepState that begin_step fills.

// out[i] = x[idx[i]] for rows of 4-byte words.
KERNEL take_rows(const Word* x, const Size* idx, Size rows, Size words, Word* out) {
    for (Size i = first_index(); i < rows * words; i += index_step()) {
        Size row = (rows * words) >> 32 ? i / words : (Size)((Word)i / (Word)words);
        out[i] = x[idx[row] * words + (i - row * words)];
    }
}

// The next step of the run: its place in the data, its rate, and Adam's corrections, which
// kernels/cpu_batch.py and nnbackend/backends/_updates.py work out in the same way. One thread.
KERNEL begin_step(
    Size* run, int adam, double beta1, double beta2, double eps, double decay, double* penalty,
    StepState* state
) {
    if (threadIdx.x) return;
    Size index = run[RUN_INDEX], rows = run[RUN_ROWS], batch = run[RUN_BATCH];
    Size per_epoch = (rows + batch - 1) / batch;
    run[RUN_INDEX] = index + 1;
    state->index = index;
    state->start = index % per_epoch * batch + (run[RUN_ORDER] ? index / per_epoch * rows : 0);
    state->step = (Wide)(run[RUN_FIRST_STEP] + index);
    double rate = ((const double*)run[RUN_RATES])[index];
    state->rate = state->corrected_rate = rate;
    state->corrected_eps = eps;
    state->keep = 1 - rate * decay;
    if (adam) {
        double count = (double)(state->step + 1), root = sqrt(1 - pow(beta2, count));
        state->corrected_rate = rate * root / (1 - pow(beta1, count));
        state->corrected_eps = eps * root;
    }
    penalty[0] = 0;
}

// The batch's rows of x, of the targets (rows or labels) and of the weights, in 4-byte words.
KERNEL gather_batch(
    const Size* run, const StepState* state, Size rows, Size x_words, Size target_words,
    Size weight_words, Word* x, Word* target, Word* weight
) {
    const Size* order = (const Size*)run[RUN_ORDER];
    Size words = x_words + target_words + weight_words;
    for (Size i = first_index(); i < rows * words; i += index_step()) {
        Size row = i / words, j = i - row * words, place = state->start + row;
        Size from = order ? order[place] : place;
        if (j < x_words) {
            x[row * x_words + j] = ((const Word*)run[RUN_X])[from * x_words + j];
            continue;
        }
        j -= x_words;
        if (j < target_words) {
            target[row * target_words + j] = ((const Word*)run[RUN_TARGET])[from * target_words + j];
            continue;
        }
        j -= target_words;
        weight[row * weight_words + j] = ((const Word*)run[RUN_WEIGHT])[from * weight_words + j];
    }
}

// The step's row of the trace: loss, no penalty yet, weights, statistics. One block.
KERNEL finish_loss_of_step(
    const Size* run, const StepState* state, const double* partial, Size blocks,
    const double* weight_sum, Size rows, const double* statistics, Size n
) {
    SHARED_SUMS;
    double* trace = (double*)run[RUN_TRACE] + state->index * (3 + n);
    double value = sum_of(partial, blocks, sums);
    if (threadIdx.x == 0) {
        trace[0] = value;
        trace[1] = 0;
        trace[2] = weight_sum ? weight_sum[0] : (double)rows;
    }
    for (Size i = threadIdx.x; i < n; i += blockDim.x) trace[3 + i] = statistics[i];
}

// The penalty's place in that row. One thread.
KERNEL finish_penalty_of_step(
    const Size* run, const StepState* state, const double* penalty, Size n
) {
    if (threadIdx.x == 0) ((double*)run[RUN_TRACE])[state->index * (3 + n) + 1] = penalty[0];
}
