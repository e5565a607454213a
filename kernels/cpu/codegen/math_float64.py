"""exp, expm1, log, log1p and tanh in float64: see ``math.py``.

The methods are those of W. J. Cody and W. Waite, Software Manual for the Elementary Functions
(1980), and for the logarithm of P. T. P. Tang, "Table-driven implementation of the logarithm
function in IEEE floating-point arithmetic", ACM TOMS 16 (1990), 378-400, without the table. The
polynomials are our own Chebyshev fits: exp(r) = 1 + r + r^2 Q(r) to 1.8e-17 of its value, and
log(1 + m) = 2 s + s^3 R(s^2), s = m / (2 + m), to 4.6e-18.

Whole numbers are taken from the last bits of a sum with a large number, because processors without
AVX-512 have no vector instruction that makes an int64 of a float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import exact_formula, horner
from nnbackend.kernels.cpu.codegen.intrinsics import bits_of_float64, float64_of_bits

_LOG2_E = 1.4426950408889634
#: ln 2 in two parts, of which the first times a whole number up to 2^21 is exact.
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
_EXP_LOW, _EXP_HIGH = -746.0, 710.0
_EXP = (
    2.5100424157005067e-08, 2.7620138719733994e-07, 2.7557268378684192e-06, 2.480152119021773e-05,
    0.00019841269863105968, 0.0013888888917281794, 0.008333333333330051, 0.04166666666662399,
    0.16666666666666669, 0.5000000000000001,
)  # fmt: skip
_LOG = (
    0.14616721179861816, 0.15331699633543858, 0.18182889786191042, 0.2222221112572281,
    0.28571428626031065, 0.3999999999989938, 0.666666666666667,
)  # fmt: skip
#: Next to it, float64 are whole numbers.
_WHOLE = 1.5 * 2.0**52
_SQRT_HALF_BITS, _MANTISSA_BITS = np.int64(0x3FE6A09E667F3BCD), np.int64(52)
_BIAS, _TWO_52 = np.int64(1023), 2.0**52
_SMALLEST_NORMAL, _LARGEST = 2.0**-1022, 1.7976931348623157e308
_TWO_52_BITS = np.int64(0x4330000000000000)


@exact_formula
def _power_of_two(n: Any) -> Any:
    """2^n for a whole number n in -1022 ... 1023."""
    return float64_of_bits((bits_of_float64(n + _WHOLE) + _BIAS) << _MANTISSA_BITS)


@exact_formula
def _reduce(x: Any) -> Any:
    """n, r and exp(r) - 1 with x = n ln 2 + r, |r| <= ln 2 / 2, for x within exp's range."""
    n = (x * _LOG2_E + _WHOLE) - _WHOLE
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    return n, r + r * r * horner(_EXP, r)


@exact_formula
def exp(x: Any) -> Any:
    n, rest = _reduce(min(max(x, _EXP_LOW), _EXP_HIGH))
    # two factors, because 2^n itself may be no float64
    half = (n * 0.5 + _WHOLE) - _WHOLE
    value = (1.0 + rest) * _power_of_two(half) * _power_of_two(n - half)
    return value if x == x else x


@exact_formula
def expm1(x: Any) -> Any:
    n, rest = _reduce(min(max(x, -60.0), _EXP_HIGH))
    half = (n * 0.5 + _WHOLE) - _WHOLE
    first, second = _power_of_two(half), _power_of_two(n - half)
    # 2^n - 1 in two factors: 2^n itself may be no float64
    value = (rest * first + (first - _power_of_two(half - n))) * second
    return value if x == x else x


@exact_formula
def _log_normal(x: Any) -> Any:
    """log(x) for a normal number x > 0."""
    # mantissa in [sqrt(1/2), sqrt(2))
    e = (bits_of_float64(x) - _SQRT_HALF_BITS + (_BIAS << _MANTISSA_BITS)) >> _MANTISSA_BITS
    m = float64_of_bits(bits_of_float64(x) - ((e - _BIAS) << _MANTISSA_BITS)) - 1.0
    exponent = float64_of_bits(e + _TWO_52_BITS) - (_TWO_52 + 1023.0)
    s, half = m / (2.0 + m), 0.5 * m * m
    square = s * s
    rest = s * (half + square * horner(_LOG, square))
    return exponent * _LN2_HIGH - ((half - (rest + exponent * _LN2_LOW)) - m)


@exact_formula
def log(x: Any) -> Any:
    small = x < _SMALLEST_NORMAL
    value = _log_normal(min(max(x * _TWO_52 if small else x, _SMALLEST_NORMAL), _LARGEST))
    value = value - 36.04365338911715 if small else value
    value = np.inf if x == np.inf else value
    value = -np.inf if x == 0.0 else value
    return value if x >= 0.0 else np.nan


@exact_formula
def log1p(x: Any) -> Any:
    """For finite x >= 0, which is what softplus and the losses need."""
    w = 1.0 + x
    lost = x - (w - 1.0)
    return _log_normal(w) + lost / w if x == x else x


@exact_formula
def tanh(x: Any) -> Any:
    e = expm1(-2.0 * abs(x))
    value = e / (2.0 + e)
    return -value if x > 0.0 else value
