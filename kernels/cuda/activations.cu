// Activations, their derivatives, and what has to be added to a product before them.
// Formulas and sources: nnbackend/backends/numpy/activations.py.

#define SQRT_HALF 0.70710678118654752440
#define INV_SQRT_2PI 0.39894228040143267794
#define GELU_TANH_SCALE 0.79788456080286535588
#define GELU_TANH_CUBIC 0.044715
// Beyond it a gelu or silu is its limit, and nothing overflows on the way.
#define FAR 1e4
// From here on mish(z) is z.
#define MISH_IS_Z 20

__device__ inline Real normal_cdf(Real z) { return (Real)0.5 * erfc(-z * (Real)SQRT_HALF); }

__device__ inline Real activate(int code, Real z, Real parameter) {
    const Real one = 1;
    switch (code) {
        case RELU: return at_least(z, 0);
        case LEAKY_RELU: return z > 0 ? z : parameter * z;
        case ELU: return z > 0 ? z : parameter * expm1(z);
        case GELU: z = at_least(z, -FAR); return z * normal_cdf(z);
        case GELU_TANH: {
            z = at_least(z, -FAR);
            Real inner = (Real)GELU_TANH_SCALE * (z + (Real)GELU_TANH_CUBIC * z * z * z);
            return (Real)0.5 * z * (one + tanh(inner));
        }
        case SILU: z = at_least(z, -FAR); return z / (one + exp(-z));
        case MISH: {
            z = at_least(z, -FAR);
            Real e = exp(at_most(z, MISH_IS_Z)), w = e * (e + 2);
            return z * (w / (w + 2));
        }
        case SIGMOID: return one / (one + exp(-z));
        case TANH: return tanh(z);
        case SOFTPLUS: return at_least(z, 0) + log1p(exp(-fabs(z)));
        case EXPONENTIAL: return exp(z);
        case LINEAR: return z;
        default: return not_a_number();
    }
}

// act'(z), from the output, or from z where kernels/codes.py says "input".
__device__ inline Real slope(int code, Real saved, Real parameter) {
    const Real one = 1;
    switch (code) {
        case RELU: return saved > 0 ? one : 0;
        case LEAKY_RELU: return saved > 0 ? one : parameter;
        case ELU: return saved > 0 ? one : saved + parameter;
        case GELU: {
            Real z = at_most(at_least(saved, -FAR), FAR);
            return normal_cdf(z) + z * (Real)INV_SQRT_2PI * exp((Real)-0.5 * z * z);
        }
        case GELU_TANH: {
            Real z = at_most(at_least(saved, -FAR), FAR), square = z * z;
            Real t = tanh((Real)GELU_TANH_SCALE * z * (one + (Real)GELU_TANH_CUBIC * square));
            Real inner = (Real)GELU_TANH_SCALE * (one + 3 * (Real)GELU_TANH_CUBIC * square);
            return (Real)0.5 * (one + t + z * (one - t * t) * inner);
        }
        case SILU: {
            Real z = at_most(at_least(saved, -FAR), FAR), s = one / (one + exp(-z));
            return s * (one + z * (one - s));
        }
        case MISH: {
            Real z = at_most(at_least(saved, -FAR), MISH_IS_Z), e = exp(z), w = e * (e + 2);
            Real rest = 2 / (w + 2);
            return w / (w + 2) + z * e * (one + e) * rest * rest;
        }
        case SIGMOID: return saved * (one - saved);
        case TANH: return one - saved * saved;
        case SOFTPLUS: return -expm1(-saved);
        case EXPONENTIAL: return saved;
        case LINEAR: return one;
        default: return not_a_number();
    }
}

// dz = dy where a ReLU lets through, for rounded numbers: their bits stay as they are.
__device__ inline void relu_backward_in_bf16(const Bf16* dy, const Bf16* y, Size n, Bf16* dz) {
    bool whole = ((Wide)dy | (Wide)y | (Wide)dz) % sizeof(FourBf16) == 0;
    Size fours = whole ? n / 4 : 0;
    for (Size i = first_index(); i < fours; i += index_step()) {
        FourBf16 d = ((const FourBf16*)dy)[i], z = ((const FourBf16*)y)[i];
        for (int k = 0; k < 4; k++)
            if (!(from_bf16(z.at[k]) > 0)) d.at[k] = rounded_to_bf16(from_bf16(d.at[k]) * 0);
        ((FourBf16*)dz)[i] = d;
    }
    for (Size i = 4 * fours + first_index(); i < n; i += index_step())
        dz[i] = from_bf16(y[i]) > 0 ? dy[i] : rounded_to_bf16(from_bf16(dy[i]) * 0);
}

