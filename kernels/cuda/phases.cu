// Training steps of a network that the whole GPU works on: many of them in one launch.
//
// A step consists of phases, between which all blocks meet, about a microsecond; a graph takes more
// than that between two kernels, and more again for each small product. A phase consists of tasks,
// such as the tiles of a product, each a number of units that the blocks share. Tasks are rows of a
// table which nnbackend/backends/cuda/phased.py writes, so that one program serves all networks.
//
// What layers read ends with a column of ones: so the gradient of a bias is a row of the product that
// is the weights' gradient.

// What becomes of parameters.
struct Update {
    Optimizer optimizer;
    int rule, decays;
    Size decayed;  // parameters before this one decay
    Real *w, *g, *m, *v;
    StepState* state;

    __device__ inline bool stopped() const { return *(const volatile Size*)&state->stopped; }
};

// What a step's tasks are told: registers would be kept in memory over calls, and lost from the cache
// where blocks meet.
struct Step {
    Batch batch, ahead;
    Size index;  // in the run
    int number;  // in the launch; batches take turns in two places
    int is_last;
    int loss;    // its code
    Real loss_parameter;
    Size sums;   // columns of the trace behind its three first ones
};
static_assert(sizeof(Update) + sizeof(Step) <= 8 * STEP_WORDS, "room for them");

// Memory of a block: the run, tables, rates, sums of warps, the update, the step, then TILE_BYTES for
// tiles.
__device__ inline Size* run_of_steps() { return (Size*)shared_memory(); }
__device__ inline Size* all_tasks() { return run_of_steps() + RUN_FIELDS; }
__device__ inline Size* all_phases() { return all_tasks() + MOST_TASKS * TASK_FIELDS; }
__device__ inline double* all_rates() { return (double*)(all_phases() + MOST_PHASES); }
__device__ inline double* warp_sums() { return all_rates() + 3 * MOST_STEPS; }
__device__ inline Update* update() { return (Update*)(warp_sums() + WARPS); }
__device__ inline Step* step() { return (Step*)(update() + 1); }
__device__ inline Real* tile_memory() { return (Real*)(warp_sums() + WARPS + STEP_WORDS); }
// The place of two that the step's batch is in.
__device__ inline int turn_of_step() { return step()->number & 1; }

// One row of the table: a task.
struct Task {
    const Size* fields;

    __device__ inline int number(int field) const { return (int)fields[field]; }
    __device__ inline Real* numbers(int field) const { return (Real*)fields[field]; }
    __device__ inline Real parameter() const {
        return (Real)((const double*)fields)[TASK_PARAMETER];
    }
};

// Activations and their slopes, of which the ReLU alone is worth a place in each tile's code.
__device__ NOT_INLINE Real activate_other(int code, Real z, Real parameter) {
    return activate(code, z, parameter);
}
__device__ NOT_INLINE Real slope_of_other(int code, Real saved, Real parameter) {
    return slope(code, saved, parameter);
}
__device__ inline Real activated(int code, Real z, Real parameter) {
    if (code == RELU) return activate(RELU, z, parameter);
    return code ? activate_other(code, z, parameter) : z;
}
__device__ inline Real times_slope(Real dy, int code, Real saved, Real parameter) {
    if (code == RELU) return dy * slope(RELU, saved, parameter);
    return code ? dy * slope_of_other(code, saved, parameter) : dy;
}

