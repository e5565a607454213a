// Training steps of a network that the whole GPU works on: many of them in one launch.
//
// A step consists of phases, between which all blocks meet, about a microsecond; a graph takes more
// than that between two kernels, and more again for each small product. A phase consists of tasks,
// such as the tiles of a product, each a number of units that the blocks share. Tasks are rows of a
// table which nnbackend/backends/cuda/phased.py writes, so that one program serves all networks.
//
// What layers read ends with a column of ones: so the gradient of a bias is a row of the product that
// is the weights' gradient.

// Memory of a launch, in bytes: the run, tables, rates, sums of warps, then TILE_BYTES for tiles.
__device__ inline Size* run_of_steps() { return (Size*)shared_memory(); }
__device__ inline Size* all_tasks() { return run_of_steps() + RUN_FIELDS; }
__device__ inline Size* all_phases() { return all_tasks() + MOST_TASKS * TASK_FIELDS; }
__device__ inline double* all_rates() { return (double*)(all_phases() + MOST_PHASES); }
__device__ inline double* warp_sums() { return all_rates() + 3 * MOST_STEPS; }
__device__ inline Real* tile_memory() { return (Real*)(warp_sums() + WARPS); }

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
    int number;  // in the launch
    bool is_last;
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

// A tile of a layer's outputs, of the gradient of the layer below, or of the weights' gradient.
template <int KIND, int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE>
__device__ NOT_INLINE void do_tile(Task task, int unit, int batch_rows) {
    constexpr bool WEIGHTS = KIND == DO_WEIGHTS, FORWARD = KIND == DO_FORWARD;
    const int columns = task.number(TASK_COLUMNS), across = (columns + COLUMNS - 1) / COLUMNS;
    const int rows = WEIGHTS ? task.number(TASK_ROWS) : batch_rows;
    const int tiles = (task.number(TASK_ROWS) + ROWS - 1) / ROWS * across;
    const int part = unit / tiles, tile = unit - part * tiles;
    const int top = tile / across * ROWS, left = (tile - tile / across * across) * COLUMNS;
    if (top >= rows) return;
    int from = 0, end = task.number(TASK_INNER);
    if (WEIGHTS) {  // inner places are the batch's rows, of which each part takes some
        const int most = (end + task.number(TASK_PARTS) - 1) / task.number(TASK_PARTS);
        const int each = (most + 3) / 4 * 4;
        from = part * each;
        end = from + each < batch_rows ? from + each : batch_rows;
    }
    const Operand a = {task.numbers(TASK_A), task.fields[TASK_A_STRIDE], rows, true};
    const Operand b = {
        task.numbers(TASK_B), task.fields[TASK_B_STRIDE], columns, task.number(TASK_IN_QUADS) != 0
    };
    const int code = task.number(TASK_ACTIVATION);
    const Real parameter = task.parameter();
    const Size stride = task.fields[TASK_OUT_STRIDE];
    Real *out = task.numbers(TASK_OUT), *kept = task.numbers(TASK_KEPT);
    const Real *bias = task.numbers(TASK_BIAS), *saved = task.numbers(TASK_SAVED);
    Real* last_row = task.numbers(TASK_BIAS);  // of the weights' gradient: that of the bias
    if (WEIGHTS && part) {
        const Size further = (part - 1) * task.fields[TASK_PART_SIZE];
        out = task.numbers(TASK_MORE) + task.fields[TASK_WEIGHT_AT] + further;
        last_row = task.numbers(TASK_MORE) + task.fields[TASK_BIAS_AT] + further;
    }
    Real early[(ROWS * COLUMNS + THREADS - 1) / THREADS];
    auto begin = [&](int i, int row, int column) {
        early[i] = 0;
        if (row >= rows || column >= columns) return;
        if (FORWARD && bias) early[i] = bias[column];
        if (KIND == DO_BELOW && code) early[i] = saved[row * task.fields[TASK_SAVED_STRIDE] + column];
    };
    auto put = [&](int i, int row, int column, Real value) {
        if (row >= rows || column >= columns) return;
        if (FORWARD) {
            value += early[i];
            if (kept) kept[row * stride + column] = value;
            value = activated(code, value, parameter);
        }
        if (KIND == DO_BELOW) value = times_slope(value, code, early[i], parameter);
        if (WEIGHTS && row == task.number(TASK_ONES))
            last_row[column] = value;
        else
            out[row * stride + column] = value;
    };
    product_tile<ROWS, COLUMNS, DEPTH, TALL, WIDE, !WEIGHTS, KIND == DO_BELOW, !WEIGHTS>(
        a, b, top, left, from, end, tile_memory(), begin, put
    );
}

