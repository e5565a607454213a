// Training steps of a network that stays in shared memory: many of them in one launch, and nothing
// to be launched between its layers.
//
// A cluster of blocks does it. Each block has all weights in its shared memory and takes some rows
// of the batch: forward, loss and backward, which leave it a part of the gradient. Then each block
// adds up those parts for its share of the parameters, updates that share, and writes it to all
// blocks. Places are counted in Reals from a block's memory; rows of matrices lie so far apart
// (an odd number of fours) that threads that read down a column do not wait for each other.
//
// ``table`` (int64) is written by nnbackend/resident.py, whose names its places have: first what
// holds for all, then a row for each dense layer.

// Rows of so few outputs are one lane's each where their loss is computed.
#define NARROW 16

// Of a matrix whose element (i, j) lies at start + i * row + j * column.
struct Matrix {
    const Real* start;
    int row, column;
};

// put(i, j, sum) for each element of a b: a has ``inner`` columns, and b has so many rows. Where
// there is an address of a one, a row of ones follows those of a: it gives b's column sums. A thread
// takes TALL x WIDE elements that lie far from each other, so that neighbours read neighbours; if
// there are few, several lanes share their sums.
template <int TALL, int WIDE, typename Put>
__device__ inline void product_tiles(
    int rows, int columns, int inner, Matrix a, Matrix b, const Real* ones, int sharing, Put put
) {
    int all_rows = rows + (ones ? 1 : 0);
    int down = (all_rows + TALL - 1) / TALL, across = (columns + WIDE - 1) / WIDE;
    int tiles = down * across, at_once = THREADS / sharing, part = threadIdx.x % sharing;
    // all lanes take part in all shuffles, also those without a tile
    for (int first = 0; first < tiles; first += at_once) {
        int tile = first + threadIdx.x / sharing;
        bool has_one = tile < tiles;
        int top = has_one ? tile / across : 0, left = has_one ? tile % across : 0;
        const Real *from_a[TALL], *from_b[WIDE];
        int step_a[TALL];
        Real sums[TALL][WIDE];
        for (int i = 0; i < TALL; i++) {
            int row = top + i * down;
            bool within = row < rows;
            from_a[i] = within ? a.start + row * a.row + part * a.column : ones ? ones : a.start;
            step_a[i] = within ? sharing * a.column : 0;
            for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
        }
        for (int j = 0; j < WIDE; j++) {
            int column = left + j * across;
            column = column < columns ? column : columns - 1;
            from_b[j] = b.start + part * b.row + column * b.column;
        }
        for (int k = part; k < inner; k += sharing) {
            Real x[TALL], y[WIDE];
            for (int i = 0; i < TALL; i++) {
                x[i] = *from_a[i];
                from_a[i] += step_a[i];
            }
            for (int j = 0; j < WIDE; j++) {
                y[j] = *from_b[j];
                from_b[j] += sharing * b.row;
            }
            for (int i = 0; i < TALL; i++)
                for (int j = 0; j < WIDE; j++) sums[i][j] += x[i] * y[j];
        }
        for (int distance = sharing / 2; distance; distance /= 2)
            for (int i = 0; i < TALL; i++)
                for (int j = 0; j < WIDE; j++)
                    sums[i][j] += __shfl_xor_sync(EVERY_LANE, sums[i][j], distance);
        for (int i = 0; i < TALL; i++)
            for (int j = 0; j < WIDE; j++) {
                int row = top + i * down, column = left + j * across;
                bool mine = (i * WIDE + j) % sharing == part;
                if (has_one && mine && row < all_rows && column < columns)
                    put(row, column, sums[i][j]);
            }
    }
}

// The largest power of two that is at most so many lanes, not more than a warp.
__device__ inline int lanes_of(int most) {
    int lanes = 1;
    while (2 * lanes <= most && lanes < WARP) lanes *= 2;
    return lanes;
}

template <typename Put>
__device__ inline void matrix_product(
    int rows, int columns, int inner, Matrix a, Matrix b, const Real* ones, Put put
) {
    int down = (rows + (ones ? 1 : 0) + 3) / 4, large = down * ((columns + 3) / 4);
    if (!down) return;
    int tiles = large >= WARP ? large : down * columns, most = THREADS / tiles;
    int sharing = lanes_of(2 * most > inner ? inner / 2 : most);
    if (large >= WARP)
        product_tiles<4, 4>(rows, columns, inner, a, b, ones, sharing, put);
    else
        product_tiles<4, 1>(rows, columns, inner, a, b, ones, sharing, put);
}

