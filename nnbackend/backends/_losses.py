"""Losses of the reference backend, as formulas of some rows, and the sums behind metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnbackend.backends._blocks import row_slices
from nnbackend.backends.base import Activation, Array, Backend

#: Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken.
CLIP = 1e-7
SIGMOID = Activation("sigmoid")

#: (pred, target) of some rows -> loss of each row, derivative by pred
RowLoss = Callable[[Array, Array], tuple[Array, Array]]


class NumpyLosses(Backend):
    """The contract's losses and statistics over ``self._xp``."""

    _xp: Any

    def softmax_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        xp = self._xp

        def rows(z: Array, t: Array) -> tuple[Array, Array]:
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

        self._loss(rows, pred, target, weight, dpred, loss)

    def sigmoid_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        xp = self._xp

        def rows(z: Array, t: Array) -> tuple[Array, Array]:
            value = xp.maximum(z, 0) - z * t + xp.log1p(xp.exp(-xp.abs(z)))
            sigmoid = xp.empty_like(z)
            self.activation_forward(SIGMOID, z, sigmoid)
            return value.mean(axis=1), (sigmoid - t) / z.shape[1]

        self._loss(rows, pred, target, weight, dpred, loss)

    def categorical_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        xp = self._xp

        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            p = self._clip_probability(p)
            if t.ndim == 1:
                each, d = xp.arange(len(t)), xp.zeros_like(p)
                d[each, t] = -1.0 / p[each, t]
                return -xp.log(p[each, t]), d
            return -(t * xp.log(p)).sum(axis=1), -t / p

        self._loss(rows, pred, target, weight, dpred, loss)

    def binary_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        xp = self._xp

        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            p = self._clip_probability(p)
            value = -(t * xp.log(p) + (1 - t) * xp.log(1 - p))
            return value.mean(axis=1), ((1 - t) / (1 - p) - t / p) / p.shape[1]

        self._loss(rows, pred, target, weight, dpred, loss)

    def mean_squared_error(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            e = p - t
            return (e * e).mean(axis=1), e * (2.0 / p.shape[1])

        self._loss(rows, pred, target, weight, dpred, loss)

    def sum_squared_error(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            e = p - t
            return (e * e).sum(axis=1), e * 2.0

        self._loss(rows, pred, target, weight, dpred, loss, average=False)

    def mean_absolute_error(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            e = p - t
            return self._xp.abs(e).mean(axis=1), self._xp.sign(e) / p.shape[1]

        self._loss(rows, pred, target, weight, dpred, loss)

    def huber(
        self,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        loss: Array,
        delta: float,
    ) -> None:
        xp = self._xp

        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            e = p - t
            near = xp.clip(e, -delta, delta)  # equal to e in the quadratic part
            return (near * (e - near / 2)).mean(axis=1), near / p.shape[1]

        self._loss(rows, pred, target, weight, dpred, loss)

    def poisson(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        xp = self._xp

        def rows(p: Array, t: Array) -> tuple[Array, Array]:
            p = xp.maximum(p, CLIP)
            return (p - t * xp.log(p)).mean(axis=1), (1 - t / p) / p.shape[1]

        self._loss(rows, pred, target, weight, dpred, loss)

    def _clip_probability(self, p: Array) -> Array:
        return self._xp.clip(p, p.dtype.type(CLIP), p.dtype.type(1.0 - CLIP))

    def _loss(
        self,
        rows: RowLoss,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        loss: Array,
        average: bool = True,
    ) -> None:
        """Weigh and reduce a loss that is given row by row."""
        xp = self._xp
        scale: Any = 1.0 / len(pred) if average else 1.0
        if weight is not None and average:
            total = weight.sum(dtype=xp.float64)
            scale = xp.where(total > 0, 1.0 / xp.where(total > 0, total, 1.0), 0.0)
        loss[...] = 0
        for s in row_slices(*pred.shape):
            value, derivative = rows(pred[s], target[s])
            if weight is not None:
                value = value * weight[s]
            loss += value.sum(dtype=xp.float64) * scale
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
