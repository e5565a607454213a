"""The executor of the Numba backend for programs with parts in Python: a loss, layers, an
optimizer. Rows between them run in compiled code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.numba.backend import NumbaBackend
from nnbackend.backends.numba.executor.driven import DrivenContext
from nnbackend.backends.numba.executor.inference import Inferences
from nnbackend.backends.numba.executor.table import CompiledTable
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data, not_finite_step
from nnbackend.executor.loss import call_loss, measure
from nnbackend.executor.python import InferencePlan, PythonExecutor, TrainingPlan
from nnbackend.executor.rows import Backward, Forward, Inference, bind_inference
from nnbackend.executor.workspace import Workspace
from nnbackend.kernels.codes import TRACE_LOSS, TRACE_PENALTY, Op
from nnbackend.losses import Loss
from nnbackend.program.table import Program


class _Part(NamedTuple):
    """Rows ``first`` to ``last`` of a program; one row without a table is in Python."""

    first: int
    last: int
    table: CompiledTable | None
    inferences: Inferences | None


class MixedExecutor(PythonExecutor):
    """Compiled code for all that is not written in Python."""

    how = "partly compiled"
    #: those that kernels/cpu/program/layers.py has
    ops: ClassVar[frozenset[Op]] = frozenset(
        (
            Op.DENSE,
            Op.ACTIVATION,
            Op.DROPOUT,
            Op.BATCH_NORM,
            Op.LAYER_NORM,
            Op.STANDARDIZE,
            Op.EMBEDDING,
        )
    )

    def __init__(self, program: Program, backend: NumbaBackend) -> None:
        super().__init__(program, backend)
        self._parts = list(self._divided(program, backend))
        optimizer = program.optimizer
        #: whether compiled code goes back and updates in one go
        self._updates_at_once = (
            len(self._parts) == 1
            and self._parts[0].table is not None
            and optimizer is not None
            and optimizer.is_built_in
        )
        #: of the last single step, if the next one may take arrays as they come
        self._quick_plan: _MixedPlan | None = None
        self._is_function = not isinstance(program.loss, Loss)
        backend.runtime.threads.watch(self)

    def _divided(self, program: Program, backend: NumbaBackend) -> Iterator[_Part]:
        first, rows = 0, program.rows
        while first < len(rows):
            last = first
            while last < len(rows) and Op(rows[last].op) in self.ops:
                last += 1
            if last > first:
                table = CompiledTable(program, backend, first, last)
                yield _Part(first, last, table, Inferences(table))
            else:
                last = first + 1
                yield _Part(first, last, None, None)
            first = last

    def threads_changed(self) -> None:
        """Plan anew: ``set_num_threads`` was called, or this is a forked child."""
        self._plans.clear()
        self._inference.clear()
        self._driven = self._quick_plan = None
        for part in self._parts:
            if part.inferences is not None:
                part.inferences.forget()

    def numbers_changed(self) -> None:
        rows = self.program.rows
        if any(part.table is None and rows[part.first].op != Op.PYTHON for part in self._parts):
            super().numbers_changed()  # a row that compiled code does not know
        for part in self._parts:
            if part.table is not None:
                part.table.take_numbers()

    def _make_plan(self, rows: int, to_input: bool) -> TrainingPlan:
        return _MixedPlan(self.program, self._workspace, rows, self._parts)

    def _plan_to_input(self, plan: TrainingPlan, rows: int) -> TrainingPlan:
        return plan  # its contexts have what the way forward kept

    def _make_inference(self, rows: int) -> InferencePlan:
        return _MixedInference(self.program, self.backend, rows, self._parts)

    def _step(
        self, plan: TrainingPlan, data: Data, rate: float, number: int, trace: Array, looks: bool
    ) -> bool:
        optimizer, at_once = self.program.optimizer, self._updates_at_once
        if optimizer is None or not at_once or not isinstance(plan, _MixedPlan):
            return super()._step(plan, data, rate, number, trace, looks)
        driven = plan.driven[0]
        outputs = driven.forward(data.x, number)
        measure(self.program, data, outputs, driven.dy, trace, plan.loss)
        if not np.isfinite(trace[TRACE_LOSS]):
            return False
        is_finite: bool = driven.update(optimizer, rate, number)
        trace[TRACE_PENALTY] = driven.penalty
        if looks and self._is_function:
            self._quick_plan = plan
        return is_finite

    def step(self, x: Any, y: Any, number: int, weight: Any = None) -> Array | None:
        """Around a loss function, for arrays as the model's own and numbers as targets."""
        program, optimizer, plan = self.program, self.program.optimizer, self._quick_plan
        if plan is None or optimizer is None or weight is not None or program.statistics:
            return None
        driven, dtype = plan.driven[0], program.dtype
        shape = (driven.batch, program.n_outputs)
        if x.__class__ is not np.ndarray or y.__class__ is not np.ndarray or x.dtype is not dtype:
            return None
        if y.dtype is not dtype or y.shape != shape or len(optimizer.slots) != len(program.slots):
            return None
        with np.errstate(all="ignore"):
            if not np.isfinite(y.sum()):
                return None
            pred = driven.forward_of(x, number)
            if pred is None:
                return None
            loss, dpred = call_loss(program, y, pred)
            driven.dy[...] = dpred
        done = np.isfinite(loss) and driven.update(optimizer, program.rate(number), number)
        if not done:
            raise not_finite_step(number)
        return np.array(loss + driven.penalty, np.float64)

    def call(self, x: Any) -> Array | None:
        inferences = self._parts[0].inferences
        if len(self._parts) > 1 or inferences is None:
            return None
        return inferences.call(x)

    def predict(self, x: Array, out: Array) -> None:
        inferences = self._parts[0].inferences
        if len(self._parts) > 1 or inferences is None:
            super().predict(x, out)
        else:
            inferences.predict(x, out)


