"""A dense layer by itself: its arguments packed once, and calls that check in compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy import empty, empty_like, ndarray

from nnbackend.backends.numba.runtime import Runtime, address_of, packed
from nnbackend.backends.types import Activation, Array

_HEAD = object.__basicsize__
#: Multiplications that take less time than to give the GIL away and take it back.
SMALL = 1 << 17


@cache
def reads_arrays(calls: Any) -> bool:
    """Whether array objects of this NumPy and Python are as ``kernels/cpu/calls.py`` takes them."""
    base = np.arange(6.0).reshape(2, 3)
    for array, fits in ((base, True), (base.T, False), (base[:, :2], False), (base[0], False)):
        words = (ctypes.c_int64 * (calls.FLAGS + 1)).from_address(id(array) + _HEAD)
        shape = (ctypes.c_int64 * array.ndim).from_address(words[calls.SHAPE])
        public = array.__array_interface__["data"][0], id(array.dtype), array.shape
        if (words[calls.DATA], words[calls.DESCRIPTION], tuple(shape)) != public:
            return False
        whole = words[calls.FLAGS] & calls.WANTED == calls.WANTED
        if fits != (whole and words[calls.AXES] & 0xFFFFFFFF == 2):
            return False
    return True


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
        known = (runtime.entry("operation", str(self._dtype)), id(self._dtype), _HEAD)

        def bound(*arguments: int) -> Array:
            numbers = packed(len(arguments), 1)(1, 0, *arguments, act.parameter)
            return np.frombuffer(numbers + np.array(known, np.int64).tobytes(), np.int64)

        sizes = (0, *w.shape, act.code)
        there = bound(0, address_of(w), address_of(b), 0, 0, *sizes)
        back = bound(0, 0, address_of(w), 0, address_of(dw), address_of(db), 0, 0, *sizes)
        self._there, self._back = address_of(there), address_of(back)
        self._held = w, b, dw, db, there, back
        entry, calls = runtime.unit.driver_of_numbers, runtime.calls
        self._forward, self._backward = (
            entry(calls.dense_forward, True),
            entry(calls.dense_backward, True),
        )
        self._few_rows = SMALL // w.size
        self._forward_few = entry(calls.dense_forward, False)
        self._lease, self._leases = lease, leases
        self.kept: tuple[Array, Array] | None = None

    def forward(self, x: Any) -> Array | None:
        try:
            # the form of a matrix is looked at in compiled code
            if x.__class__ is ndarray and (rows := len(x)) <= self._most_rows:
                y = empty((rows, self._n_outputs), self._dtype)
                z = empty_like(y) if self._keeps_z else None
                leases = self._leases
                try:  # not by a call, which would take a twentieth of the time of a small layer
                    memory = leases.pop()
                except IndexError:
                    memory = self._lease()
                go = self._forward_few if rows <= self._few_rows else self._forward
                done = go(self._there, id(x), id(y), 0 if z is None else id(z), memory[0])
                leases.append(memory)
                if done:
                    self.kept = x, y if z is None else z
                    return y
        except TypeError:  # no axis
            pass
        self.kept = None
        return None

    def backward(self, dy: Any) -> Array | None:
        kept = self.kept
        if kept is None or dy.__class__ is not ndarray:
            return None
        x, saved = kept
        dx, dz = empty_like(x), None if self._is_linear else empty_like(saved)
        memory = self._lease()
        objects = (id(dy), id(x), id(saved), id(dx), 0 if dz is None else id(dz))
        done = self._backward(self._back, *objects, memory[0])
        self._leases.append(memory)
        return dx if done else None
