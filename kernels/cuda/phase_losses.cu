// Tasks of a step in phases: batches and their losses. See phases.cu.

// Some rows of the batch ahead: of x, four words at a time where they lie so, of the targets (rows or
// labels) and of the weights.
__device__ NOT_INLINE void fetch_rows(Task task, int unit) {
    if (step()->is_last) return;
    const int place = 1 - turn_of_step();
    const Size *run = run_of_steps(), *order = (const Size*)run[RUN_ORDER];
    const Batch& batch = step()->ahead;
    const int most = task.number(TASK_ROWS), each = task.number(TASK_INNER), first = unit * each;
    const int words = task.number(TASK_COLUMNS) * (int)(sizeof(Real) / sizeof(Word));
    const int target_words = task.number(TASK_TARGET_WORDS);
    const Size stride = task.fields[TASK_OUT_STRIDE] * (Size)(sizeof(Real) / sizeof(Word));
    const Word *x = (const Word*)run[RUN_X], *targets = (const Word*)run[RUN_TARGET];
    Word* to = (Word*)task.fields[TASK_OUT] + place * most * stride;
    const int count = batch.rows - first < each ? batch.rows - first : each;
    const int quad = words % 4 || (Wide)x % sizeof(Quad) ? 1 : 4, wide = words / quad;
    UNROLLED_BY_4 for (int e = threadIdx.x; e < count * wide; e += THREADS) {
        const int i = e / wide, j = (e - i * wide) * quad, row = first + i;
        const Size from = row_at(order, batch.start + row);
        if (quad == 4)
            *(Quad*)(to + row * stride + j) = *(const Quad*)(x + from * words + j);
        else
            to[row * stride + j] = x[from * words + j];
    }
    Word* own = (Word*)task.fields[TASK_TARGETS] + (Size)place * most * target_words;
    for (int e = threadIdx.x; e < count * target_words; e += THREADS) {
        const int i = e / target_words, row = first + i;
        const Size from = row_at(order, batch.start + row);
        own[row * target_words + e - i * target_words] =
            targets[from * target_words + e - i * target_words];
    }
    if (!run[RUN_WEIGHT]) return;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const Size from = row_at(order, batch.start + first + i);
        task.numbers(TASK_ROW_WEIGHTS)[place * most + first + i] =
            ((const Real*)run[RUN_WEIGHT])[from];
    }
}

// The weights of the batch's rows, if they have any.
__device__ inline const Real* row_weights(Task task) {
    if (!run_of_steps()[RUN_WEIGHT]) return 0;
    return task.numbers(TASK_ROW_WEIGHTS) + turn_of_step() * task.fields[TASK_ROWS];
}

__device__ inline double weight_sum_of(const Real* weights, int rows) {
    return weights ? sum_of(weights, (Size)rows, warp_sums()) : rows;
}

// The losses of ``count`` rows, LOSS_LANES lanes each, and whether their class is guessed right, added
// up; their gradient before the last layer's activation. Row 0 of ``outputs``, and of what the slope is
// found from, is row ``top`` of the batch.
__device__ NOT_INLINE void lose_rows(
    Task task, int unit, int top, int count, const Real* outputs, const Real* saved, int stride
) {
    const int width = task.number(TASK_COLUMNS), code = task.number(TASK_ACTIVATION);
    const int rows = step()->batch.rows, target_words = task.number(TASK_TARGET_WORDS);
    const bool by_label = task.number(TASK_BY_LABEL), counts_hits = task.number(TASK_HITS);
    const int turn = turn_of_step() * task.number(TASK_ROWS), part = threadIdx.x % LOSS_LANES;
    const Real* weights = row_weights(task);
    const double weight_sum = weight_sum_of(weights, rows);
    const double scale = loss_scale(task.number(TASK_AVERAGES), rows, &weight_sum);
    double total = 0, right = 0;
    if (top + count > rows) count = rows - top;
    // all lanes of a warp take part in all of its shuffles: those without a row take the first one
    const int all = (count + WARP / LOSS_LANES - 1) / (WARP / LOSS_LANES) * (WARP / LOSS_LANES);
    for (int i = threadIdx.x / LOSS_LANES; i < all; i += THREADS / LOSS_LANES) {
        const bool there = i < count;
        const int own = there ? i : 0, row = top + own;
        const Word* target = (const Word*)task.fields[TASK_TARGETS] + (turn + row) * target_words;
        const Size label = by_label ? *(const int*)target : -1;
        // a label that is no class makes the loss NaN
        const bool known = !by_label || (label >= 0 && label < width);
        const Real *t = by_label ? 0 : (const Real*)target, *p = outputs + own * stride;
        const double w = weights ? (double)weights[row] : 1;
        Real* dz = task.numbers(TASK_DZ) + row * task.fields[TASK_DZ_STRIDE];
        double value = row_loss<LOSS_LANES>(
            step()->loss, step()->loss_parameter, p, t, by_label, known ? label : 0, width, w * scale,
            Gradient{there ? dz : 0, 0}
        );
        bool hit = false;
        if (counts_hits)
            hit = row_argmax<LOSS_LANES>(p, width) ==
                  (by_label ? label : row_argmax<LOSS_LANES>(t, width));
        if (!known) value = not_a_number();
        if (there && part == 0) {
            total += w * value;
            right += hit ? w : 0;
        }
        __syncwarp();  // a lane changes what others wrote
        if (!there || (known && !code)) continue;
        for (int j = part; j < width; j += LOSS_LANES)
            dz[j] = known ? times_slope(dz[j], code, saved[own * stride + j], task.parameter())
                          : not_a_number();
    }
    total = block_sum(total, warp_sums());
    right = block_sum(right, warp_sums());
    double* sums = (double*)task.fields[TASK_SUMS] + 2 * unit;
    if (threadIdx.x) return;
    sums[0] = total;
    sums[1] = right;
}

