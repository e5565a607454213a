"""Machine code in files, loaded by LLVM alone.

Numba's own cache reads a function back only after it has made itself ready to compile, which
takes longer than all the rest of a small training. Code that needs nothing of Numba but its
helpers in C is ready as soon as it has been read.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from llvmlite import binding
from numba import cfunc
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from nnbackend._files import write_atomically

_DIGEST = hashlib.sha256
_DIGEST_BYTES = _DIGEST().digest_size
#: Engines and functions: addresses stay good as long as the process lives.
_KEPT: list[Any] = []


class Objects:
    """Functions that C could call, compiled once, each in a file of a folder.

    The folder's name has to stand for whatever decides about the code, and nobody else may write
    to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.o"

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def load(self, name: str) -> int | None:
        """Address of a function that was compiled before; None if it was not, or if its file is
        damaged."""
        try:
            stored = self._path(name).read_bytes()
        except OSError:
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if _DIGEST(content).digest() != digest:
            return None
        symbol, _, code = content.partition(b"\n")
        engine = _new_engine()
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return int(engine.get_function_address(symbol.decode()))

    def compile(self, function: Any, signature: Any) -> int:
        """Compile and keep a Python function; its address."""
        made = cfunc(signature)(function)
        _KEPT.append(made)
        # the machine code as LLVM gave it, with the names of what it calls
        code = made._library._get_compiled_object()
        content = made.native_name.encode() + b"\n" + code
        try:
            write_atomically(self._path(function.__name__), _DIGEST(content).digest() + content)
        except OSError as error:
            sys.stderr.write(f"nnbackend: compiled kernels could not be kept: {error}\n")
        return int(made.address)


def _new_engine() -> Any:
    """An engine that finds what code may call of Numba for memory and exceptions."""
    rtsys.initialize(cpu_target.target_context)
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    _KEPT.append(binding.create_mcjit_compiler(binding.parse_assembly(""), machine))
    return _KEPT[-1]
