"""NumPy arrays outside, the backend's inside: what the book's classes compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbackend.backends import get_backend
from nnbackend.backends.types import LINEAR, Activation, DenseCalls, UpdateRule
from nnbackend.errors import ShapeError

Array = np.ndarray[Any, Any]
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
#: Parts of a flat vector begin at multiples of so many numbers.
_APART = 16
#: of the weights and data that are drawn; ``init`` sets it
default_dtype = _FLOAT64


def randn(*shape: int) -> Array:
    """Normal numbers from NumPy's global generator, which the book's code draws from."""
    return np.random.randn(*shape).astype(default_dtype, copy=False)


def labels_of(y_true: Any) -> Array:
    """Class numbers (B,), from those or from rows with a one each."""
    y_true = np.asarray(y_true)
    return np.asarray(np.argmax(y_true, axis=1)) if y_true.ndim == 2 else y_true


def as_wide(targets: Any, y_pred: Array) -> Array:
    """Targets of the predictions' shape: NumPy would make a matrix of a column and a row."""
    y_true: Array = np.asarray(targets)
    if y_true.shape != y_pred.shape:
        hint = ". Pass y.reshape(-1, 1)" if y_true.size == y_pred.size else ""
        raise ShapeError(
            f"y_true has the shape of the predictions, {y_pred.shape}; received "
            f"{y_true.shape}{hint}"
        )
    return y_true


def classes_of(targets: Any, y_pred: Array) -> Array:
    """Class numbers (B,), or rows (B, C), for predictions (B, C)."""
    y_true: Array = np.asarray(targets)
    if y_true.shape not in ((len(y_pred),), y_pred.shape):
        hint = ". Pass y.reshape(-1)" if y_true.size == len(y_pred) else ""
        raise ShapeError(
            f"y_true holds class numbers, shape ({len(y_pred)},), or a row for each sample, "
            f"{y_pred.shape}; received {y_true.shape}{hint}"
        )
    return y_true


def real(x: Any) -> Array:
    """A contiguous array of float32 or float64."""
    if x.__class__ is np.ndarray and x.dtype in (_FLOAT64, _FLOAT32) and x.flags.c_contiguous:
        return x
    x = np.asarray(x)
    dtype = x.dtype if x.dtype in (_FLOAT32, _FLOAT64) else _FLOAT64
    return np.ascontiguousarray(x, dtype)


class Operations:
    """The current backend's operations, from NumPy arrays to new NumPy arrays."""

    def __init__(self) -> None:
        self.backend = get_backend()
        #: whether its arrays are NumPy's, so that nothing is copied
        self.is_host = type(self.backend.zeros(1, _FLOAT32)) is np.ndarray
        #: of the last update, and the size of its vectors
        self._scratch: Any = None
        self._updated = -1

    def zeros(self, size: int, dtype: np.dtype[Any]) -> Array:
        return self.backend.zeros(size, dtype) if self.is_host else np.zeros(size, dtype)

    def activate(self, act: Activation, x: Array) -> Array:
        backend, given = self.backend, x if self.is_host else self._put(x)
        out = backend.empty(x.shape, x.dtype)
        backend.activation_forward(act, given, out)
        return out if self.is_host else backend.to_numpy(out)

    def slope_times(self, act: Activation, dy: Array, saved: Array) -> Array:
        """dy act'(z), found from the activation's output."""
        backend = self.backend
        if not self.is_host:
            dy, saved = self._put(dy), self._put(saved)
        out = backend.empty(dy.shape, dy.dtype)
        backend.activation_backward(act, dy, saved, out)
        return out if self.is_host else backend.to_numpy(out)

    def dense(self, x: Array, weights: Array, biases: Array) -> Array:
        """x w + b; biases (O,)."""
        backend = self.backend
        if not self.is_host:
            x, weights, biases = self._put(x), self._put(weights), self._put(biases)
        out = backend.empty((len(x), weights.shape[1]), x.dtype)
        backend.dense_forward(x, weights, biases, LINEAR, out, None)
        return out if self.is_host else backend.to_numpy(out)

    def dense_back(self, dy: Array, x: Array, weights: Array) -> tuple[Array, Array, Array]:
        """Gradients by the weights, the biases (O,) and x."""
        backend = self.backend
        if not self.is_host:
            dy, x, weights = self._put(dy), self._put(x), self._put(weights)
        dw, db = backend.empty(weights.shape, dy.dtype), backend.empty(dy.shape[1:], dy.dtype)
        dx = backend.empty(x.shape, dy.dtype)
        backend.dense_backward(dy, x, weights, LINEAR, dy, dw, db, dx, dy)
        found = (dw, db, dx)
        return found if self.is_host else tuple(map(backend.to_numpy, found))  # type: ignore[return-value]

    def update(
        self, rule: UpdateRule, values: Array, gradients: Array, slots: Sequence[Array],
        lr: float, step: int,
    ) -> None:  # fmt: skip
        """One step of an optimizer over flat vectors, in place."""
        backend = self.backend
        scratch, size = self._scratch, values.size
        if size != self._updated or scratch.dtype != values.dtype:
            scratch = backend.zeros(backend.step_scratch_size(size), values.dtype)
            self._scratch, self._updated = scratch, size
        if self.is_host:
            backend.update(rule, values, gradients, slots, lr, step, scratch)
            return
        given = [self._put(x) for x in (values, gradients, *slots)]
        backend.update(rule, given[0], given[1], given[2:], lr, step, scratch)
        for host, device in zip((values, *slots), (given[0], *given[2:]), strict=True):
            host[...] = backend.to_numpy(device)

    def _put(self, x: Array) -> Any:
        return self.backend.asarray(x, x.dtype)


class Flat:
    """Weights (I, O) and biases (1, O) as views of one vector, which is updated at once."""

    def __init__(
        self, operations: Operations, shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self.operations, self.shape, self.dtype = operations, shape, dtype
        size = shape[0] * shape[1]
        start = -(-size // _APART) * _APART
        self.vector = operations.zeros(start + shape[1], dtype)
        self.weights = self.vector[:size].reshape(shape)
        self.flat_biases = self.vector[start:]
        self.biases = self.flat_biases.reshape(1, -1)

    @property
    def memory(self) -> Array:
        """The array whose memory it is, which every view of it refers to."""
        base: Any = self.vector.base
        return np.asarray(self.vector if base is None else base)

    def of_type(self, dtype: np.dtype[Any]) -> Flat:
        """A copy."""
        found = Flat(self.operations, self.shape, dtype)
        found.vector[...] = self.vector
        return found

    def checked(self, name: str, value: Any) -> Array:
        """``value`` for "weights" or "biases".

        Raises:
            ShapeError: of another shape, where biases may also be (O,).
        """
        own: Array = getattr(self, name)
        given = np.asarray(value)
        if given.shape != own.shape and not (name == "biases" and given.shape == own.shape[1:]):
            raise ShapeError(f"{name} have the shape {own.shape}; received {given.shape}")
        return given

    def assign(self, name: str, value: Any) -> None:
        """Copy into ``weights`` or ``biases``; see ``checked``."""
        own: Array = getattr(self, name)
        own[...] = self.checked(name, value)


def bound(operations: Operations, values: Flat, gradients: Flat) -> DenseCalls | None:
    """Quick calls of a dense layer, if the backend has any."""
    if not operations.is_host:
        return None
    return operations.backend.bind_dense(
        values.weights, values.flat_biases, LINEAR, gradients.weights, gradients.flat_biases
    )
