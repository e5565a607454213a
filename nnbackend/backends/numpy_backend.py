"""The reference backend: every operation in plain array code, over ``self._xp``.

Formulas stand as one would write them on paper. Arrays are taken in blocks that fit the
processor's cache, which bounds the temporaries whatever the size of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends._elementwise import ACTIVATION_BACKWARD, ACTIVATION_FORWARD
from nnbackend.backends.base import Activation, Array, Availability, Backend, DType
from nnbackend.errors import DeviceError, OutOfMemoryError
from nnbackend.kernels.philox import philox_words

#: Elements of a block with temporaries (64 KiB of float32), and of an optimizer's scratch.
BLOCK = 16384
STEP_BLOCK = 131072
#: Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken.
CLIP = 1e-7
SIGMOID = Activation("sigmoid")
ALIGNMENT = 64

#: (pred, target) of some rows -> loss of each row, derivative by pred
RowLoss = Callable[[Array, Array], tuple[Array, Array]]


class NumpyBackend(Backend):
    """NumPy on the CPU; its BLAS brings the threads."""

    name: ClassVar[str] = "numpy"
    _xp: Any = np

    # -- arrays ---------------------------------------------------------------------------

    @classmethod
    def is_available(cls) -> Availability:
        return Availability(True, devices=("numpy",))

    def owns(self, x: object) -> bool:
        return isinstance(x, np.ndarray)

    def asarray(self, data: Any, dtype: DType) -> Array:
        if hasattr(data, "__cuda_array_interface__"):
            raise DeviceError(
                f"a model on {self.device} takes host arrays; received an array on a GPU. "
                f"Copy it with .get() or move the model with model.to('cuda')"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # checked where it matters
            return np.asarray(data, dtype=dtype, order="C")

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        sizes = (shape,) if isinstance(shape, int) else shape
        size = math.prod(sizes) * np.dtype(dtype).itemsize
        try:
            memory = np.zeros(size + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:
            raise OutOfMemoryError(
                f"{self.device} has not the memory for an array of shape {shape}: {size:,} bytes; "
                f"choose narrower layers or a smaller batch"
            ) from error
        start = -memory.ctypes.data % ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)

    def synchronize(self) -> None:
        pass

    def take_rows(self, x: Array, idx: Array, out: Array) -> None:
        # any mode but "clip" makes NumPy buffer the output
        np.take(x, idx, axis=0, out=out, mode="clip")

    def all_finite(self, x: Array) -> bool:
        # a finite sum has finite terms; an infinite one may be an overflow
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(x, axis=None)):
                return True
        flat = x.reshape(-1)
        return all(bool(np.isfinite(flat[s]).all()) for s in _slices(flat.size, BLOCK))

    def random_bits(self, out: Array, seed: int, stream: int, offset: int) -> None:
        xp, flat = self._xp, out.reshape(-1)
        for s in _slices(flat.size, BLOCK):
            first, last = (offset + s.start) // 4, (offset + s.stop + 3) // 4
            counters = xp.arange(first, last, dtype=xp.uint64)
            words = xp.stack(philox_words(xp, counters, stream, seed), axis=1).reshape(-1)
            flat[s] = words[: s.stop - s.start]

    # -- layers ---------------------------------------------------------------------------

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, act: Activation, out: Array, saved: Array | None
    ) -> None:
        z = out if saved is None else saved
        self._xp.matmul(x, w, out=z)
        if b is not None:
            self._xp.add(z, b, out=z)
        self.activation_forward(act, z, out)

    def dense_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        act: Activation,
        saved: Array | None,
        dw: Array | None,
        db: Array | None,
        dx: Array | None,
        scratch: Array,
    ) -> None:
        dz = dy
        if act.name != "linear":
            dz = scratch
            self.activation_backward(act, dy, saved, dz)
        if dw is not None:
            self._xp.matmul(x.T, dz, out=dw)
        if db is not None:
            self._xp.add.reduce(dz, axis=0, out=db)
        if dx is not None:
            self._xp.matmul(dz, w.T, out=dx)

    def activation_forward(self, act: Activation, x: Array, out: Array) -> None:
        if act.name == "linear":
            if out is not x:
                out[...] = x
            return
        function = ACTIVATION_FORWARD[act.name]
        blocks = self._row_blocks if act.name == "softmax" else self._blocks
        with np.errstate(over="ignore", under="ignore"):
            for x_block, out_block in blocks(x, out):
                function(self._xp, x_block, out_block, act.parameter)

    def activation_backward(self, act: Activation, dy: Array, saved: Array, out: Array) -> None:
        if act.name == "linear":
            if out is not dy:
                out[...] = dy
            return
        function = ACTIVATION_BACKWARD[act.name]
        blocks = self._row_blocks if act.name == "softmax" else self._blocks
        with np.errstate(over="ignore", under="ignore"):
            for dy_block, saved_block, out_block in blocks(dy, saved, out):
                function(self._xp, dy_block, saved_block, out_block, act.parameter)

    def batch_norm_forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        momentum: float,
        eps: float,
        out: Array,
        saved: Array,
    ) -> None:
        xp, rows = self._xp, x.shape[0]
        mean, inv_std = saved
        xp.mean(x, axis=0, out=mean)
        xp.subtract(x, mean, out=out)
        variance = xp.einsum("bn,bn->n", out, out) / rows
        inv_std[...] = 1.0 / xp.sqrt(variance + eps)
        out *= gamma * inv_std
        out += beta
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance * (rows / (rows - 1)) - running_var)

    def batch_norm_inference(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        eps: float,
        out: Array,
    ) -> None:
        xp = self._xp
        xp.subtract(x, running_mean, out=out)
        out *= gamma / xp.sqrt(running_var + eps)
        out += beta

    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
    ) -> None:
        rows = x.shape[0]
        mean, inv_std = saved
        dgamma[...] = 0
        dbeta[...] = 0
        for dy_block, x_block in self._row_blocks(dy, x):
            dgamma += (dy_block * (x_block - mean) * inv_std).sum(axis=0)
            dbeta += dy_block.sum(axis=0)
        if dx is None:
            return
        for dy_block, x_block, dx_block in self._row_blocks(dy, x, dx):
            n = (x_block - mean) * inv_std
            dx_block[...] = gamma * inv_std * (dy_block - dbeta / rows - n * (dgamma / rows))

    def layer_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float, out: Array, saved: Array | None
    ) -> None:
        xp = self._xp
        for rows, (x_block, out_block) in self._numbered_row_blocks(x, out):
            mean = x_block.mean(axis=1, keepdims=True)
            centred = x_block - mean
            inv_std = 1.0 / xp.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)
            out_block[...] = centred * inv_std * gamma + beta
            if saved is not None:
                saved[0, rows] = mean[:, 0]
                saved[1, rows] = inv_std[:, 0]

    def layer_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
    ) -> None:
        dgamma[...] = 0
        dbeta[...] = 0
        target = x if dx is None else dx
        for rows, (dy_block, x_block, dx_block) in self._numbered_row_blocks(dy, x, target):
            inv_std = saved[1, rows, None]
            n = (x_block - saved[0, rows, None]) * inv_std
            dgamma += (dy_block * n).sum(axis=0)
            dbeta += dy_block.sum(axis=0)
            if dx is not None:
                g = dy_block * gamma
                g_mean = g.mean(axis=1, keepdims=True)
                dx_block[...] = inv_std * (g - g_mean - n * (g * n).mean(axis=1, keepdims=True))

    def dropout_forward(
        self, x: Array, rate: float, seed: int, stream: int, out: Array, saved: Array
    ) -> None:
        xp = self._xp
        threshold = int(rate * 2.0**32)
        flat, scale = saved.reshape(-1), saved.dtype.type(1.0 / (1.0 - rate))
        for s in _slices(flat.size, BLOCK):
            bits = xp.empty(s.stop - s.start, xp.uint32)
            self.random_bits(bits, seed, stream, s.start)
            xp.multiply(bits >= threshold, scale, out=flat[s])
        xp.multiply(x, saved, out=out)

    def dropout_backward(self, dy: Array, saved: Array, out: Array) -> None:
        self._xp.multiply(dy, saved, out=out)

    def standardize_forward(self, x: Array, mean: Array, scale: Array, out: Array) -> None:
        self._xp.subtract(x, mean, out=out)
        out *= scale

    def standardize_backward(self, dy: Array, scale: Array, out: Array) -> None:
        self._xp.multiply(dy, scale, out=out)

    # -- losses ---------------------------------------------------------------------------

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
        for s in _slices(len(pred), max(1, BLOCK // max(1, pred.shape[1]))):
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
        for s in _slices(len(pred), max(1, BLOCK // max(1, pred.shape[1]))):
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
        for s in _slices(len(pred), max(1, BLOCK // max(1, pred.shape[1]))):
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
        for s in _slices(len(pred), max(1, BLOCK // max(1, pred.shape[1]))):
            t = target[s].astype(xp.float64)
            e = pred[s] - t
            w = 1.0 if weight is None else weight[s, None].astype(xp.float64)
            for row, value in enumerate((xp.abs(e), e * e, t, t * t)):
                out[row] += (w * value).sum(axis=0)

    # -- gradients and updates ------------------------------------------------------------------

    def penalty(self, param: Array, l1: float, l2: float, grad: Array | None, loss: Array) -> None:
        xp, param = self._xp, param.reshape(-1)
        for s in _slices(param.size, BLOCK):
            w = param[s]
            if l1:
                loss += l1 * xp.abs(w).sum(dtype=xp.float64)
            if l2:
                loss += l2 * (w * w).sum(dtype=xp.float64)
            if grad is not None:
                grad.reshape(-1)[s] += l1 * xp.sign(w) + 2.0 * l2 * w

    def clip_by_global_norm(self, grad: Array, limit: float) -> None:
        xp = self._xp
        square = sum(xp.square(grad[s], dtype=xp.float64).sum() for s in _slices(grad.size, BLOCK))
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
        for s in _slices(param.size, STEP_BLOCK):
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
        for s in _slices(param.size, STEP_BLOCK):
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
        for s in _slices(param.size, STEP_BLOCK):
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
        # lr m_hat / (sqrt(v_hat) + eps), both corrections moved out of the vectors
        root = (1.0 - beta2 ** (step + 1)) ** 0.5
        rate = lr * root / (1.0 - beta1 ** (step + 1))
        for s in _slices(param.size, STEP_BLOCK):
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
            self._scaled_step(w, m_block, v_block, rate, eps * root, change)

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

    # -- blocks -----------------------------------------------------------------------------

    def _blocks(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """The arrays, all of one size, as flat pieces of at most BLOCK elements."""
        if arrays[0].size <= BLOCK:
            yield arrays
            return
        flat = [a.reshape(-1) for a in arrays]
        for s in _slices(flat[0].size, BLOCK):
            yield tuple(a[s] for a in flat)

    def _row_blocks(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """The arrays, (B, N) each, as pieces of whole rows of about BLOCK elements."""
        for _, pieces in self._numbered_row_blocks(*arrays):
            yield pieces

    def _numbered_row_blocks(self, *arrays: Array) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        for s in _slices(len(arrays[0]), max(1, BLOCK // max(1, arrays[0].shape[1]))):
            yield s, tuple(a[s] for a in arrays)


def _slices(size: int, length: int) -> Iterator[slice]:
    """Slices of at most ``length`` that cover ``range(size)``."""
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))
