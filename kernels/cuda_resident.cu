// Training steps of a network that stays in shared memory: many of them in one launch, and nothing
// to be launched between its layers.
//
// A cluster of blocks does it. Each block has all weights in its shared memory and takes some rows
// of the batch: forward, loss and backward, which leave it a part of the gradient. Then each block
// adds up those parts for its share of the parameters, updates that share, and writes it to all
// blocks.
//
// A layer's bias is the last row of its weights, and its inputs end with a column of ones: so the
// bias is added, and its gradient found, by the product. Rows of matrices lie so far apart (an odd
// number of fours) that threads that read down a column do not wait for each other. A step is a list
// of jobs, each a product; nnbackend/resident.py writes them, and the plan that says what lies
// where, in the names that are used here. Places are counted in Reals from a block's memory, where
// the plan, a copy of the run's record and the jobs come first.

// Rows of so few outputs are one lane's each where their loss is computed, if there are many.
#define NARROW 16

struct alignas(16) Job {
    int kind, rows, columns, inner;                // of a (rows, inner) and b (inner, columns)
    int a, a_row, a_column, a_turn;                // a's place, and how far its elements lie apart
    int b, b_row, b_column, large;                 // likewise; large: 4 x 4 elements for a thread
    int out, out_row, kept, saved;                 // what it writes; kept: -1 where there is nothing
    int activation, shift, across, meets;          // 1 << shift lanes share the sums of a tile
    float per_across, unused;                      // 1 / across
    double parameter;                              // of the activation
};

// What the kernel is told once.
struct Plan {
    const Size* words;
    __device__ inline int of(int place) const { return (int)words[place]; }
};

__device__ inline Real* memory() { return (Real*)shared_memory(); }
__device__ inline Plan plan() { return {(const Size*)shared_memory()}; }
__device__ inline const Size* run_of_steps() { return plan().words + PLAN_FIELDS; }
template <typename T>
__device__ inline T* bytes_of(int place) { return (T*)(shared_memory() + plan().of(place)); }
__device__ inline const Job* jobs() { return (const Job*)(plan().words + PLAN_FIELDS + RUN_FIELDS); }

// i / n for small numbers, given 1 / n.
__device__ inline int small_quotient(int i, float per_n) { return (int)((i + 0.5f) * per_n); }