// Outputs of the last layer, all of some rows, and their losses.
template <int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE>
__device__ NOT_INLINE void do_outputs(Task task, int unit) {
    const int columns = task.number(TASK_COLUMNS), rows = step()->batch.rows, top = unit * ROWS;
    const int turn = turn_of_step() * task.number(TASK_A_TURN);
    const Operand a = {task.numbers(TASK_A) + turn, task.number(TASK_A_STRIDE), rows};
    const Operand b = {task.numbers(TASK_B), task.number(TASK_B_STRIDE), columns};
    const int code = task.number(TASK_ACTIVATION);
    const Real* bias = task.numbers(TASK_BIAS);
    static_assert(2 * ROWS * COLUMNS * sizeof(Real) <= TILE_BYTES, "room for outputs");
    // in the place of sums, of which a thread has read those of its own elements
    Real *outputs = tile_memory(), *inputs = outputs + ROWS * COLUMNS;
    auto begin = [&] {
        const int tid = threadIdx.x, words = task.number(TASK_TARGET_WORDS);
        if (bias && tid < columns) come_near(bias + tid);
        if (tid < ROWS && top + tid < rows)  // its targets, or their beginning
            come_near(
                (const Word*)task.fields[TASK_TARGETS] +
                (turn_of_step() * task.number(TASK_ROWS) + top + tid) * words
            );
    };
    auto put = [&](int row, int column, Real value) {
        if (row >= rows || column >= columns) return;
        if (bias) value += bias[column];
        const int place = (row - top) * COLUMNS + column;
        inputs[place] = value;
        outputs[place] = activated(code, value, task.parameter());
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, true, false>(
        a, b, top, 0, 0, task.number(TASK_INNER), tile_memory(), begin, put
    );
    lose_rows(task, unit, top, ROWS, outputs, task.number(TASK_KEPT) ? inputs : outputs, COLUMNS);
    __syncthreads();  // the next tile's pieces come in their place
}

// Losses of some rows, where the outputs are too many for a tile.
__device__ NOT_INLINE void do_losses(Task task, int unit) {
    const int each = THREADS / LOSS_LANES, top = unit * each;
    const Size stride = task.fields[TASK_A_STRIDE];
    lose_rows(
        task, unit, top, each, task.numbers(TASK_A) + top * stride,
        task.numbers(TASK_SAVED) + top * stride, (int)stride
    );
}

// The step's row of the trace, and the loss itself if it is wanted; from the first one on that is no
// finite number nothing is updated.
__device__ NOT_INLINE void finish_loss(Task task) {
    const double* sums = (const double*)task.fields[TASK_SUMS];
    double value = 0, hits = 0;
    for (int i = threadIdx.x; i < task.number(TASK_INNER); i += THREADS) {
        value += sums[2 * i];
        hits += sums[2 * i + 1];
    }
    value = block_sum(value, warp_sums());
    hits = block_sum(hits, warp_sums());
    const double weight_sum = weight_sum_of(row_weights(task), step()->batch.rows);
    if (threadIdx.x) return;
    double* trace = (double*)run_of_steps()[RUN_TRACE];
    if (trace) {
        const Size n = step()->sums;
        trace += step()->index * (TRACE_SUMS + n);
        trace[TRACE_LOSS] = value;
        trace[TRACE_PENALTY] = 0;
        trace[TRACE_WEIGHT] = weight_sum;
        if (n) trace[TRACE_SUMS] = hits;
    }
    double* loss = (double*)run_of_steps()[RUN_LOSS];
    if (loss) *loss = value * loss_scale(task.number(TASK_AVERAGES), 1, &weight_sum);
    if (!(value - value == 0)) update()->state->stopped = 1;
}