// out = act(x + bias), all but softmax, also rounded; z = x + bias is kept. Each where there is a
// place for it.
KERNEL activation_forward(
    const Real* x, const Real* bias, Size n, Size width, int code, Real parameter, Real* kept,
    Real* out, Bf16* rounded
) {
    for (Size i = first_index(); i < n; i += index_step()) {
        Real z = x[i];
        if (bias) z += bias[remainder_of(i, width)];
        if (kept) kept[i] = z;
        Real y = activate(code, z, parameter);
        if (out) out[i] = y;
        if (rounded) rounded[i] = rounded_to_bf16(y);
    }
}

// out = dy act'(z), all but softmax, also rounded; dy and what is saved may be rounded, too.
KERNEL activation_backward(
    const Real* dy, const Bf16* dy_bf16, const Real* saved, const Bf16* saved_bf16, Size n,
    int code, Real parameter, Real* out, Bf16* rounded
) {
    if (dy_bf16 && saved_bf16 && rounded && !out && code == RELU) {
        relu_backward_in_bf16(dy_bf16, saved_bf16, n, rounded);
        return;
    }
    for (Size i = first_index(); i < n; i += index_step()) {
        Real kept = saved ? saved[i] : from_bf16(saved_bf16[i]);
        Real dz = (dy ? dy[i] : from_bf16(dy_bf16[i])) * slope(code, kept, parameter);
        if (out) out[i] = dz;
        if (rounded) rounded[i] = rounded_to_bf16(dz);
    }
}

// out = softmax(x + bias) along each row; a warp takes a row.
KERNEL softmax_forward(const Real* x, const Real* bias, Size rows, Size width, Real* out) {
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        const Real* z = x + row * width;
        Real* y = out + row * width;
        Real largest = z[0] + (bias ? bias[0] : 0), total = 0;
        for (Size j = lane(); j < width; j += WARP)
            largest = larger(largest, z[j] + (bias ? bias[j] : 0));
        largest = warp_largest(largest);
        // each lane reads and writes the same places, so that out may be x
        for (Size j = lane(); j < width; j += WARP) {
            y[j] = exp(z[j] + (bias ? bias[j] : 0) - largest);
            total += y[j];
        }
        total = warp_sum(total);
        for (Size j = lane(); j < width; j += WARP) y[j] /= total;
    }
}

// out = y (dy - sum of dy y) along each row.
KERNEL softmax_backward(const Real* dy, const Real* y, Size rows, Size width, Real* out) {
    for (Size row = first_warp(); row < rows; row += warp_step()) {
        const Real *dy_row = dy + row * width, *y_row = y + row * width;
        Real inner = 0;
        for (Size j = lane(); j < width; j += WARP) inner += dy_row[j] * y_row[j];
        inner = warp_sum(inner);
        for (Size j = lane(); j < width; j += WARP)
            out[row * width + j] = y_row[j] * (dy_row[j] - inner);
    }
}

// out = x factor.
KERNEL multiply(const Real* x, const Real* factor, Size n, Real* out) {
    for (Size i = first_index(); i < n; i += index_step()) out[i] = x[i] * factor[i];
}

// out = (x - mean) scale by columns; no mean where there is none.
KERNEL standardize(
    const Real* x, const Real* mean, const Real* scale, Size n, Size width, Real* out
) {
    for (Size i = first_index(); i < n; i += index_step()) {
        Size j = remainder_of(i, width);
        out[i] = (x[i] - (mean ? mean[j] : 0)) * scale[j];
    }
}

// out = x rounded to bfloat16.
KERNEL round_to_bf16(const Real* x, Size n, Bf16* out) {
    for (Size i = first_index(); i < n; i += index_step()) out[i] = rounded_to_bf16(x[i]);
}
