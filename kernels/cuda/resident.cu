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
// of jobs, each a product. They, and the plan that says what lies where in a block's memory, are
// constants: the kernel is compiled for one network, since a generic one takes three times as long
// over what is to be done next as over doing it. nnbackend/backends/cuda/resident.py writes them
// (PLAN_WORDS, JOBS, LAYERS) before this file. Places are counted in Reals from the beginning of the
// memory.

// Rows of so few outputs are one lane's each where their loss is computed, if there are many.
#define NARROW 16

// A step of the run, and how many of its rows are this block's. Steps take turns in two places.
struct Step : Batch {
    int turn, own_rows;

    __device__ inline void share() {
        const int first = blockIdx.x * plan(PLAN_ROWS);
        const int after = rows > first ? rows - first : 0;
        own_rows = after < plan(PLAN_ROWS) ? after : plan(PLAN_ROWS);
    }
    __device__ inline void next() {
        turn ^= 1;
        move_on(run_of_steps());
        share();
    }
};

__device__ inline Step first_step() {
    Step step;
    (Batch&)step = next_batch(run_of_steps());
    step.turn = 0;
    step.share();
    return step;
}

// Which rows a step's own are, on their way.
__device__ inline void fetch_indices(Step step) {
    const Size* order = (const Size*)run_of_steps()[RUN_ORDER];
    const int most = plan(PLAN_ROWS);
    const Size first = step.start + (Size)blockIdx.x * most;
    Size* own = bytes_of<Size>(PLAN_INDICES) + step.turn * most;
    for (int i = threadIdx.x; i < step.own_rows; i += THREADS) {
        if (order)
            copy_later(own + i, order + first + i);
        else
            own[i] = first + i;
    }
}