// A product. A thread takes TALL x WIDE elements that lie far from each other, so that neighbours
// read neighbours; if there are few, several lanes share their sums. Weights' gradients have the
// block's rows of the batch between them, other products one row for each.
template <int TALL, int WIDE>
__device__ NOT_INLINE void do_product(int number, int batch_rows, int turn) {
    const Job job = jobs()[number];
    const bool of_weights = job.kind == JOB_WEIGHTS;
    const int rows = of_weights ? job.rows : batch_rows, inner = of_weights ? batch_rows : job.inner;
    const int down = (rows + TALL - 1) / TALL, tiles = down * job.across;
    const int sharing = 1 << job.shift, part = threadIdx.x & (sharing - 1);
    const Real *a = memory() + job.a + turn * job.a_turn + part * job.a_column;
    const Real *b = memory() + job.b + part * job.b_row;
    const int step_a = sharing * job.a_column, step_b = sharing * job.b_row;
    Real *out = memory() + job.out, *kept = memory() + job.kept, *saved = memory() + job.saved;
    const Real parameter = (Real)job.parameter;
    // all lanes take part in all shuffles, also those without a tile
    for (int first = 0; first < tiles; first += THREADS >> job.shift) {
        const int tile = first + (threadIdx.x >> job.shift);
        const bool has_one = tile < tiles;
        const int top = has_one ? small_quotient(tile, job.per_across) : 0;
        const int left = has_one ? tile - top * job.across : 0;
        int from_a[TALL], from_b[WIDE];
        Real sums[TALL][WIDE];
        for (int i = 0; i < TALL; i++) {
            const int row = top + i * down;
            from_a[i] = (row < rows ? row : rows - 1) * job.a_row;
            for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
        }
        for (int j = 0; j < WIDE; j++) {
            const int column = left + j * job.across;
            from_b[j] = (column < job.columns ? column : job.columns - 1) * job.b_column;
        }
        const Real *own_a = a, *own_b = b;
        for (int k = part; k < inner; k += sharing) {
            Real x[TALL], y[WIDE];
            for (int i = 0; i < TALL; i++) x[i] = own_a[from_a[i]];
            for (int j = 0; j < WIDE; j++) y[j] = own_b[from_b[j]];
            for (int i = 0; i < TALL; i++)
                for (int j = 0; j < WIDE; j++) sums[i][j] += x[i] * y[j];
            own_a += step_a;
            own_b += step_b;
        }
        for (int distance = sharing / 2; distance; distance /= 2)
            for (int i = 0; i < TALL; i++)
                for (int j = 0; j < WIDE; j++)
                    sums[i][j] += __shfl_xor_sync(EVERY_LANE, sums[i][j], distance);
        // What becomes of an element is done in a short loop where it is long: the code of a step
        // has to stay near.
        const bool curved = job.activation > RELU;
        if (job.kind == JOB_BELOW && curved)
            for (int e = part; e < TALL * WIDE; e += sharing) {
                const int row = top + e / WIDE * down, column = left + e % WIDE * job.across;
                if (!has_one || row >= rows || column >= job.columns) continue;
                const int place = row * job.out_row + column;
                saved[place] = slope(job.activation, saved[place], parameter);
            }
        for (int i = 0; i < TALL; i++)
            for (int j = 0; j < WIDE; j++) {
                const int row = top + i * down, column = left + j * job.across;
                const bool mine = ((i * WIDE + j) & (sharing - 1)) == part;
                if (!has_one || !mine || row >= rows || column >= job.columns) continue;
                const int place = row * job.out_row + column;
                Real value = sums[i][j];
                if (job.kind == JOB_FORWARD && job.activation == RELU) value = at_least(value, 0);
                if (job.kind == JOB_BELOW && job.activation == RELU)
                    value = saved[place] > 0 ? value : value * 0;
                if (job.kind == JOB_BELOW && curved) value *= saved[place];
                out[place] = value;
            }
        if (job.kind == JOB_FORWARD && curved)
            for (int e = part; e < TALL * WIDE; e += sharing) {
                const int row = top + e / WIDE * down, column = left + e % WIDE * job.across;
                if (!has_one || row >= rows || column >= job.columns) continue;
                const int place = row * job.out_row + column;
                const Real z = out[place];
                if (job.kept >= 0) kept[place] = z;
                out[place] = activate(job.activation, z, parameter);
            }
    }
}

// dy of the last layer times its activation's slope.
__device__ NOT_INLINE void do_slope(int number, int batch_rows) {
    const Job job = jobs()[number];
    Real* dz = memory() + job.out;
    const Real* saved = memory() + job.saved;
    for (int e = threadIdx.x; e < batch_rows * job.columns; e += THREADS) {
        const int i = small_quotient(e, job.per_across), j = e - i * job.columns;
        const int place = i * job.out_row + j;
        dz[place] *= slope(job.activation, saved[place], (Real)job.parameter);
    }
}

// Jobs from one on to another; all threads meet where the next one needs what one has made.
__device__ inline void do_jobs(int from, int to, int batch_rows, int turn) {
    for (int number = from; number < to; number++) {
        if (batch_rows || jobs()[number].kind == JOB_WEIGHTS) {
            if (jobs()[number].kind == JOB_SLOPE)
                do_slope(number, batch_rows);
            else if (jobs()[number].large)
                do_product<4, 4>(number, batch_rows, turn);
            else
                do_product<4, 1>(number, batch_rows, turn);
        }
        if (jobs()[number].meets) __syncthreads();
    }
}

// A step of the run: where its rows begin among the rows of an epoch, or of the order of rows, and
// how many of them there are for all blocks and for this one.
struct Step {
    int place, per_epoch, turn, rows, own_rows;
    Size start, epoch;