// Tiles of single precision may be deeper, and a thread's part of the largest ones larger.
#define WIDE_REAL ((int)sizeof(Real) / 4)

template <int KIND>
__device__ inline void do_product(Task task, int unit, int rows) {
    switch (task.number(TASK_TILE)) {
        case TILE_16_8: do_tile<KIND, 16, 8, 128 / WIDE_REAL, 4, 4>(task, unit, rows); break;
        case TILE_16_16: do_tile<KIND, 16, 16, 128 / WIDE_REAL, 4, 4>(task, unit, rows); break;
        case TILE_32_32: do_tile<KIND, 32, 32, 64 / WIDE_REAL, 4, 4>(task, unit, rows); break;
        case TILE_32_64:
            do_tile<KIND, 32, 64, 64 / WIDE_REAL, 8 / WIDE_REAL, 4>(task, unit, rows);
            break;
        default:
            do_tile<KIND, 64, 64, 64 / WIDE_REAL, 8 / WIDE_REAL, 8 / WIDE_REAL>(task, unit, rows);
    }
}

// Some rows of a batch, a warp each: of x, of the targets (rows or labels) and of the weights.
__device__ NOT_INLINE void fetch_rows(Task task, int unit, Batch batch) {
    const Size *run = run_of_steps(), *order = (const Size*)run[RUN_ORDER];
    const Size words = sizeof(Real) / sizeof(Word);
    const Size x_words = task.fields[TASK_COLUMNS] * words;
    const Size target_words = task.fields[TASK_TARGET_WORDS];
    const int row = unit * WARPS + (int)threadIdx.x / WARP;
    if (row >= batch.rows) return;
    const Size from = order ? order[batch.start + row] : batch.start + row;
    const Word *x = (const Word*)run[RUN_X], *targets = (const Word*)run[RUN_TARGET];
    copy_row(
        x + from * x_words, x_words,
        (Word*)task.fields[TASK_OUT] + row * task.fields[TASK_OUT_STRIDE] * words
    );
    copy_row(
        targets + from * target_words, target_words,
        (Word*)task.fields[TASK_TARGETS] + row * target_words
    );
    if (run[RUN_WEIGHT] && lane() == 0)
        task.numbers(TASK_ROW_WEIGHTS)[row] = ((const Real*)run[RUN_WEIGHT])[from];
}

// The sum of the batch's row weights.
__device__ inline double weight_sum_of(Task task, int rows) {
    if (!run_of_steps()[RUN_WEIGHT]) return rows;
    return sum_of(task.numbers(TASK_ROW_WEIGHTS), (Size)rows, warp_sums());
}

