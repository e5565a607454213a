"""Matrix products and the dense layer, for one slice of the batch.

Large products go to SciPy's BLAS, which is held to one thread: the threads are ours. Small ones
are loops, because a call of the BLAS costs more than their arithmetic.
"""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu_activations import (
    LINEAR,
    RELU,
    activation_backward,
    activation_forward,
    at_least,
    keeps_input,
)
from nnbackend.kernels.cpu_compile import NARROW, compiled, loop
from nnbackend.kernels.cpu_intrinsics import blas_product
from nnbackend.kernels.cpu_math import cast

#: Products of at most this many multiplications are loops (measured: benchmarks/small_products.py).
SMALL_PRODUCT = 128
#: Elements of a block that a second pass finds in the first-level cache.
BLOCK = 8192


@loop
def _add_scaled(out: Any, row: Any, factor: Any) -> None:
    for j in range(out.size):
        out[j] += factor * row[j]


@loop
def _add_scaled_4(
    out: Any, a: Any, b: Any, c: Any, d: Any, fa: Any, fb: Any, fc: Any, fd: Any
) -> None:
    for j in range(out.size):
        out[j] += fa * a[j] + fb * b[j] + fc * c[j] + fd * d[j]


@loop
def _scaled(out: Any, row: Any, factor: Any) -> None:
    for j in range(out.size):
        out[j] = factor * row[j]


@loop
def _inner(a: Any, b: Any) -> Any:
    total = cast(0.0, a[0])
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@compiled
def check_shapes(fits: bool) -> None:
    """A product whose shapes do not fit would read beyond its arrays."""
    if not fits:
        raise IndexError("matrix product: shapes do not fit")


@compiled
def product(a: Any, b: Any, c: Any) -> None:
    """c (M, N) = a (M, K) b (K, N)."""
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    check_shapes(b.shape[0] == k and c.shape[0] == m and c.shape[1] == n)
    if m > 1 and m * n * k > SMALL_PRODUCT:
        blas_product(
            False, False, m, n, k, a.ctypes.data, k, b.ctypes.data, n, c.ctypes.data, n, a[0, 0]
        )
        return
    for i in range(m):
        row = c[i]
        single = (k - 1) % 4 + 1
        _scaled(row, b[0], a[i, 0])
        for p in range(1, single):
            _add_scaled(row, b[p], a[i, p])
        # four at a time: the row is loaded and stored once for all of them
        for p in range(single, k, 4):
            _add_scaled_4(
                row, b[p], b[p + 1], b[p + 2], b[p + 3],
                a[i, p], a[i, p + 1], a[i, p + 2], a[i, p + 3],
            )  # fmt: skip


@compiled
def product_with_transposed(a: Any, b: Any, c: Any) -> None:
    """c (M, K) = a (M, N) b^T, b (K, N)."""
    m, n, k = a.shape[0], a.shape[1], b.shape[0]
    check_shapes(b.shape[1] == n and c.shape[0] == m and c.shape[1] == k)
    if m * n * k > SMALL_PRODUCT:
        blas_product(
            False, True, m, k, n, a.ctypes.data, n, b.ctypes.data, n, c.ctypes.data, k, a[0, 0]
        )
        return
    for i in range(m):
        row, target = a[i], c[i]
        for p in range(k):
            target[p] = _inner(row, b[p])


@compiled
def transposed_product(a: Any, first: int, b: Any, c: Any) -> None:
    """c (K, N) = a[:, first : first + K]^T b, for a (B, I) and b (B, N)."""
    batch, width, k, n = a.shape[0], a.shape[1], c.shape[0], c.shape[1]
    check_shapes(b.shape[0] == batch and b.shape[1] == n and first + k <= width and first >= 0)
    if batch * n * k > SMALL_PRODUCT:
        start = a.ctypes.data + first * a.itemsize
        blas_product(
            True, False, k, n, batch, start, width, b.ctypes.data, n, c.ctypes.data, n, a[0, 0]
        )
        return
    for p in range(k):
        row = c[p]
        _scaled(row, b[0], a[0, first + p])
        for i in range(1, batch):
            _add_scaled(row, b[i], a[i, first + p])


