"""Activations, losses and optimizers over the array API standard, as one writes them on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nnbackend.backends.types import UpdateRule
from nnbackend.kernels.erf import erfc

#: Hendrycks and Gimpel, "Gaussian error linear units" (2016), the tanh approximation
GELU_SCALE, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715
#: Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken.
CLIP = 1e-7


def sigmoid(xp: Any, z: Any) -> Any:
    return 1 / (1 + xp.exp(-z))


def softmax(xp: Any, z: Any) -> Any:
    e = xp.exp(z - xp.max(z, axis=1, keepdims=True))
    return e / xp.sum(e, axis=1, keepdims=True)


def normal_cdf(xp: Any, z: Any) -> Any:
    """The standard has no error function: PyTorch's own, or nnbackend's, made of exp and where."""
    x, special = -math.sqrt(0.5) * z, getattr(xp, "special", None)
    return 0.5 * (erfc(xp, x) if special is None else special.erfc(x))


def gelu_slope(xp: Any, z: Any) -> Any:
    return normal_cdf(xp, z) + z * xp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def gelu_tanh(xp: Any, z: Any) -> Any:
    return 0.5 * z * (1 + xp.tanh(GELU_SCALE * (z + GELU_CUBIC * z * z * z)))


def gelu_tanh_slope(xp: Any, z: Any) -> Any:
    t = xp.tanh(GELU_SCALE * (z + GELU_CUBIC * z * z * z))
    return 0.5 * (1 + t + z * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBIC * z * z))


def mish(xp: Any, z: Any) -> Any:
    e = xp.exp(xp.clip(z, max=20.0))
    return z * (e * (e + 2) / (e * (e + 2) + 2))


def mish_slope(xp: Any, z: Any) -> Any:
    e = xp.exp(xp.clip(z, max=20.0))
    w = e * (e + 2)
    return w / (w + 2) + 4 * xp.clip(z, max=20.0) * e * (1 + e) / ((w + 2) * (w + 2))


def silu_slope(xp: Any, z: Any) -> Any:
    s = sigmoid(xp, z)
    return s * (1 + z * (1 - s))


def step(xp: Any, y: Any) -> Any:
    return xp.astype(y > 0, y.dtype)


#: f(xp, z, a), and f'(xp, saved, a) from the output y or the input z, as ``Activation.saves``
#: says. An input that is saved is finite: it has been clipped to +-1e4.
ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (lambda xp, z, a: xp.clip(z, min=0.0), lambda xp, y, a: step(xp, y)),
    "leaky_relu": (
        lambda xp, z, a: xp.where(z > 0, z, a * z),
        lambda xp, y, a: a + (1 - a) * step(xp, y),
    ),
    "elu": (
        lambda xp, z, a: xp.where(z > 0, z, a * xp.expm1(xp.clip(z, max=0.0))),
        lambda xp, y, a: xp.where(y > 0, 1.0, y + a),
    ),
    "gelu": (lambda xp, z, a: z * normal_cdf(xp, z), lambda xp, z, a: gelu_slope(xp, z)),
    "gelu_tanh": (lambda xp, z, a: gelu_tanh(xp, z), lambda xp, z, a: gelu_tanh_slope(xp, z)),
    "silu": (lambda xp, z, a: z * sigmoid(xp, z), lambda xp, z, a: silu_slope(xp, z)),
    "mish": (lambda xp, z, a: mish(xp, z), lambda xp, z, a: mish_slope(xp, z)),
    "sigmoid": (lambda xp, z, a: sigmoid(xp, z), lambda xp, y, a: y * (1 - y)),
    "tanh": (lambda xp, z, a: xp.tanh(z), lambda xp, y, a: 1 - y * y),
    "softplus": (
        lambda xp, z, a: xp.clip(z, min=0.0) + xp.log1p(xp.exp(-xp.abs(z))),
        lambda xp, y, a: -xp.expm1(-y),
    ),
    "exponential": (lambda xp, z, a: xp.exp(z), lambda xp, y, a: y),
}


def cross_entropy(xp: Any, log_p: Any, t: Any) -> Any:
    """-sum t log p along rows; 0 log 0 is 0."""
    return -xp.sum(xp.where(t == 0, 0.0, t * log_p), axis=1)


def row_loss(xp: Any, name: str, p: Any, t: Any, delta: float) -> tuple[Any, Any]:
    """The loss of each row, and its derivative by p; t is of p's shape. See ``Backend.loss``."""
    if name in ("categorical_cross_entropy", "binary_cross_entropy"):
        p = xp.clip(p, CLIP, 1 - CLIP)
    n, e = p.shape[1], p - t
    match name:
        case "softmax_cross_entropy":
            shifted = p - xp.max(p, axis=1, keepdims=True)
            log_total = xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
            derivative = softmax(xp, p) * xp.sum(t, axis=1, keepdims=True) - t
            return cross_entropy(xp, shifted - log_total, t), derivative
        case "categorical_cross_entropy":
            return cross_entropy(xp, xp.log(p), t), -t / p
        case "sigmoid_cross_entropy":
            each = xp.clip(p, min=0.0) - p * t + xp.log1p(xp.exp(-xp.abs(p)))
            derivative = sigmoid(xp, p) - t
        case "binary_cross_entropy":
            each = -(t * xp.log(p) + (1 - t) * xp.log(1 - p))
            derivative = (1 - t) / (1 - p) - t / p
        case "sum_squared_error":
            return xp.sum(e * e, axis=1), 2 * e
        case "mean_squared_error":
            each, derivative = e * e, 2 * e
        case "mean_absolute_error":
            each, derivative = xp.abs(e), xp.sign(e)
        case "huber":
            near = xp.clip(e, -delta, delta)
            each, derivative = near * (e - near / 2), near
        case "poisson":
            rate = xp.clip(p, min=CLIP)
            each, derivative = rate - t * xp.log(rate), 1 - t / rate
        case _:
            raise NotImplementedError(f"no formula for the loss {name!r}")
    return xp.mean(each, axis=1), derivative / n


def update(
    xp: Any, rule: UpdateRule, w: Any, g: Any, slots: list[Any], lr: float, number: int
) -> None:
    """One step of an optimizer, in place; see ``Backend.update``."""
    match rule.name:
        case "sgd":
            w[...] = w - lr * g
            return
        case "momentum":
            (v,) = slots
            v[...] = rule.momentum * v - lr * g
            w[...] = w + (rule.momentum * v - lr * g if rule.nesterov else v)
            return
        case "adagrad":
            (square,) = slots
            square[...] = square + g * g
            rate, eps = lr, rule.eps
        case "rmsprop":
            (square,) = slots
            square[...] = rule.rho * square + (1 - rule.rho) * g * g
            rate, eps = lr, rule.eps
        case "adam":
            m, square = slots
            m[...] = rule.beta1 * m + (1 - rule.beta1) * g
            square[...] = rule.beta2 * square + (1 - rule.beta2) * g * g
            rate, eps = rule.corrected(lr, number)
            w[...] = w * (1 - lr * rule.weight_decay)
            g = m
        case _:
            raise NotImplementedError(f"no formula for the optimizer {rule.name!r}")
    w[...] = w - rate * g / (xp.sqrt(square) + eps)
