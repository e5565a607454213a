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
    bool decays;
    Size decayed;  // parameters before this one decay
    Real *w, *g, *m, *v;
};
static_assert(sizeof(Update) <= 8 * UPDATE_WORDS, "room for it");

// Memory of a block: the run, tables, rates, sums of warps, the update, then TILE_BYTES for tiles.
__device__ inline Size* run_of_steps() { return (Size*)shared_memory(); }
__device__ inline Size* all_tasks() { return run_of_steps() + RUN_FIELDS; }
__device__ inline Size* all_phases() { return all_tasks() + MOST_TASKS * TASK_FIELDS; }
__device__ inline double* all_rates() { return (double*)(all_phases() + MOST_PHASES); }
__device__ inline double* warp_sums() { return all_rates() + 3 * MOST_STEPS; }
__device__ inline Update* update_of_run() { return (Update*)(warp_sums() + WARPS); }
__device__ inline Real* tile_memory() { return (Real*)(warp_sums() + WARPS + UPDATE_WORDS); }

// One row of the table: a task.
struct Task {
    const Size* fields;

    __device__ inline int number(int field) const { return (int)fields[field]; }
    __device__ inline Real* numbers(int field) const { return (Real*)fields[field]; }
    __device__ inline Real parameter() const {
        return (Real)((const double*)fields)[TASK_PARAMETER];
    }
};

// What a step's tasks are told.
struct Step {
    Batch batch;
    Size index;  // in the run
    int number;  // in the launch; batches take turns in two places
    bool is_last;
};

