"""Activation functions and their derivatives in array code, for the reference backend.

Forward: ``f(xp, x, out, parameter)``. Backward: ``f(xp, dy, saved, out, parameter)`` with the
output y or the input z as ``Activation.saves`` says. ``out`` may be the first array. Stable forms:
nothing overflows to NaN, and NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nnbackend.backends.types import Array
from nnbackend.kernels.erf import erfc

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
#: Hendrycks and Gimpel, "Gaussian error linear units" (2016), the tanh approximation
GELU_TANH_SCALE = math.sqrt(2.0 / math.pi)
GELU_TANH_CUBIC = 0.044715
#: from here on mish(z) is z, in float64 too; and exp(z)^4 does not overflow in float32
MISH_IS_Z = 20.0


def relu_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = max(z, 0)."""
    xp.maximum(x, 0, out=out)


def relu_backward(xp: Any, dy: Array, y: Array, out: Array, _: float) -> None:
    xp.multiply(dy, y > 0, out=out)


def leaky_relu_forward(xp: Any, x: Array, out: Array, slope: float) -> None:
    """y = z for z > 0, slope z otherwise (Maas, Hannun and Ng, 2013)."""
    out[...] = xp.where(x > 0, x, slope * x)


def leaky_relu_backward(xp: Any, dy: Array, y: Array, out: Array, slope: float) -> None:
    out[...] = xp.where(y > 0, dy, slope * dy)


def elu_forward(xp: Any, x: Array, out: Array, alpha: float) -> None:
    """y = z for z > 0, alpha (exp(z) - 1) otherwise (Clevert, Unterthiner, Hochreiter, 2016)."""
    out[...] = xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


def elu_backward(xp: Any, dy: Array, y: Array, out: Array, alpha: float) -> None:
    out[...] = dy * xp.where(y > 0, 1, y + alpha)


def _normal_cdf(xp: Any, z: Array) -> Array:
    """Phi(z) = erfc(-z / sqrt(2)) / 2, computed in float64."""
    return 0.5 * erfc(xp, -SQRT_HALF * z.astype(xp.float64))


def gelu_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = z Phi(z), Phi the normal distribution function (Hendrycks and Gimpel, 2016)."""
    # -inf Phi(-inf) is 0 by the limit, not NaN
    bounded = xp.maximum(x, -1e4)
    out[...] = bounded * _normal_cdf(xp, bounded)


def gelu_backward(xp: Any, dy: Array, z: Array, out: Array, _: float) -> None:
    """dy/dz = Phi(z) + z phi(z)."""
    bounded = xp.clip(z, -1e4, 1e4).astype(xp.float64)
    density = INV_SQRT_2PI * xp.exp(-0.5 * bounded * bounded)
    out[...] = dy * (_normal_cdf(xp, bounded) + bounded * density)


def gelu_tanh_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2."""
    bounded = xp.maximum(x, -1e4)
    inner = GELU_TANH_SCALE * (bounded + GELU_TANH_CUBIC * bounded * bounded * bounded)
    out[...] = 0.5 * bounded * (1.0 + xp.tanh(inner))


def gelu_tanh_backward(xp: Any, dy: Array, z: Array, out: Array, _: float) -> None:
    bounded = xp.clip(z, -1e4, 1e4)
    square = bounded * bounded
    t = xp.tanh(GELU_TANH_SCALE * bounded * (1.0 + GELU_TANH_CUBIC * square))
    inner_slope = GELU_TANH_SCALE * (1.0 + 3.0 * GELU_TANH_CUBIC * square)
    out[...] = dy * 0.5 * (1.0 + t + bounded * (1.0 - t * t) * inner_slope)


def sigmoid_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = 1 / (1 + exp(-z)); an overflowing exp gives the right limit, 0."""
    xp.negative(x, out=out)
    xp.exp(out, out=out)
    out += 1
    xp.divide(1, out, out=out)


def sigmoid_backward(xp: Any, dy: Array, y: Array, out: Array, _: float) -> None:
    out[...] = dy * (y * (1 - y))


def silu_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = z sigmoid(z) (Elfwing, Uchibe and Doya, 2018)."""
    bounded = xp.maximum(x, -1e4)
    out[...] = bounded / (1 + xp.exp(-bounded))


def silu_backward(xp: Any, dy: Array, z: Array, out: Array, _: float) -> None:
    bounded = xp.clip(z, -1e4, 1e4)
    s = 1 / (1 + xp.exp(-bounded))
    out[...] = dy * (s * (1 + bounded * (1 - s)))


def mish_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = z tanh(log(1 + exp(z))) (Misra, 2019) = z w / (w + 2), w = e (e + 2), e = exp(z)."""
    bounded = xp.maximum(x, -1e4)
    e = xp.exp(xp.minimum(bounded, MISH_IS_Z))
    w = e * (e + 2)
    out[...] = bounded * (w / (w + 2))


def mish_backward(xp: Any, dy: Array, z: Array, out: Array, _: float) -> None:
    """dy/dz = w / (w + 2) + 4 z e (1 + e) / (w + 2)^2."""
    bounded = xp.clip(z, -1e4, MISH_IS_Z)
    e = xp.exp(bounded)
    w = e * (e + 2)
    out[...] = dy * (w / (w + 2) + 4 * bounded * e * (1 + e) / ((w + 2) * (w + 2)))


def tanh_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = tanh(z)."""
    xp.tanh(x, out=out)


def tanh_backward(xp: Any, dy: Array, y: Array, out: Array, _: float) -> None:
    out[...] = dy * (1 - y * y)


def softplus_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))."""
    out[...] = xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def softplus_backward(xp: Any, dy: Array, y: Array, out: Array, _: float) -> None:
    """dy/dz = sigmoid(z) = 1 - exp(-y)."""
    out[...] = dy * -xp.expm1(-y)


def exponential_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = exp(z)."""
    xp.exp(x, out=out)


def exponential_backward(xp: Any, dy: Array, y: Array, out: Array, _: float) -> None:
    xp.multiply(dy, y, out=out)


def softmax_forward(xp: Any, x: Array, out: Array, _: float) -> None:
    """y = exp(z - max z) / sum exp(z - max z), along each row."""
    xp.subtract(x, x.max(axis=1, keepdims=True), out=out)
    xp.exp(out, out=out)
    out /= out.sum(axis=1, keepdims=True)


def softmax_backward(xp: Any, dy: Array, y: Array, out: Array, _: float) -> None:
    """dz = y (dy - sum dy y)."""
    out[...] = y * (dy - (dy * y).sum(axis=1, keepdims=True))


Forward = Callable[[Any, Array, Array, float], None]
Backward = Callable[[Any, Array, Array, Array, float], None]

#: By name; "linear" has none.
ACTIVATIONS: dict[str, tuple[Forward, Backward]] = {
    "relu": (relu_forward, relu_backward),
    "leaky_relu": (leaky_relu_forward, leaky_relu_backward),
    "elu": (elu_forward, elu_backward),
    "gelu": (gelu_forward, gelu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "silu": (silu_forward, silu_backward),
    "mish": (mish_forward, mish_backward),
    "sigmoid": (sigmoid_forward, sigmoid_backward),
    "tanh": (tanh_forward, tanh_backward),
    "softplus": (softplus_forward, softplus_backward),
    "exponential": (exponential_forward, exponential_backward),
    "softmax": (softmax_forward, softmax_backward),
}
