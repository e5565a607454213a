"""Loops over arrays that several kernels need, small enough for LLVM to make vector code of."""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import loop
from nnbackend.kernels.cpu.codegen.math import cast


@loop
def copy(source: Any, out: Any) -> None:
    """out = source, flat."""
    for i in range(out.size):
        out[i] = source[i]


@loop
def scale(x: Any, factor: Any) -> None:
    """x *= factor, flat."""
    for i in range(x.size):
        x[i] *= factor


@loop
def add_to(total: Any, row: Any) -> None:
    """total += row, flat."""
    for i in range(total.size):
        total[i] += row[i]


@loop
def inner(a: Any, b: Any) -> Any:
    """Sum of a b, at least one element."""
    total = cast(0.0, a[0])
    for i in range(a.size):
        total += a[i] * b[i]
    return total