// A dense layer as the table has it.
struct DenseRow {
    const Size* at;
    __device__ inline int of(int place) const { return (int)at[place]; }
    __device__ inline Real parameter() const { return (Real)((const double*)at)[DENSE_PARAMETER]; }
};

// Which rows of the data are those of a step's batch.
struct Batch {
    Size start, rows;
};

__device__ inline Batch batch_of(const Size* run, Size index) {
    Size all = run[RUN_ROWS], batch = run[RUN_BATCH], per_epoch = (all + batch - 1) / batch;
    Size epoch = quotient_of(index, per_epoch), place = index - epoch * per_epoch;
    Size left = all - place * batch;
    return {place * batch + (run[RUN_ORDER] ? epoch * all : 0), left < batch ? left : batch};
}

// Where a block's things lie in its memory.
struct Resident {
    const Size* table;
    const Size* run;
    Real* memory;
    int rank, blocks, own_rows;

    __device__ inline int of(int place) const { return (int)table[place]; }
    __device__ inline DenseRow layer(int k) const {
        return {table + PLAN_LAYERS + k * DENSE_FIELDS};
    }
    template <typename T>
    __device__ inline T* bytes(int place) const {
        return (T*)((char*)memory + table[place]);
    }
    // Rows of the batch that are the block's own.
    __device__ inline int count(Batch batch) const {
        Size left = batch.rows - (Size)rank * own_rows;
        return left < 0 ? 0 : left < own_rows ? (int)left : own_rows;
    }
    __device__ inline Size* indices(Size index) const {
        return bytes<Size>(PLAN_INDICES) + (index & 1) * own_rows;
    }
    __device__ inline Real* x(Size index) const {
        return memory + of(PLAN_X) + (index & 1) * own_rows * of(PLAN_X_STRIDE);
    }
    __device__ inline Real* targets(Size index) const {
        return memory + of(PLAN_TARGETS) + (index & 1) * own_rows * of(PLAN_TARGET_WIDTH);
    }
    __device__ inline int* labels(Size index) const {
        return bytes<int>(PLAN_LABELS) + (index & 1) * own_rows;
    }
    __device__ inline Real* weights(Size index) const {
        return memory + of(PLAN_ROW_WEIGHTS) + (index & 1) * own_rows;
    }

    // Which rows a step's batch consists of, on their way.
    __device__ inline void fetch_indices(Size index) const {
        const Size* order = (const Size*)run[RUN_ORDER];
        Batch batch = batch_of(run, index);
        Size first = batch.start + (Size)rank * own_rows;
        for (int i = threadIdx.x; i < count(batch); i += THREADS) {
            if (order)
                copy_later(indices(index) + i, order + first + i);
            else
                indices(index)[i] = first + i;
        }
    }

    // Those rows, on their way.
    __device__ inline void fetch_rows(Size index) const {
        int rows = count(batch_of(run, index)), width = of(PLAN_INPUTS), stride = of(PLAN_X_STRIDE);
        int target_width = of(PLAN_TARGET_WIDTH);
        const Size* from = indices(index);
        const Real *all_x = (const Real*)run[RUN_X], *all_weights = (const Real*)run[RUN_WEIGHT];
        for (int e = threadIdx.x; e < rows * width; e += THREADS) {
            int i = e / width, j = e - i * width;
            copy_later(x(index) + i * stride + j, all_x + from[i] * width + j);
        }
        if (target_width) {
            const Real* all = (const Real*)run[RUN_TARGET];
            for (int e = threadIdx.x; e < rows * target_width; e += THREADS) {
                int i = e / target_width, j = e - i * target_width;
                copy_later(targets(index) + e, all + from[i] * target_width + j);
            }
        } else {
            const int* all = (const int*)run[RUN_TARGET];
            for (int i = threadIdx.x; i < rows; i += THREADS)
                copy_later(labels(index) + i, all + from[i]);
        }
        if (all_weights)
            for (int i = threadIdx.x; i < rows; i += THREADS)
                copy_later(weights(index) + i, all_weights + from[i]);
    }

    // The sum of the weights of a batch's rows, all of them.
    __device__ inline double weight_sum(Batch batch) const {
        const Size* order = (const Size*)run[RUN_ORDER];
        const Real* all = (const Real*)run[RUN_WEIGHT];
        double value = 0;
        for (Size i = threadIdx.x; i < batch.rows; i += THREADS)
            value += all[order ? order[batch.start + i] : batch.start + i];
        return block_sum(value, bytes<double>(PLAN_SUMS));
    }

