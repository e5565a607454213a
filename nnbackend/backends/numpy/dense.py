"""A dense layer by itself: what does not change from call to call is looked up once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.backends.types import LINEAR, Activation, Array


class BoundDense:
    """See ``DenseCalls``."""

    def __init__(
        self,
        there: Callable[..., None],
        back: Callable[..., None],
        w: Array,
        b: Array | None,
        act: Activation,
        dw: Array,
        db: Array | None,
    ) -> None:
        """``there`` and ``back`` are the backend's dense_forward and dense_backward."""
        self._forward, self._backward = there, back
        self._w, self._b, self._act, self._dw, self._db = w, b, act, dw, db
        self._dtype, (self._n_inputs, self._n_outputs) = w.dtype, w.shape
        self._keeps_z, self._is_linear = act.saves == "input", act is LINEAR
        self.kept: tuple[Array, Array] | None = None

    def forward(self, x: Any) -> Array | None:
        self.kept = None
        if x.__class__ is not np.ndarray or x.dtype is not self._dtype or x.ndim != 2:
            return None
        rows, width = x.shape
        if width != self._n_inputs:
            return None
        try:
            y = np.empty((rows, self._n_outputs), self._dtype)
            z = np.empty_like(y) if self._keeps_z else None
        except MemoryError:
            return None
        self._forward(x, self._w, self._b, self._act, y, z)
        self.kept = x, y if z is None else z
        return y

    def backward(self, dy: Any) -> Array | None:
        kept = self.kept
        if kept is None or dy.__class__ is not np.ndarray or dy.dtype is not self._dtype:
            return None
        x, saved = kept
        if dy.shape != saved.shape or x.shape != (len(dy), self._n_inputs):
            return None
        try:
            dx = np.empty(x.shape, self._dtype)
            scratch = dy if self._is_linear else np.empty(dy.shape, self._dtype)
        except MemoryError:
            return None
        self._backward(dy, x, self._w, self._act, saved, self._dw, self._db, dx, scratch)
        return dx
