"""The reference backend: every operation in plain array code, over ``self._xp``.

Formulas stand as one would write them on paper. Arrays are taken in blocks that fit the
processor's cache, which bounds the temporaries whatever the size of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.numpy.activations import ACTIVATIONS
from nnbackend.backends.numpy.blocks import BLOCK, row_slices, slices
from nnbackend.backends.numpy.dense import BoundDense
from nnbackend.backends.numpy.losses import NumpyLosses
from nnbackend.backends.numpy.updates import NumpyUpdates
from nnbackend.backends.types import Activation, Array, Availability, DenseCalls, DType
from nnbackend.errors import OutOfMemoryError
from nnbackend.kernels.philox import philox_words

ALIGNMENT = 64
#: Bytes from which on an array begins at a page of the largest size, of which NumPy asks the
#: operating system for those of ADVISED bytes. Small pages cost two ranks that train mnist-512 8 %.
LARGE, HUGE_PAGE, ADVISED = 1 << 20, 1 << 21, 1 << 22
#: What such arrays are moved by, so that those of one network are not in each other's place in the
#: caches.
_SHIFTS = cycle(range(0, 1 << 16, 4096 + ALIGNMENT))


class NumpyBackend(NumpyLosses, NumpyUpdates):
    """NumPy on the CPU; its BLAS brings the threads."""

    name: ClassVar[str] = "numpy"
    array_type: ClassVar[Any] = np.ndarray
    _xp: Any = np

    # -- arrays ---------------------------------------------------------------------------

    @classmethod
    def is_available(cls) -> Availability:
        return Availability(True, devices=("numpy",))

    def owns(self, x: object) -> bool:
        return isinstance(x, np.ndarray)

    def asarray(self, data: Any, dtype: DType) -> Array:
        if type(data) is np.ndarray and data.dtype == dtype and data.flags.c_contiguous:
            return data
        self.adopt(data)
        with np.errstate(over="ignore", invalid="ignore"):  # checked where it matters
            return np.asarray(data, dtype=dtype, order="C")

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        sizes = (shape,) if isinstance(shape, int) else shape
        size = math.prod(sizes) * np.dtype(dtype).itemsize
        alignment, shift, least = ALIGNMENT, 0, 0
        if size >= LARGE:
            alignment, shift, least = HUGE_PAGE, next(_SHIFTS), ADVISED
        try:
            memory = np.zeros(max(size + alignment + shift, least), np.uint8)
        except (MemoryError, ValueError) as error:
            raise OutOfMemoryError(
                f"{self.device} has not the memory for an array of shape {shape}: {size:,} bytes; "
                f"choose narrower layers or a smaller batch"
            ) from error
        start = -memory.ctypes.data % alignment + shift
        return memory[start : start + size].view(dtype).reshape(shape)

    def empty(self, shape: tuple[int, ...], dtype: DType) -> Array:
        try:
            return np.empty(shape, dtype)
        except (MemoryError, ValueError):
            return self.zeros(shape, dtype)  # says how much was asked for

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
        return all(bool(np.isfinite(flat[s]).all()) for s in slices(flat.size, BLOCK))

    def random_bits(self, out: Array, seed: int, stream: int, offset: int) -> None:
        xp, flat = self._xp, out.reshape(-1)
        for s in slices(flat.size, BLOCK):
            first, last = (offset + s.start) // 4, (offset + s.stop + 3) // 4
            counters = xp.arange(first, last, dtype=xp.uint64)
            words = xp.stack(philox_words(xp, counters, stream, seed), axis=1).reshape(-1)
            flat[s] = words[: s.stop - s.start]

    # -- layers ---------------------------------------------------------------------------

    def bind_dense(
        self, w: Array, b: Array | None, act: Activation, dw: Array, db: Array | None
    ) -> DenseCalls | None:
        if self._xp is not np:
            return None
        return BoundDense(self.dense_forward, self.dense_backward, w, b, act, dw, db)

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, act: Activation, out: Array, saved: Array | None
    ) -> None:
        # methods and positional outputs: small arrays cost what their calls cost
        xp, z = self._xp, out if saved is None else saved
        x.dot(w, z)
        if b is not None:
            xp.add(z, b, z)
        if act.name == "relu":
            xp.maximum(z, 0, out=out)
        elif z is not out or act.name != "linear":
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
            x.T.dot(dz, dw)
        if db is not None:
            self._xp.add.reduce(dz, 0, None, db)
        if dx is not None:
            dz.dot(w.T, dx)

    def activation_forward(self, act: Activation, x: Array, out: Array) -> None:
        if act.name == "linear":
            if out is not x:
                out[...] = x
            return
        function, _ = ACTIVATIONS[act.name]
        if act.name == "relu":  # needs no temporaries
            function(self._xp, x, out, 0.0)
            return
        blocks = self._row_blocks if act.name == "softmax" else self._blocks
        with np.errstate(over="ignore", under="ignore"):
            for x_block, out_block in blocks(x, out):
                function(self._xp, x_block, out_block, act.parameter)

    def activation_backward(self, act: Activation, dy: Array, saved: Array, out: Array) -> None:
        if act.name == "linear":
            if out is not dy:
                out[...] = dy
            return
        _, function = ACTIVATIONS[act.name]
        if act.name == "relu":  # nothing overflows
            for dy_block, saved_block, out_block in self._blocks(dy, saved, out):
                function(self._xp, dy_block, saved_block, out_block, 0.0)
            return
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

    def embedding_forward(self, x: Array, weight: Array, out: Array) -> None:
        others, places = x.shape[1] - 1, self._categories(x, len(weight))
        out[:, :others] = x[:, 1:]
        out[:, others:] = weight[self._xp.maximum(places, 0)]
        out[places < 0, others:] = self._xp.nan

    def embedding_backward(self, dy: Array, x: Array, dweight: Array, dx: Array | None) -> None:
        others, places = x.shape[1] - 1, self._categories(x, len(dweight))
        known = places >= 0
        dweight[...] = 0
        self._xp.add.at(dweight, places[known], dy[known, others:])
        if dx is not None:
            dx[:, 0] = 0
            dx[:, 1:] = dy[:, :others]

    def _categories(self, x: Array, count: int) -> Array:
        """The first column as numbers of categories, -1 where there is no such."""
        nearest = self._xp.floor(x[:, 0] + 0.5)
        known = (nearest >= 0) & (nearest < count)
        return self._xp.where(known, nearest, -1).astype(self._xp.int64)

    def dropout_forward(
        self,
        x: Array,
        rate: float,
        seed: int,
        stream: int,
        out: Array,
        saved: Array,
        first: int = 0,
    ) -> None:
        xp = self._xp
        threshold = int(rate * 2.0**32)
        flat, scale = saved.reshape(-1), saved.dtype.type(1.0 / (1.0 - rate))
        for s in slices(flat.size, BLOCK):
            bits = xp.empty(s.stop - s.start, xp.uint32)
            self.random_bits(bits, seed, stream, first + s.start)
            xp.multiply(bits >= threshold, scale, out=flat[s])
        xp.multiply(x, saved, out=out)

    def dropout_backward(self, dy: Array, saved: Array, out: Array) -> None:
        self._xp.multiply(dy, saved, out=out)

    def standardize_forward(self, x: Array, mean: Array, scale: Array, out: Array) -> None:
        self._xp.subtract(x, mean, out=out)
        out *= scale

    def standardize_backward(self, dy: Array, scale: Array, out: Array) -> None:
        self._xp.multiply(dy, scale, out=out)

    # -- blocks -----------------------------------------------------------------------------

    def _blocks(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """The arrays, all of one size, as flat pieces of at most BLOCK elements."""
        if arrays[0].size <= BLOCK:
            yield arrays
            return
        flat = [a.reshape(-1) for a in arrays]
        for s in slices(flat[0].size, BLOCK):
            yield tuple(a[s] for a in flat)

    def _row_blocks(self, *arrays: Array) -> Iterator[tuple[Array, ...]]:
        """The arrays, (B, N) each, as pieces of whole rows of about BLOCK elements."""
        for _, pieces in self._numbered_row_blocks(*arrays):
            yield pieces

    def _numbered_row_blocks(self, *arrays: Array) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        for s in row_slices(*arrays[0].shape):
            yield s, tuple(a[s] for a in arrays)