    __device__ inline void forward(Size index, int rows) const {
        for (int k = 0; k < of(PLAN_DEPTH); k++) {
            DenseRow layer = this->layer(k);
            int code = layer.of(DENSE_ACTIVATION), stride = layer.of(DENSE_STRIDE);
            Real parameter = layer.parameter();
            Real* out = memory + layer.of(DENSE_OUTPUT);
            Real* kept = layer.of(DENSE_KEPT) < 0 ? 0 : memory + layer.of(DENSE_KEPT);
            const Real* bias = layer.of(DENSE_BIAS) < 0 ? 0 : memory + layer.of(DENSE_BIAS);
            Matrix a = {k ? memory + layer.of(DENSE_INPUT) : x(index), layer.of(DENSE_IN_STRIDE), 1};
            Matrix b = {memory + layer.of(DENSE_WEIGHT), layer.of(DENSE_W_STRIDE), 1};
            matrix_product(
                rows, layer.of(DENSE_OUTPUTS), layer.of(DENSE_INPUTS), a, b, 0,
                [=](int i, int j, Real z) {
                    if (bias) z += bias[j];
                    if (kept) kept[i * stride + j] = z;
                    out[i * stride + j] = activate(code, z, parameter);
                }
            );
            __syncthreads();
        }
    }

    // The losses of the block's rows and what becomes of them; the gradient of the outputs.
    template <int LANES>
    __device__ inline void lose(Size index, int rows, int code, Real parameter, double scale) const {
        DenseRow last = layer(of(PLAN_DEPTH) - 1);
        int outputs = last.of(DENSE_OUTPUTS), stride = last.of(DENSE_STRIDE);
        int target_width = of(PLAN_TARGET_WIDTH);
        double* losses = bytes<double>(PLAN_LOSSES);
        const Real* own_weights = run[RUN_WEIGHT] ? weights(index) : 0;
        for (int i = threadIdx.x / LANES; i < rows; i += THREADS / LANES) {
            const Real* p = memory + last.of(DENSE_OUTPUT) + i * stride;
            const Real* t = target_width ? targets(index) + i * target_width : 0;
            Size label = target_width ? -1 : labels(index)[i];
            double w = own_weights ? (double)own_weights[i] : 1;
            Gradient d = {memory + last.of(DENSE_GRADIENT) + i * stride, 0};
            double value = row_loss<LANES>(
                code, parameter, p, t, !target_width, label, outputs, w * scale, d
            );
            bool hit = false;
            if (of(PLAN_COUNTS_HITS))
                hit = row_argmax<LANES>(p, outputs) ==
                      (target_width ? row_argmax<LANES>(t, outputs) : label);
            if (lane() % LANES == 0) {
                losses[2 * i] = w * value;
                losses[2 * i + 1] = hit ? w : 0;
            }
        }
    }

    // What the block's rows add up to: losses and hits, left where all blocks can read them. The
    // first warp does it.
    __device__ inline void add_losses(int rows) const {
        if (threadIdx.x >= WARP) return;
        const double* losses = bytes<double>(PLAN_LOSSES);
        double value = 0, hits = 0;
        for (int i = threadIdx.x; i < rows; i += WARP) {
            value += losses[2 * i];
            hits += losses[2 * i + 1];
        }
        value = warp_sum(value);
        hits = warp_sum(hits);
        if (threadIdx.x) return;
        bytes<double>(PLAN_TOTALS)[0] = value;
        bytes<double>(PLAN_TOTALS)[1] = hits;
    }

