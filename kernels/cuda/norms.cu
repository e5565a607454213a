// Normalisation, and sums over the batch for each column.
//
// Where the batch is summed, a block takes COLUMNS columns: its threads stand in rows of COLUMNS,
// each adds up every (blockDim / COLUMNS)-th row, and the rows of threads are added in order.

// The sum over the block's threads that have the same column, the same in all of them.
__device__ inline double column_sum(double value, double* parts) {
    __syncthreads();  // an earlier sum may still be read
    parts[threadIdx.x] = value;
    __syncthreads();
    double total = 0;
    for (int i = threadIdx.x % COLUMNS; i < (int)blockDim.x; i += COLUMNS) total += parts[i];
    return total;
}

#define SHARED_COLUMNS __shared__ double parts[THREADS]

__device__ inline Size own_column() { return blockIdx.x * (Size)COLUMNS + threadIdx.x % COLUMNS; }
__device__ inline Size first_row() { return threadIdx.x / COLUMNS; }
__device__ inline Size row_step() { return blockDim.x / COLUMNS; }

// Two sums that are taken together.
struct Pair {
    double first, second;
    __device__ inline void operator+=(Pair other) {
        first += other.first;
        second += other.second;
    }
};

// The sum of term(i) over the rows i of one thread, AT_ONCE of which are on their way at a time.
template <typename Sum, typename Term>
__device__ inline Sum sum_over_rows(Size rows, Term term) {
    const int AT_ONCE = 8;
    const Size step = row_step();
    Sum sums[AT_ONCE] = {};
    Size i = first_row();
    for (; i + (AT_ONCE - 1) * step < rows; i += AT_ONCE * step) {
        Sum terms[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) terms[k] = term(i + k * step);
        for (int k = 0; k < AT_ONCE; k++) sums[k] += terms[k];
    }
    for (; i < rows; i += step) sums[0] += term(i);
    for (int k = 1; k < AT_ONCE; k++) sums[0] += sums[k];
    return sums[0];
}

// out[j] = sum of x[:, j], of numbers as they are or rounded.
KERNEL column_sums(const Real* x, const Bf16* rounded, Size rows, Size width, Real* out) {
    SHARED_COLUMNS;
    Size j = own_column();
    double value = 0;
    if (j < width && x)
        value = sum_over_rows<double>(rows, [=](Size i) { return (double)x[i * width + j]; });
    else if (j < width)
        value = sum_over_rows<double>(
            rows, [=](Size i) { return (double)from_bf16(rounded[i * width + j]); }
        );
    value = column_sum(value, parts);
    if (j < width && first_row() == 0) out[j] = (Real)value;
}

// For a batch that ranks share: out[j] = sum of x[:, j] over this rank's rows; or, where the batch's
// sums are known, of the squares of how far they are from its mean.
KERNEL batch_norm_sums(
    const Real* x, const double* sums, Size rows, Size batch_rows, Size width, double* out
) {
    SHARED_COLUMNS;
    Size j = own_column();
    double value = 0;
    if (j < width) {
        Real mean = sums ? (Real)(sums[j] / (double)batch_rows) : 0;
        value = sum_over_rows<double>(rows, [=](Size i) {
            double centred = x[i * width + j] - mean;
            return sums ? centred * centred : centred;
        });
    }
    value = column_sum(value, parts);
    if (j < width && first_row() == 0) out[j] = value;
}

// Batch norm with the batch's own statistics, and what follows it; saved (2, N) receives mean and
// 1 / deviation. In a guarded step what is not finite does not reach the running statistics. If the
// rows are a part of a batch, sums (2, N) has what batch_norm_sums gives, of all of it.
KERNEL batch_norm_forward(
    const Real* x, const Real* gamma, const Real* beta, Real* running_mean, Real* running_var,
    double momentum, double eps, const StepState* state, const double* sums, Size rows,
    Size batch_rows, Size width, int code, int by_input, Real parameter, Word key_0, Word key_1,
    Wide step, Word layer, Word threshold, Real scale, Real* out, Real* saved, Real* slopes
) {
    SHARED_COLUMNS;
    if (state) step = state->step;
    const Following following = FOLLOWING(state ? state->first_row * width : 0);
    Size j = own_column();
    double value = 0, square = 0;
    if (j < width && sums)
        value = sums[j];
    else if (j < width)
        value = sum_over_rows<double>(rows, [=](Size i) { return (double)x[i * width + j]; });
    if (!sums) value = column_sum(value, parts);
    Real mean = (Real)(value / (double)batch_rows);
    if (j < width && sums)
        square = sums[width + j];
    else if (j < width)
        square = sum_over_rows<double>(rows, [=](Size i) {
            double centred = x[i * width + j] - mean;
            return centred * centred;
        });
    if (!sums) square = column_sum(square, parts);
    double variance = square / (double)batch_rows;
    if (j >= width) return;
    Real inv_std = (Real)(1 / sqrt(variance + eps));
    if (first_row() == 0) {
        saved[j] = mean;
        saved[width + j] = inv_std;
        double unbiased = variance * ((double)batch_rows / (double)(batch_rows - 1));
        Real new_mean = running_mean[j] + (Real)(momentum * (mean - running_mean[j]));
        Real new_var = running_var[j] + (Real)(momentum * (unbiased - running_var[j]));
        if (!state || !state->guarded || (new_mean - new_mean == 0 && new_var - new_var == 0)) {
            running_mean[j] = new_mean;
            running_var[j] = new_var;
        }
    }
    for (Size i = j + first_row() * width; i < rows * width; i += row_step() * width)
        out[i] = following.of((x[i] - mean) * (gamma[j] * inv_std) + beta[j], i);
}