    __device__ inline void settle() {
        const Size *run = run_of_steps(), batch = run[RUN_BATCH];
        const Size left = run[RUN_ROWS] - place * batch;
        start = place * batch + (run[RUN_ORDER] ? epoch * run[RUN_ROWS] : 0);
        rows = (int)(left < batch ? left : batch);
        const int most = plan().of(PLAN_ROWS), own = rows - (int)blockIdx.x * most;
        own_rows = own < 0 ? 0 : own < most ? own : most;
    }
    __device__ inline void next() {
        turn ^= 1;
        if (++place == per_epoch) {
            place = 0;
            epoch++;
        }
        settle();
    }
};

__device__ inline Step first_step() {
    const Size *run = run_of_steps(), batch = run[RUN_BATCH], index = run[RUN_INDEX];
    Step step;
    const Size per_epoch = (run[RUN_ROWS] + batch - 1) / batch;
    step.per_epoch = (int)per_epoch;
    step.epoch = index / per_epoch;
    step.place = (int)(index - step.epoch * per_epoch);
    step.turn = 0;
    step.settle();
    return step;
}

// Which rows a step's own are, on their way.
__device__ inline void fetch_indices(Step step) {
    const Size* order = (const Size*)run_of_steps()[RUN_ORDER];
    const int most = plan().of(PLAN_ROWS);
    const Size first = step.start + (Size)blockIdx.x * most;
    Size* own = bytes_of<Size>(PLAN_INDICES) + step.turn * most;
    for (int i = threadIdx.x; i < step.own_rows; i += THREADS) {
        if (order)
            copy_later(own + i, order + first + i);
        else
            own[i] = first + i;
    }
}

// Those rows, on their way.
__device__ NOT_INLINE void fetch_rows(Step step) {
    const Size* run = run_of_steps();
    const int most = plan().of(PLAN_ROWS), width = plan().of(PLAN_INPUTS);
    const int stride = plan().of(PLAN_X_STRIDE), target_width = plan().of(PLAN_TARGET_WIDTH);
    const Size* from = bytes_of<Size>(PLAN_INDICES) + step.turn * most;
    const Real *all_x = (const Real*)run[RUN_X], *all_weights = (const Real*)run[RUN_WEIGHT];
    Real* x = memory() + plan().of(PLAN_X) + step.turn * most * stride;
    float per_width = 1.0f / (float)width;
    for (int e = threadIdx.x; e < step.own_rows * width; e += THREADS) {
        const int i = small_quotient(e, per_width), j = e - i * width;
        copy_later(x + i * stride + j, all_x + from[i] * width + j);
    }
    if (target_width) {
        const Real* all = (const Real*)run[RUN_TARGET];
        Real* own = memory() + plan().of(PLAN_TARGETS) + step.turn * most * target_width;
        per_width = 1.0f / (float)target_width;
        for (int e = threadIdx.x; e < step.own_rows * target_width; e += THREADS) {
            const int i = small_quotient(e, per_width), j = e - i * target_width;
            copy_later(own + e, all + from[i] * target_width + j);
        }
    } else {
        const int* all = (const int*)run[RUN_TARGET];
        int* own = bytes_of<int>(PLAN_LABELS) + step.turn * most;
        for (int i = threadIdx.x; i < step.own_rows; i += THREADS)
            copy_later(own + i, all + from[i]);
    }
    if (!all_weights) return;
    Real* own = memory() + plan().of(PLAN_ROW_WEIGHTS) + step.turn * most;
    for (int i = threadIdx.x; i < step.own_rows; i += THREADS)
        copy_later(own + i, all_weights + from[i]);
}

// The sum of the weights of a step's rows, those of all blocks.
__device__ inline double weight_sum_of(Step step) {
    const Size *run = run_of_steps(), *order = (const Size*)run[RUN_ORDER];
    const Real* all = (const Real*)run[RUN_WEIGHT];
    double value = 0;
    for (Size i = threadIdx.x; i < step.rows; i += THREADS)
        value += all[order ? order[step.start + i] : step.start + i];
    return block_sum(value, bytes_of<double>(PLAN_SUMS));
}

