// Tasks of a step in phases: products in tiles, and updates of weights. See phases.cu.

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

// Where the parameter lies whose gradient is in some row and column of a layer's product; the row behind
// those of the weights is that of the bias.
struct Parameters {
    int inputs, columns, weight_at, bias_at;

    __device__ inline int at(int row, int column) const {
        return row < inputs ? weight_at + row * columns + column : bias_at + column;
    }
};
__device__ inline Parameters parameters_of(Task task, int rows, int columns) {
    const int weight_at = task.number(TASK_WEIGHT_AT), bias_at = task.number(TASK_BIAS_AT);
    return {rows - (bias_at >= 0), columns, weight_at, bias_at};
}

// Elements of a tile of the weights' gradient, which lies in shared memory, 1 << shift in a row: their
// parameters are updated, a few side by side, whose numbers come at the same time.
template <int RULE>
__device__ inline void update_elements(Task task, int top, int left, int size, int shift) {
    const int AT_ONCE = 4;
    const Update& own = *update();
    const int rows = task.number(TASK_ROWS), columns = task.number(TASK_COLUMNS);
    const int wide = 1 << shift;
    const Parameters parameters = parameters_of(task, rows, columns);
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
            at[k] = parameters.at(row, column);
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
            if (twin && row < parameters.inputs)
                twin[row * task.number(TASK_TWIN_STRIDE) + column] = w[k];
        }
    }
}
#define BY_RULE(DO)                                                                               \
    switch (update()->rule) {                                                                     \
        case UPDATE_ADAM: DO(UPDATE_ADAM); break;                                                 \
        case UPDATE_RMSPROP: DO(UPDATE_RMSPROP); break;                                           \
        case UPDATE_ADAGRAD: DO(UPDATE_ADAGRAD); break;                                           \
        case UPDATE_MOMENTUM: DO(UPDATE_MOMENTUM); break;                                         \
        case UPDATE_SGD: DO(UPDATE_SGD); break;                                                   \
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
    const Parameters parameters = parameters_of(task, rows, columns);
    Real* own = part ? task.numbers(TASK_MORE) + (part - 1) * task.fields[TASK_PART_SIZE] : update()->g;
    auto put = [&](int row, int column, Real value) {
        if (parts == 1) tile_memory()[(row - top) * COLUMNS + column - left] = value;
        if (parts == 1 || row >= rows || column >= columns) return;
        own[parameters.at(row, column)] = value;
    };
    auto begin = [&] {
        if constexpr (ROWS * COLUMNS <= 1024) {  // of larger tiles it would not all stay near
            if (parts > 1) return;
            NOT_UNROLLED for (int e = 8 * threadIdx.x; e < ROWS * COLUMNS; e += 8 * THREADS) {
                const int row = top + e / COLUMNS, column = left + e % COLUMNS;
                const int at = parameters.at(row, column);
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
