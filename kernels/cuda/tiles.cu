// A block's part of a matrix product: a tile of it, from pieces of its operands that come into shared
// memory some groups ahead.
//
// Threads form groups; each takes some of every piece's inner places for all elements of the tile.
// What the groups have found is added up at the end, in their order. In double precision a thread
// takes some elements; in single precision a warp does, on tensor cores (see multiply.cu).

#define MOST_STAGES 6
#define PER_QUAD (16 / (int)sizeof(Real))
// Inner places that a thread or a warp takes at a time.
#define INNER_STEP (sizeof(Real) == 8 ? 4 : 8)

// An operand, whose rows lie on whole sixteens of bytes: line i is a row of the left one, a column of
// the right one.
struct Operand {
    const Real* x;
    int stride;  // from one line, or inner place, to the next
    int lines;   // that there are: from there on they are zeros
};

// The shared memory for a piece of LINES lines and DEPTH inner places; ALONG: the inner places of a
// line are neighbours, otherwise the lines of an inner place are.
template <int LINES, int DEPTH, bool ALONG>
struct Piece {
    // what the lanes of a warp read at the same time lies in different banks
    static constexpr int APART = sizeof(Real) == 8 || ALONG ? 4 : LINES == 8 ? 0 : 8;
    static constexpr int STRIDE = (ALONG ? DEPTH : LINES) + APART;
    static constexpr int SIZE = (ALONG ? LINES : DEPTH) * STRIDE;

    // The piece from line ``top`` and inner place ``from`` on, on its way; zeros from ``end`` on, as
    // far as somebody reads them.
    static __device__ inline void fetch(Operand operand, int top, int from, int end, Real* to) {
        constexpr int ROWS = ALONG ? LINES : DEPTH, QUADS = (ALONG ? DEPTH : LINES) / PER_QUAD;
        const int deep = (end - from + INNER_STEP - 1) / INNER_STEP * INNER_STEP;
        const int row_0 = ALONG ? top : from, column_0 = ALONG ? from : top;
        const int rows = ALONG ? operand.lines : end, columns = ALONG ? end : operand.lines;
        NOT_UNROLLED for (int e = threadIdx.x; e < ROWS * QUADS; e += THREADS) {
            const int row = e / QUADS, column = e % QUADS * PER_QUAD;
            if ((ALONG ? column : row) >= deep) continue;
            const int left = row_0 + row < rows ? columns - column_0 - column : 0;
            const int there = left < 0 ? 0 : left < PER_QUAD ? left : PER_QUAD;
            const Real* x = operand.x;
            if (there) x += (row_0 + row) * operand.stride + column_0 + column;
            copy_quad_later(to + row * STRIDE + column, x, there * (int)sizeof(Real));
        }
    }

    static __device__ inline int place(int line, int inner) {
        return ALONG ? line * STRIDE + inner : inner * STRIDE + line;
    }

    // The line of a thread's i-th element: what threads read side by side lies apart.
    template <int EACH>
    static __device__ inline int line_of(int place, int i) {
        constexpr int PLACES = LINES / EACH;
        return ALONG ? place + i * PLACES : (i / 4 * PLACES + place) * 4 + i % 4;
    }

    // Four inner places of a thread's lines.
    template <int EACH>
    static __device__ inline void take(const Real* piece, int place, int inner, Real (&x)[EACH][4]) {
        if constexpr (ALONG) {
            for (int i = 0; i < EACH; i++) {
                const int line = line_of<EACH>(place, i);
                const Four four = *(const Four*)(piece + line * STRIDE + inner);
                for (int q = 0; q < 4; q++) x[i][q] = four.at[q];
            }
        } else {
            for (int q = 0; q < 4; q++)
                for (int i = 0; i < EACH; i += 4) {
                    const int line = line_of<EACH>(place, i);
                    const Four four = *(const Four*)(piece + (inner + q) * STRIDE + line);
                    for (int k = 0; k < 4; k++) x[i + k][q] = four.at[k];
                }
        }
    }
};

// What groups of threads add up of a tile: each thread TALL x WIDE elements, INNER_STEP inner places at
// a time.
template <int ROWS, int COLUMNS, int TALL, int WIDE, typename A, typename B>
struct ThreadSums {
    static constexpr int ACROSS = COLUMNS / WIDE, GROUP = ROWS / TALL * ACROSS;
    static constexpr int GROUPS = THREADS / GROUP;
    Real sums[TALL][WIDE];

    __device__ inline ThreadSums() {
        for (int i = 0; i < TALL; i++)
            for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
    }
    static __device__ inline int group() { return threadIdx.x / GROUP; }
    static __device__ inline int down() { return threadIdx.x % GROUP / ACROSS; }
    static __device__ inline int across() { return threadIdx.x % ACROSS; }

    __device__ inline void add(const Real* a, const Real* b, int inner) {
        Real x[TALL][4], y[WIDE][4];
        A::template take<TALL>(a, down(), inner, x);
        B::template take<WIDE>(b, across(), inner, y);
        UNROLLED for (int q = 0; q < 4; q++)
            UNROLLED for (int i = 0; i < TALL; i++)
                UNROLLED for (int j = 0; j < WIDE; j++) sums[i][j] += x[i][q] * y[j][q];
    }
    __device__ inline void leave(Real* found) const {
        for (int i = 0; i < TALL; i++)
            for (int j = 0; j < WIDE; j++) {
                const int row = A::template line_of<TALL>(down(), i);
                found[row * COLUMNS + B::template line_of<WIDE>(across(), j)] = sums[i][j];
            }
    }
};