// The losses of the block's rows and whether their class is guessed right; the gradient of the
// outputs. LANES lanes take a row.
template <int LANES>
__device__ NOT_INLINE void lose(Step step, int code, Real parameter, double scale) {
    const int most = plan().of(PLAN_ROWS), outputs = plan().of(PLAN_OUTPUTS);
    const int stride = plan().of(PLAN_OUTPUT_STRIDE), target_width = plan().of(PLAN_TARGET_WIDTH);
    const int* labels = bytes_of<int>(PLAN_LABELS) + step.turn * most;
    const Real* targets = memory() + plan().of(PLAN_TARGETS) + step.turn * most * target_width;
    const Real* weights = memory() + plan().of(PLAN_ROW_WEIGHTS) + step.turn * most;
    const bool weighted = run_of_steps()[RUN_WEIGHT];
    double* losses = bytes_of<double>(PLAN_LOSSES);
    for (int i = threadIdx.x / LANES; i < step.own_rows; i += THREADS / LANES) {
        const Real* p = memory() + plan().of(PLAN_OUTPUT) + i * stride;
        const Real* t = target_width ? targets + i * target_width : 0;
        const Size label = target_width ? -1 : labels[i];
        const double w = weighted ? (double)weights[i] : 1;
        Gradient d = {memory() + plan().of(PLAN_OUTPUT_GRADIENT) + i * stride, 0};
        const double value = row_loss<LANES>(
            code, parameter, p, t, !target_width, label, outputs, w * scale, d
        );
        bool hit = false;
        if (plan().of(PLAN_COUNTS_HITS))
            hit = row_argmax<LANES>(p, outputs) ==
                  (target_width ? row_argmax<LANES>(t, outputs) : label);
        if (lane() % LANES == 0) {
            losses[2 * i] = w * value;
            losses[2 * i + 1] = hit ? w : 0;
        }
    }
}

// What the block's rows add up to: losses and hits, left where all blocks can read them. The first
// warp does it.
__device__ inline void add_losses(int rows) {
    if (threadIdx.x >= WARP) return;
    const double* losses = bytes_of<double>(PLAN_LOSSES);
    double value = 0, hits = 0;
    for (int i = threadIdx.x; i < rows; i += WARP) {
        value += losses[2 * i];
        hits += losses[2 * i + 1];
    }
    value = warp_sum(value);
    hits = warp_sum(hits);
    if (threadIdx.x) return;
    bytes_of<double>(PLAN_TOTALS)[0] = value;
    bytes_of<double>(PLAN_TOTALS)[1] = hits;
}

// The layers, LAYER_FIELDS words each.
__device__ inline const Size* layers() { return (const Size*)(jobs() + plan().of(PLAN_JOBS)); }

// visit(place in memory, place in the flat vectors) for each parameter.
template <typename Visit>
__device__ inline void each_parameter(Visit visit) {
    for (int k = 0; k < plan().of(PLAN_DEPTH); k++) {
        const Size* layer = layers() + k * LAYER_FIELDS;
        const int outputs = (int)layer[LAYER_OUTPUTS], stride = (int)layer[LAYER_STRIDE];
        const int size = (int)layer[LAYER_INPUTS] * outputs, place = (int)layer[LAYER_PLACE];
        const float per_output = 1.0f / (float)outputs;
        for (int e = threadIdx.x; e < size; e += THREADS) {
            const int i = small_quotient(e, per_output), j = e - i * outputs;
            visit(place + i * stride + j, layer[LAYER_WEIGHT] + e);
        }
        if (layer[LAYER_BIAS] < 0) continue;
        const int bias = place + (int)layer[LAYER_INPUTS] * stride;
        for (int j = threadIdx.x; j < outputs; j += THREADS) visit(bias + j, layer[LAYER_BIAS] + j);
    }
}

