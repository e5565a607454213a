"""Products with rows of which most numbers are zeros, for one slice of the batch.

Such rows are given as a vector of their other numbers, ``values``, one of the columns that these
are in, and ``starts``: row k has those from ``starts[k]`` to ``starts[k + 1]``.
"""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled, loop
from nnbackend.kernels.cpu.codegen.math import cast


@loop
def _add_rows(values: Any, columns: Any, w: Any, out: Any) -> None:
    """out (O,) += sum of values[e] w[columns[e]], four rows of w at a time."""
    whole = values.size - values.size % 4
    for e in range(0, whole, 4):
        a, b, c, d = values[e], values[e + 1], values[e + 2], values[e + 3]
        i, j, k, m = columns[e], columns[e + 1], columns[e + 2], columns[e + 3]
        for o in range(out.size):
            out[o] += (a * w[i, o] + b * w[j, o]) + (c * w[k, o] + d * w[m, o])
    for e in range(whole, values.size):
        a, i = values[e], columns[e]
        for o in range(out.size):
            out[o] += a * w[i, o]


@loop
def _add_outer(values: Any, columns: Any, first: int, dz: Any, dw: Any) -> None:
    """dw[columns[e] - first] += values[e] dz, dz (O,), where dw has such a row."""
    for e in range(values.size):
        i = columns[e] - first
        if 0 <= i < dw.shape[0]:
            a = values[e]
            for o in range(dz.size):
                dw[i, o] += a * dz[o]


@compiled
def sparse_product(values: Any, columns: Any, starts: Any, numbers: Any, w: Any, out: Any) -> None:
    """out (n, O) = x w, x the rows with these numbers (n,), w (I, O)."""
    for i in range(out.shape[0]):
        first, last = starts[numbers[i]], starts[numbers[i] + 1]
        row = out[i]
        row[:] = cast(0.0, out[i, 0])
        _add_rows(values[first:last], columns[first:last], w, row)


@compiled
def sparse_transposed_product(
    values: Any, columns: Any, starts: Any, numbers: Any, first_column: int, dz: Any, dw: Any
) -> None:
    """dw (m, O) = x^T dz for columns ``first_column`` ... of x, the rows with these numbers (n,);
    dz (n, O)."""
    flat = dw.reshape(dw.size)
    flat[:] = cast(0.0, flat[0])
    for i in range(dz.shape[0]):
        first, last = starts[numbers[i]], starts[numbers[i] + 1]
        _add_outer(values[first:last], columns[first:last], first_column, dz[i], dw)
