"""Every operation of nnbackend's contract over the array API standard (data-apis.org, 2024.12).

What an operation does is said in ``nnbackend.backends.contract`` and ``layer_contract``. Results
are made, then stored by ``out[...] =``: the standard has no ``out`` argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.array_api import formulas
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Activation, Array, DType, LossFormula, UpdateRule
from nnbackend.errors import DTypeError
from nnbackend.kernels.philox import philox_words

FLOAT64 = np.dtype(np.float64)


class ArrayApiBackend(Backend):
    """A subclass names its array module, ``xp``, and says which arrays are its own."""

    xp: ClassVar[Any]

    def __init__(self, index: int | str | None, place: Any, host: Any) -> None:
        """Work on the device ``place``; float64 is on ``host`` if ``place`` has none."""
        super().__init__(index)
        self.place, self.host = place, host

    # -- arrays ---------------------------------------------------------------------------

    def _at(self, dtype: Any) -> dict[str, Any]:
        dtype = np.dtype(dtype)
        lacks = dtype == FLOAT64 and "float64" not in self.dtypes
        return {
            "dtype": getattr(self.xp, dtype.name),
            "device": self.host if lacks else self.place,
        }

    def dtype_of(self, x: Array) -> DType:
        name = str(x.dtype).rpartition(".")[2]
        try:
            return np.dtype(name)
        except TypeError:
            raise DTypeError(
                f"{self.device} takes arrays of float32, float64, integers and booleans; received "
                f"{name}"
            ) from None

    def asarray(self, data: Any, dtype: DType) -> Array:
        adopted = self.adopt(data)  # refuses what is on another device
        if adopted is not None:
            return self._as(adopted, **self._at(dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            host = np.asarray(data, dtype, order="C")
        return self.xp.asarray(host if host.flags.writeable else host.copy(), **self._at(dtype))

    def _as(self, x: Array, dtype: Any, device: Any) -> Array:
        if x.device == device:
            return self.xp.astype(x, dtype, copy=False)
        if dtype == self.xp.float64:  # which only the host may have
            return self.xp.astype(self._to_device(x, device), dtype, copy=False)
        return self._to_device(self.xp.astype(x, dtype, copy=False), device)

    def _to_device(self, x: Array, device: Any) -> Array:
        return x.to_device(device)

    def _put(self, out: Array, x: Array) -> None:
        """Store a result, which may be of another type and on another device."""
        out[...] = self._as(x, out.dtype, out.device)

    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        return self.xp.zeros(sizes, **self._at(dtype))

    def total(self, x: Array, axis: int | None = None) -> Array:
        wide = getattr(self.xp, self.dtypes[-1])
        return self._as(self.xp.sum(x, axis=axis, dtype=wide), **self._at(FLOAT64))

    def take_rows(self, x: Array, idx: Array, out: Array) -> None:
        out[...] = self.xp.take(x, idx, axis=0)

    def all_finite(self, x: Array) -> bool:
        return bool(self.xp.all(self.xp.isfinite(x)))

    def random_bits(self, out: Array, seed: int, stream: int, offset: int) -> None:
        self._put(out, self._words(out.shape[0], seed, stream, offset))

    def _words(self, count: int, seed: int, stream: int, offset: int = 0) -> Array:
        """The words as int64, which more libraries can multiply than uint64."""
        first = offset // 4
        counters = self.xp.arange(first, first + (count + 3) // 4, **self._at(np.int64))
        words = philox_words(self.xp, counters, stream, seed)
        return self.xp.reshape(self.xp.stack(words, axis=1), (-1,))[:count]

    # -- layers ---------------------------------------------------------------------------

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, act: Activation, out: Array, saved: Array | None
    ) -> None:
        z = x @ w if b is None else x @ w + b
        if saved is not None:
            saved[...] = z
        self.activation_forward(act, z, out)

    def dense_backward(
        self, dy: Array, x: Array, w: Array, act: Activation, saved: Array | None,
        dw: Array | None, db: Array | None, dx: Array | None, scratch: Array,
    ) -> None:  # fmt: skip
        dz = self._dz(act, dy, saved)
        if dw is not None:
            dw[...] = x.T @ dz
        if db is not None:
            db[...] = self.xp.sum(dz, axis=0)
        if dx is not None:
            dx[...] = dz @ w.T

    def activation_forward(self, act: Activation, x: Array, out: Array) -> None:
        if act.name == "linear":
            out[...] = x
        elif act.name == "softmax":
            out[...] = formulas.softmax(self.xp, x)
        else:
            # -inf times 0 is 0 by the limit of these functions, not NaN
            z = self.xp.clip(x, min=-1e4) if act.saves == "input" else x
            out[...] = self._formulas(act)[0](self.xp, z, act.parameter)

    def activation_backward(self, act: Activation, dy: Array, saved: Array, out: Array) -> None:
        out[...] = self._dz(act, dy, saved)

    def _dz(self, act: Activation, dy: Array, saved: Any) -> Array:
        if act.name == "linear":
            return dy
        if act.name == "softmax":
            return saved * (dy - self.xp.sum(dy * saved, axis=1, keepdims=True))
        kept = self.xp.clip(saved, -1e4, 1e4) if act.saves == "input" else saved
        return dy * self._formulas(act)[1](self.xp, kept, act.parameter)

    @staticmethod
    def _formulas(act: Activation) -> tuple[Any, Any]:
        """The activation and its slope."""
        if act.name not in formulas.ACTIVATIONS:
            raise NotImplementedError(f"there is no formula of the activation {act.name!r}")
        return formulas.ACTIVATIONS[act.name]

    def batch_norm_forward(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array,
        momentum: float, eps: float, out: Array, saved: Array,
    ) -> None:  # fmt: skip
        xp, rows = self.xp, x.shape[0]
        mean = xp.mean(x, axis=0)
        variance = xp.mean((x - mean) * (x - mean), axis=0)
        inv_std = 1 / xp.sqrt(variance + eps)
        out[...] = (x - mean) * (gamma * inv_std) + beta
        saved[...] = xp.stack([mean, inv_std])
        unbiased = variance * (rows / (rows - 1))
        running_mean[...] = running_mean + momentum * (mean - running_mean)
        running_var[...] = running_var + momentum * (unbiased - running_var)

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array,
        eps: float, out: Array,
    ) -> None:  # fmt: skip
        out[...] = (x - running_mean) * (gamma / self.xp.sqrt(running_var + eps)) + beta

    def batch_norm_backward(
        self, dy: Array, x: Array, gamma: Array, saved: Array, dgamma: Array, dbeta: Array,
        dx: Array | None,
    ) -> None:  # fmt: skip
        n, rows = (x - saved[0, ...]) * saved[1, ...], x.shape[0]
        dgamma[...] = self.xp.sum(dy * n, axis=0)
        dbeta[...] = self.xp.sum(dy, axis=0)
        if dx is not None:
            dx[...] = gamma * saved[1, ...] * (dy - dbeta / rows - n * (dgamma / rows))

    def layer_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float, out: Array, saved: Array | None
    ) -> None:
        xp = self.xp
        mean = xp.mean(x, axis=1, keepdims=True)
        variance = xp.mean((x - mean) * (x - mean), axis=1, keepdims=True)
        inv_std = 1 / xp.sqrt(variance + eps)
        out[...] = (x - mean) * inv_std * gamma + beta
        if saved is not None:
            saved[...] = xp.concat([mean, inv_std], axis=1).T

    def layer_norm_backward(
        self, dy: Array, x: Array, gamma: Array, saved: Array, dgamma: Array, dbeta: Array,
        dx: Array | None,
    ) -> None:  # fmt: skip
        xp, (mean, inv_std) = self.xp, (saved[0, :, None], saved[1, :, None])
        n, g = (x - mean) * inv_std, dy * gamma
        dgamma[...] = xp.sum(dy * n, axis=0)
        dbeta[...] = xp.sum(dy, axis=0)
        if dx is not None:
            along = xp.mean(g * n, axis=1, keepdims=True)
            dx[...] = inv_std * (g - xp.mean(g, axis=1, keepdims=True) - n * along)

    def embedding_forward(self, x: Array, weight: Array, out: Array) -> None:
        places, known = self._categories(x, weight.shape[0])
        vectors = self.xp.take(weight, places, axis=0)
        vectors = self.xp.where(known[:, None], vectors, self.xp.nan)
        out[...] = self.xp.concat([x[:, 1:], vectors], axis=1)

    def embedding_backward(self, dy: Array, x: Array, dweight: Array, dx: Array | None) -> None:
        xp, others = self.xp, x.shape[1] - 1
        places, known = self._categories(x, dweight.shape[0])
        for k in range(dweight.shape[0]):  # the standard cannot add to places that repeat
            mine = (known & (places == k))[:, None]
            dweight[k, ...] = xp.sum(xp.where(mine, dy[:, others:], 0.0), axis=0)
        if dx is not None:
            dx[...] = xp.concat([0 * x[:, :1], dy[:, :others]], axis=1)

    def _categories(self, x: Array, count: int) -> tuple[Array, Array]:
        """The first column as numbers of categories, 0 where there is no such, and whether."""
        nearest = self.xp.floor(x[:, 0] + 0.5)
        known = (nearest >= 0) & (nearest < count)
        return self.xp.astype(self.xp.where(known, nearest, 0.0), self.xp.int64), known

    def dropout_forward(
        self, x: Array, rate: float, seed: int, stream: int, out: Array, saved: Array,
        first: int = 0,
    ) -> None:  # fmt: skip
        count = x.shape[0] * x.shape[1]
        words = self.xp.reshape(self._words(count, seed, stream, first), x.shape)
        kept = self.xp.astype(words >= int(rate * 2.0**32), saved.dtype)
        saved[...] = kept * (1 / (1 - rate))
        out[...] = x * saved

    def dropout_backward(self, dy: Array, saved: Array, out: Array) -> None:
        out[...] = dy * saved

    def standardize_forward(self, x: Array, mean: Array, scale: Array, out: Array) -> None:
        out[...] = (x - mean) * scale

    def standardize_backward(self, dy: Array, scale: Array, out: Array) -> None:
        out[...] = dy * scale

    # -- losses and metrics -----------------------------------------------------------------

    def _one_hot(self, label: Array, classes: int) -> Array:
        return label[:, None] == self.xp.arange(classes, dtype=label.dtype, device=label.device)

    def _label(self, target: Array) -> Array:
        return target if target.ndim == 1 else self.xp.argmax(target, axis=1)

    def loss(
        self, formula: LossFormula, pred: Array, target: Array, weight: Array | None,
        dpred: Array | None, value: Array,
    ) -> None:  # fmt: skip
        xp = self.xp
        if target.ndim == 1:
            target = xp.astype(self._one_hot(target, pred.shape[1]), pred.dtype)
        each, derivative = formulas.row_loss(xp, formula.name, pred, target, formula.parameter)
        share: Any = 1.0 / pred.shape[0] if formula.averages else 1.0
        if weight is None:
            self._put(value, self.total(each) * share)
        else:
            if formula.averages:
                total = self.total(weight)
                share = xp.where(total > 0, 1 / xp.where(total > 0, total, 1.0), 0.0)
            self._put(value, self.total(each * weight) * share)
            # 1 / sum may not fit into float32, their product does
            wide = self._as(weight, **self._at(FLOAT64)) * share
            share = self._as(wide, pred.dtype, pred.device)[:, None]
        if dpred is not None:
            dpred[...] = derivative * share

    def count_correct(
        self, pred: Array, target: Array, weight: Array | None, threshold: float | None, top: int,
        out: Array,
    ) -> None:  # fmt: skip
        xp = self.xp
        if threshold is not None:
            agree = xp.astype((pred > threshold) == (target > 0.5), pred.dtype)
            hits = xp.mean(agree, axis=1)
        else:
            mine = self._one_hot(self._label(target), pred.shape[1])
            own = xp.max(xp.where(mine, pred, -xp.inf), axis=1, keepdims=True)
            before = xp.cumulative_sum(xp.astype(mine, xp.int32), axis=1) == 0
            ahead = xp.sum(xp.astype((pred > own) | ((pred == own) & before), xp.int32), axis=1)
            hits = xp.astype(ahead < top, pred.dtype)
        self._put(out, self.total(hits if weight is None else hits * weight))

    def confusion_counts(
        self, pred: Array, target: Array, weight: Array | None, threshold: float | None, out: Array
    ) -> None:
        xp, classes = self.xp, pred.shape[1]
        if threshold is not None:
            predicted, actual = pred > threshold, target > 0.5
        else:
            predicted = self._one_hot(xp.argmax(pred, axis=1), classes)
            actual = self._one_hot(self._label(target), classes)
        w = 1.0 if weight is None else weight[:, None]
        for row, counted in enumerate((predicted & actual, predicted, actual)):
            self._put(out[row, ...], self.total(w * xp.astype(counted, pred.dtype), axis=0))

    def regression_sums(self, pred: Array, target: Array, weight: Array | None, out: Array) -> None:
        wide = self._at(self.dtypes[-1])
        t, p = self._as(target, **wide), self._as(pred, **wide)
        w = 1.0 if weight is None else self._as(weight, **wide)[:, None]
        for row, value in enumerate((self.xp.abs(p - t), (p - t) * (p - t), t, t * t)):
            self._put(out[row, ...], self.total(w * value, axis=0))

    # -- gradients and updates ----------------------------------------------------------------

    def penalty(self, param: Array, l1: float, l2: float, grad: Array | None, loss: Array) -> None:
        size, square = self.total(self.xp.abs(param)), self.total(param * param)
        loss[...] = loss + l1 * size + l2 * square
        if grad is not None:
            grad[...] = grad + l1 * self.xp.sign(param) + 2 * l2 * param

    def clip_by_global_norm(self, grad: Array, limit: float) -> None:
        wide = self._as(grad, **self._at(self.dtypes[-1]))
        norm = self.xp.sqrt(self.xp.sum(wide * wide))
        factor = self.xp.where(norm > limit, limit / self.xp.where(norm > limit, norm, 1.0), 1.0)
        grad[...] = grad * self._as(factor, grad.dtype, grad.device)

    def step_scratch_size(self, size: int) -> int:
        return 0

    def update(
        self, rule: UpdateRule, param: Array, grad: Array, slots: Sequence[Array], lr: float,
        step: int, scratch: Array,
    ) -> None:  # fmt: skip
        formulas.update(self.xp, rule, param, grad, list(slots), lr, step)
