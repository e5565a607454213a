// Types and helpers of all kernels. The compiler is told Real, float or double; the codes of
// activations and losses, and the sizes of blocks, are written before this file by
// nnbackend/backends/cuda/kernels.py.
//
// What a kernel computes never depends on the order in which blocks or warps run: sums go in a
// fixed order and there are no atomic operations on numbers.

typedef long long Size;
typedef unsigned int Word;
typedef unsigned long long Wide;
typedef unsigned short Bf16;  // the bits of a bfloat16

union Bits {
    float number;
    Word word;
};

#ifdef ONE_KERNEL  // only the last one is wanted: see resident.cu and phases.cu
#define KERNEL template <int UNUSED> __device__ void
#else
#define KERNEL extern "C" __global__ void
#endif
// For a kernel that waits for memory: the compiler is to leave registers for more threads at once;
// and for one that has the next numbers on their way while it works: for fewer.
#if defined(ONE_KERNEL) || defined(ON_HOST)
#define MANY_AT_ONCE
#define KEEPS_A_LOT
#else
#define MANY_AT_ONCE __launch_bounds__(THREADS, sizeof(Real) == 4 ? 3 : 2)
#define KEEPS_A_LOT __launch_bounds__(THREADS, sizeof(Real) == 4 ? 2 : 1)
#endif
#define WARP 32
#define EVERY_LANE 0xffffffffu
// One number for each warp of a block.
#define SHARED_SUMS __shared__ double sums[WARPS]

// What a captured step reads instead of arguments, since it runs again and again.
struct StepState {
    double rate;            // of this step
    double corrected_rate;  // Adam's, with its bias corrections
    double corrected_eps;
    double keep;            // what a decay leaves of a weight
    Wide step;              // updates made before
    Size index;             // of the step in the run: its row of the trace
    Size first_row;         // place of the first row in the batch; other ranks have those before
    Size stopped;           // 1 from the first loss on that is no finite number: nothing is updated
    Size guarded;           // 1 where nobody looks through what a step is given
};

__device__ inline Size first_index() { return blockIdx.x * (Size)blockDim.x + threadIdx.x; }
__device__ inline Size index_step() { return gridDim.x * (Size)blockDim.x; }

__device__ inline Size first_warp() { return first_index() / WARP; }
__device__ inline Size warp_step() { return index_step() / WARP; }
__device__ inline int lane() { return threadIdx.x % WARP; }

// The float that has these bits.
__device__ inline Real number_of(Word word) {
    Bits bits;
    bits.word = word;
    return (Real)bits.number;
}

__device__ inline Real not_a_number() { return number_of(0x7FC00000u); }
__device__ inline Real minus_infinity() { return number_of(0xFF800000u); }

// i % n, by the short division where that serves.
__device__ inline Size remainder_of(Size i, Size n) {
    return (i | n) >> 32 ? i % n : (Size)((Word)i % (Word)n);
}

// i / n, likewise.
__device__ inline Size quotient_of(Size i, Size n) {
    return (i | n) >> 32 ? i / n : (Size)((Word)i / (Word)n);
}

// max and min that keep NaN.
__device__ inline Real at_least(Real x, Real low) { return x < low ? low : x; }
__device__ inline Real at_most(Real x, Real high) { return x > high ? high : x; }
__device__ inline Real larger(Real a, Real b) { return a > b || a != a ? a : b; }

// a / b to two units in the last place, for b within 2^-126..2^126. A division takes a branch for what
// lies beyond, and behind a branch a thread's next outputs wait.
__device__ inline float near_quotient(float a, float b) { return __fdividef(a, b); }
__device__ inline double near_quotient(double a, double b) { return a / b; }

// log(1 + u) for u within 0..1: 2 artanh(s), s = u / (2 + u), whose series in s^2 <= 1/9 is fitted.
__device__ inline float log1p_of_share(float u) {
    const float s = near_quotient(u, 2 + u), square = s * s, twice = s + s;
    const float more =
        0.33333206f + square * (0.20010850f + square * (0.13999570f + square * 0.14012232f));
    return twice + twice * square * more;
}
__device__ inline double log1p_of_share(double u) { return log1p(u); }