// The same by warps, with at most 32 x 32 elements each.
template <int ROWS, int COLUMNS, typename A, typename B>
struct WarpSums {
    static constexpr int TALL = ROWS < 32 ? ROWS : 32, WIDE = COLUMNS < 32 ? COLUMNS : 32;
    static constexpr int ACROSS = COLUMNS / WIDE, GROUP = ROWS / TALL * ACROSS;
    static constexpr int GROUPS = WARPS / GROUP;
    WarpProduct<TALL, WIDE> product;

    static __device__ inline int group() { return threadIdx.x / WARP / GROUP; }
    static __device__ inline int top() { return threadIdx.x / WARP % GROUP / ACROSS * TALL; }
    static __device__ inline int left() { return threadIdx.x / WARP % ACROSS * WIDE; }

    __device__ inline void add(const Real* a, const Real* b, int inner) {
        product.add(
            [&](int row, int k) { return a[A::place(top() + row, inner + k)]; },
            [&](int k, int column) { return b[B::place(left() + column, inner + k)]; }
        );
    }
    __device__ inline void leave(Real* found) const {
        product.each([&](int row, int column, Real sum) {
            found[(top() + row) * COLUMNS + left() + column] = sum;
        });
    }
};

#define SINGLE (sizeof(Real) == 4)
template <bool ON_TENSOR_CORES, int ROWS, int COLUMNS, int TALL, int WIDE, typename A, typename B>
struct SumsOf {
    typedef ThreadSums<ROWS, COLUMNS, TALL, WIDE, A, B> Type;
};
template <int ROWS, int COLUMNS, int TALL, int WIDE, typename A, typename B>
struct SumsOf<true, ROWS, COLUMNS, TALL, WIDE, A, B> {
    typedef WarpSums<ROWS, COLUMNS, A, B> Type;
};

// The tile whose first row and column are ``top`` and ``left``, over the inner places from ``from`` to
// ``end``; begin() while its pieces come, and put(row, column, sum) for each of the elements.
//
// Code that is not in a loop is short: a step goes through many tiles' code, which has to come from
// memory each time if there is more of it than fits near.
template <
    int ROWS, int COLUMNS, int DEPTH, int TALL, int WIDE, bool A_ALONG, bool B_ALONG,
    typename Begin, typename Put>
__device__ inline void product_tile(
    Operand a, Operand b, int top, int left, int from, int end, Real* memory, Begin begin, Put put
) {
    typedef Piece<ROWS, DEPTH, A_ALONG> A;
    typedef Piece<COLUMNS, DEPTH, B_ALONG> B;
    typedef typename SumsOf<SINGLE, ROWS, COLUMNS, TALL, WIDE, A, B>::Type Sums;
    constexpr int STAGE = A::SIZE + B::SIZE, FITTING = TILE_BYTES / (STAGE * (int)sizeof(Real));
    constexpr int STAGES = FITTING < MOST_STAGES ? FITTING : MOST_STAGES, AHEAD = STAGES - 1;
    constexpr int GROUPS = Sums::GROUPS;
    static_assert(STAGES >= 2, "a piece must come while another one is used");
    static_assert(GROUPS * ROWS * COLUMNS * sizeof(Real) <= TILE_BYTES, "room for all sums");
    const int pieces = end > from ? (end - from + DEPTH - 1) / DEPTH : 0;
    Sums sums;
    NOT_UNROLLED for (int coming = 0; coming < pieces + AHEAD; coming++) {
        const int piece = coming - AHEAD;
        if (piece >= 0) {
            wait_for_groups<AHEAD - 1>();
            __syncthreads();
        }
        if (coming < pieces) {
            Real* to = memory + coming % STAGES * STAGE;
            A::fetch(a, top, from + coming * DEPTH, end, to);
            B::fetch(b, left, from + coming * DEPTH, end, to + A::SIZE);
        }
        end_group_of_copies();
        if (coming == 0) begin();
        if (piece < 0) continue;
        const Real* there = memory + piece % STAGES * STAGE;
        const int deep = end - from - piece * DEPTH < DEPTH ? end - from - piece * DEPTH : DEPTH;
        NOT_UNROLLED for (int k = INNER_STEP * Sums::group(); k < deep; k += INNER_STEP * GROUPS)
            sums.add(there, there + A::SIZE, k);
    }
    wait_for_groups<0>();
    __syncthreads();
    sums.leave(memory + Sums::group() * ROWS * COLUMNS);
    __syncthreads();
    NOT_UNROLLED for (int e = threadIdx.x; e < ROWS * COLUMNS; e += THREADS) {
        Real sum = 0;
        UNROLLED_BY_8 for (int g = 0; g < GROUPS; g++) sum += memory[g * ROWS * COLUMNS + e];
        put(top + e / COLUMNS, left + e % COLUMNS, sum);
    }
    __syncthreads();  // the next tile's pieces come in the place of the sums
}
