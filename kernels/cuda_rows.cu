// Rows of a data set, and where a captured step finds its batch.

// out[i] = x[idx[i]] for rows of 4-byte words.
KERNEL take_rows(const Word* x, const Size* idx, Size rows, Size words, Word* out) {
    for (Size i = first_index(); i < rows * words; i += index_step()) {
        Size row = (rows * words) >> 32 ? i / words : (Size)((Word)i / (Word)words);
        out[i] = x[idx[row] * words + (i - row * words)];
    }
}