// Those rows, on their way; zeros for rows that a short batch has not.
__device__ NOT_INLINE void fetch_rows(Step step) {
    const Size* run = run_of_steps();
    const int most = plan(PLAN_ROWS), width = plan(PLAN_INPUTS);
    const int stride = plan(PLAN_X_STRIDE), target_width = plan(PLAN_TARGET_WIDTH);
    const Size* from = bytes_of<Size>(PLAN_INDICES) + step.turn * most;
    const Real *all_x = (const Real*)run[RUN_X], *all_weights = (const Real*)run[RUN_WEIGHT];
    Real* x = memory() + plan(PLAN_X) + step.turn * most * stride;
    float per_width = 1.0f / (float)width;
    for (int e = threadIdx.x; e < step.own_rows * width; e += THREADS) {
        const int i = small_quotient(e, per_width), j = e - i * width;
        copy_later(x + i * stride + j, all_x + from[i] * width + j);
    }
    for (int e = step.own_rows * stride + threadIdx.x; e < most * stride; e += THREADS)
        if (small_quotient(e, 1.0f / (float)stride) * stride + width != e) x[e] = 0;  // ones stay
    if (target_width) {
        const Real* all = (const Real*)run[RUN_TARGET];
        Real* own = memory() + plan(PLAN_TARGETS) + step.turn * most * target_width;
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
    Real* own = memory() + plan(PLAN_ROW_WEIGHTS) + step.turn * most;
    for (int i = threadIdx.x; i < step.own_rows; i += THREADS)
        copy_later(own + i, all_weights + from[i]);
}

// The sum of the weights of a step's rows, those of all blocks.
__device__ inline double weight_sum_of(Step step) {
    const Size *run = run_of_steps(), *order = (const Size*)run[RUN_ORDER];
    const Real* all = (const Real*)run[RUN_WEIGHT];
    double value = 0;
    for (Size i = threadIdx.x; i < step.rows; i += THREADS)
        value += all[row_at(order, step.start + i)];
    return block_sum(value, bytes_of<double>(PLAN_SUMS));
}

// The losses of the block's rows and whether their class is guessed right; the gradient of the
// outputs. LANES lanes take a row.
template <int LANES>
__device__ NOT_INLINE void lose(Step step, Real parameter, double scale) {
    const int most = plan(PLAN_ROWS), outputs = plan(PLAN_OUTPUTS);
    const int stride = plan(PLAN_OUTPUT_STRIDE), target_width = plan(PLAN_TARGET_WIDTH);
    const int* labels = bytes_of<int>(PLAN_LABELS) + step.turn * most;
    const Real* targets = memory() + plan(PLAN_TARGETS) + step.turn * most * target_width;
    const Real* weights = memory() + plan(PLAN_ROW_WEIGHTS) + step.turn * most;
    const bool weighted = run_of_steps()[RUN_WEIGHT];
    double* losses = bytes_of<double>(PLAN_LOSSES);
    Real* gradient = memory() + plan(PLAN_OUTPUT_GRADIENT);
    for (int i = threadIdx.x / LANES; i < step.own_rows; i += THREADS / LANES) {
        const Real* p = memory() + plan(PLAN_OUTPUT) + i * stride;
        const Real* t = target_width ? targets + i * target_width : 0;
        const Size label = target_width ? -1 : labels[i];
        const double w = weighted ? (double)weights[i] : 1;
        Gradient d = {gradient + i * stride, 0};
        const double value = row_loss<LANES>(
            plan(PLAN_LOSS), parameter, p, t, !target_width, label, outputs, w * scale, d
        );
        bool hit = false;
        if (plan(PLAN_COUNTS_HITS))
            hit = row_argmax<LANES>(p, outputs) ==
                  (target_width ? row_argmax<LANES>(t, outputs) : label);
        if (lane() % LANES == 0) {
            losses[2 * i] = w * value;
            losses[2 * i + 1] = hit ? w : 0;
        }
    }
}

// Zeros for rows that the batch has not: the gradient of their outputs, and what layers made of
// nothing but biases and hand on to gradients of weights, which need not be finite.
__device__ NOT_INLINE void forget_rows(int own_rows) {
    const int most = plan(PLAN_ROWS), stride = plan(PLAN_OUTPUT_STRIDE);
    Real* gradient = memory() + plan(PLAN_OUTPUT_GRADIENT);
    for (int e = own_rows * stride + threadIdx.x; e < most * stride; e += THREADS) gradient[e] = 0;
    for (int k = 1; k < plan(PLAN_DEPTH); k++) {
        const int width = (int)layer(k, LAYER_INPUTS), x_stride = (int)layer(k, LAYER_X_STRIDE);
        Real* x = memory() + layer(k, LAYER_X) + own_rows * x_stride;
        for (int e = threadIdx.x; e < (most - own_rows) * width; e += THREADS) {
            const int i = small_quotient(e, 1.0f / (float)width);
            x[i * x_stride + e - i * width] = 0;
        }
    }
}

// What the block's rows add up to: losses and hits, left where all blocks can read them. The last
// warp does it, which has the least to do otherwise; its even lanes the losses, its odd ones the
// hits.
__device__ inline void add_losses(int rows) {
    if (threadIdx.x < THREADS - WARP) return;
    const double* losses = bytes_of<double>(PLAN_LOSSES);
    double value = 0;
    for (int i = lane(); i < 2 * rows; i += WARP) value += losses[i];
    for (int distance = WARP / 2; distance > 1; distance /= 2)
        value += __shfl_xor_sync(EVERY_LANE, value, distance);
    if (lane() < 2) bytes_of<double>(PLAN_TOTALS)[lane()] = value;
}

// visit(place in memory, place in the flat vectors) for each parameter.
template <typename Visit>
__device__ inline void each_parameter(Visit visit) {
    for (int k = 0; k < plan(PLAN_DEPTH); k++) {
        const int outputs = (int)layer(k, LAYER_OUTPUTS), stride = (int)layer(k, LAYER_STRIDE);
        const int size = (int)layer(k, LAYER_INPUTS) * outputs, place = (int)layer(k, LAYER_PLACE);
        const Size weight_at = layer(k, LAYER_WEIGHT), bias_at = layer(k, LAYER_BIAS);
        const float per_output = 1.0f / (float)outputs;
        for (int e = threadIdx.x; e < size; e += THREADS) {
            const int i = small_quotient(e, per_output), j = e - i * outputs;
            visit(place + i * stride + j, weight_at + e);
        }
        if (bias_at < 0) continue;
        const int bias = place + (int)layer(k, LAYER_INPUTS) * stride;
        for (int j = threadIdx.x; j < outputs; j += THREADS) visit(bias + j, bias_at + j);
    }
}

// Whether a place is that of a weight, which decays: biases do not.
__device__ inline bool is_weight(int place) {
    for (int k = 0; k < plan(PLAN_DEPTH); k++) {
        const int from = place - (int)layer(k, LAYER_PLACE);
        if (from >= 0 && from < (int)(layer(k, LAYER_INPUTS) * layer(k, LAYER_STRIDE))) return true;
    }
    return false;
}

#undef KERNEL
#define KERNEL extern "C" __global__ void

// ``steps`` steps of the run, for whose rates and trace there is room in memory. ``m`` and ``v`` are
// what the optimizer keeps, null where it keeps nothing. ``n`` is the width of the trace behind its
// three first columns.
KERNEL train_resident(
    int steps, Real loss_parameter, Size n, int nesterov, double momentum, double beta1,
    double beta2, double rho, double eps, double decay, double eps_hat, Real* parameters,
    Real* gradients, Real* m, Real* v, Size* run, StepState* state
) {
    for (int i = threadIdx.x; i < RUN_FIELDS; i += THREADS) run_of_steps()[i] = run[i];
    __syncthreads();
    const Size index = run_of_steps()[RUN_INDEX];
    constexpr int blocks = plan(PLAN_BLOCKS);
    // parameters that a thread updates side by side
    constexpr int each = (plan(PLAN_SHARE) + THREADS - 1) / THREADS, AT_ONCE = each < 4 ? each : 4;
    const int share = plan(PLAN_SHARE), end = plan(PLAN_TRAINED);
    const int first = plan(PLAN_BEGIN) + (int)blockIdx.x * share;
    const int last = first + share < end ? first + share : end;
    const int gradient = plan(PLAN_GRADIENTS);
    Real *own_m = memory() + plan(PLAN_M) - first, *own_v = memory() + plan(PLAN_V) - first;
    double *rates = bytes_of<double>(PLAN_RATES), *totals = bytes_of<double>(PLAN_TOTALS);
    double* traced = bytes_of<double>(PLAN_TRACED);
    bool stopped = state->stopped;
    const Optimizer optimizer = {
        nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
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
    const int all_ones = (plan(PLAN_DEPTH) + 1) * plan(PLAN_ROWS);
    for (int i = threadIdx.x; i < all_ones; i += THREADS) {
        const int matrix = i / plan(PLAN_ROWS), row = i - matrix * plan(PLAN_ROWS);
        const int number = matrix < 2 ? 0 : matrix - 1, turn = matrix == 1 ? plan(PLAN_ROWS) : 0;
        const Size start = layer(number, LAYER_X) + layer(number, LAYER_INPUTS);
        memory()[start + (turn + row) * layer(number, LAYER_X_STRIDE)] = 1;
    }
    correct_rates(
        run_of_steps(), index, steps, plan(PLAN_UPDATE) == UPDATE_ADAM, beta1, beta2, eps, decay,
        eps_hat, rates
    );
    wait_for_copies();
    __syncthreads();
    fetch_rows(now);

    double weight_sum = 0, scale = 0;
    for (int i = 0; i < steps; i++) {
        const bool weighted = run_of_steps()[RUN_WEIGHT];
        if (weighted || weight_sum != now.rows) {  // otherwise it is that of the step before
            weight_sum = weighted ? weight_sum_of(now) : (double)now.rows;
            scale = loss_scale(plan(PLAN_AVERAGES), now.rows, &weight_sum);
        }
        wait_for_copies();
        __syncthreads();
        if (i + 1 < steps) fetch_rows(ahead);
        Step later = ahead;
        later.next();
        if (i + 2 < steps) fetch_indices(later);
        forward(now.turn, now.own_rows);
        if (plan(PLAN_OUTPUTS) <= NARROW && now.own_rows > WARPS)
            lose<1>(now, loss_parameter, scale);
        else
            lose<WARP>(now, loss_parameter, scale);
        if (now.own_rows < plan(PLAN_ROWS)) forget_rows(now.own_rows);
        __syncthreads();
        backward(now.turn, now.own_rows);
        add_losses(now.own_rows);
        meet_blocks<blocks>();  // every block's part of the gradient is there
        double value = 0, hits = 0;
        for (int block = 0; block < blocks; block++) {
            value += of_block(totals, block)[0];
            hits += of_block(totals, block)[1];
        }
        stopped |= !(value - value == 0);
        const Real rate = (Real)rates[3 * i], small = (Real)rates[3 * i + 1], none = 0;
        for (int start = first + threadIdx.x; start < last; start += AT_ONCE * THREADS) {
            Real g[AT_ONCE] = {}, w[AT_ONCE] = {}, own[AT_ONCE][2] = {};
            for (int k = 0; k < AT_ONCE; k++) {
                const int place = start + k * THREADS;
                if (place >= last) break;
                for (int block = 0; block < blocks; block++)
                    g[k] += of_block(memory(), block)[gradient + place];
                w[k] = memory()[place];
                own[k][0] = m ? own_m[place] : none;
                own[k][1] = v ? own_v[place] : none;
            }
            for (int k = 0; k < AT_ONCE && !stopped; k++) {
                const int place = start + k * THREADS;
                if (place >= last) break;
                const bool decays = decay != 0 && is_weight(place);
                const Real keep = decays ? (Real)rates[3 * i + 2] : (Real)1;
                optimizer.apply<plan(PLAN_UPDATE)>(
                    rate, small, keep, w[k], g[k], own[k][0], own[k][1]
                );
            }
            for (int k = 0; k < AT_ONCE; k++) {
                const int place = start + k * THREADS;
                if (place >= last) break;
                memory()[gradient + place] = g[k];
                if (stopped) continue;
                if (m) own_m[place] = own[k][0];
                if (v) own_v[place] = own[k][1];
                for (int block = 0; block < blocks; block++)
                    of_block(memory(), block)[place] = w[k];
            }
        }
        if (threadIdx.x == 0) {
            // not to the trace itself: whoever meets waits for what was written to global memory
            traced[3 * i] = value;
            traced[3 * i + 1] = weight_sum;
            traced[3 * i + 2] = hits;
        }
        now = ahead;
        ahead = later;
        meet_blocks<blocks>();  // the new parameters are everywhere, all gradients have been read
    }

    each_parameter([=](int place, Size at) {
        if (place < first || place >= last) return;
        parameters[at] = memory()[place];
        gradients[at] = memory()[gradient + place];
        if (m) m[at] = own_m[place];
        if (v) v[at] = own_v[place];
    });
    if (blockIdx.x) return;
    double* trace = (double*)run_of_steps()[RUN_TRACE];
    for (int i = threadIdx.x; i < steps && trace; i += THREADS) {
        double* row = trace + (index + i) * (TRACE_SUMS + n);
        row[TRACE_LOSS] = traced[3 * i];
        row[TRACE_PENALTY] = 0;
        row[TRACE_WEIGHT] = traced[3 * i + 1];
        if (n) row[TRACE_SUMS] = traced[3 * i + 2];
    }
    if (threadIdx.x) return;
    double* loss = (double*)run_of_steps()[RUN_LOSS];
    if (loss)
        *loss = traced[3 * steps - 3] * loss_scale(plan(PLAN_AVERAGES), 1, traced + 3 * steps - 2);
    run[RUN_INDEX] = index + steps;
    state->stopped = stopped;
}
