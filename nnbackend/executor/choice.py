"""Which executor runs a program."""

from __future__ import annotations

import importlib
import warnings
from typing import cast

from nnbackend.backends.contract import Backend
from nnbackend.executor.base import Executor
from nnbackend.executor.python import PythonExecutor
from nnbackend.program.table import Program

_announced: set[tuple[str, ...]] = set()


def make_executor(program: Program, backend: Backend) -> Executor:
    """The backend's executor, or Python's where a part of the model is written in Python."""
    names = tuple(program.python_parts)
    if not names:
        return executor_class(backend)(program, backend)
    if backend.executor != Backend.executor and names not in _announced:
        _announced.add(names)
        warnings.warn(
            f"{', '.join(names)} is written in Python, so this model runs layer by layer "
            f"instead of in the compiled executor of the backend {backend.name}",
            stacklevel=4,
        )
    return PythonExecutor(program, backend)


def executor_class(backend: Backend) -> type[Executor]:
    """The class behind ``backend.executor``, imported at first use."""
    module, _, name = backend.executor.partition(":")
    return cast(type[Executor], getattr(importlib.import_module(module), name))