// Whether a place is that of a weight, which decays: biases do not.
__device__ inline bool is_weight(int place) {
    for (int k = 0; k < plan().of(PLAN_DEPTH); k++) {
        const Size* layer = layers() + k * LAYER_FIELDS;
        const int from = place - (int)layer[LAYER_PLACE];
        if (from >= 0 && from < (int)(layer[LAYER_INPUTS] * layer[LAYER_STRIDE])) return true;
    }
    return false;
}

// How an optimizer changes parameters; ``update`` is one of the UPDATE_ codes.
struct Optimizer {
    int update, nesterov;
    Real momentum, beta1, rest1, beta2, rest2, rho, rest, eps;

    __device__ inline void apply(
        Real rate, Real small, Real keep, Real& w, Real g, Real& m, Real& v
    ) const {
        switch (update) {
            case UPDATE_ADAM:
                adam_update({rate, keep, beta1, rest1, beta2, rest2, small}, w, g, m, v);
                break;
            case UPDATE_RMSPROP: rmsprop_update(rate, rho, rest, eps, w, g, m); break;
            case UPDATE_ADAGRAD: adagrad_update(rate, eps, w, g, m); break;
            case UPDATE_MOMENTUM: momentum_update(rate, momentum, nesterov, w, g, m); break;
            default: sgd_update(rate, w, g);
        }
    }
};

