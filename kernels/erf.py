"""Error function for array libraries that have none, accurate to float64 rounding.

Sources: above 0.84375 the rational functions of W. J. Cody, "Rational Chebyshev approximations
for the error function", Mathematics of Computation 23 (1969), 631-637; below it the one of
fdlibm's ``s_erf.c`` (Sun Microsystems, 1993), whose form x + x R(x^2) rounds only once.
"""

from __future__ import annotations

from typing import Any

# erf(x) = x + x R(x^2) for |x| <= 0.84375
_A = (
    -2.37630166566501626084e-05,
    -5.77027029648944159157e-03,
    -2.84817495755985104766e-02,
    -3.25042107247001499370e-01,
    1.28379167095512558561e-01,
)
_B = (
    -3.96022827877536812320e-06,
    1.32494738004321644526e-04,
    5.08130628187576562776e-03,
    6.50222499887672944485e-02,
    3.97917223959155352819e-01,
    1.0,
)
# erfc(x) = exp(-x^2) R(x) for 0.84375 <= x <= 4
_C = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e00,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_D = (
    1.0,
    1.57449261107098347e01,
    1.17693950891312499e02,
    5.37181101862009858e02,
    1.62138957456669019e03,
    3.29079923573345963e03,
    4.36261909014324716e03,
    3.43936767414372164e03,
    1.23033935480374942e03,
)
# erfc(x) = exp(-x^2) / x (1 / sqrt(pi) - R(1 / x^2) / x^2) for x >= 4
_P = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_Q = (
    1.0,
    2.56852019228982242e00,
    1.87295284992346725e00,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)
_INV_SQRT_PI = 0.56418958354775628695
_SMALL = 0.84375
_MEDIUM = 4.0
_LARGEST = 28.0  # erfc underflows to zero below it


def _polynomial(xp: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    """Horner's rule, highest power first."""
    value = xp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value *= x
        value += c
    return value


def _erfc_positive(xp: Any, y: Any) -> Any:
    """erfc(y) for y >= 0.84375, relative accuracy of a few ulp."""
    y = xp.minimum(y, _LARGEST)
    medium = xp.minimum(y, _MEDIUM)
    middle = _polynomial(xp, _C, medium) / _polynomial(xp, _D, medium)
    large = xp.maximum(y, _MEDIUM)
    inverse = 1.0 / (large * large)
    tail = inverse * _polynomial(xp, _P, inverse) / _polynomial(xp, _Q, inverse)
    tail = (_INV_SQRT_PI - tail) / large
    # exp(-y^2) with y split in a short head and a rest, so that squaring loses nothing
    head = xp.trunc(y * 16.0) / 16.0
    rest = (y - head) * (y + head)
    return xp.exp(-head * head) * xp.exp(-rest) * xp.where(y <= _MEDIUM, middle, tail)


def _small_rest(xp: Any, x: Any) -> Any:
    """erf(x) - x for |x| <= 0.84375."""
    square = x * x
    return x * (_polynomial(xp, _A, square) / _polynomial(xp, _B, square))


def erf(xp: Any, x: Any) -> Any:
    """erf(x) = 2 / sqrt(pi) * integral of exp(-t^2) from 0 to x.

    Args:
        xp: the array module (numpy or cupy).
        x: float64 array of any shape.

    Returns:
        A new float64 array, within 2 ulp of the exact value; NaN stays NaN.
    """
    magnitude = xp.abs(x)
    large = xp.copysign(1.0 - _erfc_positive(xp, xp.maximum(magnitude, _SMALL)), x)
    near = xp.clip(x, -_SMALL, _SMALL)
    return xp.where(magnitude <= _SMALL, near + _small_rest(xp, near), large)


def erfc(xp: Any, x: Any) -> Any:
    """erfc(x) = 1 - erf(x), without the cancellation for large x.

    Args and Returns as :func:`erf`; the relative error is a few ulp while erfc(x) is a
    normal number.
    """
    magnitude = xp.abs(x)
    tail = _erfc_positive(xp, xp.maximum(magnitude, _SMALL))
    large = xp.where(x < 0, 2.0 - tail, tail)
    near = xp.clip(x, -_SMALL, _SMALL)
    rest = _small_rest(xp, near)
    small = xp.where(near < 0.25, 1.0 - (near + rest), 0.5 - ((near - 0.5) + rest))
    return xp.where(magnitude <= _SMALL, small, large)
