"""Which executor runs a program."""

from __future__ import annotations

import importlib
from typing import cast

from nnbackend._output import warn
from nnbackend.backends.contract import Backend
from nnbackend.executor.base import Executor
from nnbackend.executor.python import PythonExecutor
from nnbackend.kernels.codes import Op
from nnbackend.kernels.locks import OPENING
from nnbackend.program.table import Program

#: Reasons that were said already.
_announced: set[str] = set()


def make_executor(program: Program, backend: Backend) -> Executor:
    """The backend's executor; Python's where a part of the model is written in Python, or is of a
    kind that the backend's does not know."""
    reason = ""
    kind = executor_class(backend)
    unknown = {Op(row.op).name.lower() for row in program.rows} - {
        op.name.lower() for op in kind.ops
    }
    if program.python_parts:
        reason = f"{', '.join(program.python_parts)} is written in Python"
    elif unknown:
        reason = f"{kind.__name__} does not know {', '.join(sorted(unknown))}"
    else:
        return kind(program, backend)
    if kind.mixed is not None:
        return kind.mixed(program, backend)
    if backend.executor != Backend.executor and reason not in _announced:
        _announced.add(reason)
        warn(
            f"{reason}, so this model runs layer by layer instead of in the compiled executor of "
            f"the backend {backend.name}",
        )
    return PythonExecutor(program, backend)


def executor_class(backend: Backend) -> type[Executor]:
    """The class behind ``backend.executor``, imported at first use."""
    module, _, name = backend.executor.partition(":")
    with OPENING:
        return cast(type[Executor], getattr(importlib.import_module(module), name))
