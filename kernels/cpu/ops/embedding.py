"""Embedding, for one slice of the batch: see ``nnbackend.backends.layer_contract``."""

from __future__ import annotations

import math
from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.ops.vectors import add_to, copy


@compiled
def category_of(code: Any, count: int) -> int:
    """The nearest whole number, -1 if it is none of ``count`` categories."""
    above = code + cast(0.5, code)
    if above >= cast(0.0, code) and above < cast(count, code):
        return int(above)
    return -1


@compiled
def embedding_forward(x: Any, weight: Any, out: Any) -> None:
    """Columns of x but the first, then the category's row of weight."""
    others = x.shape[1] - 1
    for i in range(x.shape[0]):
        k = category_of(x[i, 0], weight.shape[0])
        copy(x[i, 1:], out[i, :others])
        if k >= 0:
            copy(weight[k], out[i, others:])
        else:
            out[i, others:] = math.nan


@compiled
def embedding_data(dy: Any, dx: Any) -> None:
    """dx, a column of zeros first."""
    others = dx.shape[1] - 1
    for i in range(dx.shape[0]):
        dx[i, 0] = cast(0.0, dx[i, 0])
        copy(dy[i, :others], dx[i, 1:])


@compiled
def embedding_weights(dy: Any, x: Any, count: int, first: int, dweight: Any) -> None:
    """The gradient of some of ``count`` categories, from ``first`` on, over all rows."""
    others = x.shape[1] - 1
    dweight[:] = cast(0.0, x[0, 0])
    for i in range(x.shape[0]):
        k = category_of(x[i, 0], count) - first
        if 0 <= k < dweight.shape[0]:
            add_to(dweight[k], dy[i, others:])
