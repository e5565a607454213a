"""The compiled unit of the Numba backend: one function per dtype, and the drivers that call it.

``phase_float32`` and ``phase_float64`` interpret any program, ``operation_float32`` and
``operation_float64`` run single operations: compiled once for a processor and cached, whatever
the network. The drivers call them by address, which keeps them small: each driver is compiled for
no dtype at all.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange, types
from numba.core import config

from nnbackend.kernels import cpu_context as c
from nnbackend.kernels.cpu_compile import compiled, only_parts
from nnbackend.kernels.cpu_inference import end_evaluate, run_evaluate, run_predict
from nnbackend.kernels.cpu_intrinsics import call_phase, set_flush_subnormals, vector_at
from nnbackend.kernels.cpu_losses import SUM_SQUARED
from nnbackend.kernels.cpu_objects import Objects
from nnbackend.kernels.cpu_operations import operate
from nnbackend.kernels.cpu_products import SCRATCH_BYTES as SCRATCH_BYTES
from nnbackend.kernels.cpu_steps import reset_team, run_as_team, run_serial

#: What the phase functions can be asked to do.
SERIAL, STEPS, EVALUATE, END_EVALUATE, PREDICT = range(5)


@compiled
def _run(address: int, phase: int, part: int, like: Any) -> None:
    before = set_flush_subnormals(np.int32(-1))
    f = c.open_context(address)
    if phase == PREDICT:
        run_predict(f, part, like)
    elif phase == EVALUATE:
        run_evaluate(f, part, like)
    elif phase == END_EVALUATE:
        end_evaluate(f, like)
    elif phase == SERIAL:
        run_serial(f, part, like)
    else:
        run_as_team(f, part, like)
    set_flush_subnormals(before)


def phase_float32(address: int, phase: int, part: int) -> None:
    """Run ``phase`` of the context at ``address`` for one part, in float32."""
    _run(address, phase, part, np.float32(0))


def phase_float64(address: int, phase: int, part: int) -> None:
    """Run ``phase`` of the context at ``address`` for one part, in float64."""
    _run(address, phase, part, np.float64(0))


@compiled
def _operate(address: int, operation: int, part: int, like: Any) -> None:
    before = set_flush_subnormals(np.int32(-1))
    operate(address, operation, part, like)
    set_flush_subnormals(before)


def operation_float32(address: int, operation: int, part: int) -> None:
    """Run one part of the operation whose arguments lie at ``address``, in float32."""
    _operate(address, operation, part, np.float32(0))


def operation_float64(address: int, operation: int, part: int) -> None:
    """Run one part of the operation whose arguments lie at ``address``, in float64."""
    _operate(address, operation, part, np.float64(0))


@njit(parallel=True)
def _fork(function: int, address: int, phase: int, parts: int) -> None:
    for part in prange(parts):
        call_phase(function, address, phase, part)


@njit
def _take_batch(f: Any, x: Any, y: Any, field: int, number: int, rate: float) -> bool:
    """Point the context at a caller's own batch, if it has the expected shape, for update
    ``number`` + 1."""
    rows = x.shape[0]
    width = f[c.N_OUTPUTS] if field == c.TARGET else 1
    fits = x.ndim == 2 and y.ndim <= 2 and x.flags.c_contiguous and y.flags.c_contiguous
    fits = fits and rows == f[c.BATCH_SIZE] and x.size == rows * f[c.N_INPUTS]
    fits = fits and y.shape[0] == rows and y.size == rows * width
    f[c.STATUS] = 0 if fits else c.REFUSED
    f[c.X] = x.ctypes.data
    f[field] = y.ctypes.data
    f[c.FIRST_STEP] = number
    vector_at(f[c.RATES], 0, 1, c.FLOAT64)[0] = rate
    return fits


@compiled
def _total_loss(f: Any) -> float:
    """Loss with penalties of the first step; NaN where the host has to look at the data."""
    if f[c.STATUS]:
        return np.nan
    trace = vector_at(f[c.TRACE], 0, c.METRICS, c.FLOAT64)
    total = trace[c.LOSS_SUM]
    if f[c.LOSS] != SUM_SQUARED:
        total = total / trace[c.WEIGHTS] if trace[c.WEIGHTS] > 0.0 else 0.0
    return total + trace[c.PENALTY]


# -- the drivers: entry points, compiled and cached by ``Unit`` -----------------------------------


def fork(function: int, address: int, phase: int, parts: int) -> None:
    """One call for each part, on as many threads; ``STEPS`` is one call for each thread."""
    _fork(function, address, phase, parts)


def step(
    function: int, address: int, x: Any, y: Any, field: int, number: int, rate: float
) -> float:
    """One step on a caller's own batch, on this thread; its loss."""
    f = c.open_context(address)
    if _take_batch(f, x, y, field, number, rate):
        call_phase(function, address, SERIAL, 0)
    return _total_loss(f)


