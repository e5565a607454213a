"""exp, expm1, log, log1p, tanh and erfc in float32: see ``math.py``.

Sources: exp, log and tanh by the polynomials of S. L. Moshier, Cephes Mathematical Library,
single precision (1989, 1992). erfc(x) = exp(-x^2) Q((x - 2) / (x + 2)) / (1 + 2 x) in the
manner of J. L. Schonfelder, "Chebyshev expansions for the error and related functions",
Mathematics of Computation 32 (1978), 1232-1240; Q is our own Chebyshev fit of degree 9.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import exact_formula, horner
from nnbackend.kernels.cpu.codegen.intrinsics import bits_of_float32, float32_of_bits, fused

_f = np.float32
_ZERO, _HALF, _ONE, _TWO = _f(0), _f(0.5), _f(1), _f(2)
_LOG2_E, _LN2_HIGH, _LN2_LOW = _f(1.4426950408889634), _f(0.693359375), _f(-2.12194440e-4)
_EXP_LOW, _EXP_HIGH = _f(-104.0), _f(89.0)
_EXP = tuple(
    _f(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
              5.0000001201e-1)
)  # fmt: skip
_LOG = tuple(
    _f(c)
    for c in (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
              1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
              3.3333331174e-1)
)  # fmt: skip
_TANH = tuple(
    _f(c)
    for c in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
              -3.33332819422e-1)
)  # fmt: skip
_ERFC = tuple(
    _f(c)
    for c in (-4.0509182144887745e-4, -1.2330058962106705e-3, 1.3210598845034838e-3,
              8.636289276182652e-3, -8.063728921115398e-3, -5.420617014169693e-2,
              1.6405607759952545e-1, -1.6603119671344757e-1, -9.276401996612549e-2,
              1.2769783735275269)
)  # fmt: skip
_SQRT_HALF_BITS, _MANTISSA_BITS = np.int32(0x3F3504F3), np.int32(23)
_SMALLEST_NORMAL, _TWO_23 = _f(1.1754944e-38), _f(8388608.0)
_INFINITY, _NAN = _f(np.inf), _f(np.nan)
_TANH_SMALL = _f(0.625)
_ERFC_END = _f(10.5)


@exact_formula
def _power_of_two(n: Any) -> Any:
    """2^n for the int32 n in -126 ... 127."""
    return float32_of_bits((n + np.int32(127)) << _MANTISSA_BITS)


@exact_formula
def _reduce(x: Any) -> Any:
    """n, r and exp(r) - 1 with x = n ln 2 + r, |r| <= ln 2 / 2, for x within exp's range."""
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    return n, r + r * r * horner(_EXP, r)


@exact_formula
def exp(x: Any) -> Any:
    bounded = min(max(x, _EXP_LOW), _EXP_HIGH)
    n, rest = _reduce(bounded)
    # two factors, because 2^n itself may be no float32
    half = np.int32(np.floor(n * _HALF))
    value = (_ONE + rest) * _power_of_two(half) * _power_of_two(np.int32(n) - half)
    return value if x == x else x


@exact_formula
def expm1(x: Any) -> Any:
    bounded = min(max(x, _f(-30.0)), _EXP_HIGH)
    n, rest = _reduce(bounded)
    half = np.int32(np.floor(n * _HALF))
    other = np.int32(n) - half
    scaled = rest * _power_of_two(half) * _power_of_two(other)
    value = scaled + (_power_of_two(half) * _power_of_two(other) - _ONE)
    return value if x == x else x


@exact_formula
def _log_normal(x: Any) -> Any:
    """log(x) for a normal number x > 0."""
    bits = bits_of_float32(x)
    # mantissa in [sqrt(1/2), sqrt(2))
    e = (bits - _SQRT_HALF_BITS) >> _MANTISSA_BITS
    m = float32_of_bits(bits - (e << _MANTISSA_BITS)) - _ONE
    exponent = _f(e)
    square = m * m
    value = m * square * horner(_LOG, m)
    value = value + _LN2_LOW * exponent
    value = value - _HALF * square
    return (m + value) + _LN2_HIGH * exponent


@exact_formula
def log(x: Any) -> Any:
    small = x < _SMALLEST_NORMAL
    value = _log_normal(min(max(x * _TWO_23 if small else x, _SMALLEST_NORMAL), _f(3.4e38)))
    value = value - _f(15.942385152878742) if small else value
    value = _INFINITY if x == _INFINITY else value
    value = -_INFINITY if x == _ZERO else value
    return value if x >= _ZERO else _NAN


@exact_formula
def log1p(x: Any) -> Any:
    """For x >= 0, which is what softplus and the losses need."""
    w = _ONE + x
    lost = x - (w - _ONE)
    return _log_normal(w) + lost / w if x == x else x


@exact_formula
def tanh(x: Any) -> Any:
    magnitude = abs(x)
    square = x * x
    small = x + x * square * horner(_TANH, square)
    large = _ONE - _TWO / (exp(_TWO * min(magnitude, _f(20.0))) + _ONE)
    large = large if x > _ZERO else -large
    value = small if magnitude < _TANH_SMALL else large
    return value if x == x else x


@exact_formula
def erfc(x: Any) -> Any:
    magnitude = min(abs(x), _ERFC_END)
    square = magnitude * magnitude
    lost = fused(magnitude, magnitude, -square)
    t = (magnitude - _TWO) / (magnitude + _TWO)
    tail = exp(-square) * (_ONE - lost) * horner(_ERFC, t) / (_ONE + _TWO * magnitude)
    value = tail if x > _ZERO else _TWO - tail
    return value if x == x else x
