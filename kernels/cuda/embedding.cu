// Embedding: see nnbackend/backends/layer_contract.py.

// The nearest whole number, -1 if it is none of ``count`` categories.
__device__ inline Size category_of(Real code, Size count) {
    const Real above = code + (Real)0.5;
    return above >= 0 && above < (Real)count ? (Size)above : -1;
}

// Columns of x (rows, inputs) but the first, then the category's row of weight (count, width).
KERNEL embedding_forward(
    const Real* x, const Real* weight, Size rows, Size inputs, Size count, Size width, Real* out
) {
    const Size columns = inputs - 1 + width;
    for (Size e = first_index(); e < rows * columns; e += index_step()) {
        const Size i = quotient_of(e, columns), j = e - i * columns - (inputs - 1);
        if (j < 0) {
            out[e] = x[i * inputs + inputs + j];
            continue;
        }
        const Size k = category_of(x[i * inputs], count);
        out[e] = k < 0 ? not_a_number() : weight[k * width + j];
    }
}

// dx (rows, inputs), a column of zeros first.
KERNEL embedding_data(const Real* dy, Size rows, Size inputs, Size width, Real* dx) {
    for (Size e = first_index(); e < rows * inputs; e += index_step()) {
        const Size i = quotient_of(e, inputs), j = e - i * inputs;
        dx[e] = j ? dy[i * (inputs - 1 + width) + j - 1] : 0;
    }
}

// dweight (count, width), each element by a thread that looks through all rows.
KERNEL embedding_weights(
    const Real* dy, const Real* x, Size rows, Size inputs, Size count, Size width, Real* dweight
) {
    const Size columns = inputs - 1 + width;
    for (Size e = first_index(); e < count * width; e += index_step()) {
        const Size k = quotient_of(e, width), j = e - k * width + inputs - 1;
        double sum = 0;
        for (Size i = 0; i < rows; i++)
            if (category_of(x[i * inputs], count) == k) sum += dy[i * columns + j];
        dweight[e] = (Real)sum;
    }
}