@loop
def _add_row(z: Any, b: Any) -> None:
    for j in range(z.size):
        z[j] += b[j]


@loop
def _add_rows_4(out: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for j in range(out.size):
        out[j] += (a[j] + b[j]) + (c[j] + d[j])


@loop
def _add_row_relu(z: Any, b: Any) -> None:
    for j in range(z.size):
        z[j] = at_least(z[j] + b[j], 0.0)


@loop
def copy_rows(source: Any, order: Any, out: Any) -> None:
    """out[i] = source[order[i]] for short rows."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = source[order[i], j]


@compiled
def take_rows(source: Any, order: Any, out: Any) -> None:
    """out[i] = source[order[i]]."""
    if out.shape[1] <= NARROW:
        copy_rows(source, order, out)
        return
    for i in range(out.shape[0]):
        copy(source[order[i]], out[i])


@loop
def copy(source: Any, out: Any) -> None:
    """out = source, flat."""
    for i in range(out.size):
        out[i] = source[i]


@loop
def _add_bias_narrow(z: Any, b: Any) -> None:
    for i in range(z.shape[0]):
        for j in range(b.size):
            z[i, j] += b[j]


@loop
def _column_sums_narrow(dz: Any, first: int, out: Any) -> None:
    for j in range(out.size):
        total = 0.0
        for i in range(dz.shape[0]):
            total += dz[i, first + j]
        out[j] = cast(total, out[j])


@compiled
def add_bias(z: Any, b: Any) -> None:
    """z += b, z (B, N), b (N,); no b where it is empty."""
    if 0 < b.size <= NARROW:
        _add_bias_narrow(z, b)
    elif b.size:
        for i in range(z.shape[0]):
            _add_row(z[i], b)


@compiled
def dense_forward(x: Any, w: Any, b: Any, code: int, parameter: Any, out: Any, saved: Any) -> None:
    """out = act(x w + b); ``saved``, if not empty, receives x w + b."""
    product(x, w, out)
    if code == RELU and b.size:
        for i in range(out.shape[0]):
            _add_row_relu(out[i], b)
        return
    if code == LINEAR:
        add_bias(out, b)
        return
    # bias and activation block by block, while the block is in the cache
    rows = max(1, BLOCK // out.shape[1])
    for start in range(0, out.shape[0], rows):
        block = out[start : start + rows]
        add_bias(block, b)
        if saved.size:
            kept = saved[start : start + rows]
            copy(block.reshape(block.size), kept.reshape(kept.size))
        activation_forward(code, parameter, block)


@compiled
def dense_backward_data(dz: Any, w: Any, code: int, parameter: Any, saved: Any, dx: Any) -> None:
    """dz = dy act'(z) in place of dy, then dx = dz w^T; no dx where it is empty."""
    if code != LINEAR:
        activation_backward(code, parameter, dz, saved)
    if dx.size:
        product_with_transposed(dz, w, dx)


@compiled
def column_sums(dz: Any, first: int, out: Any) -> None:
    """out[j] = sum over the rows of dz[:, first + j]."""
    if out.size <= NARROW:
        _column_sums_narrow(dz, first, out)
        return
    last, rows = first + out.size, dz.shape[0]
    head = rows % 4
    for j in range(out.size):
        out[j] = cast(0.0, out[j])
    for i in range(head):
        _add_row(out, dz[i, first:last])
    # four rows at a time: fewer passes, and less rounding than one by one
    for i in range(head, rows, 4):
        _add_rows_4(
            out, dz[i, first:last], dz[i + 1, first:last], dz[i + 2, first:last],
            dz[i + 3, first:last],
        )  # fmt: skip


@compiled
def needs_z(code: int) -> bool:
    """Whether a dense layer with this activation keeps x w + b for its backward pass."""
    return keeps_input(code)
