"""The dense layer, for one slice of the batch."""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import NARROW, compiled, loop
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.gemm.products import product, product_with_transposed
from nnbackend.kernels.cpu.ops.activations import (
    LINEAR,
    RELU,
    activation_backward,
    activation_forward,
    at_least,
)
from nnbackend.kernels.cpu.ops.vectors import add_to, copy

#: Elements of a block that a second pass finds in the first-level cache.
BLOCK = 8192


@loop
def _add_rows_4(out: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for j in range(out.size):
        out[j] += (a[j] + b[j]) + (c[j] + d[j])


@loop
def _add_bias_relu(z: Any, b: Any) -> None:
    """z (B, O) = max(z + b, 0), b (O,)."""
    for i in range(z.shape[0]):
        for j in range(b.size):
            z[i, j] = at_least(z[i, j] + b[j], 0.0)


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
def _add_bias_narrow(z: Any, b: Any) -> None:
    """z (B, O) += b (O,), for few columns."""
    for i in range(z.shape[0]):
        for j in range(b.size):
            z[i, j] += b[j]


@loop
def _column_sums_narrow(dz: Any, first: int, out: Any) -> None:
    """out (n,) = sums of the columns of dz (B, O) from ``first`` on, few of them."""
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
            add_to(z[i], b)


@compiled
def dense_forward(
    x: Any, w: Any, b: Any, code: int, parameter: Any, out: Any, saved: Any, scratch: int
) -> None:
    """out = act(x w + b); ``saved``, if not empty, receives x w + b."""
    product(x, w, out, scratch)
    end_forward(b, code, parameter, out, saved)


@compiled
def end_forward(b: Any, code: int, parameter: Any, out: Any, saved: Any) -> None:
    """out = act(out + b); ``saved``, if not empty, receives out + b."""
    if code == RELU and b.size:
        _add_bias_relu(out, b)
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
def dense_backward_data(
    dz: Any, w: Any, code: int, parameter: Any, saved: Any, dx: Any, scratch: int
) -> None:
    """dz = dy act'(z) in place of dy, then dx = dz w^T; no dx where it is empty."""
    if code != LINEAR:
        activation_backward(code, parameter, dz, saved)
    if dx.size:
        product_with_transposed(dz, w, dx, scratch)


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
        add_to(out, dz[i, first:last])
    # four rows at a time: fewer passes, and less rounding than one by one
    for i in range(head, rows, 4):
        _add_rows_4(
            out, dz[i, first:last], dz[i + 1, first:last], dz[i + 2, first:last],
            dz[i + 3, first:last],
        )  # fmt: skip
