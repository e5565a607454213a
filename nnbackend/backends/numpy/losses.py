"""Losses of the reference backend, as formulas of some rows, and the sums behind metrics.

A loss is ``f(xp, pred, target, parameter)`` of some rows: the loss of each row, and its derivative
by pred. Formulas: ``Backend.loss``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.numpy.activations import sigmoid_forward
from nnbackend.backends.numpy.blocks import row_slices
from nnbackend.backends.types import Array, LossFormula

#: Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken.
CLIP = 1e-7

RowLoss = Callable[[Any, Array, Array, float], tuple[Array, Array]]


def softmax_cross_entropy(xp: Any, z: Array, t: Array, _: float) -> tuple[Array, Array]:
    shifted = z - z.max(axis=1, keepdims=True)
    exp = xp.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    if t.ndim == 1:
        each = xp.arange(len(t))
        value = xp.log(total[:, 0]) - shifted[each, t]
        exp /= total
        exp[each, t] -= 1
        return value, exp
    t_sum = t.sum(axis=1, keepdims=True)
    value = (t_sum * xp.log(total))[:, 0] - (t * shifted).sum(axis=1)
    return value, exp * (t_sum / total) - t


def sigmoid_cross_entropy(xp: Any, z: Array, t: Array, _: float) -> tuple[Array, Array]:
    value = xp.maximum(z, 0) - z * t + xp.log1p(xp.exp(-xp.abs(z)))
    sigmoid = xp.empty_like(z)
    with np.errstate(over="ignore"):  # an infinite exp gives the right limit
        sigmoid_forward(xp, z, sigmoid, 0.0)
    return value.mean(axis=1), (sigmoid - t) / z.shape[1]


def categorical_cross_entropy(xp: Any, p: Array, t: Array, _: float) -> tuple[Array, Array]:
    p = _clip_probability(xp, p)
    if t.ndim == 1:
        each, d = xp.arange(len(t)), xp.zeros_like(p)
        d[each, t] = -1.0 / p[each, t]
        return -xp.log(p[each, t]), d
    return -(t * xp.log(p)).sum(axis=1), -t / p


def binary_cross_entropy(xp: Any, p: Array, t: Array, _: float) -> tuple[Array, Array]:
    p = _clip_probability(xp, p)
    value = -(t * xp.log(p) + (1 - t) * xp.log(1 - p))
    return value.mean(axis=1), ((1 - t) / (1 - p) - t / p) / p.shape[1]


def mean_squared_error(xp: Any, p: Array, t: Array, _: float) -> tuple[Array, Array]:
    e = p - t
    return (e * e).mean(axis=1), e * (2.0 / p.shape[1])


def sum_squared_error(xp: Any, p: Array, t: Array, _: float) -> tuple[Array, Array]:
    e = p - t
    return (e * e).sum(axis=1), e * 2.0


def mean_absolute_error(xp: Any, p: Array, t: Array, _: float) -> tuple[Array, Array]:
    e = p - t
    return xp.abs(e).mean(axis=1), xp.sign(e) / p.shape[1]


def huber(xp: Any, p: Array, t: Array, delta: float) -> tuple[Array, Array]:
    e = p - t
    near = xp.clip(e, -delta, delta)  # equal to e in the quadratic part
    return (near * (e - near / 2)).mean(axis=1), near / p.shape[1]


def poisson(xp: Any, p: Array, t: Array, _: float) -> tuple[Array, Array]:
    p = xp.maximum(p, CLIP)
    return (p - t * xp.log(p)).mean(axis=1), (1 - t / p) / p.shape[1]


def _clip_probability(xp: Any, p: Array) -> Array:
    return xp.clip(p, p.dtype.type(CLIP), p.dtype.type(1.0 - CLIP))


LOSSES: dict[str, RowLoss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "categorical_cross_entropy": categorical_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "sum_squared_error": sum_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "huber": huber,
    "poisson": poisson,
}


class NumpyLosses(Backend):
    """The contract's losses and statistics over ``self._xp``."""

    _xp: Any

    def loss(
        self,
        formula: LossFormula,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        value: Array,
    ) -> None:
        xp, rows = self._xp, LOSSES[formula.name]
        scale: Any = 1.0 / len(pred) if formula.averages else 1.0
        if weight is not None and formula.averages:
            total = weight.sum(dtype=xp.float64)
            scale = xp.where(total > 0, 1.0 / xp.where(total > 0, total, 1.0), 0.0)
        value[...] = 0
        for s in row_slices(*pred.shape):
            each, derivative = rows(xp, pred[s], target[s], formula.parameter)
            if weight is not None:
                each = each * weight[s]
            value += each.sum(dtype=xp.float64) * scale
            if dpred is not None:
                row_scale = scale
                if weight is not None:  # 1 / sum may not fit into float32, their product does
                    row_scale = (weight[s] * xp.float64(scale)).astype(pred.dtype)[:, None]
                xp.multiply(derivative, row_scale, out=dpred[s])

    # -- statistics for metrics -----------------------------------------------------------------

    def count_correct(
        self,
        pred: Array,
        target: Array,
        weight: Array | None,
        threshold: float | None,
        top: int,
        out: Array,
    ) -> None:
        xp = self._xp
        out[...] = 0
        for s in row_slices(*pred.shape):
            p, t = pred[s], target[s]
            if threshold is not None:
                hits = ((p > threshold) == (t > 0.5)).mean(axis=1)
            else:
                label = t if t.ndim == 1 else t.argmax(axis=1)
                if top == 1:
                    hits = p.argmax(axis=1) == label
                else:
                    own = xp.take_along_axis(p, label[:, None].astype(xp.int64), axis=1)
                    before = xp.arange(p.shape[1]) < label[:, None]
                    hits = ((p > own) | ((p == own) & before)).sum(axis=1) < top
            out += hits.sum() if weight is None else (hits * weight[s]).sum(dtype=xp.float64)

    def confusion_counts(
        self, pred: Array, target: Array, weight: Array | None, threshold: float | None, out: Array
    ) -> None:
        xp = self._xp
        out[...] = 0
        for s in row_slices(*pred.shape):
            p, t = pred[s], target[s]
            if threshold is not None:
                predicted, actual = p > threshold, t > 0.5
            else:
                classes = xp.arange(p.shape[1])
                label = t if t.ndim == 1 else t.argmax(axis=1)
                predicted = p.argmax(axis=1)[:, None] == classes
                actual = label[:, None] == classes
            w = 1.0 if weight is None else weight[s, None].astype(xp.float64)
            out[0] += ((predicted & actual) * w).sum(axis=0)
            out[1] += (predicted * w).sum(axis=0)
            out[2] += (actual * w).sum(axis=0)

    def regression_sums(self, pred: Array, target: Array, weight: Array | None, out: Array) -> None:
        xp = self._xp
        out[...] = 0
        for s in row_slices(*pred.shape):
            t = target[s].astype(xp.float64)
            e = pred[s] - t
            w = 1.0 if weight is None else weight[s, None].astype(xp.float64)
            for row, value in enumerate((xp.abs(e), e * e, t, t * t)):
                out[row] += (w * value).sum(axis=0)
