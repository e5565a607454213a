"""The executor of the Numba backend: whole runs of steps in one call of compiled code."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.numba.backend import NumbaBackend
from nnbackend.backends.numba.executor.inference import Inferences
from nnbackend.backends.numba.executor.mixed import MixedExecutor
from nnbackend.backends.numba.executor.segment import Segment
from nnbackend.backends.numba.executor.table import CompiledTable
from nnbackend.backends.numba.executor.training import Training
from nnbackend.backends.types import Array
from nnbackend.errors import DataError
from nnbackend.executor.base import NO_FORWARD, Data, Executor, Run, Trace, total_loss
from nnbackend.executor.updates import Updates
from nnbackend.program.table import Program


class CompiledExecutor(Executor):
    """Runs programs of built-in layers and losses in compiled code, without the GIL."""

    how = "compiled"
    ops = MixedExecutor.ops
    mixed: ClassVar[type[Executor]] = MixedExecutor

    def __init__(self, program: Program, backend: NumbaBackend) -> None:
        self.program = program
        self.compiled = CompiledTable(program, backend)
        self._training: Training | None = None
        self._inferences = Inferences(self.compiled)
        self._segment: Segment | None = None
        self._updates = Updates(program, backend)
        backend.runtime.threads.watch(self)

    def use_threads(self, most: int) -> None:
        self.compiled.most_parts = most
        self.threads_changed()

    def threads_changed(self) -> None:
        """Plan anew: ``set_num_threads`` was called, or this is a forked child."""
        self._training = None
        self._inferences.forget()
        self._segment = None

    def numbers_changed(self) -> None:
        self.compiled.take_numbers()  # compiled code reads them each time

    # -- training -------------------------------------------------------------------------

    def prepare(self, batch_size: int, data: Data | None) -> None:
        self._plan(batch_size)

    def run(self, run: Run) -> Trace:
        # of whole batches, though there may be only the last rows of an epoch: the number of parts
        # decides about bits
        return self._plan(run.batch_size).run(run)

    def step(self, x: Any, y: Any, number: int, weight: Any = None) -> Array | None:
        plan = self._training
        return None if plan is None else plan.step(x, y, number, weight)

    def gradient(self, data: Data, step: int = 0) -> float:
        rows = len(data.x)
        trace = self._plan(rows).run(Run(data, None, rows, np.zeros(1), step), trains=False)
        return total_loss(self.program, trace[0])

    def differentiate(self, run: Run) -> Trace:
        return self._plan(run.batch_size).run(run, trains=False, part=True)

    def gradient_of(self, x: Any, y: Any, number: int, weight: Any) -> float | None:
        plan = self._training
        return None if plan is None else plan.gradient(x, y, number, weight)

    def _plan(self, batch: int) -> Training:
        if self._training is None or self._training.batch != batch:
            parts = self.compiled.step_parts(batch)
            self._training = Training(self.compiled, batch, parts, self._training)
        return self._training

    # -- driven from outside ------------------------------------------------------------------

    def forward(self, x: Array, number: int) -> Array:
        rows = len(x)
        segment = self._segment
        if segment is None or segment.batch != rows:
            capacity = -(-rows // 16) * 16
            width = self.program.workspace_width
            workspace = self.program.backend.zeros(capacity * width, self.program.dtype)
            segment = self._segment = Segment(self.compiled, rows, workspace, capacity)
        return segment.forward(x, number)

    def forward_of(self, x: Any, number: int) -> Array | None:
        segment = self._segment
        if segment is None or x.__class__ is not np.ndarray or x.dtype is not segment.dtype:
            return None
        return segment.forward_of(x, number)

    def backward_of(self, dy: Any, dx: Array | None, penalties: bool) -> bool:
        segment = self._segment
        if segment is None or dy.__class__ is not np.ndarray or dy.dtype is not segment.dtype:
            return False
        return bool(dy.flags.c_contiguous) and segment.backward_of(dy, dx, penalties)

    def backward(self, dy: Array, dx: Array | None, penalties: bool) -> None:
        segment = self._segment
        if segment is None:
            raise DataError(NO_FORWARD)
        segment.dy[...] = dy
        segment.backward(dx, penalties)

    def apply(self, rate: float, number: int) -> bool:
        optimizer, segment = self.program.optimizer, self._segment
        if segment is None or optimizer is None or self.program.storage.trained == 0:
            return self._updates.apply(rate, number)
        return segment.apply(optimizer, rate, number)

    # -- inference ------------------------------------------------------------------------

    def evaluate(self, data: Data) -> Trace:
        return self._inferences.evaluate(data)

    def predict(self, x: Array, out: Array) -> None:
        self._inferences.predict(x, out)

    def call(self, x: Any) -> Array | None:
        return self._inferences.call(x)
