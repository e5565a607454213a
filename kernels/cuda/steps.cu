// Rows of a data set, and what a captured training step begins and ends with.
//
// A captured step runs again and again with the same arguments. What changes from one run of steps
// to the next lies in an array ``run`` of addresses and sizes, whose places are named by
// backends/cuda/kernels.py: RUN and which begin_run fills; what changes from step to step lies in
// the StepState that begin_step fills.

// The row at a place of a run's order of rows; without one they are in their own order.
__device__ inline Size row_at(const Size* order, Size place) { return order ? order[place] : place; }

// out[i] = x[idx[i]] for rows of 4-byte words.
KERNEL take_rows(const Word* x, const Size* idx, Size rows, Size words, Word* out) {
    for (Size i = first_index(); i < rows * words; i += index_step()) {
        Size row = quotient_of(i, words);
        out[i] = x[idx[row] * words + (i - row * words)];
    }
}

// What a run of steps is given; one thread. A launch keeps its arguments, so that nobody waits for
// them to arrive.
KERNEL begin_run(
    Size x, Size target, Size weight, Size order, Size rates, Size trace, Size loss,
    Size first_step, Size rows, Size batch, Size first_row, double rate, Size* run,
    StepState* state
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
    state->first_row = first_row;
    state->stopped = 0;
    state->guarded = !trace;
}

// Sixteen bytes, which memory delivers in one go where they lie on whole sixteens.
struct alignas(16) Quad {
    Word at[4];
};

// A warp copies a row of words.
__device__ inline void copy_row(const Word* from, Size words, Word* to) {
    Size quads = ((Wide)from | (Wide)to) % sizeof(Quad) ? 0 : words / 4;
    for (Size j = lane(); j < quads; j += WARP) ((Quad*)to)[j] = ((const Quad*)from)[j];
    for (Size j = 4 * quads + lane(); j < words; j += WARP) to[j] = from[j];
}

// A warp rounds a row of numbers.
__device__ inline void round_row(const Real* from, Size width, Bf16* to) {
    Size fours = in_fours(from, 0, 0, 0, to) ? width / 4 : 0;
    for (Size j = lane(); j < fours; j += WARP)
        ((FourBf16*)to)[j] = rounded_to_bf16s(((const Four*)from)[j]);
    for (Size j = 4 * fours + lane(); j < width; j += WARP) to[j] = rounded_to_bf16(from[j]);
}

// The next step of the run: its number and rate, and the batch's rows of x, of the targets (rows or
// labels) and of the weights, in 4-byte words; x also, or only, rounded. A warp takes a row.
KERNEL begin_step(
    const Size* run, double* penalty, Size rows, Size x_words, Size target_words,
    Size weight_words, Word* x, Bf16* rounded, Word* target, Word* weight, StepState* state
) {
    Size index = run[RUN_INDEX], all = run[RUN_ROWS], batch = run[RUN_BATCH];
    Size per_epoch = (all + batch - 1) / batch;
    const Size* order = (const Size*)run[RUN_ORDER];
    Size start = index % per_epoch * batch + (order ? index / per_epoch * all : 0);
    const Word* all_x = (const Word*)run[RUN_X];
    const Word* all_targets = (const Word*)run[RUN_TARGET];
    const Word* all_weights = (const Word*)run[RUN_WEIGHT];
    if (first_index() == 0) {
        const double* rates = (const double*)run[RUN_RATES];
        state->index = index;
        state->step = (Wide)(run[RUN_FIRST_STEP] + index);
        state->rate = rates ? rates[index] : ((const double*)run)[RUN_RATE];
        penalty[0] = 0;
    }
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        Size from = row_at(order, start + row);
        const Word* own_x = all_x + from * x_words;
        if (x) copy_row(own_x, x_words, x + row * x_words);
        if (rounded) round_row((const Real*)own_x, x_words, rounded + row * x_words);
        copy_row(all_targets + from * target_words, target_words, target + row * target_words);
        if (weight)
            copy_row(all_weights + from * weight_words, weight_words, weight + row * weight_words);
    }
}

// What the update reads: Adam's corrections, which kernels/cpu/ops/updates.py and
// nnbackend/backends/types.py work out in the same way, and what a decay leaves.
__device__ inline void correct_rate(
    StepState* state, int adam, double beta1, double beta2, double eps, double decay, double eps_hat
) {
    state->corrected_rate = state->rate;
    state->corrected_eps = eps;
    state->keep = 1 - state->rate * decay;
    if (!adam) return;
    double count = (double)(state->step + 1), root = sqrt(1 - pow(beta2, count));
    state->corrected_rate = state->rate * root / (1 - pow(beta1, count));
    state->corrected_eps = eps * root + eps_hat;
}

// The step's row of the trace: loss, no penalty yet, weights, statistics, of which the hits are
// summed here, if there are any; the loss itself, if it is wanted; what the update reads. The run
// moves on to its next step. One block, beside the backward pass.
KERNEL finish_loss_of_step(
    Size* run, int average, const double* partial, const double* hits, Size blocks,
    const double* weight_sum, Size rows, Size hits_place, double* statistics, Size n, int adam,
    double beta1, double beta2, double eps, double decay, double eps_hat, StepState* state
) {
    SHARED_SUMS;
    double value = sum_of(partial, blocks, sums);
    if (hits) {
        double right = sum_of(hits, blocks, sums);
        if (threadIdx.x == 0) statistics[hits_place] = right;
        __syncthreads();
    }
    double* trace = (double*)run[RUN_TRACE] + state->index * (TRACE_SUMS + n);
    if (run[RUN_TRACE])
        for (Size i = threadIdx.x; i < n; i += blockDim.x) trace[TRACE_SUMS + i] = statistics[i];
    if (threadIdx.x) return;
    if (run[RUN_TRACE]) {
        trace[TRACE_LOSS] = value;
        trace[TRACE_PENALTY] = 0;
        trace[TRACE_WEIGHT] = weight_sum ? weight_sum[0] : (double)rows;
    }
    if (run[RUN_LOSS]) *(double*)run[RUN_LOSS] = value * loss_scale(average, rows, weight_sum);
    if (!(value - value == 0)) state->stopped = 1;
    correct_rate(state, adam, beta1, beta2, eps, decay, eps_hat);
    run[RUN_INDEX] = state->index + 1;
}

// The penalty's places in that row and in the loss. One thread.
KERNEL finish_penalty_of_step(
    const Size* run, const StepState* state, const double* penalty, Size n
) {
    if (threadIdx.x) return;
    double* trace = (double*)run[RUN_TRACE];
    if (trace) trace[state->index * (TRACE_SUMS + n) + TRACE_PENALTY] = penalty[0];
    if (run[RUN_LOSS]) *(double*)run[RUN_LOSS] += penalty[0];
}