KERNEL batch_norm_inference(
    const Real* x, const Real* gamma, const Real* beta, const Real* mean, const Real* var,
    double eps, Size n, Size width, Real* out
) {
    for (Size i = first_index(); i < n; i += index_step()) {
        Size j = remainder_of(i, width);
        Real inv_std = (Real)(1 / sqrt((double)var[j] + eps));
        out[i] = (x[i] - mean[j]) * (gamma[j] * inv_std) + beta[j];
    }
}

// dgamma = sum dy n, dbeta = sum dy, and dx if it is wanted; dy is multiplied by the slopes of what
// follows, where there are any. If the rows are a part of a batch: first both sums of this rank's
// rows, in float64 too; then dx from those of all of it.
KERNEL batch_norm_backward(
    const Real* dy, const Real* slopes, const Real* x, const Real* gamma, const Real* saved,
    const double* sums, Size rows, Size batch_rows, Size width, Real* dgamma, Real* dbeta,
    double* own_sums, Real* dx
) {
    SHARED_COLUMNS;
    auto gradient = [=](Size i) { return slopes ? dy[i] * slopes[i] : dy[i]; };
    Size j = own_column();
    Real mean = j < width ? saved[j] : 0, inv_std = j < width ? saved[width + j] : 0;
    double sum, sum_n;
    if (sums) {
        if (j >= width) return;
        sum = sums[j];
        sum_n = sums[width + j];
    } else {
        Pair found = {0, 0};
        if (j < width)
            found = sum_over_rows<Pair>(rows, [=](Size i) {
                Real g = gradient(i * width + j);
                return Pair{g, g * ((x[i * width + j] - mean) * inv_std)};
            });
        sum = column_sum(found.first, parts);
        sum_n = column_sum(found.second, parts);
        if (j >= width) return;
        if (first_row() == 0) {
            dgamma[j] = (Real)sum_n;
            dbeta[j] = (Real)sum;
            if (own_sums) {
                own_sums[j] = sum;
                own_sums[width + j] = sum_n;
            }
        }
    }
    if (!dx) return;
    Real own = (Real)(sum / (double)batch_rows), own_n = (Real)(sum_n / (double)batch_rows);
    for (Size i = j + first_row() * width; i < rows * width; i += row_step() * width) {
        Real n = (x[i] - mean) * inv_std;
        dx[i] = gamma[j] * inv_std * (gradient(i) - own - n * own_n);
    }
}

// Layer norm; a warp takes a row. saved (2, B), where there is one, receives mean and 1 / deviation.
KERNEL layer_norm_forward(
    const Real* x, const Real* gamma, const Real* beta, double eps, Size rows, Size width,
    Real* out, Real* saved
) {
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        const Real* x_row = x + row * width;
        double value = 0, square = 0;
        for (Size j = lane(); j < width; j += WARP) value += x_row[j];
        Real mean = (Real)(warp_sum(value) / (double)width);
        for (Size j = lane(); j < width; j += WARP) {
            double centred = x_row[j] - mean;
            square += centred * centred;
        }
        Real inv_std = (Real)(1 / sqrt(warp_sum(square) / (double)width + eps));
        for (Size j = lane(); j < width; j += WARP)
            out[row * width + j] = (x_row[j] - mean) * inv_std * gamma[j] + beta[j];
        if (saved && lane() == 0) {
            saved[row] = mean;
            saved[rows + row] = inv_std;
        }
    }
}

KERNEL layer_norm_data(
    const Real* dy, const Real* x, const Real* gamma, const Real* saved, Size rows, Size width,
    Real* dx
) {
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        Real mean = saved[row], inv_std = saved[rows + row];
        double sum = 0, sum_n = 0;
        for (Size j = lane(); j < width; j += WARP) {
            Real g = dy[row * width + j] * gamma[j];
            sum += g;
            sum_n += g * ((x[row * width + j] - mean) * inv_std);
        }
        Real own = (Real)(warp_sum(sum) / (double)width);
        Real own_n = (Real)(warp_sum(sum_n) / (double)width);
        for (Size j = lane(); j < width; j += WARP) {
            Real g = dy[row * width + j] * gamma[j];
            Real n = (x[row * width + j] - mean) * inv_std;
            dx[row * width + j] = inv_std * (g - own - n * own_n);
        }
    }
}

// dgamma = sum dy n, dbeta = sum dy over the batch.
KERNEL layer_norm_parameters(
    const Real* dy, const Real* x, const Real* saved, Size rows, Size width, Real* dgamma,
    Real* dbeta
) {
    SHARED_COLUMNS;
    Size j = own_column();
    Pair own_sums = {0, 0};
    if (j < width)
        own_sums = sum_over_rows<Pair>(rows, [=](Size i) {
            Real g = dy[i * width + j];
            return Pair{g, g * ((x[i * width + j] - saved[i]) * saved[rows + i])};
        });
    double sum = column_sum(own_sums.first, parts), sum_n = column_sum(own_sums.second, parts);
    if (j < width && first_row() == 0) {
        dgamma[j] = (Real)sum_n;
        dbeta[j] = (Real)sum;
    }
}
