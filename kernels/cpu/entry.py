"""The compiled unit of the Numba backend: one function per dtype, and the drivers that call it.

A phase function interprets any program, an operation function runs single operations: compiled
once for a processor and cached, whatever the network. The drivers call them by address, which
keeps them small: each driver is compiled for no dtype at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import get_num_threads, types

from nnbackend.kernels.cpu.calls import END_EVALUATE, EVALUATE, PREDICT, SERIAL, fork_parts
from nnbackend.kernels.cpu.codegen.compile import compiled
from nnbackend.kernels.cpu.codegen.drivers import driver, driver_of_numbers
from nnbackend.kernels.cpu.codegen.intrinsics import (
    set_flush_subnormals,
    symbol_of,
)
from nnbackend.kernels.cpu.codegen.objects import Objects
from nnbackend.kernels.cpu.codegen.store import Store
from nnbackend.kernels.cpu.gemm.products import SCRATCH_BYTES as SCRATCH_BYTES
from nnbackend.kernels.cpu.gemm.products import multiply
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.batch import measure
from nnbackend.kernels.cpu.program.inference import end_evaluate, run_evaluate, run_predict
from nnbackend.kernels.cpu.program.operations import operate
from nnbackend.kernels.cpu.program.steps import run_as_team, run_serial
from nnbackend.kernels.cpu.program.weights import run_update
from nnbackend.kernels.locks import COMPILING


@compiled
def _run(address: int, phase: int, part: int, like: Any) -> None:
    """A phase of a program; ``like`` is a number of the model's dtype."""
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


@compiled
def _operate(address: int, operation: int, part: int, like: Any) -> None:
    """One part of a single operation; ``like`` is a number of the arrays' dtype."""
    before = set_flush_subnormals(np.int32(-1))
    operate(address, operation, part, like)
    set_flush_subnormals(before)


# -- the object files -----------------------------------------------------------------------------


def fork(function: int, address: int, phase: int, parts: int) -> None:
    """One call for each part, on as many threads; ``STEPS`` is one call for each thread."""
    fork_parts(function, address, phase, parts)


def _phase(like: Any) -> Any:
    def phase(address: int, phase: int, part: int) -> None:
        _run(address, phase, part, like)

    return phase


def _operation(like: Any) -> Any:
    def operation(address: int, operation: int, part: int) -> None:
        _operate(address, operation, part, like)

    return operation


def _multiply(like: Any) -> Any:
    def multiply_(
        m: int, n: int, k: int, a: int, a_row: int, a_step: int, b: int, b_row: int, b_column: int,
        c: int, c_row: int, scratch: int,
    ) -> None:  # fmt: skip
        multiply(m, n, k, a, a_row, a_step, b, b_row, b_column, c, c_row, scratch, like)

    return multiply_


def _update(like: Any) -> Any:
    def update(address: int, phase: int, part: int) -> None:
        run_update(address, phase, part, like)

    return update


def _measure(like: Any) -> Any:
    def measure_(
        address: int, part: int, first: int, last: int, pred: int, dpred: int, factor: float
    ) -> None:
        measure(address, part, first, last, pred, dpred, factor, like)

    return measure_


_NUMBERS = {n: types.void(*(types.int64,) * n) for n in (3, 4, 12)}
#: What each file offers: how a function is made for a dtype, and its signature.
_FILES: dict[str, dict[str, tuple[Any, Any]]] = {
    "phase": {"phase": (_phase, _NUMBERS[3])},
    "operation": {"operation": (_operation, _NUMBERS[3])},
    "products": {"multiply": (_multiply, _NUMBERS[12]), "update": (_update, _NUMBERS[3])},
    "losses": {"measure": (_measure, types.void(*(types.int64,) * 6, types.float64))},
}
#: Files whose functions a file calls.
_NEEDS = {"phase": ("products", "losses"), "operation": ("products",)}


