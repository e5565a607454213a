"""Machine code in files, loaded by LLVM alone.

Numba's own cache reads a function back only after it has made itself ready to compile, which
takes longer than all the rest of a small training. Code that needs nothing of Numba but its
helpers in C is ready as soon as it has been read.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from nnbackend._memory import check_limits
from nnbackend.kernels.cpu.codegen.compile import compile_object
from nnbackend.kernels.cpu.codegen.store import Store

#: Address space that LLVM takes for a file, or for a driver: it ends the process if there is less
#: (measured: 250 MB and 80 MB are too little, 280 MB and 120 MB are enough).
COMPILE_BYTES, DRIVER_BYTES = 300 << 20, 150 << 20
BEFOREHAND = "compile beforehand, with nnbackend warmup"
#: Engines and functions: addresses stay good as long as the process lives.
_KEPT: list[Any] = []


class Objects:
    """Object files in a store, whose folders' name stands for whatever decides about the code."""

    def __init__(self, store: Store) -> None:
        self._store, self._has_compiled = store, False

    def has(self, name: str) -> bool:
        return self._store.has(f"{name}.o")

    def load(self, name: str) -> dict[str, int] | None:
        """Addresses of the functions of a file, which other files find by their names from now
        on; None if it was not compiled before, or is damaged."""
        content = self._store.read(f"{name}.o")
        if content is None:
            return None
        symbols, _, code = content.partition(b"\n")
        engine = _new_engine()
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        addresses = {}
        for symbol in symbols.decode().split():
            addresses[symbol] = int(engine.get_function_address(symbol))
            binding.add_symbol(symbol, addresses[symbol])
        return addresses

    def compile(self, name: str, functions: dict[str, tuple[Any, Any]]) -> None:
        """Compile Python functions with Numba signatures, by the names they shall have, and keep
        the file.

        Raises:
            OutOfMemoryError: the process's limits leave too little.
        """
        if not self._has_compiled:  # LLVM keeps the memory for the next file
            check_limits("compiling the kernels", COMPILE_BYTES, BEFOREHAND)
        self._has_compiled = True
        content = " ".join(functions).encode() + b"\n" + compile_object(functions)
        self._store.write(f"{name}.o", content)


def _new_engine() -> Any:
    """An engine that finds what code may call of Numba for memory and exceptions."""
    rtsys.initialize(cpu_target.target_context)
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    _KEPT.append(binding.create_mcjit_compiler(binding.parse_assembly(""), machine))
    return _KEPT[-1]