// x rounded to bfloat16, to even; NaN stays NaN.
__device__ inline Bf16 rounded_to_bf16(Real x) {
    Bits number = {(float)x};
    Word bits = number.word, rounded = bits + 0x7FFFu + (bits >> 16 & 1);
    return (Bf16)(x != x ? 0x7FC0u : rounded >> 16);
}

__device__ inline Real from_bf16(Bf16 x) { return number_of((Word)x << 16); }

// Four numbers at a time, where all vectors lie on whole fours: memory delivers them in one go.
struct alignas(4 * sizeof(Real)) Four {
    Real at[4];
};
struct alignas(4 * sizeof(Bf16)) FourBf16 {
    Bf16 at[4];
};

__device__ inline bool in_fours(
    const void* a, const void* b, const void* c, const void* d, const Bf16* bf16s
) {
    return ((Wide)a | (Wide)b | (Wide)c | (Wide)d) % sizeof(Four) == 0 &&
           (Wide)bf16s % sizeof(FourBf16) == 0;
}

__device__ inline FourBf16 rounded_to_bf16s(Four x) {
    FourBf16 rounded;
    for (int k = 0; k < 4; k++) rounded.at[k] = rounded_to_bf16(x.at[k]);
    return rounded;
}

// The sum over LANES neighbouring lanes of a warp, the same in all of them: a whole warp, or one.
template <int LANES = WARP, typename Number>
__device__ inline Number warp_sum(Number value) {
    for (int distance = LANES / 2; distance; distance /= 2)
        value += __shfl_xor_sync(EVERY_LANE, value, distance);
    return value;
}

template <int LANES = WARP>
__device__ inline Real warp_largest(Real value) {
    for (int distance = LANES / 2; distance; distance /= 2)
        value = larger(value, __shfl_xor_sync(EVERY_LANE, value, distance));
    return value;
}

// The place of the largest element of a row, the first of equals; of the first NaN, if there is one.
template <int LANES = WARP>
__device__ inline Size row_argmax(const Real* row, Size width) {
    Real best = 0;
    Size place = -1;
    for (Size j = lane() % LANES; j < width; j += LANES)
        if (place < 0 || row[j] > best || (row[j] != row[j] && best == best)) {
            best = row[j];
            place = j;
        }
    for (int distance = LANES / 2; distance; distance /= 2) {
        Real other = __shfl_xor_sync(EVERY_LANE, best, distance);
        Size there = __shfl_xor_sync(EVERY_LANE, place, distance);
        bool mine_nan = best != best, other_nan = other != other;
        bool equal = other == best || (mine_nan && other_nan);
        bool better = !equal && (other_nan || (!mine_nan && other > best));
        if (there >= 0 && (place < 0 || better || (equal && there < place))) {
            best = other;
            place = there;
        }
    }
    return place;
}

// The sum over a block, the same in all its threads.
__device__ inline double block_sum(double value, double* sums) {
    value = warp_sum(value);
    __syncthreads();  // an earlier sum may still be read
    if (lane() == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < (int)blockDim.x / WARP; warp++) total += sums[warp];
    return total;
}

// The sum of x, added up by a block.
template <typename Number>
__device__ inline double sum_of(const Number* x, Size n, double* sums) {
    double value = 0;
    for (Size i = threadIdx.x; i < n; i += blockDim.x) value += x[i];
    return block_sum(value, sums);
}

// out = factor sum of partial, added to what is there or not: one block.
KERNEL sum_partials(const double* partial, Size n, double factor, int add, double* out) {
    SHARED_SUMS;
    double value = factor * sum_of(partial, n, sums);
    if (threadIdx.x == 0) out[0] = (add ? out[0] : 0) + value;
}

// flag = 1 if some x is NaN or infinite, otherwise as it was.
KERNEL find_not_finite(const Real* x, Size n, int* flag) {
    for (Size i = first_index(); i < n; i += index_step())
        if (!(x[i] - x[i] == 0)) *flag = 1;
}
