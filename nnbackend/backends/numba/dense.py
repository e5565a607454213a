"""A dense layer by itself: its arguments packed once, and calls that check in compiled code."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from nnbackend.backends.numba.runtime import Runtime, address_of, packed
from nnbackend.backends.types import Activation, Array


class BoundDense:
    """See ``DenseCalls``."""

    def __init__(
        self,
        runtime: Runtime,
        w: Array,
        b: Array | None,
        act: Activation,
        dw: Array,
        db: Array | None,
        most_rows: int,
        lease: Callable[[], tuple[int, Array]],
        leases: list[tuple[int, Array]],
    ) -> None:
        """
        Args:
            most_rows: that are worth one thread.
            lease: gives scratch memory for a call, which goes back to ``leases``.
        """
        self._held = w, b, dw, db
        self._dtype, self._most_rows = w.dtype, most_rows
        self.n_outputs = w.shape[1]
        self._keeps_z, self._is_linear = act.saves == "input", act.name == "linear"
        sizes = (0, *w.shape, act.code)
        there = (0, address_of(w), address_of(b), 0, 0, *sizes)
        back = (0, 0, address_of(w), 0, address_of(dw), address_of(db), 0, 0, *sizes)
        # the bytes are written into
        self._there, self._back = (
            np.frombuffer(packed(len(a), 1)(1, 0, *a, act.parameter), np.int64).copy()
            for a in (there, back)
        )
        self._addresses = address_of(self._there), address_of(self._back)
        self._function = runtime.entry("operation", str(self._dtype))
        self._forward = runtime.unit.driver(runtime.calls.dense_forward)
        self._backward = runtime.unit.driver(runtime.calls.dense_backward)
        self._nothing = np.empty((0, 0), self._dtype)
        self._lease, self._leases = lease, leases
        self.kept: tuple[Array, Array] | None = None
        # what is packed belongs to one caller at a time; another one takes the longer way
        self._lock = Lock()

    def forward(self, x: Any) -> Array | None:
        self.kept = None
        if x.__class__ is not np.ndarray or x.dtype is not self._dtype or x.ndim != 2:
            return None
        rows = len(x)
        if not 0 < rows <= self._most_rows or not self._lock.acquire(False):
            return None
        y = np.empty((rows, self.n_outputs), self._dtype)
        z = np.empty_like(y) if self._keeps_z else self._nothing
        there, back = self._addresses
        scratch = self._lease()
        done = self._forward(self._function, there, back, x, y, z, scratch[0])
        self._leases.append(scratch)
        self._lock.release()
        if not done:
            return None
        self.kept = x, z if self._keeps_z else y
        return y

    def backward(self, dy: Any) -> Array | None:
        kept = self.kept
        if kept is None or dy.__class__ is not np.ndarray or dy.dtype is not self._dtype:
            return None
        if dy.ndim != 2 or not self._lock.acquire(False):
            return None
        dx = np.empty_like(kept[0])
        dz = self._nothing if self._is_linear else np.empty_like(kept[1])
        back = self._addresses[1]
        scratch = self._lease()
        done = self._backward(self._function, back, dy, dx, dz, scratch[0])
        self._leases.append(scratch)
        self._lock.release()
        return dx if done else None
