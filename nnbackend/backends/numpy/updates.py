"""Penalties, clipping and optimizer steps of the reference backend, over flat vectors.

An optimizer's step is ``f(xp, rule, w, g, slots, lr, step, change)`` of a block of each vector, in
place, ``change`` being overwritten. Formulas: ``Backend.update``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nnbackend.backends.contract import Backend
from nnbackend.backends.numpy.blocks import BLOCK, slices
from nnbackend.backends.types import Array, UpdateRule

#: Elements of a block of an optimizer's step, and of its scratch array.
STEP_BLOCK = 65536


def sgd(
    xp: Any,
    rule: UpdateRule,
    w: Array,
    g: Array,
    _: list[Array],
    lr: float,
    step: int,
    change: Array,
) -> None:
    xp.multiply(g, lr, out=change)
    w -= change


def momentum(
    xp: Any, rule: UpdateRule, w: Array, g: Array, slots: list[Array], lr: float, step: int,
    change: Array,
) -> None:  # fmt: skip
    (v,) = slots
    xp.multiply(g, lr, out=change)
    v *= rule.momentum
    v -= change
    if rule.nesterov:
        w -= change
        xp.multiply(v, rule.momentum, out=change)
        w += change
    else:
        w += v


def adagrad(
    xp: Any, rule: UpdateRule, w: Array, g: Array, slots: list[Array], lr: float, step: int,
    change: Array,
) -> None:  # fmt: skip
    (c,) = slots
    xp.multiply(g, g, out=change)
    c += change
    _scaled_step(xp, w, g, c, lr, rule.eps, change)


def rmsprop(
    xp: Any, rule: UpdateRule, w: Array, g: Array, slots: list[Array], lr: float, step: int,
    change: Array,
) -> None:  # fmt: skip
    (c,) = slots
    xp.multiply(g, g, out=change)
    change *= 1.0 - rule.rho
    c *= rule.rho
    c += change
    _scaled_step(xp, w, g, c, lr, rule.eps, change)


def adam(
    xp: Any, rule: UpdateRule, w: Array, g: Array, slots: list[Array], lr: float, step: int,
    change: Array,
) -> None:  # fmt: skip
    m, v = slots
    rate, small = rule.corrected(lr, step)
    xp.multiply(g, 1.0 - rule.beta1, out=change)
    m *= rule.beta1
    m += change
    xp.multiply(g, g, out=change)
    change *= 1.0 - rule.beta2
    v *= rule.beta2
    v += change
    if rule.weight_decay:
        w *= 1.0 - lr * rule.weight_decay
    _scaled_step(xp, w, m, v, rate, small, change)


def _scaled_step(
    xp: Any, w: Array, g: Array, square: Array, lr: float, eps: float, change: Array
) -> None:
    """w -= lr g / (sqrt(square) + eps)."""
    xp.sqrt(square, out=change)
    change += eps
    xp.divide(g, change, out=change)
    change *= lr
    w -= change


UPDATES: dict[str, Callable[..., None]] = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
}


class NumpyUpdates(Backend):
    """The contract's gradients and updates over ``self._xp``."""

    _xp: Any

    def penalty(self, param: Array, l1: float, l2: float, grad: Array | None, loss: Array) -> None:
        xp, param = self._xp, param.reshape(-1)
        for s in slices(param.size, BLOCK):
            w = param[s]
            if l1:
                loss += l1 * xp.abs(w).sum(dtype=xp.float64)
            if l2:
                loss += l2 * (w * w).sum(dtype=xp.float64)
            if grad is not None:
                grad.reshape(-1)[s] += l1 * xp.sign(w) + 2.0 * l2 * w

    def clip_by_global_norm(self, grad: Array, limit: float) -> None:
        xp = self._xp
        square = sum(xp.square(grad[s], dtype=xp.float64).sum() for s in slices(grad.size, BLOCK))
        norm = xp.sqrt(square)
        grad *= xp.where(norm > limit, limit / xp.where(norm > limit, norm, 1.0), 1.0).astype(
            grad.dtype
        )

    def step_scratch_size(self, size: int) -> int:
        return min(size, STEP_BLOCK)

    def update(
        self,
        rule: UpdateRule,
        param: Array,
        grad: Array,
        slots: Sequence[Array],
        lr: float,
        step: int,
        scratch: Array,
    ) -> None:
        change = UPDATES[rule.name]
        for s in slices(param.size, STEP_BLOCK):
            parts = [slot[s] for slot in slots]
            change(self._xp, rule, param[s], grad[s], parts, lr, step, scratch[: s.stop - s.start])