    __device__ inline void backward(Size index, int rows) const {
        int depth = of(PLAN_DEPTH), shift = of(PLAN_GRADIENTS);
        DenseRow last = layer(depth - 1);
        if (last.of(DENSE_ACTIVATION)) {  // not linear
            int code = last.of(DENSE_ACTIVATION), stride = last.of(DENSE_STRIDE);
            int outputs = last.of(DENSE_OUTPUTS);
            Real parameter = last.parameter();
            Real* dz = memory + last.of(DENSE_GRADIENT);
            const Real* saved = memory + last.of(DENSE_SAVED);
            for (int e = threadIdx.x; e < rows * outputs; e += THREADS) {
                int i = e / outputs, place = i * stride + e - i * outputs;
                dz[place] *= slope(code, saved[place], parameter);
            }
            __syncthreads();
        }
        for (int k = depth - 1; k >= of(PLAN_LOWEST); k--) {
            DenseRow layer = this->layer(k);
            int inputs = layer.of(DENSE_INPUTS), outputs = layer.of(DENSE_OUTPUTS);
            int in_stride = layer.of(DENSE_IN_STRIDE), w_stride = layer.of(DENSE_W_STRIDE);
            const Real* dz = memory + layer.of(DENSE_GRADIENT);
            if (layer.of(DENSE_TRAINS)) {
                const Real* ones = layer.of(DENSE_BIAS) < 0 ? 0 : memory + of(PLAN_ONE);
                Real* dw = memory + shift + layer.of(DENSE_WEIGHT);
                Real* db = memory + shift + layer.of(DENSE_BIAS);
                Matrix a = {k ? memory + layer.of(DENSE_INPUT) : x(index), 1, in_stride};
                Matrix b = {dz, layer.of(DENSE_STRIDE), 1};
                matrix_product(inputs, outputs, rows, a, b, ones, [=](int i, int j, Real sum) {
                    if (i < inputs)
                        dw[i * w_stride + j] = sum;
                    else
                        db[j] = sum;
                });
            }
            if (k == of(PLAN_LOWEST)) break;
            __syncthreads();  // the inputs have been read, in whose place their gradient goes
            DenseRow below = this->layer(k - 1);
            int code = below.of(DENSE_ACTIVATION), stride = below.of(DENSE_STRIDE);
            Real parameter = below.parameter();
            Real* dx = memory + below.of(DENSE_GRADIENT);
            const Real* saved = memory + below.of(DENSE_SAVED);
            Matrix a = {dz, layer.of(DENSE_STRIDE), 1};
            Matrix b = {memory + layer.of(DENSE_WEIGHT), 1, w_stride};
            matrix_product(rows, inputs, outputs, a, b, 0, [=](int i, int j, Real sum) {
                int place = i * stride + j;
                dx[place] = sum * slope(code, saved[place], parameter);
            });
            __syncthreads();
        }
    }

    // visit(place in memory, place in the flat vectors) for each parameter.
    template <typename Visit>
    __device__ inline void each_parameter(Visit visit) const {
        for (int k = 0; k < of(PLAN_DEPTH); k++) {
            DenseRow layer = this->layer(k);
            int outputs = layer.of(DENSE_OUTPUTS), size = layer.of(DENSE_INPUTS) * outputs;
            int weight = layer.of(DENSE_WEIGHT), stride = layer.of(DENSE_W_STRIDE);
            for (int e = threadIdx.x; e < size; e += THREADS) {
                int i = e / outputs, j = e - i * outputs;
                visit(weight + i * stride + j, layer.at[DENSE_WEIGHT_AT] + e);
            }
            if (layer.of(DENSE_BIAS) < 0) continue;
            for (int j = threadIdx.x; j < outputs; j += THREADS)
                visit(layer.of(DENSE_BIAS) + j, layer.at[DENSE_BIAS_AT] + j);
        }
    }
};

// How an optimizer changes parameters; ``update`` is one of UPDATE_ codes.
struct Optimizer {
    int update, nesterov;
    Real momentum, beta1, rest1, beta2, rest2, rho, rest, eps;

    __device__ inline void apply(
        const double* rates, bool decays, Real& w, Real g, Real& m, Real& v
    ) const {
        switch (update) {
            case UPDATE_ADAM:
                adam_update(
                    {(Real)rates[0], decays ? (Real)rates[2] : (Real)1, beta1, rest1, beta2, rest2,
                     (Real)rates[1]},
                    w, g, m, v
                );
                break;
            case UPDATE_RMSPROP:
                rmsprop_update((Real)rates[0], rho, rest, eps, w, g, m);
                break;
            case UPDATE_ADAGRAD: adagrad_update((Real)rates[0], eps, w, g, m); break;
            case UPDATE_MOMENTUM:
                momentum_update((Real)rates[0], momentum, nesterov, w, g, m);
                break;
            default: sgd_update((Real)rates[0], w, g);
        }
    }
};

