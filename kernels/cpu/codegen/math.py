"""exp, expm1, log, log1p, tanh and erfc for compiled loops.

They are polynomials without branches, so that loops over them become vector code; PyPI's Numba has
no vector library of its own. Only erfc in float64 is the C library's. Largest errors, to which
tests/kernels/test_cpu_math.py holds them, in units in the last place:

    float32  exp 2, expm1 3, log 1, log1p 2, tanh 2, erfc 5
    float64  exp 2, expm1 3, log 1, log1p 2, tanh 3

NaN stays NaN; infinities give the limits, but for log1p, which takes finite numbers.
"""

from __future__ import annotations

import math
from typing import Any

from numba import types
from numba.extending import overload

from nnbackend.kernels.cpu.codegen import math_float32 as single
from nnbackend.kernels.cpu.codegen import math_float64 as double
from nnbackend.kernels.cpu.codegen.intrinsics import cast

__all__ = ["cast", "erfc", "exp", "expm1", "log", "log1p", "tanh"]


def exp(x: Any) -> Any:
    """e^x."""
    return math.exp(x)


def expm1(x: Any) -> Any:
    """e^x - 1, accurate near 0."""
    return math.expm1(x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return math.log(x)


def log1p(x: Any) -> Any:
    """log(1 + x), accurate near 0; x >= 0."""
    return math.log1p(x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return math.tanh(x)


def erfc(x: Any) -> Any:
    """1 - erf(x), accurate where erf is nearly 1."""
    return math.erfc(x)


def _by_type(function: Any, in_float32: Any, in_float64: Any) -> None:
    """Compile ``function`` as one of two, by the type of its argument."""

    def call_single(x: Any) -> Any:
        return in_float32(x)

    def call_double(x: Any) -> Any:
        return in_float64(x)

    @overload(function, jit_options={"forceinline": True, "_nrt": False})
    def choose(x: Any) -> Any:
        return call_single if x == types.float32 else call_double


_by_type(exp, single.exp, double.exp)
_by_type(expm1, single.expm1, double.expm1)
_by_type(log, single.log, double.log)
_by_type(log1p, single.log1p, double.log1p)
_by_type(tanh, single.tanh, double.tanh)
_by_type(erfc, single.erfc, math.erfc)
