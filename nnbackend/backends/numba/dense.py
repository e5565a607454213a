"""A dense layer by itself: its arguments packed once, and calls that check in compiled code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import empty, empty_like, ndarray

from nnbackend.backends.numba.runtime import Runtime, address_of, packed
from nnbackend.backends.types import Activation, Array


class BoundDense:
    """See ``DenseCalls``. Calls on several threads have nothing in common but the arrays."""

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
        self._dtype, self._n_outputs, self._most_rows = w.dtype, w.shape[1], most_rows
        self._keeps_z, self._is_linear = act.saves == "input", act.name == "linear"
        function = runtime.entry("operation", str(self._dtype)).to_bytes(8, sys.byteorder)

        def bound(*arguments: int) -> Array:
            numbers = packed(len(arguments), 1)(1, 0, *arguments, act.parameter)
            return np.frombuffer(numbers + function, np.int64)

        sizes = (0, *w.shape, act.code)
        there = bound(0, address_of(w), address_of(b), 0, 0, *sizes)
        back = bound(0, 0, address_of(w), 0, address_of(dw), address_of(db), 0, 0, *sizes)
        self._there, self._back = address_of(there), address_of(back)
        self._held = w, b, dw, db, there, back
        self._forward = runtime.unit.driver(runtime.calls.dense_forward)
        self._backward = runtime.unit.driver(runtime.calls.dense_backward)
        self._lease, self._leases = lease, leases
        self.kept: tuple[Array, Array] | None = None

    def forward(self, x: Any) -> Array | None:
        dtype = self._dtype
        if (
            x.__class__ is ndarray
            and x.dtype is dtype
            and x.ndim == 2
            and (rows := len(x)) <= self._most_rows
        ):
            y = empty((rows, self._n_outputs), dtype)
            z = empty_like(y) if self._keeps_z else None
            leases = self._leases
            try:  # not by a call, which would take a twentieth of the time of a small layer
                memory = leases.pop()
            except IndexError:
                memory = self._lease()
            done = self._forward(self._there, x, y, z, memory[0])
            leases.append(memory)
            if done:
                self.kept = x, y if z is None else z
                return y
        self.kept = None
        return None

    def backward(self, dy: Any) -> Array | None:
        kept = self.kept
        if (
            kept is None
            or dy.__class__ is not ndarray
            or dy.dtype is not self._dtype
            or dy.ndim != 2
        ):
            return None
        x, saved = kept
        dx, dz = empty_like(x), None if self._is_linear else empty_like(saved)
        memory = self._lease()
        done = self._backward(self._back, dy, x, saved, dx, dz, memory[0])
        self._leases.append(memory)
        return dx if done else None