class _MixedPlan(TrainingPlan):
    """Parts bound to buffers, for one batch size."""

    def __init__(
        self, program: Program, workspace: Workspace, rows: int, parts: list[_Part]
    ) -> None:
        self.parts = parts
        self.driven: list[DrivenContext] = []
        self._goes_to_input = False
        super().__init__(program, workspace, rows)

    def _bind(self, to_input: bool) -> None:
        program, workspace, rows = self.program, self.workspace, self.rows
        self.lowest = len(self.parts)
        for number, part in enumerate(self.parts):
            row = program.rows[part.first]
            buffer = workspace.gradients[(len(self.parts) - number) % 2]
            dx = buffer[: rows * row.n_inputs].reshape(rows, row.n_inputs)
            if part.table is None:
                both = self.bind_row(row, dx)
            else:
                both = self._bind_segment(part.table, dx, bool(row.needs_dx))
            self.forward.append(both[0])
            self.backward.append(both[1])
            trained = any(r.trainable for r in program.rows[part.first : part.last])
            if self.lowest == len(self.parts) and trained:
                self.lowest = number
        if self.parts[-1].table is not None:
            self.dpred = self.driven[-1].dy

    def go_back(self, inputs: list[Array], dy: Array, to_input: bool = False) -> Array:
        self._goes_to_input = to_input
        return super().go_back(inputs, dy, to_input)

    def _bind_segment(
        self, table: CompiledTable, dx: Array, needs_dx: bool
    ) -> tuple[Forward, Backward]:
        workspace = self.workspace
        driven = DrivenContext(table, self.rows, workspace.flat, workspace.capacity)
        self.driven.append(driven)

        def forward(x: Array, step: int) -> Array:
            return driven.forward(x, step, workspace.mode)

        def backward(x: Array, dy: Array) -> Array:
            if dy is not driven.dy:
                driven.dy[...] = dy
            driven.backward(dx if needs_dx or self._goes_to_input else None)
            return dx

        return forward, backward


class _MixedInference(InferencePlan):
    """Parts for inference."""

    def __init__(self, program: Program, backend: Backend, rows: int, parts: list[_Part]) -> None:
        self.functions: list[Inference] = []
        self.outputs = []
        for part in parts:
            if part.inferences is not None:
                self.functions.append(part.inferences.predict)
            else:
                self.functions.append(bind_inference(program, program.rows[part.first]))
        for part in parts[:-1]:
            width = program.rows[part.last - 1].n_outputs
            self.outputs.append(backend.zeros((rows, width), program.dtype))
