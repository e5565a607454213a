// Rows of a data set, and what a captured training step begins and ends with.
//
// A captured step runs again and again with the same arguments. What changes from one run of steps
// to the next lies in an array ``run`` of addresses and sizes, whose places are named by
// _cuda_kernels.RUN and which begin_run fills; what changes from step to step lies in the StepState
// that begin_step fills.

// out[i] = x[idx[i]] for rows of 4-byte words.
KERNEL take_rows(const Word* x, const Size* idx, Size rows, Size words, Word* out) {
    for (Size i = first_index(); i < rows * words; i += index_step()) {
        Size row = (rows * words) >> 32 ? i / words : (Size)((Word)i / (Word)words);
        out[i] = x[idx[row] * words + (i - row * words)];
    }
}

// What a run of steps is given; one thread. A launch keeps its arguments, so that nobody waits for
// them to arrive.
KERNEL begin_run(
    Size x, Size target, Size weight, Size order, Size rates, Size trace, Size loss,
    Size first_step, Size rows, Size batch, double rate, Size* run, StepState* state
) {
    if (threadIdx.x) return;
    run[RUN_X] = x;
    run[RUN_TARGET] = target;
    run[RUN_WEIGHT] = weight;
    run[RUN_ORDER] = order;
    run[RUN_RATES] = rates;
    run[RUN_TRACE] = trace;
    run[RUN_LOSS] = loss;
    run[RUN_FIRST_STEP] = first_step;
    run[RUN_INDEX] = 0;
    run[RUN_ROWS] = rows;
    run[RUN_BATCH] = batch;
    ((double*)run)[RUN_RATE] = rate;
    state->stopped = 0;
}

// One place of a row, copied as a word or rounded.
__device__ inline void put_word(Word word, Size i, Word* out, Half* rounded) {
    Bits bits;
    bits.word = word;
    if (out) out[i] = word;
    if (rounded) rounded[i] = rounded_to_half((Real)bits.number);
}

// The next step of the run: its rate and Adam's corrections, which kernels/cpu_batch.py and
// nnbackend/backends/_updates.py work out in the same way, and the batch's rows of x, of the targets
// (rows or labels) and of the weights, in 4-byte words; x also rounded.
KERNEL begin_step(
    const Size* run, int adam, double beta1, double beta2, double eps, double decay,
    double* penalty, Size rows, Size x_words, Size target_words, Size weight_words, Word* x,
    Half* rounded, Word* target, Word* weight, StepState* state
) {
    Size index = run[RUN_INDEX], all = run[RUN_ROWS], batch = run[RUN_BATCH];
    Size per_epoch = (all + batch - 1) / batch;
    Size start = index % per_epoch * batch + (run[RUN_ORDER] ? index / per_epoch * all : 0);
    if (first_index() == 0) {
        const double* rates = (const double*)run[RUN_RATES];
        double rate = rates ? rates[index] : ((const double*)run)[RUN_RATE];
        state->index = index;
        state->step = (Wide)(run[RUN_FIRST_STEP] + index);
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
    const Size* order = (const Size*)run[RUN_ORDER];
    Size words = x_words + target_words + weight_words;
    for (Size i = first_index(); i < rows * words; i += index_step()) {
        Size row = i / words, j = i - row * words, place = start + row;
        Size from = order ? order[place] : place;
        if (j < x_words) {
            put_word(((const Word*)run[RUN_X])[from * x_words + j], row * x_words + j, x, rounded);
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

// The step's row of the trace: loss, no penalty yet, weights, statistics, of which the hits are
// summed here, if there are any; the loss itself, if it is wanted. The run moves on to its next
// step. One block.
KERNEL finish_loss_of_step(
    Size* run, int average, const double* partial, const double* hits, Size blocks,
    const double* weight_sum, Size rows, Size hits_place, double* statistics, Size n,
    StepState* state
) {
    SHARED_SUMS;
    double value = sum_of(partial, blocks, sums);
    if (hits) {
        double right = sum_of(hits, blocks, sums);
        if (threadIdx.x == 0) statistics[hits_place] = right;
        __syncthreads();
    }
    double* trace = (double*)run[RUN_TRACE] + state->index * (3 + n);
    if (run[RUN_TRACE])
        for (Size i = threadIdx.x; i < n; i += blockDim.x) trace[3 + i] = statistics[i];
    if (threadIdx.x) return;
    if (run[RUN_TRACE]) {
        trace[0] = value;
        trace[1] = 0;
        trace[2] = weight_sum ? weight_sum[0] : (double)rows;
    }
    if (run[RUN_LOSS]) *(double*)run[RUN_LOSS] = value * loss_scale(average, rows, weight_sum);
    if (!(value - value == 0)) state->stopped = 1;
    run[RUN_INDEX] = state->index + 1;
}

// The penalty's places in that row and in the loss. One thread.
KERNEL finish_penalty_of_step(
    const Size* run, const StepState* state, const double* penalty, Size n
) {
    if (threadIdx.x) return;
    if (run[RUN_TRACE]) ((double*)run[RUN_TRACE])[state->index * (3 + n) + 1] = penalty[0];
    if (run[RUN_LOSS]) *(double*)run[RUN_LOSS] += penalty[0];
}
