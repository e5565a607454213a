// Jobs of a network that stays in shared memory: products, and slopes of activations, of which a
// training step consists. See resident.cu.

struct alignas(16) Job {
    int kind, rows, columns, inner;                // of a (rows, inner) and b (inner, columns)
    int a, a_row, a_column, a_turn;                // a's place, and how far its elements lie apart
    int b, b_row, b_column, large;                 // likewise; large: 4 x 4 elements for a thread
    int out, out_row, kept, saved;                 // what it writes; kept: -1 where there is nothing
    int activation, shift, across, meets;          // 1 << shift lanes share the sums of a tile
    float per_across;                              // 1 / across
    int unused;
    double parameter;                              // of the activation
};

__device__ constexpr int plan(int place) {
    constexpr Size words[] = {PLAN_WORDS};
    return (int)words[place];
}
__device__ constexpr Job job_of(int number) {
    constexpr Job all[] = {JOBS};
    return all[number];
}
__device__ constexpr Size layer(int number, int field) {
    constexpr Size words[] = {LAYERS};
    return words[number * LAYER_FIELDS + field];
}

__device__ inline Real* memory() { return (Real*)shared_memory(); }
__device__ inline Size* run_of_steps() { return (Size*)shared_memory(); }
template <typename T>
__device__ inline T* bytes_of(int place) { return (T*)(shared_memory() + plan(place)); }

// i / n for small numbers, given 1 / n.
__device__ inline int small_quotient(int i, float per_n) { return (int)((i + 0.5f) * per_n); }

// A product. A thread takes TALL x WIDE elements that lie far from each other, so that neighbours
// read neighbours; if there are few, several lanes share their sums. Rows of the batch from
// ``own_rows`` on are none: no gradient comes from them, whatever biases alone make of them.
template <int TALL, int WIDE>
__device__ inline void product(const Job job, int turn, int own_rows) {
    const int down = (job.rows + TALL - 1) / TALL, tiles = down * job.across;
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
            from_a[i] = (row < job.rows ? row : job.rows - 1) * job.a_row;
            for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
        }
        for (int j = 0; j < WIDE; j++) {
            const int column = left + j * job.across;
            from_b[j] = (column < job.columns ? column : job.columns - 1) * job.b_column;
        }
        const Real *own_a = a, *own_b = b;
        for (int k = part; k < job.inner; k += sharing) {
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
        // what becomes of an element is done in a short loop where it is long: the code of a step
        // has to stay near
        const bool curved = job.activation > RELU;
        if (job.kind == JOB_BELOW && curved)
            for (int e = part; e < TALL * WIDE; e += sharing) {
                const int row = top + e / WIDE * down, column = left + e % WIDE * job.across;
                if (!has_one || row >= job.rows || column >= job.columns) continue;
                const int place = row * job.out_row + column;
                saved[place] = slope(job.activation, saved[place], parameter);
            }
        for (int i = 0; i < TALL; i++)
            for (int j = 0; j < WIDE; j++) {
                const int row = top + i * down, column = left + j * job.across;
                const bool mine = ((i * WIDE + j) & (sharing - 1)) == part;
                if (!has_one || !mine || row >= job.rows || column >= job.columns) continue;
                const int place = row * job.out_row + column;
                Real value = sums[i][j];
                if (job.kind == JOB_FORWARD && job.activation == RELU) value = at_least(value, 0);
                if (job.kind == JOB_BELOW && job.activation == RELU)
                    value = saved[place] > 0 ? value : value * 0;
                if (job.kind == JOB_BELOW && curved) value *= saved[place];
                if (job.kind == JOB_BELOW && row >= own_rows) value = 0;
                out[place] = value;
            }
        if (job.kind == JOB_FORWARD && curved)
            for (int e = part; e < TALL * WIDE; e += sharing) {
                const int row = top + e / WIDE * down, column = left + e % WIDE * job.across;
                if (!has_one || row >= job.rows || column >= job.columns) continue;
                const int place = row * job.out_row + column;
                const Real z = out[place];
                if (job.kept >= 0) kept[place] = z;
                out[place] = activate(job.activation, z, parameter);
            }
    }
}

// dy of the last layer times its activation's slope.
__device__ inline void times_slope(const Job job, int own_rows) {
    Real* dz = memory() + job.out;
    const Real* saved = memory() + job.saved;
    for (int e = threadIdx.x; e < job.rows * job.columns; e += THREADS) {
        const int i = small_quotient(e, job.per_across), j = e - i * job.columns;
        const int place = i * job.out_row + j;
        dz[place] *= i < own_rows ? slope(job.activation, saved[place], (Real)job.parameter) : 0;
    }
}

template <int NUMBER>
__device__ inline void do_job(int turn, int own_rows) {
    constexpr Job job = job_of(NUMBER);
    if constexpr (job.kind == JOB_SLOPE)
        times_slope(job, own_rows);
    else
        product<4, job.large ? 4 : 1>(job, turn, own_rows);
    if (job.meets) __syncthreads();
}

template <int FROM, int TO>
__device__ inline void do_jobs(int turn, int own_rows) {
    if constexpr (FROM < TO) {
        do_job<FROM>(turn, own_rows);
        do_jobs<FROM + 1, TO>(turn, own_rows);
    }
}

__device__ inline void forward(int turn, int own_rows) {
    do_jobs<0, plan(PLAN_FORWARDS)>(turn, own_rows);
}
__device__ inline void backward(int turn, int own_rows) {
    do_jobs<plan(PLAN_FORWARDS), plan(PLAN_JOBS)>(turn, own_rows);
}
