"""Penalties, clipping and optimizer steps of the reference backend, over flat vectors."""

from __future__ import annotations

from typing import Any

from nnbackend.backends._blocks import BLOCK, slices
from nnbackend.backends.base import Array, Backend

#: Elements of a block of an optimizer's step, and of its scratch array.
STEP_BLOCK = 65536


def adam_correction(
    lr: float, beta1: float, beta2: float, eps: float, step: int
) -> tuple[float, float]:
    """Rate and eps with which m and v give Adam's step lr m_hat / (sqrt(v_hat) + eps): both bias
    corrections moved out of the vectors."""
    root = (1.0 - beta2 ** (step + 1)) ** 0.5
    return lr * root / (1.0 - beta1 ** (step + 1)), eps * root


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

    def sgd_step(
        self,
        param: Array,
        grad: Array,
        velocity: Array | None,
        lr: float,
        momentum: float,
        nesterov: bool,
        scratch: Array,
    ) -> None:
        xp = self._xp
        for s in slices(param.size, STEP_BLOCK):
            w, change = param[s], scratch[: s.stop - s.start]
            xp.multiply(grad[s], lr, out=change)
            if velocity is None:
                w -= change
                continue
            v = velocity[s]
            v *= momentum
            v -= change
            if nesterov:
                w -= change
                xp.multiply(v, momentum, out=change)
                w += change
            else:
                w += v

    def adagrad_step(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float, scratch: Array
    ) -> None:
        xp = self._xp
        for s in slices(param.size, STEP_BLOCK):
            w, g, c, change = param[s], grad[s], cache[s], scratch[: s.stop - s.start]
            xp.multiply(g, g, out=change)
            c += change
            self._scaled_step(w, g, c, lr, eps, change)

    def rmsprop_step(
        self,
        param: Array,
        grad: Array,
        cache: Array,
        lr: float,
        rho: float,
        eps: float,
        scratch: Array,
    ) -> None:
        xp = self._xp
        for s in slices(param.size, STEP_BLOCK):
            w, g, c, change = param[s], grad[s], cache[s], scratch[: s.stop - s.start]
            xp.multiply(g, g, out=change)
            change *= 1.0 - rho
            c *= rho
            c += change
            self._scaled_step(w, g, c, lr, eps, change)

    def adam_step(
        self,
        param: Array,
        grad: Array,
        m: Array,
        v: Array,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        scratch: Array,
    ) -> None:
        xp = self._xp
        rate, small = adam_correction(lr, beta1, beta2, eps, step)
        for s in slices(param.size, STEP_BLOCK):
            w, g, change = param[s], grad[s], scratch[: s.stop - s.start]
            m_block, v_block = m[s], v[s]
            xp.multiply(g, 1.0 - beta1, out=change)
            m_block *= beta1
            m_block += change
            xp.multiply(g, g, out=change)
            change *= 1.0 - beta2
            v_block *= beta2
            v_block += change
            if weight_decay:
                w *= 1.0 - lr * weight_decay
            self._scaled_step(w, m_block, v_block, rate, small, change)

    def _scaled_step(
        self, w: Array, g: Array, square: Array, lr: float, eps: float, change: Array
    ) -> None:
        """w -= lr g / (sqrt(square) + eps), ``change`` a scratch array."""
        xp = self._xp
        xp.sqrt(square, out=change)
        change += eps
        xp.divide(g, change, out=change)
        change *= lr
        w -= change