def fork_step(
    function: int, address: int, x: Any, y: Any, field: int, number: int, rate: float
) -> float:
    """One step on a caller's own batch, on several threads; its loss."""
    f = c.open_context(address)
    if _take_batch(f, x, y, field, number, rate):
        reset_team(f)
        _fork(function, address, STEPS, f[c.N_PARTS])
    return _total_loss(f)


def infer(function: int, address: int, x: Any, out: Any) -> bool:
    """Outputs of a few rows on this thread; False if ``x`` has not the expected shape."""
    f = c.open_context(address)
    fits = x.ndim == 2 and x.flags.c_contiguous and x.shape[0] <= f[c.CAPACITY]
    if fits and x.size == x.shape[0] * f[c.N_INPUTS]:
        f[c.X] = x.ctypes.data
        f[c.OUT] = out.ctypes.data
        f[c.N_DATA] = x.shape[0]
        call_phase(function, address, PREDICT, 0)
        return True
    return False


class Unit:
    """The entry points, each compiled, or read from the cache folder, when it is first used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects = Objects(folder)
        self._lock = threading.RLock()
        self._addresses: dict[str, int] = {}
        self._drivers: dict[str, Any] = {}
        self._calls: dict[int, Any] = {}

    def is_compiled(self, name: str) -> bool:
        """Whether a function is ready in memory or in the folder."""
        return name in self._addresses or self._objects.has(name)

    def entry(self, name: str) -> int:
        """Address of one of the four functions that run phases and operations, or of ``fork``."""
        address = self._addresses.get(name)
        if address is None:
            with self._lock:
                if name == "fork":
                    get_num_threads()  # starts Numba's threads, which it asks for by name
                address = self._addresses.get(name) or self._objects.load(name)
                address = self._addresses[name] = address or self._compile(name)
        return address

    def _compile(self, name: str) -> int:
        if name == "fork":
            return self._objects.compile(fork, types.void(*(types.int64,) * 4))
        signature = types.void(types.int64, types.int64, types.int64)
        inner = _run if name.startswith("phase") else _operate
        like = types.float32 if name.endswith("float32") else types.float64
        with only_parts():
            inner.compile((*signature.args, like))
        return self._objects.compile(globals()[name], signature)

    def run(self, function: int, address: int, phase: int, parts: int) -> None:
        """One call of an entry for each part: one on this thread, more on as many threads."""
        if parts > 1:
            self._as_called(self.entry("fork"), 4)(function, address, phase, parts)
        else:
            self._as_called(function, 3)(address, phase, 0)

    def _as_called(self, address: int, n_arguments: int) -> Any:
        """The C function at an address; Python's other threads run meanwhile."""
        function = self._calls.get(address)
        if function is None:
            kind = ctypes.CFUNCTYPE(None, *(ctypes.c_int64,) * n_arguments)
            function = self._calls[address] = kind(address)
        return function

    def driver(self, function: Any) -> Any:
        """A compiled entry point that takes a caller's arrays."""
        name = function.__name__
        with self._lock:
            if name not in self._drivers:
                with self._cached():
                    self._drivers[name] = njit(nogil=True, cache=True)(function)
            return self._drivers[name]

    @contextmanager
    def _cached(self) -> Iterator[None]:
        """Numba's cache folder is ours while an entry point is made, and only then."""
        before, config.CACHE_DIR = config.CACHE_DIR, str(self._folder)
        try:
            yield
        finally:
            config.CACHE_DIR = before
