// A block's part of a matrix product: a tile of it, from pieces of its operands that come into shared
// memory some groups ahead.
//
// Threads form groups; each takes some of every piece's inner places for all elements of the tile.
// What the groups have found is added up at the end, in their order. A thread takes TALL x WIDE
// elements, four inner places at a time.

#define MOST_STAGES 6
#define PER_QUAD (16 / (int)sizeof(Real))

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
    static constexpr int STRIDE = (ALONG ? DEPTH : LINES) + 4;
    static constexpr int SIZE = (ALONG ? LINES : DEPTH) * STRIDE;

    // What a thread copies of each piece: quads one below the other, DOWN rows of memory apart.
    struct Copies {
        static constexpr int ROWS = ALONG ? LINES : DEPTH, COLUMNS = ALONG ? DEPTH : LINES;
        static constexpr int QUADS = COLUMNS / PER_QUAD, DOWN = THREADS / QUADS;
        static constexpr int APART = DOWN * STRIDE * (int)sizeof(Real);
        static_assert(ROWS % DOWN == 0, "threads copy whole rows");
        Operand operand;
        int row_0, column_0;  // of the next piece

        // From line ``top`` and inner place ``from`` on.
        __device__ inline Copies(Operand operand, int top, int from) :
            operand(operand), row_0(ALONG ? top : from), column_0(ALONG ? from : top) {}

        // The next piece, on its way; zeros from inner place ``end`` on, as far as somebody reads them.
        __device__ inline void fetch(int end, Place to) {
            const int own_row = threadIdx.x / QUADS, own_column = threadIdx.x % QUADS * PER_QUAD;
            const int row = row_0 + own_row, column = column_0 + own_column;
            const int rows = ALONG ? operand.lines : end, columns = ALONG ? end : operand.lines;
            const Real* x = operand.x + row * operand.stride + column;
            to += (own_row * STRIDE + own_column) * (int)sizeof(Real);
            if (row_0 + ROWS <= rows && column_0 + COLUMNS <= columns) {
                UNROLLED for (int i = 0; i < ROWS / DOWN; i++)
                    copy_quad_later(to + i * APART, x + i * (DOWN * operand.stride));
            } else {
                const int last = (end + 3) / 4 * 4, left = columns - column;
                const int there = left < 0 ? 0 : left < PER_QUAD ? left : PER_QUAD;
                NOT_UNROLLED for (int i = 0; i < ROWS / DOWN; i++) {
                    if ((ALONG ? column : row + i * DOWN) >= last) break;
                    const int some = row + i * DOWN < rows ? there : 0;
                    const Real* from = some ? x + i * (DOWN * operand.stride) : operand.x;
                    copy_some_later(to + i * APART, from, some * (int)sizeof(Real));
                }
            }
            (ALONG ? column_0 : row_0) += DEPTH;
        }
    };

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

    // A thread's numbers, one for each of its lines, into a row of all lines.
    template <int EACH>
    static __device__ inline void put(Real* row, int place, const Real (&x)[EACH]) {
        if constexpr (ALONG) {
            for (int i = 0; i < EACH; i++) row[line_of<EACH>(place, i)] = x[i];
        } else {
            for (int i = 0; i < EACH; i += 4)
                *(Four*)(row + line_of<EACH>(place, i)) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
        }
    }
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
    constexpr int ACROSS = COLUMNS / WIDE, GROUP = ROWS / TALL * ACROSS, GROUPS = THREADS / GROUP;
    constexpr int STAGE = A::SIZE + B::SIZE, FITTING = TILE_BYTES / (STAGE * (int)sizeof(Real));
    constexpr int STAGES = FITTING < MOST_STAGES ? FITTING : MOST_STAGES, AHEAD = STAGES - 1;
    static_assert(STAGES >= 2, "a piece must come while another one is used");
    static_assert(GROUPS * ROWS * COLUMNS * sizeof(Real) <= TILE_BYTES, "room for all sums");
    const int group = threadIdx.x / GROUP, own = threadIdx.x % GROUP;
    const int down = own / ACROSS, across = own % ACROSS;
    const int pieces = end > from ? (end - from + DEPTH - 1) / DEPTH : 0;
    const Place all = place_of(memory);
    typename A::Copies of_a(a, top, from);
    typename B::Copies of_b(b, left, from);
    Real sums[TALL][WIDE];
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < WIDE; j++) sums[i][j] = 0;
    int filled = 0, used = 0;  // stages
    NOT_UNROLLED for (int coming = 0; coming < pieces + AHEAD; coming++) {
        const int piece = coming - AHEAD;
        if (piece >= 0) {
            wait_for_groups<AHEAD - 1>();
            __syncthreads();
        }
        if (coming < pieces) {
            of_a.fetch(end, all + filled * (STAGE * (int)sizeof(Real)));
            of_b.fetch(end, all + (filled * STAGE + A::SIZE) * (int)sizeof(Real));
            filled = filled + 1 == STAGES ? 0 : filled + 1;
        }
        end_group_of_copies();
        if (coming == 0) begin();
        if (piece < 0) continue;
        const Real* there = memory + used * STAGE;
        used = used + 1 == STAGES ? 0 : used + 1;
        const int deep = end - from - piece * DEPTH < DEPTH ? end - from - piece * DEPTH : DEPTH;
        NOT_UNROLLED for (int k = 4 * group; k < deep; k += 4 * GROUPS) {
            Real x[TALL][4], y[WIDE][4];
            A::template take<TALL>(there, down, k, x);
            B::template take<WIDE>(there + A::SIZE, across, k, y);
            UNROLLED for (int q = 0; q < 4; q++)
                UNROLLED for (int i = 0; i < TALL; i++)
                    UNROLLED for (int j = 0; j < WIDE; j++) sums[i][j] += x[i][q] * y[j][q];
        }
    }
    wait_for_groups<0>();
    __syncthreads();
    Real* found = memory + group * ROWS * COLUMNS;
    for (int i = 0; i < TALL; i++) {
        Real* row = found + A::template line_of<TALL>(down, i) * COLUMNS;
        B::template put<WIDE>(row, across, sums[i]);
    }
    __syncthreads();
    NOT_UNROLLED for (int e = threadIdx.x; e < ROWS * COLUMNS; e += THREADS) {
        Real sum = 0;
        UNROLLED_BY_8 for (int g = 0; g < GROUPS; g++) sum += memory[g * ROWS * COLUMNS + e];
        put(top + e / COLUMNS, left + e % COLUMNS, sum);
    }
    __syncthreads();  // the next tile's pieces come in the place of the sums
}