// The losses of some rows, LANES lanes each, and whether their class is guessed right, added up; the
// gradient before the last layer's activation.
template <int LANES>
__device__ NOT_INLINE void lose(Task task, int unit, int rows, int loss, Real loss_parameter) {
    const int outputs = task.number(TASK_COLUMNS), code = task.number(TASK_ACTIVATION);
    const int target_words = task.number(TASK_TARGET_WORDS);
    const bool by_label = task.number(TASK_BY_LABEL), counts_hits = task.number(TASK_HITS);
    const double weight_sum = weight_sum_of(task, rows);
    const double scale = loss_scale(task.number(TASK_AVERAGES), rows, &weight_sum);
    const int row = (unit * THREADS + (int)threadIdx.x) / LANES;
    const bool there = row < rows;
    double total = 0, right = 0;
    // lanes of one row are all there or not; those of others take part in no shuffle of it
    if (there) {
        const Real* p = task.numbers(TASK_A) + row * task.fields[TASK_A_STRIDE];
        const Word* target = (const Word*)task.fields[TASK_TARGETS] + (Size)row * target_words;
        const Size label = by_label ? *(const int*)target : -1;
        const Real* t = by_label ? 0 : (const Real*)target;
        Real* dz = task.numbers(TASK_OUT) + row * task.fields[TASK_OUT_STRIDE];
        const Real* weights = task.numbers(TASK_ROW_WEIGHTS);
        const double w = run_of_steps()[RUN_WEIGHT] ? (double)weights[row] : 1;
        const double value = row_loss<LANES>(
            loss, loss_parameter, p, t, by_label, label, outputs, w * scale, Gradient{dz, 0}
        );
        bool hit = false;
        if (counts_hits)
            hit = row_argmax<LANES>(p, outputs) ==
                  (by_label ? label : row_argmax<LANES>(t, outputs));
        if (lane() % LANES == 0) {
            total = w * value;
            right = hit ? w : 0;
        }
        if (code) {
            if (LANES > 1) __syncwarp();  // a lane changes what others wrote
            const Real* saved = task.numbers(TASK_SAVED) + row * task.fields[TASK_SAVED_STRIDE];
            for (int j = lane() % LANES; j < outputs; j += LANES)
                dz[j] = times_slope(dz[j], code, saved[j], task.parameter());
        }
    }
    total = block_sum(total, warp_sums());
    right = block_sum(right, warp_sums());
    double* sums = (double*)task.fields[TASK_SUMS] + 2 * unit;
    if (threadIdx.x == 0) {
        sums[0] = total;
        sums[1] = right;
    }
}

