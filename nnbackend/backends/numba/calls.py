"""How an operation of the contract is called: its arguments packed into bytes, on as many threads
as its work is worth, with memory for products."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.backends.numba.runtime import address_of, packed, runtime
from nnbackend.backends.numpy.backend import NumpyBackend
from nnbackend.backends.types import Array


class CallsOperations(NumpyBackend):
    """Calls ``kernels/cpu/program/operations.py``."""

    def __init__(self, index: int | None = None) -> None:
        super().__init__(index)
        from nnbackend.kernels.cpu.gemm import products as cpu_products
        from nnbackend.kernels.cpu.program import operations as cpu_operations

        self.runtime = runtime()
        self._operation: Any = cpu_operations
        each, arguments = cpu_products.SCRATCH_BYTES, 8 * self.runtime.calls.PACKED
        self._scratch_bytes: int = each * self.runtime.threads.most + arguments
        # leased by the threads that multiply matrices: append and pop are atomic; with addresses
        self._scratch: list[tuple[int, Array]] = []
        self._functions: dict[Any, int] = {}

    def _run(
        self,
        operation: int,
        like: Array,
        arguments: tuple[int, ...],
        numbers: tuple[float, ...] = (),
        work: float = 0.0,
        scratch: int = 0,
    ) -> None:
        """Run an operation on as many threads as its ``work``, in grains, is worth."""
        run = self.runtime
        parts = 1 if work < 2.0 else run.threads.parts(int(work))
        context = packed(len(arguments), len(numbers))(parts, scratch, *arguments, *numbers)
        function = self._functions.get(like.dtype) or self._compiled(like)
        run.unit.run(function, context, operation, parts)

    def _compiled(self, like: Array) -> int:
        """The function that runs operations on arrays like this one."""
        name = "float64" if like.dtype == np.float64 else "float32"
        function = self._functions[like.dtype] = self.runtime.entry("operation", name)
        return function

    def _lease(self) -> tuple[int, Array]:
        try:
            return self._scratch.pop()
        except IndexError:
            memory = np.empty(self._scratch_bytes, np.uint8)
            return address_of(memory), memory

    def _multiply(
        self,
        operation: int,
        like: Array,
        arguments: tuple[int, ...],
        numbers: tuple[float, ...],
        work: float,
    ) -> None:
        """Run an operation that multiplies matrices, which takes scratch memory."""
        scratch = self._lease()
        self._run(operation, like, arguments, numbers, work, scratch[0])
        self._scratch.append(scratch)