def _functions_of(file: str) -> dict[str, tuple[Any, Any]]:
    """The functions of an object file, by the names by which other files find them."""
    if file == "fork":
        return {"nnbackend_fork": (fork, _NUMBERS[4])}
    kind, _, dtype = file.partition("_")
    like = np.dtype(dtype).type(0)
    return {
        symbol_of(name, dtype): (make(like), signature)
        for name, (make, signature) in _FILES[kind].items()
    }


class Unit:
    """The compiled code: object files, which know each other's functions by name, and drivers.

    Files are named by their kind and dtype: ``phase_float32`` interprets any program,
    ``operation_float32`` runs single operations, ``products_float32`` and ``losses_float32`` have
    what takes longest to compile, so that it can be done side by side. ``fork`` is for all.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._objects = store, Objects(store)
        self._loaded: dict[str, dict[str, int]] = {}
        self._entries: dict[str, int] = {}
        self._drivers: dict[str, Any] = {}
        self._calls: dict[int, Any] = {}

    def missing(self, kinds: tuple[str, ...], dtype: str = "") -> list[str]:
        """Files of some kinds, and those that they need, that have to be compiled first; those
        that take longest come first."""
        needed = dict.fromkeys(file for kind in kinds for file in _NEEDS.get(kind, ()))
        files = [f"{kind}_{dtype}" if dtype else kind for kind in (*kinds, *needed)]
        return [name for name in files if name not in self._loaded and not self._objects.has(name)]

    def compile(self, file: str) -> None:
        """Compile one file, without loading it."""
        self._objects.compile(file, _functions_of(file))

    def entry(self, file: str) -> int:
        """Address of the first function of a file, compiled if need be."""
        address = self._entries.get(file)
        if address is None:
            with COMPILING:
                if file == "fork":
                    get_num_threads()  # starts Numba's threads, which it asks for by name
                address = self._entries[file] = next(iter(self._load(file).values()))
        return address

    def is_loaded(self, file: str) -> bool:
        """Whether ``entry`` only has to look an address up."""
        return file in self._entries

    def _load(self, file: str) -> dict[str, int]:
        if file not in self._loaded:
            kind, _, dtype = file.partition("_")
            for needed in _NEEDS.get(kind, ()):
                self._load(f"{needed}_{dtype}")
            loaded = self._objects.load(file)
            if loaded is None:
                self.compile(file)
                loaded = self._objects.load(file)
            self._loaded[file] = loaded
        return self._loaded[file]

    def run(self, function: int, address: int | bytes, phase: int, parts: int) -> None:
        """One call of an entry for each part: one on this thread, more on as many threads."""
        if parts > 1:
            self._as_called(self.entry("fork"), 4)(function, address, phase, parts)
        else:
            self._as_called(function, 3)(address, phase, 0)

    def _as_called(self, address: int, n_arguments: int) -> Any:
        """The C function at an address; Python's other threads run meanwhile."""
        function = self._calls.get(address)
        if function is None:
            # what a function works on is an address, or bytes that hold the arguments themselves
            kinds: list[Any] = [ctypes.c_int64] * n_arguments
            kinds[n_arguments - 3] = ctypes.c_void_p
            kind = ctypes.CFUNCTYPE(None, *kinds)
            function = self._calls[address] = kind(address)
        return function

    def driver(self, function: Any) -> Any:
        """A compiled entry point that takes a caller's arrays."""
        name = function.__name__
        with COMPILING:
            if name not in self._drivers:
                self._drivers[name] = driver(function, self._store)
            return self._drivers[name]

    def driver_of_numbers(self, function: Any, releases: bool) -> Callable[..., Any]:
        """The same for a function of integers only; see ``codegen/drivers.py``."""
        key = f"{function.__name__} {releases}"
        with COMPILING:
            if key not in self._drivers:
                count = function.__code__.co_argcount
                made = driver_of_numbers(function, count, releases, self._store)
                self._drivers[key] = made
            found: Callable[..., Any] = self._drivers[key]
            return found