// The step's row of the trace, and the loss itself if it is wanted; from the first one on that is no
// finite number nothing is updated.
__device__ NOT_INLINE void finish_loss(Task task, Step step, Size n, StepState* state) {
    const double* sums = (const double*)task.fields[TASK_SUMS];
    double value = 0, hits = 0;
    for (int i = threadIdx.x; i < task.number(TASK_ROWS); i += THREADS) {
        value += sums[2 * i];
        hits += sums[2 * i + 1];
    }
    value = block_sum(value, warp_sums());
    hits = block_sum(hits, warp_sums());
    const double weight_sum = weight_sum_of(task, step.batch.rows);
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

// Some parameters, each by the sum of the parts of its gradient, which the last step leaves.
__device__ NOT_INLINE void update_some(
    Task task, int unit, Step step, Optimizer optimizer, bool decays, const StepState* state
) {
    const int AT_ONCE = UPDATED / THREADS;
    const Size all = task.fields[TASK_COLUMNS], first = unit * (Size)UPDATED + threadIdx.x;
    const Size part_size = task.fields[TASK_PART_SIZE];
    const int parts = task.number(TASK_PARTS);
    const Real* more = task.numbers(TASK_MORE);
    Real *parameters = task.numbers(TASK_OUT), *gradients = task.numbers(TASK_A);
    Real *m = task.numbers(TASK_KEPT), *v = task.numbers(TASK_SAVED);
    const bool stopped = *(const volatile Size*)&state->stopped;
    const double* rates = all_rates() + 3 * step.number;
    Real w[AT_ONCE] = {}, g[AT_ONCE] = {}, own[AT_ONCE][2] = {};
    UNROLLED for (int k = 0; k < AT_ONCE; k++) {
        const Size at = first + k * THREADS;
        if (at >= all) break;
        g[k] = gradients[at];
        w[k] = parameters[at];
        if (m) own[k][0] = m[at];
        if (v) own[k][1] = v[at];
    }
    for (int part = 0; part < parts - 1; part++)
        UNROLLED for (int k = 0; k < AT_ONCE; k++) {
            const Size at = first + k * THREADS;
            if (at < all) g[k] += more[part * part_size + at];
        }
    UNROLLED for (int k = 0; k < AT_ONCE; k++) {
        const Size at = first + k * THREADS;
        if (at >= all) break;
        if (parts > 1 && step.is_last) gradients[at] = g[k];
        if (stopped) continue;
        const Real keep = decays && at < task.fields[TASK_INNER] ? (Real)rates[2] : (Real)1;
        optimizer.apply((Real)rates[0], (Real)rates[1], keep, w[k], g[k], own[k][0], own[k][1]);
        parameters[at] = w[k];
        if (m) m[at] = own[k][0];
        if (v) v[at] = own[k][1];
    }
}

#undef KERNEL
#define KERNEL extern "C" __global__ void

// ``steps`` steps of the run, at most MOST_STEPS. ``tasks`` is the table, ``phases`` the number of the
// first task of each phase, and of all tasks. ``arrived`` are two counts of blocks that take turns, one
// for each launch, both 0 before the first. ``n`` is the width of the trace behind its three first
// columns.
KERNEL train_in_phases(
    int steps, int turn, const Size* tasks, const Size* phases, int n_phases, int loss,
    Real loss_parameter, Size n, int rule, int nesterov, double momentum, double beta1, double beta2,
    double rho, double eps, double decay, double eps_hat, Word* arrived, Size* run, StepState* state
) {
    if (blockIdx.x == 0 && threadIdx.x == 0) arrived[1 - turn] = 0;
    for (int i = threadIdx.x; i < RUN_FIELDS; i += THREADS) run_of_steps()[i] = run[i];
    for (int i = threadIdx.x; i <= n_phases; i += THREADS) all_phases()[i] = phases[i];
    const int n_tasks = (int)phases[n_phases];
    for (int i = threadIdx.x; i < n_tasks * TASK_FIELDS; i += THREADS) all_tasks()[i] = tasks[i];
    __syncthreads();
    const Size index = run_of_steps()[RUN_INDEX];
    correct_rates(
        run_of_steps(), index, steps, rule == UPDATE_ADAM, beta1, beta2, eps, decay, eps_hat,
        all_rates()
    );
    const Optimizer optimizer = {
        rule, nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
        (Real)(1 - beta2), (Real)rho, (Real)(1 - rho), (Real)eps
    };
    Batch ahead = next_batch(run_of_steps());
    Word meetings = 0;
    // the phase before the first step is the last one of a step, of which only rows are fetched
    for (int i = -1; i < steps; i++) {
        Step step = {ahead, index + i, i, i + 1 == steps};
        if (i >= 0) ahead.move_on(run_of_steps());
        for (int phase = i < 0 ? n_phases - 1 : 0; phase < n_phases; phase++) {
            int unit = blockIdx.x;
            const int end = (int)all_phases()[phase + 1];
            for (int number = (int)all_phases()[phase]; number < end; number++) {
                const Task task = {all_tasks() + number * TASK_FIELDS};
                const int units = task.number(TASK_UNITS), rows = step.batch.rows;
                for (; unit < units; unit += gridDim.x) {
                    switch (task.number(TASK_KIND)) {
                        case DO_FORWARD: do_product<DO_FORWARD>(task, unit, rows); break;
                        case DO_BELOW: do_product<DO_BELOW>(task, unit, rows); break;
                        case DO_WEIGHTS: do_product<DO_WEIGHTS>(task, unit, rows); break;
                        case DO_LOSS: lose<WARP>(task, unit, rows, loss, loss_parameter); break;
                        case DO_LOSS_BY_LANE:
                            lose<1>(task, unit, rows, loss, loss_parameter);
                            break;
                        case DO_FINISH: finish_loss(task, step, n, state); break;
                        case DO_FETCH:
                            if (!step.is_last) fetch_rows(task, unit, ahead);
                            break;
                        default:
                            if (i >= 0) update_some(task, unit, step, optimizer, decay != 0, state);
                    }
                }
                unit -= units;
            }
            if (step.is_last && phase == n_phases - 1) break;
            meetings += gridDim.x;
            meet_grid(arrived + turn, meetings);
        }
    }
    if (blockIdx.x || threadIdx.x) return;
    run[RUN_INDEX] = index + steps;
}
