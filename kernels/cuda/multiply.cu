// Products of a warp on tensor cores, as exact as those of single precision.
//
// Tensor cores multiply numbers of TF32, with 11 significant bits. Two of them, high + low, hold all
// but the last of a float's 24 bits, so that
//
//     x y = high_x high_y + (high_x low_y + low_x high_y) + low_x low_y,
//
// of which the last product, below 2^-22 |x y|, is left out. The small products are added up by
// themselves. (M. Ootomo, R. Yokota, "Recovering single precision accuracy from Tensor Cores while
// surpassing the FP32 theoretical peak performance", 2022.)

struct TwoParts {
    Word high, low;
};

// NaN and infinity make NaN.
__device__ inline TwoParts parts_of(float x) {
    Bits whole, high, low;
    whole.number = x;
    high.word = (whole.word + 0x1000u) & 0xFFFFE000u;
    low.number = x - high.number;
    return {high.word, low.word};
}

#ifndef ON_HOST  // the stand-in of the tests brings its own

// sums (16, 8) += a (16, 8) b (8, 8) by a warp, whose lanes hold parts of each: see WarpProduct.
__device__ inline void multiply_on_tensor_cores(
    float (&sums)[4], const Word (&a)[4], const Word (&b)[2]
) {
    asm(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
    );
}

#endif

// A product with TALL x WIDE elements. Lane l = 4 g + t holds of 16 x 8 sums those in rows g and
// g + 8, columns 2 t and 2 t + 1; of the left operand those in rows g and g + 8, inner places t and
// t + 4; of the right one those in column g, inner places t and t + 4.
template <int TALL, int WIDE>
struct WarpProduct {
    static constexpr int DOWN = TALL / 16, ACROSS = WIDE / 8;
    float sums[DOWN][ACROSS][4], small[DOWN][ACROSS][4];

    __device__ inline WarpProduct() {
        for (int i = 0; i < DOWN; i++)
            for (int j = 0; j < ACROSS; j++)
                for (int e = 0; e < 4; e++) sums[i][j][e] = small[i][j][e] = 0;
    }

    // The part of eight inner places: a(row, k) and b(k, column) are the operands' numbers.
    template <typename Left, typename Right>
    __device__ inline void add(Left a, Right b) {
        const int g = lane() / 4, t = lane() % 4;
        Word high_a[DOWN][4], low_a[DOWN][4], high_b[ACROSS][2], low_b[ACROSS][2];
        UNROLLED for (int i = 0; i < DOWN; i++)
            UNROLLED for (int e = 0; e < 4; e++) {
                const TwoParts x = parts_of(a(16 * i + g + e % 2 * 8, t + e / 2 * 4));
                high_a[i][e] = x.high;
                low_a[i][e] = x.low;
            }
        UNROLLED for (int j = 0; j < ACROSS; j++)
            UNROLLED for (int e = 0; e < 2; e++) {
                const TwoParts x = parts_of(b(t + 4 * e, 8 * j + g));
                high_b[j][e] = x.high;
                low_b[j][e] = x.low;
            }
        UNROLLED for (int i = 0; i < DOWN; i++)
            UNROLLED for (int j = 0; j < ACROSS; j++)
                multiply_on_tensor_cores(small[i][j], low_a[i], high_b[j]);
        UNROLLED for (int i = 0; i < DOWN; i++)
            UNROLLED for (int j = 0; j < ACROSS; j++)
                multiply_on_tensor_cores(sums[i][j], high_a[i], high_b[j]);
        UNROLLED for (int i = 0; i < DOWN; i++)
            UNROLLED for (int j = 0; j < ACROSS; j++)
                multiply_on_tensor_cores(small[i][j], high_a[i], low_b[j]);
    }

    // put(row, column, sum) for each of the lane's elements.
    template <typename Put>
    __device__ inline void each(Put put) const {
        const int g = lane() / 4, t = lane() % 4;
        UNROLLED for (int i = 0; i < DOWN; i++)
            UNROLLED for (int j = 0; j < ACROSS; j++)
                UNROLLED for (int e = 0; e < 4; e++)
                    put(16 * i + g + e / 2 * 8, 8 * j + 2 * t + e % 2,
                        sums[i][j][e] + small[i][j][e]);
    }
};