// A tile of the outputs of a layer, or of the gradient of the layer below.
template <int KIND, int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE>
__device__ NOT_INLINE void do_tile(Task task, int unit) {
    constexpr bool FORWARD = KIND == DO_FORWARD;
    const int columns = task.number(TASK_COLUMNS), across = (columns + COLUMNS - 1) / COLUMNS;
    const int rows = step()->batch.rows;
    const int top = unit / across * ROWS, left = (unit - unit / across * across) * COLUMNS;
    if (top >= rows) return;
    const int turn = turn_of_step() * task.number(TASK_A_TURN);
    const Operand a = {task.numbers(TASK_A) + turn, task.number(TASK_A_STRIDE), rows};
    const Operand b = {task.numbers(TASK_B), task.number(TASK_B_STRIDE), columns};
    const int code = task.number(TASK_ACTIVATION);
    const Real parameter = task.parameter();
    const int stride = task.number(TASK_OUT_STRIDE), saved_stride = task.number(TASK_SAVED_STRIDE);
    Real *out = task.numbers(TASK_OUT), *kept = task.numbers(TASK_KEPT);
    const Real *bias = task.numbers(TASK_BIAS), *saved = task.numbers(TASK_SAVED);
    auto begin = [&] {
        const int tid = threadIdx.x;
        if constexpr (FORWARD) {
            if (bias && tid < COLUMNS && left + tid < columns) come_near(bias + left + tid);
        } else if (code) {
            NOT_UNROLLED for (int e = 8 * tid; e < ROWS * COLUMNS; e += 8 * THREADS) {
                const int row = top + e / COLUMNS, column = left + e % COLUMNS;
                if (row < rows && column < columns) come_near(saved + row * saved_stride + column);
            }
        }
    };
    auto put = [&](int row, int column, Real value) {
        if (row >= rows || column >= columns) return;
        if (FORWARD) {
            if (bias) value += bias[column];
            if (kept) kept[row * stride + column] = value;
            value = activated(code, value, parameter);
        } else if (code) {
            value = times_slope(value, code, saved[row * saved_stride + column], parameter);
        }
        out[row * stride + column] = value;
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, true, !FORWARD>(
        a, b, top, left, 0, task.number(TASK_INNER), tile_memory(), begin, put
    );
}

// Elements of a tile of the weights' gradient, which lies in shared memory, 1 << shift in a row: their
// parameters are updated, a few side by side, whose numbers come at the same time.
template <int RULE>
__device__ inline void update_elements(Task task, int top, int left, int size, int shift) {
    const int AT_ONCE = 4;
    const Update& own = *update();
    const int rows = task.number(TASK_ROWS), columns = task.number(TASK_COLUMNS);
    const int weight_at = task.number(TASK_WEIGHT_AT), bias_at = task.number(TASK_BIAS_AT);
    const int inputs = rows - (bias_at >= 0), wide = 1 << shift;
    const bool stopped = own.stopped(), is_last = step()->is_last;
    const double* rates = all_rates() + 3 * step()->number;
    const Real rate = (Real)rates[0], small = (Real)rates[1], keep = (Real)rates[2];
    Real* twin = task.numbers(TASK_TWIN);
    NOT_UNROLLED for (int first = threadIdx.x; first < size; first += AT_ONCE * THREADS) {
        Real w[AT_ONCE] = {}, m[AT_ONCE] = {}, v[AT_ONCE] = {};
        int at[AT_ONCE];
        UNROLLED for (int k = 0; k < AT_ONCE; k++) {
            const int e = first + k * THREADS;
            const int row = top + (e >> shift), column = left + (e & (wide - 1));
            at[k] = row < inputs ? weight_at + row * columns + column : bias_at + column;
            if (e >= size || row >= rows || column >= columns) at[k] = -1;
            if (at[k] < 0) continue;
            w[k] = own.w[at[k]];
            if (own.m) m[k] = own.m[at[k]];
            if (own.v) v[k] = own.v[at[k]];
        }
        UNROLLED for (int k = 0; k < AT_ONCE; k++) {
            if (at[k] < 0) continue;
            const int e = first + k * THREADS;
            const int row = top + (e >> shift), column = left + (e & (wide - 1));
            const Real g = tile_memory()[e];
            if (is_last) own.g[at[k]] = g;
            if (stopped) continue;
            const Real kept = own.decays && at[k] < own.decayed ? keep : (Real)1;
            own.optimizer.template apply<RULE>(rate, small, kept, w[k], g, m[k], v[k]);
            own.w[at[k]] = w[k];
            if (own.m) own.m[at[k]] = m[k];
            if (own.v) own.v[at[k]] = v[k];
            if (twin && row < inputs) twin[row * task.number(TASK_TWIN_STRIDE) + column] = w[k];
        }
    }
}
#define BY_RULE(DO)                                                                               \
    switch (update()->rule) {                                                           \
        case UPDATE_ADAM: DO(UPDATE_ADAM); break;                                                 \
        case UPDATE_RMSPROP: DO(UPDATE_RMSPROP); break;                                           \
        case UPDATE_ADAGRAD: DO(UPDATE_ADAGRAD); break;                                           \
        case UPDATE_MOMENTUM: DO(UPDATE_MOMENTUM); break;                                         \
        default: DO(UPDATE_SGD);                                                                  \
    }
__device__ NOT_INLINE void update_tile(Task task, int top, int left, int size, int shift) {
#define ELEMENTS_BY(RULE) update_elements<RULE>(task, top, left, size, shift)
    BY_RULE(ELEMENTS_BY);
}

// A tile of the gradient of a layer's weights, the last row of which is that of the bias. They are
// updated, or it is one of several parts and left.
template <int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE>
__device__ NOT_INLINE void do_weights(Task task, int unit) {
    const int rows = task.number(TASK_ROWS), columns = task.number(TASK_COLUMNS);
    const int across = (columns + COLUMNS - 1) / COLUMNS;
    const int tiles = (rows + ROWS - 1) / ROWS * across, parts = task.number(TASK_PARTS);
    const int part = unit / tiles, tile = unit - part * tiles;
    const int top = tile / across * ROWS, left = (tile - tile / across * across) * COLUMNS;
    const int each = ((task.number(TASK_INNER) + parts - 1) / parts + 3) / 4 * 4;
    const int end = part * each + each, all = step()->batch.rows;
    const int turn = turn_of_step() * task.number(TASK_A_TURN);
    const Operand a = {task.numbers(TASK_A) + turn, task.number(TASK_A_STRIDE), rows};
    const Operand b = {task.numbers(TASK_B), task.number(TASK_B_STRIDE), columns};
    const int weight_at = task.number(TASK_WEIGHT_AT), bias_at = task.number(TASK_BIAS_AT);
    const int inputs = rows - (bias_at >= 0);
    Real* own = part ? task.numbers(TASK_MORE) + (part - 1) * task.fields[TASK_PART_SIZE] : update()->g;
    auto put = [&](int row, int column, Real value) {
        if (parts == 1) tile_memory()[(row - top) * COLUMNS + column - left] = value;
        if (parts == 1 || row >= rows || column >= columns) return;
        own[row < inputs ? weight_at + row * columns + column : bias_at + column] = value;
    };
    auto begin = [&] {
        if constexpr (ROWS * COLUMNS <= 1024) {  // of larger tiles it would not all stay near
            if (parts > 1) return;
            NOT_UNROLLED for (int e = 8 * threadIdx.x; e < ROWS * COLUMNS; e += 8 * THREADS) {
                const int row = top + e / COLUMNS, column = left + e % COLUMNS;
                const int at = row < inputs ? weight_at + row * columns + column : bias_at + column;
                if (row >= rows || column >= columns) continue;
                come_near(update()->w + at);
                if (update()->m) come_near(update()->m + at);
                if (update()->v) come_near(update()->v + at);
            }
        }
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, false, false>(
        a, b, top, left, part * each, end < all ? end : all, tile_memory(), begin, put
    );
    if (parts > 1) return;
    constexpr int SHIFT = COLUMNS == 8 ? 3 : COLUMNS == 16 ? 4 : COLUMNS == 32 ? 5 : 6;
    update_tile(task, top, left, ROWS * COLUMNS, SHIFT);
    __syncthreads();  // the next tile's pieces come in its place
}

// Some parameters of a layer, by the sum of the parts of their gradient, which the last step leaves.
template <int RULE>
__device__ inline void update_sums(Task task, int unit) {
    const Update& own = *update();
    const int inputs = task.number(TASK_ROWS), columns = task.number(TASK_COLUMNS);
    const Size bias_at = task.fields[TASK_BIAS_AT], all = (Size)inputs * columns;
    const Size e = unit * (Size)THREADS + threadIdx.x, part_size = task.fields[TASK_PART_SIZE];
    if (e >= all + (bias_at >= 0 ? columns : 0)) return;
    const Size at = e < all ? task.fields[TASK_WEIGHT_AT] + e : bias_at + e - all;
    const int parts = task.number(TASK_PARTS);
    const Real* more = task.numbers(TASK_MORE) + at;
    const double* rates = all_rates() + 3 * step()->number;
    Real w = own.w[at], g = own.g[at], m = own.m ? own.m[at] : 0, v = own.v ? own.v[at] : 0;
    UNROLLED_BY_8 for (int part = 0; part < parts - 1; part++) g += more[part * part_size];
    if (step()->is_last) own.g[at] = g;
    if (own.stopped()) return;
    const Real keep = own.decays && at < own.decayed ? (Real)rates[2] : (Real)1;
    own.optimizer.template apply<RULE>((Real)rates[0], (Real)rates[1], keep, w, g, m, v);
    own.w[at] = w;
    if (own.m) own.m[at] = m;
    if (own.v) own.v[at] = v;
    Real* twin = task.numbers(TASK_TWIN);
    if (!twin || e >= all) return;
    const Size row = quotient_of(e, columns);
    twin[row * task.fields[TASK_TWIN_STRIDE] + e - row * columns] = w;
}
__device__ NOT_INLINE void update_some(Task task, int unit) {
#define SUMS_BY(RULE) update_sums<RULE>(task, unit)
    BY_RULE(SUMS_BY);
}

// Some weights, to where products read them: rows on whole sixteens of bytes.
__device__ NOT_INLINE void align_some(Task task, int unit) {
    const int columns = task.number(TASK_COLUMNS);
    const Size e = unit * (Size)THREADS + threadIdx.x, row = quotient_of(e, columns);
    if (row >= task.number(TASK_ROWS)) return;
    const Size place = row * task.fields[TASK_OUT_STRIDE] + e - row * columns;
    task.numbers(TASK_OUT)[place] = task.numbers(TASK_A)[e];
}

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
    const float per_wide = 1.0f / (float)wide;
    UNROLLED_BY_4 for (int e = threadIdx.x; e < count * wide; e += THREADS) {
        const int i = (int)((e + 0.5f) * per_wide), j = (e - i * wide) * quad, row = first + i;
        const Size from = order ? order[batch.start + row] : batch.start + row;
        if (quad == 4)
            *(Quad*)(to + row * stride + j) = *(const Quad*)(x + from * words + j);
        else
            to[row * stride + j] = x[from * words + j];
    }
    Word* own = (Word*)task.fields[TASK_TARGETS] + (Size)place * most * target_words;
    for (int e = threadIdx.x; e < count * target_words; e += THREADS) {
        const int i = e / target_words, row = first + i;
        const Size from = order ? order[batch.start + row] : batch.start + row;
        own[row * target_words + e - i * target_words] =
            targets[from * target_words + e - i * target_words];
    }
    if (!run[RUN_WEIGHT]) return;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const Size from = order ? order[batch.start + first + i] : batch.start + first + i;
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

// Tiles of single precision may be deeper, and a thread's part of the largest ones larger.
#define WIDE_REAL ((int)sizeof(Real) / 4)
#define IN_TILES(DO)                                                                              \
    switch (task.number(TASK_TILE)) {                                                             \
        case TILE_16_8: DO(16, 8, 128 / WIDE_REAL, 4, 4); break;                                  \
        case TILE_16_16: DO(16, 16, 128 / WIDE_REAL, 4, 4); break;                                \
        case TILE_32_32: DO(32, 32, 128 / WIDE_REAL, 4, 4); break;                                \
        default: DO(64, 64, 64 / WIDE_REAL, 8 / WIDE_REAL, 8 / WIDE_REAL);                        \
    }

// A unit of a task.
__device__ inline void do_unit(Task task, int unit) {
    switch (task.number(TASK_KIND)) {
#define FORWARD_TILE(...) do_tile<DO_FORWARD, __VA_ARGS__>(task, unit)
        case DO_FORWARD: IN_TILES(FORWARD_TILE); break;
#define BELOW_TILE(...) do_tile<DO_BELOW, __VA_ARGS__>(task, unit)
        case DO_BELOW: IN_TILES(BELOW_TILE); break;
#define WEIGHTS_TILE(...) do_weights<__VA_ARGS__>(task, unit)
        case DO_WEIGHTS: IN_TILES(WEIGHTS_TILE); break;
#define OUTPUTS_TILE(...) do_outputs<__VA_ARGS__>(task, unit)
        case DO_OUTPUTS: IN_TILES(OUTPUTS_TILE); break;
        case DO_LOSS: do_losses(task, unit); break;
        case DO_FINISH: finish_loss(task); break;
        case DO_FETCH: fetch_rows(task, unit); break;
        case DO_ALIGN: align_some(task, unit); break;
        default: update_some(task, unit);
    }
}

// The blocks' shares of the tasks of a phase.
__device__ inline void do_phase(int phase) {
    int unit = blockIdx.x;
    const int end = (int)all_phases()[phase + 1];
    for (int number = (int)all_phases()[phase]; number < end; number++) {
        const Task task = {all_tasks() + number * TASK_FIELDS};
        const int units = task.number(TASK_UNITS);
        for (; unit < units; unit += gridDim.x) do_unit(task, unit);
        unit -= units;
    }
}

#undef KERNEL
#define KERNEL extern "C" __global__ void

// ``steps`` steps of the run, at most MOST_STEPS. ``tasks`` is the table, ``phases`` the number of the
// first task of each phase, of what is done before the first step, and of all. ``arrived`` are two
// counts of blocks that take turns, one for each launch, both 0 before the first. ``n`` is the width of
// the trace behind its three first columns.
KERNEL train_in_phases(
    int steps, int turn, const Size* tasks, const Size* phases, int n_phases, int loss,
    Real loss_parameter, Size n, int rule, int nesterov, double momentum, double beta1, double beta2,
    double rho, double eps, double decay, double eps_hat, Real* parameters, Real* gradients, Real* m,
    Real* v, Size decayed, Word* arrived, Size* run, StepState* state
) {
    if (blockIdx.x == 0 && threadIdx.x == 0) arrived[1 - turn] = 0;
    for (int i = threadIdx.x; i < RUN_FIELDS; i += THREADS) run_of_steps()[i] = run[i];
    for (int i = threadIdx.x; i < n_phases + 2; i += THREADS) all_phases()[i] = phases[i];
    const int n_tasks = (int)phases[n_phases + 1];
    for (int i = threadIdx.x; i < n_tasks * TASK_FIELDS; i += THREADS) all_tasks()[i] = tasks[i];
    __syncthreads();
    const Size index = run_of_steps()[RUN_INDEX];
    correct_rates(
        run_of_steps(), index, steps, rule == UPDATE_ADAM, beta1, beta2, eps, decay, eps_hat,
        all_rates()
    );
    if (threadIdx.x == 0) {
        *update() = {
            {nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
             (Real)(1 - beta2), (Real)rho, (Real)(1 - rho), (Real)eps},
            rule, decay != 0, decayed, parameters, gradients, m, v, state
        };
        // before the first step there is nothing but the batch ahead, which comes to place 0
        *step() = {{}, next_batch(run_of_steps()), index, 1, 0, loss, loss_parameter, n};
    }
    __syncthreads();
    do_phase(n_phases);
    Word meetings = gridDim.x;
    meet_grid(arrived + turn, meetings);
    for (int i = 0; i < steps; i++) {
        if (threadIdx.x == 0) {
            Step& now = *step();
            now.batch = now.ahead;
            now.ahead.move_on(run_of_steps());
            now.index = index + i;
            now.number = i;
            now.is_last = i + 1 == steps;
        }
        __syncthreads();
        for (int phase = 0; phase < n_phases; phase++) {
            do_phase(phase);
            if (i + 1 == steps && phase + 1 == n_phases) break;
            meetings += gridDim.x;
            meet_grid(arrived + turn, meetings);
        }
    }
    if (blockIdx.x || threadIdx.x) return;
    run[RUN_INDEX] = index + steps;
}