struct Loss {
    int code;
    Real parameter;
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

// A parameter, and what the optimizer keeps of it.
struct Parameter {
    Real w, m, v;
};

__device__ inline Parameter fetch_parameter(const Update& update, Size at) {
    return {update.w[at], update.m ? update.m[at] : 0, update.v ? update.v[at] : 0};
}

__device__ NOT_INLINE Parameter updated(const double* rates, bool decays, Parameter old, Real g) {
    const Real keep = decays ? (Real)rates[2] : (Real)1;
    const Optimizer& optimizer = update_of_run()->optimizer;
    optimizer.apply((Real)rates[0], (Real)rates[1], keep, old.w, g, old.m, old.v);
    return old;
}

__device__ inline bool is_stopped(const StepState* state) {
    return *(const volatile Size*)&state->stopped;
}

// The parameter in ``row`` and ``column`` of a layer's weights, also where products read it if that is
// elsewhere; row -1 is the bias.
__device__ inline void put_parameter(
    Task task, const Update& update, Step step, Size at, int row, int column, Parameter old,
    Real g
) {
    const double* rates = all_rates() + 3 * step.number;
    const bool decays = update.decays && at < update.decayed;
    const Parameter now = updated(rates, decays, old, g);
    update.w[at] = now.w;
    if (update.m) update.m[at] = now.m;
    if (update.v) update.v[at] = now.v;
    Real* twin = task.numbers(TASK_TWIN);
    if (twin && row >= 0) twin[row * task.fields[TASK_TWIN_STRIDE] + column] = now.w;
}

// A tile of the outputs of a layer, or of the gradient of the layer below.
template <int KIND, int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE>
__device__ NOT_INLINE void do_tile(Task task, int unit, Step step) {
    constexpr bool FORWARD = KIND == DO_FORWARD;
    const int columns = task.number(TASK_COLUMNS), across = (columns + COLUMNS - 1) / COLUMNS;
    const int rows = step.batch.rows;
    const int top = unit / across * ROWS, left = (unit - unit / across * across) * COLUMNS;
    if (top >= rows) return;
    const Size turn = (step.number & 1) * task.fields[TASK_A_TURN];
    const Operand a = {task.numbers(TASK_A) + turn, task.fields[TASK_A_STRIDE], rows};
    const Operand b = {task.numbers(TASK_B), task.fields[TASK_B_STRIDE], columns};
    const int code = task.number(TASK_ACTIVATION);
    const Real parameter = task.parameter();
    const Size stride = task.fields[TASK_OUT_STRIDE], saved_stride = task.fields[TASK_SAVED_STRIDE];
    Real *out = task.numbers(TASK_OUT), *kept = task.numbers(TASK_KEPT);
    const Real *bias = task.numbers(TASK_BIAS), *saved = task.numbers(TASK_SAVED);
    Real early[(ROWS * COLUMNS + THREADS - 1) / THREADS];
    auto begin = [&](int i, int row, int column) {
        early[i] = 0;
        if (row >= rows || column >= columns) return;
        if (FORWARD && bias) early[i] = bias[column];
        if (!FORWARD && code) early[i] = saved[row * saved_stride + column];
    };
    auto put = [&](int i, int row, int column, Real value) {
        if (row >= rows || column >= columns) return;
        if (FORWARD) {
            value += early[i];
            if (kept) kept[row * stride + column] = value;
            value = activated(code, value, parameter);
        } else {
            value = times_slope(value, code, early[i], parameter);
        }
        out[row * stride + column] = value;
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, true, !FORWARD>(
        a, b, top, left, 0, task.number(TASK_INNER), tile_memory(), begin, put
    );
}

// A tile of the gradient of a layer's weights, the last row of which is that of the bias. It updates
// them, or leaves its part of the gradient where it is one of several.
template <int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE>
__device__ NOT_INLINE void do_weights(
    Task task, int unit, Step step, const StepState* state
) {
    const bool stopped = is_stopped(state);
    const Update& update = *update_of_run();
    const int rows = task.number(TASK_ROWS), columns = task.number(TASK_COLUMNS);
    const int across = (columns + COLUMNS - 1) / COLUMNS;
    const int tiles = (rows + ROWS - 1) / ROWS * across, parts = task.number(TASK_PARTS);
    const int part = unit / tiles, tile = unit - part * tiles;
    const int top = tile / across * ROWS, left = (tile - tile / across * across) * COLUMNS;
    const int each = ((task.number(TASK_INNER) + parts - 1) / parts + 3) / 4 * 4;
    const int end = part * each + each;
    const Size turn = (step.number & 1) * task.fields[TASK_A_TURN];
    const Operand a = {task.numbers(TASK_A) + turn, task.fields[TASK_A_STRIDE], rows};
    const Operand b = {task.numbers(TASK_B), task.fields[TASK_B_STRIDE], columns};
    const Size weight_at = task.fields[TASK_WEIGHT_AT], bias_at = task.fields[TASK_BIAS_AT];
    const int inputs = rows - (bias_at >= 0);
    Real* own = update.g;
    if (part) own = task.numbers(TASK_MORE) + (part - 1) * task.fields[TASK_PART_SIZE];
    auto place = [&](int row, int column) -> Size {
        return row < inputs ? weight_at + (Size)row * columns + column : bias_at + column;
    };
    Parameter early[(ROWS * COLUMNS + THREADS - 1) / THREADS];
    auto begin = [&](int i, int row, int column) {
        early[i] = {0, 0, 0};
        if (parts > 1 || row >= rows || column >= columns) return;
        early[i] = fetch_parameter(update, place(row, column));
    };
    auto put = [&](int i, int row, int column, Real value) {
        if (row >= rows || column >= columns) return;
        const Size at = place(row, column);
        if (parts > 1 || step.is_last) own[at] = value;
        if (parts > 1 || stopped) return;
        put_parameter(task, update, step, at, row < inputs ? row : -1, column, early[i], value);
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, false, false>(
        a, b, top, left, part * each, end < step.batch.rows ? end : step.batch.rows, tile_memory(),
        begin, put
    );
}

// Some parameters of a layer, by the sum of the parts of their gradient, which the last step leaves.
__device__ NOT_INLINE void update_some(
    Task task, int unit, Step step, const StepState* state
) {
    const bool stopped = is_stopped(state);
    const Update& update = *update_of_run();
    const int inputs = task.number(TASK_ROWS), columns = task.number(TASK_COLUMNS);
    const Size bias_at = task.fields[TASK_BIAS_AT], all = (Size)inputs * columns;
    const Size e = unit * (Size)THREADS + threadIdx.x;
    if (e >= all + (bias_at >= 0 ? columns : 0)) return;
    const Size at = e < all ? task.fields[TASK_WEIGHT_AT] + e : bias_at + e - all;
    const int parts = task.number(TASK_PARTS), row = e < all ? (int)quotient_of(e, columns) : -1;
    const Real* more = task.numbers(TASK_MORE) + at;
    const Parameter old = fetch_parameter(update, at);
    Real g = update.g[at];
    for (int part = 0; part < parts - 1; part++) g += more[part * task.fields[TASK_PART_SIZE]];
    if (step.is_last) update.g[at] = g;
    if (!stopped) put_parameter(task, update, step, at, row, (int)(e % columns), old, g);
}

// Some weights, to where products read them: rows on whole sixteens of bytes.
__device__ NOT_INLINE void align_some(Task task, int unit) {
    const int columns = task.number(TASK_COLUMNS);
    const Size e = unit * (Size)THREADS + threadIdx.x, row = quotient_of(e, columns);
    if (row >= task.number(TASK_ROWS)) return;
    const Size place = row * task.fields[TASK_OUT_STRIDE] + e - row * columns;
    task.numbers(TASK_OUT)[place] = task.numbers(TASK_A)[e];
}

// Some rows of a batch, a warp each: of x, of the targets (rows or labels) and of the weights.
__device__ NOT_INLINE void fetch_rows(Task task, int unit, Batch batch, int turn) {
    const Size *run = run_of_steps(), *order = (const Size*)run[RUN_ORDER];
    const Size words = sizeof(Real) / sizeof(Word), most = task.fields[TASK_ROWS];
    const Size x_words = task.fields[TASK_COLUMNS] * words;
    const Size target_words = task.fields[TASK_TARGET_WORDS];
    const int row = unit * WARPS + (int)threadIdx.x / WARP;
    if (row >= batch.rows) return;
    const Size from = order ? order[batch.start + row] : batch.start + row, to = turn * most + row;
    const Word *x = (const Word*)run[RUN_X], *targets = (const Word*)run[RUN_TARGET];
    copy_row(
        x + from * x_words, x_words,
        (Word*)(task.numbers(TASK_OUT) + to * task.fields[TASK_OUT_STRIDE])
    );
    copy_row(
        targets + from * target_words, target_words,
        (Word*)task.fields[TASK_TARGETS] + to * target_words
    );
    if (run[RUN_WEIGHT] && lane() == 0)
        task.numbers(TASK_ROW_WEIGHTS)[to] = ((const Real*)run[RUN_WEIGHT])[from];
}

// The weights of the batch's rows, if they have any.
__device__ inline const Real* row_weights(Task task, Step step) {
    if (!run_of_steps()[RUN_WEIGHT]) return 0;
    return task.numbers(TASK_ROW_WEIGHTS) + (step.number & 1) * task.fields[TASK_ROWS];
}

__device__ inline double weight_sum_of(const Real* weights, int rows) {
    return weights ? sum_of(weights, (Size)rows, warp_sums()) : rows;
}

// The losses of some rows, of which a warp each is ``warps`` apart, and whether their class is guessed
// right, added up; their gradient before the last layer's activation. Row 0 of ``outputs``, and of what
// the slope is found from, is row ``top`` of the batch.
__device__ NOT_INLINE void lose_rows(
    Task task, Step step, Loss loss, int unit, int top, int count, const Real* outputs,
    const Real* saved, Size stride
) {
    const int width = task.number(TASK_COLUMNS), code = task.number(TASK_ACTIVATION);
    const int rows = step.batch.rows, target_words = task.number(TASK_TARGET_WORDS);
    const bool by_label = task.number(TASK_BY_LABEL), counts_hits = task.number(TASK_HITS);
    const Size turn = (step.number & 1) * task.fields[TASK_ROWS];
    const Real* weights = row_weights(task, step);
    const double weight_sum = weight_sum_of(weights, rows);
    const double scale = loss_scale(task.number(TASK_AVERAGES), rows, &weight_sum);
    double total = 0, right = 0;
    for (int i = threadIdx.x / WARP; i < count && top + i < rows; i += WARPS) {
        const int row = top + i;
        const Word* target = (const Word*)task.fields[TASK_TARGETS] + (turn + row) * target_words;
        const Size label = by_label ? *(const int*)target : -1;
        const Real *t = by_label ? 0 : (const Real*)target, *p = outputs + i * stride;
        Real* dz = task.numbers(TASK_DZ) + row * task.fields[TASK_DZ_STRIDE];
        const double w = weights ? (double)weights[row] : 1;
        const double value = row_loss<WARP>(
            loss.code, loss.parameter, p, t, by_label, label, width, w * scale, Gradient{dz, 0}
        );
        if (counts_hits &&
            row_argmax(p, width) == (by_label ? label : row_argmax(t, width)) && lane() == 0)
            right += w;
        if (lane() == 0) total += w * value;
        if (!code) continue;
        __syncwarp();  // a lane changes what others wrote
        for (int j = lane(); j < width; j += WARP)
            dz[j] = times_slope(dz[j], code, saved[i * stride + j], task.parameter());
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
__device__ NOT_INLINE void do_outputs(Task task, int unit, Step step, Loss loss) {
    const int columns = task.number(TASK_COLUMNS), rows = step.batch.rows, top = unit * ROWS;
    const Size turn = (step.number & 1) * task.fields[TASK_A_TURN];
    const Operand a = {task.numbers(TASK_A) + turn, task.fields[TASK_A_STRIDE], rows};
    const Operand b = {task.numbers(TASK_B), task.fields[TASK_B_STRIDE], columns};
    const int code = task.number(TASK_ACTIVATION);
    const bool keeps_input = task.number(TASK_KEPT);
    const Real* bias = task.numbers(TASK_BIAS);
    static_assert(2 * ROWS * COLUMNS * sizeof(Real) <= TILE_BYTES, "room for outputs");
    // in the place of sums, of which a thread has read those of its own elements
    Real *outputs = tile_memory(), *inputs = outputs + ROWS * COLUMNS;
    Real early[(ROWS * COLUMNS + THREADS - 1) / THREADS];
    auto begin = [&](int i, int, int column) {
        early[i] = bias && column < columns ? bias[column] : 0;
    };
    auto put = [&](int i, int row, int column, Real value) {
        if (row >= rows || column >= columns) return;
        value += early[i];
        const int place = (row - top) * COLUMNS + column;
        inputs[place] = value;
        outputs[place] = activated(code, value, task.parameter());
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, true, false>(
        a, b, top, 0, 0, task.number(TASK_INNER), tile_memory(), begin, put
    );
    const Real* saved = keeps_input ? inputs : outputs;
    lose_rows(task, step, loss, unit, top, ROWS, outputs, saved, COLUMNS);
    __syncthreads();  // the next tile's pieces come in their place
}

// The step's row of the trace, and the loss itself if it is wanted; from the first one on that is no
// finite number nothing is updated.
__device__ NOT_INLINE void finish_loss(Task task, Step step, Size n, StepState* state) {
    const double* sums = (const double*)task.fields[TASK_SUMS];
    double value = 0, hits = 0;
    for (int i = threadIdx.x; i < task.number(TASK_INNER); i += THREADS) {
        value += sums[2 * i];
        hits += sums[2 * i + 1];
    }
    value = block_sum(value, warp_sums());
    hits = block_sum(hits, warp_sums());
    const double weight_sum = weight_sum_of(row_weights(task, step), step.batch.rows);
    if (threadIdx.x) return;
    double* trace = (double*)run_of_steps()[RUN_TRACE];
    if (trace) {
        trace += step.index * (TRACE_SUMS + n);
        trace[TRACE_LOSS] = value;
        trace[TRACE_PENALTY] = 0;
        trace[TRACE_WEIGHT] = weight_sum;
        if (n) trace[TRACE_SUMS] = hits;
    }
    double* loss = (double*)run_of_steps()[RUN_LOSS];
    if (loss) *loss = value * loss_scale(task.number(TASK_AVERAGES), 1, &weight_sum);
    if (!(value - value == 0)) state->stopped = 1;
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

#undef KERNEL
#define KERNEL extern "C" __global__ void

// ``steps`` steps of the run, at most MOST_STEPS. ``tasks`` is the table, ``phases`` the number of the
// first task of each phase, of those before the first step, and of all. ``arrived`` are two counts of
// blocks that take turns, one for each launch, both 0 before the first. ``n`` is the width of the trace
// behind its three first columns.
KERNEL train_in_phases(
    int steps, int turn, const Size* tasks, const Size* phases, int n_phases, int loss_code,
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
    if (threadIdx.x == 0) *update_of_run() = {
        {rule, nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
         (Real)(1 - beta2), (Real)rho, (Real)(1 - rho), (Real)eps},
        decay != 0, decayed, parameters, gradients, m, v
    };
    const Loss loss = {loss_code, loss_parameter};
    Batch ahead = next_batch(run_of_steps());
    Word meetings = 0;
    // what comes before the first step is the phase behind the last one
    for (int i = -1; i < steps; i++) {
        const Step step = {ahead, index + i, i < 0 ? 0 : i, i + 1 == steps};
        if (i >= 0) ahead.move_on(run_of_steps());
        const int last = i < 0 ? n_phases : n_phases - 1;
        for (int phase = i < 0 ? n_phases : 0; phase <= last; phase++) {
            int unit = blockIdx.x;
            const int end = (int)all_phases()[phase + 1];
            for (int number = (int)all_phases()[phase]; number < end; number++) {
                const Task task = {all_tasks() + number * TASK_FIELDS};
                const int units = task.number(TASK_UNITS);
                for (; unit < units; unit += gridDim.x) {
                    switch (task.number(TASK_KIND)) {
#define FORWARD_TILE(...) do_tile<DO_FORWARD, __VA_ARGS__>(task, unit, step)
                        case DO_FORWARD: IN_TILES(FORWARD_TILE); break;
#define BELOW_TILE(...) do_tile<DO_BELOW, __VA_ARGS__>(task, unit, step)
                        case DO_BELOW: IN_TILES(BELOW_TILE); break;
#define WEIGHTS_TILE(...) do_weights<__VA_ARGS__>(task, unit, step, state)
                        case DO_WEIGHTS: IN_TILES(WEIGHTS_TILE); break;
#define OUTPUTS_TILE(...) do_outputs<__VA_ARGS__>(task, unit, step, loss)
                        case DO_OUTPUTS: IN_TILES(OUTPUTS_TILE); break;
                        case DO_LOSS: {
                            const Size stride = task.fields[TASK_A_STRIDE];
                            const Size top = unit * WARPS;
                            lose_rows(
                                task, step, loss, unit, (int)top, WARPS,
                                task.numbers(TASK_A) + top * stride,
                                task.numbers(TASK_SAVED) + top * stride, stride
                            );
                            break;
                        }
                        case DO_FINISH: finish_loss(task, step, n, state); break;
                        case DO_FETCH:
                            if (!step.is_last) fetch_rows(task, unit, ahead, (i + 1) & 1);
                            break;
                        case DO_ALIGN: align_some(task, unit); break;
                        default: update_some(task, unit, step, state);
                    }
                }
                unit -= units;
            }
            if (step.is_last && phase == last) break;
            meetings += gridDim.x;
            meet_grid(arrived + turn, meetings);
        }
    }
    if (blockIdx.x || threadIdx.x) return;
    run[RUN_INDEX] = index + steps;
}
