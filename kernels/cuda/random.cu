// Philox4x32-10 (Salmon et al., SC11) and dropout, kernels/philox.py being the same in NumPy; and
// Philox4x64-10 for orders of rows, as nnbackend/backends/orders.py draws them.

struct Stream {
    Word key[2];
    Word words[3];
};

__device__ inline void philox(Word block, Stream stream, Word* out) {
    Word a = block, b = stream.words[0], c = stream.words[1], d = stream.words[2];
    Word key = stream.key[0], other_key = stream.key[1];
    for (int round = 0; round < 10; round++) {
        Wide first = (Wide)a * 0xD2511F53u, second = (Wide)c * 0xCD9E8D57u;
        a = (Word)(second >> 32) ^ b ^ key;
        b = (Word)second;
        c = (Word)(first >> 32) ^ d ^ other_key;
        d = (Word)first;
        key += 0x9E3779B9u;
        other_key += 0xBB67AE85u;
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

// out[i] = word e % 4 of block e / 4, e = 4 first_block + i.
KERNEL random_bits(
    Word key_0, Word key_1, Word word_0, Word word_1, Word word_2, Word first_block, Size n,
    Word* out
) {
    Stream stream = {{key_0, key_1}, {word_0, word_1, word_2}};
    for (Size block = first_index(); 4 * block < n; block += index_step()) {
        Word words[4];
        philox(first_block + (Word)block, stream, words);
        for (int k = 0; k < 4; k++)
            if (4 * block + k < n) out[4 * block + k] = words[k];
    }
}

// saved = 1 / (1 - rate) or 0, out = x saved. The stream's lower words are the step, which a
// captured launch reads from the state, and so it does the place of the first row, of ``width``.
KERNEL dropout_forward(
    const Real* x, Word key_0, Word key_1, Wide step, Word layer, const StepState* state,
    Word threshold, Real scale, Word first_block, Size n, Size width, Real* out, Real* saved
) {
    if (state) {
        step = state->step;
        first_block = (Word)(state->first_row * width / 4);
    }
    Stream stream = {{key_0, key_1}, {(Word)step, (Word)(step >> 32), layer}};
    for (Size block = first_index(); 4 * block < n; block += index_step()) {
        Word words[4];
        philox(first_block + (Word)block, stream, words);
        for (int k = 0; k < 4; k++) {
            Size i = 4 * block + k;
            if (i >= n) break;
            Real factor = words[k] >= threshold ? scale : 0;
            saved[i] = factor;
            out[i] = x[i] * factor;
        }
    }
}

// What follows a row of a network, number by number: an activation, all but softmax, and dropout,
// either of which may be missing. The stream's lower words are the step.
struct Following {
    int code, by_input;
    Real parameter;
    Stream stream;
    Word threshold;
    Real scale;
    Real* slopes;  // by which the gradient is multiplied, where they are wanted
    Size first;    // place of the first number in the batch

    __device__ inline Real of(Real z, Size i) const {
        const Real y = activate(code, z, parameter), factor = kept(i) ? scale : 0;
        if (slopes) slopes[i] = slope(code, by_input ? z : y, parameter) * factor;
        return y * factor;
    }
    __device__ inline bool kept(Size i) const {
        if (!threshold) return true;
        Word words[4];
        philox((Word)((first + i) / 4), stream, words);
        const Word low = i % 2 ? words[1] : words[0], high = i % 2 ? words[3] : words[2];
        return (i % 4 < 2 ? low : high) >= threshold;
    }
};
#define FOLLOWING(first)                                                                          \
    {code, by_input, parameter, {{key_0, key_1}, {(Word)step, (Word)(step >> 32), layer}},        \
     threshold, scale, slopes, first}

// An activation, then dropout.
KERNEL activation_and_dropout(
    const Real* x, int code, int by_input, Real parameter, Word key_0, Word key_1, Wide step,
    Word layer, const StepState* state, Word threshold, Real scale, Size n, Size width, Real* out,
    Real* slopes
) {
    if (state) step = state->step;
    const Following following = FOLLOWING(state ? state->first_row * width : 0);
    for (Size i = first_index(); i < n; i += index_step()) out[i] = following.of(x[i], i);
}

__device__ inline void philox_64(Wide block, Wide key, Wide other_key, Wide* out) {
    Wide a = block, b = 0, c = 0, d = 0;
    for (int round = 0; round < 10; round++) {
        Wide high = __umul64hi(a, 0xD2E7470EE14C6C93ull), low = a * 0xD2E7470EE14C6C93ull;
        Wide other_high = __umul64hi(c, 0xCA5A826395121157ull);
        Wide other_low = c * 0xCA5A826395121157ull;
        a = other_high ^ b ^ key;
        b = other_low;
        c = high ^ d ^ other_key;
        d = low;
        key += 0x9E3779B97F4A7C15ull;
        other_key += 0xBB67AE8584CAA73Bull;
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

// What rows are sorted by: the order's number in the highest ``spare`` bits, the row's own in the
// lowest, random ones between them.
KERNEL order_keys(
    Wide key, Wide other_key, Wide block, Size rows, Size orders, int low, int spare, Wide* out
) {
    Size blocks = (rows + 3) / 4;
    for (Size i = first_index(); i < orders * blocks; i += index_step()) {
        Size order = quotient_of(i, blocks), row = 4 * (i - order * blocks);
        Wide words[4], number = spare ? (Wide)order << (64 - spare) : 0;
        philox_64(block + 1 + (Wide)i, key, other_key, words);
        for (int k = 0; k < 4 && row + k < rows; k++)
            out[order * rows + row + k] =
                number | words[k] >> (low + spare) << low | (Wide)(row + k);
    }
}

// Of the sorted keys, the rows.
KERNEL orders_of_keys(Wide mask, Size n, Wide* keys) {
    for (Size i = first_index(); i < n; i += index_step()) keys[i] &= mask;
}
