"""Optimizer steps, penalties and sums over flat vectors.

Formulas: ``Backend.update``. Hyper-parameters come in the type of the vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nnbackend.kernels.codes import UPDATE_NUMBERS, UPDATES
from nnbackend.kernels.cpu.codegen.compile import compiled, inlined, loop
from nnbackend.kernels.cpu.codegen.math import cast


@loop
def sgd_step(w: Any, g: Any, lr: Any) -> None:
    """w -= lr g."""
    for i in range(w.size):
        w[i] -= lr * g[i]


@loop
def momentum_step(w: Any, g: Any, v: Any, lr: Any, momentum: Any, ahead: Any, own: Any) -> None:
    """v = momentum v - lr g;  w += ahead v - own g: (1, 0), or Nesterov's (momentum, lr)."""
    for i in range(w.size):
        velocity = momentum * v[i] - lr * g[i]
        v[i] = velocity
        w[i] += ahead * velocity - own * g[i]


@loop
def adagrad_step(w: Any, g: Any, c: Any, lr: Any, eps: Any) -> None:
    """c += g^2;  w -= lr g / (sqrt(c) + eps)."""
    for i in range(w.size):
        square = c[i] + g[i] * g[i]
        c[i] = square
        w[i] -= lr * g[i] / (math.sqrt(square) + eps)


@loop
def rmsprop_step(w: Any, g: Any, c: Any, lr: Any, rho: Any, rest: Any, eps: Any) -> None:
    """c = rho c + rest g^2, rest = 1 - rho;  w -= lr g / (sqrt(c) + eps)."""
    for i in range(w.size):
        square = rho * c[i] + rest * (g[i] * g[i])
        c[i] = square
        w[i] -= lr * g[i] / (math.sqrt(square) + eps)


@loop
def adam_step(
    w: Any, g: Any, m: Any, v: Any, keep: Any, lr: Any, beta1: Any, rest1: Any, beta2: Any,
    rest2: Any, eps: Any,
) -> None:  # fmt: skip
    """m = beta1 m + rest1 g;  v = beta2 v + rest2 g^2;  w = keep w - lr m / (sqrt(v) + eps).

    lr and eps hold the bias corrections, rest1 = 1 - beta1, rest2 = 1 - beta2.
    """
    for i in range(w.size):
        mean = beta1 * m[i] + rest1 * g[i]
        square = beta2 * v[i] + rest2 * (g[i] * g[i])
        m[i] = mean
        v[i] = square
        w[i] = keep * w[i] - lr * mean / (math.sqrt(square) + eps)


SGD, MOMENTUM, ADAGRAD, RMSPROP, ADAM = (kind.code for kind in UPDATES.values())
#: Places of the numbers that the formulas have.
(
    MOMENTUM_AT, NESTEROV_AT, RHO_AT, BETA_1_AT, BETA_2_AT, EPS_AT, DECAY_AT, EPS_HAT_AT,
) = range(len(UPDATE_NUMBERS))  # fmt: skip


@inlined
def corrected(numbers: Any, rate: float, count: int) -> Any:
    """Adam's rate and eps after so many updates, with its bias corrections, which are moved out of
    the vectors."""
    root = (1.0 - numbers[BETA_2_AT] ** float(count)) ** 0.5
    eps = numbers[EPS_AT] * root + numbers[EPS_HAT_AT]
    return rate * root / (1.0 - numbers[BETA_1_AT] ** float(count)), eps


@inlined
def update_step(
    code: int, numbers: Any, rate: float, adam_rate: float, adam_eps: float, decays: bool,
    w: Any, g: Any, slot_0: Any, slot_1: Any, like: Any,
) -> None:  # fmt: skip
    """One step of an optimizer for parameters w with the gradient g, all decayed or none.

    numbers are UPDATE_NUMBERS in float64, adam_rate and adam_eps what ``corrected`` gives.
    """
    lr, eps = cast(rate, like), cast(numbers[EPS_AT], like)
    if code == SGD:
        sgd_step(w, g, lr)
    elif code == MOMENTUM:
        momentum = cast(numbers[MOMENTUM_AT], like)
        if numbers[NESTEROV_AT] != 0.0:
            momentum_step(w, g, slot_0, lr, momentum, momentum, lr)
        else:
            momentum_step(w, g, slot_0, lr, momentum, cast(1.0, like), cast(0.0, like))
    elif code == ADAGRAD:
        adagrad_step(w, g, slot_0, lr, eps)
    elif code == RMSPROP:
        rho = numbers[RHO_AT]
        rmsprop_step(w, g, slot_0, lr, cast(rho, like), cast(1.0 - rho, like), eps)
    else:
        keep = 1.0 - rate * numbers[DECAY_AT] if decays else 1.0
        beta1, beta2 = numbers[BETA_1_AT], numbers[BETA_2_AT]
        adam_step(
            w, g, slot_0, slot_1, cast(keep, like), cast(adam_rate, like), cast(beta1, like),
            cast(1.0 - beta1, like), cast(beta2, like), cast(1.0 - beta2, like),
            cast(adam_eps, like),
        )  # fmt: skip


@loop
def absolute_sum(w: Any) -> float:
    """Sum of |w|, float64."""
    total = 0.0
    for i in range(w.size):
        total += abs(w[i])
    return total


@loop
def square_sum(w: Any) -> float:
    """Sum of w^2, the squares in float64."""
    total = 0.0
    for i in range(w.size):
        value = np.float64(w[i])  # float() would leave it in float32
        total += value * value
    return total


@compiled
def penalty_value(w: Any, l1: float, l2: float) -> float:
    """l1 sum|w| + l2 sum w^2, float64."""
    total = 0.0
    if l1 != 0.0:
        total += l1 * absolute_sum(w)
    if l2 != 0.0:
        total += l2 * square_sum(w)
    return total


@loop
def add_penalty_gradient(w: Any, l1: Any, l2: Any, g: Any) -> None:
    """g += l1 sign(w) + 2 l2 w, sign(0) = 0."""
    zero, two = cast(0.0, l1), cast(2.0, l1)
    for i in range(w.size):
        sign = l1 if w[i] > 0 else zero
        sign = -l1 if w[i] < 0 else sign
        g[i] += sign + two * l2 * w[i]


@loop
def all_finite(x: Any) -> bool:
    """Whether no element is NaN or infinite."""
    wrong = False
    for i in range(x.size):
        wrong = wrong or not (abs(x[i]) < math.inf)
    return not wrong


@loop
def rough_square_sum(x: Any, zero: Any) -> Any:
    """Sum of x^2 in x's own type, that of ``zero``: quick, and finite only if each square is."""
    total = zero
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@loop
def all_below(x: Any, limit: Any) -> bool:
    """Whether the size of each element is less than ``limit``; NaN is not."""
    wrong = False
    for i in range(x.size):
        wrong = wrong or not (abs(x[i]) < limit)
    return not wrong