// ``steps`` steps of the run, of which rates have room in memory. ``m`` and ``v`` are what the optimizer keeps, null
// where it keeps nothing. ``n`` is the width of the trace behind its three first columns.
KERNEL train_resident(
    int steps, const Size* table, int loss, int average, Real loss_parameter, Size n, int update,
    int nesterov, double momentum, double beta1, double beta2, double rho, double eps, double decay,
    Real* parameters, Real* gradients, Real* m, Real* v, Size* run, StepState* state
) {
    Real* memory = (Real*)shared_memory();
    // what is read in every step lies first in memory
    const int words = (int)table[PLAN_WORDS];
    Size* known = (Size*)memory;
    for (int i = threadIdx.x; i < words + RUN_FIELDS; i += THREADS)
        known[i] = i < words ? table[i] : run[i - words];
    __syncthreads();
    Resident own = {
        known, known + words, memory, (int)blockIdx.x, (int)gridDim.x, (int)known[PLAN_ROWS]
    };
    Optimizer optimizer = {
        update, nesterov, (Real)momentum, (Real)beta1, (Real)(1 - beta1), (Real)beta2,
        (Real)(1 - beta2), (Real)rho, (Real)(1 - rho), (Real)eps
    };
    const Size index = own.run[RUN_INDEX];
    const int share = own.of(PLAN_SHARE), trained = own.of(PLAN_TRAINED);
    const int first = own.of(PLAN_BEGIN) + own.rank * share;
    const int last = first + share < trained ? first + share : trained;
    const int gradient = own.of(PLAN_GRADIENTS);
    if (threadIdx.x == 0) memory[own.of(PLAN_ONE)] = 1;
    Real *own_m = memory + own.of(PLAN_M) - first, *own_v = memory + own.of(PLAN_V) - first;
    double *rates = own.bytes<double>(PLAN_RATES), *totals = own.bytes<double>(PLAN_TOTALS);
    bool stopped = state->stopped;

    own.each_parameter([=](int place, Size at) {
        memory[place] = parameters[at];
        if (place < first || place >= last) return;
        if (m) own_m[place] = m[at];
        if (v) own_v[place] = v[at];
    });
    const double* all_rates = (const double*)own.run[RUN_RATES];
    for (int i = threadIdx.x; i < steps; i += THREADS) {
        StepState step;
        step.rate = all_rates ? all_rates[index + i] : ((const double*)own.run)[RUN_RATE];
        step.step = (Wide)(own.run[RUN_FIRST_STEP] + index + i);
        correct_rate(&step, update == UPDATE_ADAM, beta1, beta2, eps, decay);
        rates[3 * i] = step.corrected_rate;
        rates[3 * i + 1] = step.corrected_eps;
        rates[3 * i + 2] = step.keep;
    }
    own.fetch_indices(index);
    if (steps > 1) own.fetch_indices(index + 1);
    wait_for_copies();
    __syncthreads();
    own.fetch_rows(index);

    for (int i = 0; i < steps; i++) {
        const Size now = index + i;
        const Batch batch = batch_of(own.run, now);
        const int rows = own.count(batch);
        double weight_sum = (double)batch.rows;
        if (own.run[RUN_WEIGHT]) weight_sum = own.weight_sum(batch);
        wait_for_copies();
        __syncthreads();
        if (i + 1 < steps) own.fetch_rows(now + 1);
        if (i + 2 < steps) own.fetch_indices(now + 2);
        own.forward(now, rows);
        double scale = loss_scale(average, batch.rows, &weight_sum);
        if (own.layer(own.of(PLAN_DEPTH) - 1).of(DENSE_OUTPUTS) <= NARROW)
            own.lose<1>(now, rows, loss, loss_parameter, scale);
        else
            own.lose<WARP>(now, rows, loss, loss_parameter, scale);
        __syncthreads();
        own.add_losses(rows);
        own.backward(now, rows);
        meet_cluster();  // every block's part of the gradient is there
        double value = 0, hits = 0;
        for (int block = 0; block < own.blocks; block++) {
            value += of_block(totals, block)[0];
            hits += of_block(totals, block)[1];
        }
        stopped |= !(value - value == 0);
        for (int place = first + threadIdx.x; place < last; place += THREADS) {
            Real g = 0, none = 0;
            for (int block = 0; block < own.blocks; block++)
                g += of_block(memory, block)[gradient + place];
            memory[gradient + place] = g;
            if (stopped) continue;
            Real w = memory[place];
            optimizer.apply(
                rates + 3 * i, place < own.of(PLAN_DECAYED), w, g, m ? own_m[place] : none,
                v ? own_v[place] : none
            );
            for (int block = 0; block < own.blocks; block++) of_block(memory, block)[place] = w;
        }
        if (own.rank == 0 && threadIdx.x == 0) {
            double* trace = (double*)own.run[RUN_TRACE] + now * (3 + n);
            if (own.run[RUN_TRACE]) {
                trace[0] = value;
                trace[1] = 0;
                trace[2] = weight_sum;
                if (n) trace[3] = hits;
            }
            if (own.run[RUN_LOSS]) *(double*)own.run[RUN_LOSS] = value * scale;
        }
        meet_cluster();  // the new parameters are everywhere, and all gradients have been read
    }

    own.each_parameter([=](int place, Size at) {
        if (place < first || place >= last) return;
        parameters[at] = memory[place];
        gradients[at] = memory[gradient + place];
        if (m) m[at] = own_m[place];
        if (v) v[at] = own_v[place];
    });
    if (own.rank == 0 && threadIdx.x == 0) {
        run[RUN_INDEX] = index + steps;
        state->stopped = stopped;
    }
}