// ``steps`` steps of the run, for whose rates there is room in memory. ``table`` has ``words`` words:
// plan, jobs and layers. ``m`` and ``v`` are what the optimizer keeps, null where it keeps nothing. ``n`` is
// the width of the trace behind its three first columns.
KERNEL train_resident(
    int steps, const Size* table, int words, int loss, int average, Real loss_parameter, Size n,
    int update, int nesterov, double momentum, double beta1, double beta2, double rho, double eps,
    double decay, Real* parameters, Real* gradients, Real* m, Real* v, Size* run, StepState* state
) {
    Size* known = (Size*)shared_memory();
    for (int i = threadIdx.x; i < words; i += THREADS)
        known[i < PLAN_FIELDS ? i : i + RUN_FIELDS] = table[i];
    for (int i = threadIdx.x; i < RUN_FIELDS; i += THREADS) known[PLAN_FIELDS + i] = run[i];
    __syncthreads();
    const Size index = run_of_steps()[RUN_INDEX];
    const int blocks = gridDim.x, share = plan().of(PLAN_SHARE), end = plan().of(PLAN_TRAINED);
    const int first = plan().of(PLAN_BEGIN) + (int)blockIdx.x * share;
    const int last = first + share < end ? first + share : end;
    const int gradient = plan().of(PLAN_GRADIENTS), forwards = plan().of(PLAN_FORWARDS);
    Real *own_m = memory() + plan().of(PLAN_M) - first, *own_v = memory() + plan().of(PLAN_V) - first;
    double *rates = bytes_of<double>(PLAN_RATES), *totals = bytes_of<double>(PLAN_TOTALS);
    bool stopped = state->stopped;
    const Optimizer optimizer = {
        update, nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
        (Real)(1 - beta2), (Real)rho, (Real)(1 - rho), (Real)eps
    };

    Step now = first_step(), ahead = now;
    fetch_indices(now);
    ahead.next();
    if (steps > 1) fetch_indices(ahead);
    each_parameter([=](int place, Size at) {
        memory()[place] = parameters[at];
        if (place < first || place >= last) return;
        if (m) own_m[place] = m[at];
        if (v) own_v[place] = v[at];
    });
    // the columns of ones: (PLAN_DEPTH + 1) matrices, x being two
    for (int i = threadIdx.x; i < (plan().of(PLAN_DEPTH) + 1) * plan().of(PLAN_ROWS); i += THREADS) {
        const int matrix = i / plan().of(PLAN_ROWS), row = i - matrix * plan().of(PLAN_ROWS);
        const Size* layer = layers() + (matrix < 2 ? 0 : matrix - 1) * LAYER_FIELDS;
        const int turn = matrix == 1 ? plan().of(PLAN_ROWS) : 0;
        memory()[layer[LAYER_X] + (turn + row) * layer[LAYER_X_STRIDE] + layer[LAYER_INPUTS]] = 1;
    }
    const double* all_rates = (const double*)run_of_steps()[RUN_RATES];
    for (int i = threadIdx.x; i < steps; i += THREADS) {
        StepState step;
        step.rate = all_rates ? all_rates[index + i] : ((const double*)run_of_steps())[RUN_RATE];
        step.step = (Wide)(run_of_steps()[RUN_FIRST_STEP] + index + i);
        correct_rate(&step, update == UPDATE_ADAM, beta1, beta2, eps, decay);
        rates[3 * i] = step.corrected_rate;
        rates[3 * i + 1] = step.corrected_eps;
        rates[3 * i + 2] = step.keep;
    }
    wait_for_copies();
    __syncthreads();
    fetch_rows(now);

    for (int i = 0; i < steps; i++) {
        double weight_sum = (double)now.rows;
        if (run_of_steps()[RUN_WEIGHT]) weight_sum = weight_sum_of(now);
        wait_for_copies();
        __syncthreads();
        if (i + 1 < steps) fetch_rows(ahead);
        Step later = ahead;
        later.next();
        if (i + 2 < steps) fetch_indices(later);
        do_jobs(0, forwards, now.own_rows, now.turn);
        const double scale = loss_scale(average, now.rows, &weight_sum);
        if (plan().of(PLAN_OUTPUTS) <= NARROW && now.own_rows > WARPS)
            lose<1>(now, loss, loss_parameter, scale);
        else
            lose<WARP>(now, loss, loss_parameter, scale);
        __syncthreads();
        add_losses(now.own_rows);
        do_jobs(forwards, plan().of(PLAN_JOBS), now.own_rows, now.turn);
        meet_blocks();  // every block's part of the gradient is there
        double value = 0, hits = 0;
        for (int block = 0; block < blocks; block++) {
            value += of_block(totals, block)[0];
            hits += of_block(totals, block)[1];
        }
        stopped |= !(value - value == 0);
        const Real rate = (Real)rates[3 * i], small = (Real)rates[3 * i + 1], none = 0;
        for (int place = first + threadIdx.x; place < last; place += THREADS) {
            Real g = 0;
            for (int block = 0; block < blocks; block++)
                g += of_block(memory(), block)[gradient + place];
            memory()[gradient + place] = g;
            if (stopped) continue;
            Real w = memory()[place], keep = 1;
            if (decay != 0 && is_weight(place)) keep = (Real)rates[3 * i + 2];
            Real own[2] = {m ? own_m[place] : none, v ? own_v[place] : none};
            optimizer.apply(rate, small, keep, w, g, own[0], own[1]);
            if (m) own_m[place] = own[0];
            if (v) own_v[place] = own[1];
            for (int block = 0; block < blocks; block++) of_block(memory(), block)[place] = w;
        }
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            double* trace = (double*)run_of_steps()[RUN_TRACE] + (index + i) * (3 + n);
            if (run_of_steps()[RUN_TRACE]) {
                trace[0] = value;
                trace[1] = 0;
                trace[2] = weight_sum;
                if (n) trace[3] = hits;
            }
            if (run_of_steps()[RUN_LOSS]) *(double*)run_of_steps()[RUN_LOSS] = value * scale;
        }
        now = ahead;
        ahead = later;
        meet_blocks();  // the new parameters are everywhere, and all gradients have been read
    }

    each_parameter([=](int place, Size at) {
        if (place < first || place >= last) return;
        parameters[at] = memory()[place];
        gradients[at] = memory()[gradient + place];
        if (m) m[at] = own_m[place];
        if (v) v[at] = own_v[place];
    });
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        run[RUN_INDEX] = index + steps;
        state->stopped = stopped;
    }
}
