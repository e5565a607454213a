"""The executor that interprets a program's table in Python, row by row."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array
from nnbackend.errors import (
    DataError,
    ModelBusyError,
)
from nnbackend.executor.base import (
    NO_FORWARD,
    OVERTAKEN,
    Data,
    Executor,
    Run,
    Trace,
    total_loss,
)
from nnbackend.executor.loss import add_penalties, divide_by_batch, measure
from nnbackend.executor.rows import (
    Backward,
    Forward,
    bind_inference,
    bind_row,
    saved_shape,
)
from nnbackend.executor.updates import Updates
from nnbackend.executor.workspace import Workspace
from nnbackend.kernels.codes import TRACE_LOSS, TRACE_PENALTY, TRACE_SUMS, Op
from nnbackend.program.table import ABSENT, Program, Row, first_trained

_FLOAT64 = np.dtype(np.float64)


class PythonExecutor(Executor):
    """Interprets the rows one by one with the backend's operations, into buffers made once.

    Runs every model on every backend, including those with custom layers and losses.
    """

    #: rows that inference handles at a time; results do not depend on it
    inference_rows = 1024

    def __init__(self, program: Program, backend: Backend) -> None:
        self.program, self.backend = program, backend
        self._plans: dict[tuple[int, bool], TrainingPlan] = {}
        self._capacity = 0
        self._workspace: Array = None
        # leased by the threads that predict: append and pop are atomic
        self._inference: dict[int, list[InferencePlan]] = {}
        # a layer written in Python keeps what its backward pass needs: nobody may call it between
        self._own_layers: AbstractContextManager[Any] = (
            threading.RLock() if program.own_layers else nullcontext()
        )
        self._in_step = False
        self._updates = Updates(program, backend)
        self._driven: tuple[TrainingPlan, list[Array], int] | None = None
        self._why_no_backward = NO_FORWARD  # why there is none

    # -- training -----------------------------------------------------------------------------

    def run(self, run: Run) -> Trace:
        rows, batch_size = run.n_rows, run.batch_size
        steps_per_epoch = -(-rows // batch_size)
        trace = self.backend.zeros((len(run.rates), TRACE_SUMS + self.program.n_sums), _FLOAT64)
        with np.errstate(all="ignore"):  # whoever reads the trace looks for NaN
            for index in range(len(run.rates)):
                epoch, batch = divmod(index, steps_per_epoch)
                start = batch * batch_size
                stop = min(start + batch_size, rows)
                plan = self.plan(stop - start, min(batch_size, rows))
                if run.order is None:
                    batch_data = run.data.rows(start, stop)
                else:
                    batch_data = plan.workspace.gather(
                        self.backend, run.data, run.order[epoch, start:stop]
                    )
                rate, number = float(run.rates[index]), run.first_step + index
                # of many steps, whoever reads the trace looks at the parameters
                looks = len(run.rates) == 1
                if not self._step(plan, batch_data, rate, number, trace[index], looks):
                    trace[index:] = np.nan
                    break
        return self.backend.to_numpy(trace)

    def _step(
        self, plan: TrainingPlan, data: Data, rate: float, number: int, trace: Array, looks: bool
    ) -> bool:
        """One step; False if it is not finite, where that is looked at."""
        self._differentiate(plan, data, number, trace)
        if looks and not self._updates.is_finite(trace[TRACE_LOSS]):
            return False
        self._updates.update(rate, number)
        return True

    def gradient(self, data: Data, step: int = 0) -> float:
        trace = self.backend.zeros(TRACE_SUMS + self.program.n_sums, _FLOAT64)
        plan = self.plan(len(data.x), len(data.x))
        plan.workspace.mode.moves_statistics = False
        try:
            with np.errstate(all="ignore"):
                self._differentiate(plan, data, step, trace)
        finally:
            plan.workspace.mode.moves_statistics = True
        values = self.backend.to_numpy(trace)
        return total_loss(self.program, values)

    def differentiate(self, run: Run) -> Trace:
        trace = self.backend.zeros((1, TRACE_SUMS + self.program.n_sums), _FLOAT64)
        plan = self.plan(run.n_rows, max(run.n_rows, run.batch_size))
        data = (
            run.data
            if run.order is None
            else plan.workspace.gather(self.backend, run.data, run.order[0])
        )
        plan.workspace.mode.first_row = run.first_row
        try:
            with np.errstate(all="ignore"):
                self._differentiate(plan, data, run.first_step, trace[0], run)
        finally:
            plan.workspace.mode.first_row = 0
        return self.backend.to_numpy(trace)

    def _differentiate(
        self, plan: TrainingPlan, data: Data, step: int, trace: Array, part: Run | None = None
    ) -> None:
        with self._own_layers:
            self._in_step = True
            try:
                plan.differentiate(data, step, trace, part)
            finally:
                self._in_step = False

    # -- driven from outside ------------------------------------------------------------------

    def forward(self, x: Array, number: int) -> Array:
        plan = self.plan(len(x), len(x))
        with np.errstate(all="ignore"), self._own_layers:
            inputs = plan.go_forward(x, number)
        self._driven = plan, inputs, len(x)
        return inputs.pop()

    def backward(self, dy: Array, dx: Array | None, penalties: bool) -> None:
        if self._driven is None:
            raise DataError(self._why_no_backward)
        plan, inputs, rows = self._driven
        if dx is not None:
            plan = self._plan_to_input(plan, rows)
        with np.errstate(all="ignore"), self._own_layers:
            plan.dpred[...] = dy
            result = plan.go_back(inputs, plan.dpred, dx is not None)
            if dx is not None:
                dx[...] = result
            if penalties:
                add_penalties(self.program, rows, True, plan.penalty)

    def apply(self, rate: float, number: int) -> bool:
        return self._updates.apply(rate, number)

    # -- plans --------------------------------------------------------------------------------

    def numbers_changed(self) -> None:
        # a forward pass that was made already keeps its plan for the backward pass
        self._plans.clear()
        self._inference.clear()

    def plan(self, rows: int, most_rows: int, to_input: bool = False) -> TrainingPlan:
        """The plan for batches of ``rows``; all plans share one workspace. One that goes back
        ``to_input`` gives the gradient by the model's input."""
        plan = self._plans.get((rows, to_input))
        if plan is None:
            if most_rows > self._capacity:
                # a multiple of 16 keeps every buffer's start aligned
                capacity = -(-most_rows // 16) * 16
                self._workspace = Workspace(self.program, self.backend, capacity)
                self._capacity, self._driven = capacity, None
                self._plans.clear()
            if len(self._plans) >= 16:
                self._plans.pop(next(iter(self._plans)))
            plan = self._make_plan(rows, to_input)
            self._plans[rows, to_input] = plan
        return plan

    def _plan_to_input(self, plan: TrainingPlan, rows: int) -> TrainingPlan:
        """One that goes back to the input from where ``plan`` went forward."""
        return self.plan(rows, rows, True)

    def _make_plan(self, rows: int, to_input: bool) -> TrainingPlan:
        return TrainingPlan(self.program, self._workspace, rows, to_input)

    def _make_inference(self, rows: int) -> InferencePlan:
        return InferencePlan(self.program, self.backend, rows)

    # -- inference ----------------------------------------------------------------------------

    def evaluate(self, data: Data) -> Trace:
        program, backend = self.program, self.backend
        total = backend.zeros(TRACE_SUMS + program.n_sums, _FLOAT64)
        part = backend.zeros(TRACE_SUMS + program.n_sums, _FLOAT64)
        value = backend.zeros((), _FLOAT64)
        pred = backend.empty(
            (min(len(data.x), self.inference_rows), program.n_outputs), program.dtype
        )
        for start in range(0, len(data.x), self.inference_rows):
            block = data.rows(start, min(start + self.inference_rows, len(data.x)))
            out = pred[: len(block.x)]
            self.predict(block.x, out)
            with np.errstate(all="ignore"):
                measure(program, block, out, None, part, value)
            total += part
        penalty = backend.zeros((), _FLOAT64)
        add_penalties(program, 1, False, penalty)  # whoever asks knows how many rows there are
        total[TRACE_PENALTY] = penalty
        return backend.to_numpy(total)

    def predict(self, x: Array, out: Array) -> None:
        for start in range(0, len(x), self.inference_rows):
            stop = min(start + self.inference_rows, len(x))
            block, out_block = x[start:stop], out[start:stop]
            idle = self._inference.setdefault(len(block), [])
            try:
                plan = idle.pop()
            except IndexError:
                plan = self._make_inference(len(block))
            with np.errstate(all="ignore"), self._own_layers:
                if self._in_step and self.program.own_layers:
                    raise ModelBusyError(
                        "a layer written in Python was called for inference between its forward "
                        "and its backward pass; do not call model.predict from a loss or a layer"
                    )
                if self._driven is not None and self.program.own_layers:
                    self._driven, self._why_no_backward = None, OVERTAKEN
                plan.run(block, out_block)
            if len(self._inference) > 16:
                self._inference.clear()
            idle.append(plan)


class TrainingPlan:
    """The table bound to buffers, for one batch size.

    Attributes:
        forward, backward: of each part, here one for each row.
        lowest: the part that the backward pass ends with.
        dpred: (rows, O), where the gradient by the outputs is put.
    """

    def __init__(
        self, program: Program, workspace: Workspace, rows: int, to_input: bool = False
    ) -> None:
        self.program, self.workspace, self.rows = program, workspace, rows
        self.forward: list[Forward] = []
        self.backward: list[Backward] = []
        self.dpred = workspace.gradients[0][: rows * program.n_outputs].reshape(rows, -1)
        self.penalty, self.loss = (program.backend.zeros((), _FLOAT64) for _ in range(2))
        self._bind(to_input)

    def _bind(self, to_input: bool) -> None:
        program, workspace, rows = self.program, self.workspace, self.rows
        for row in program.rows:
            dx = None
            if row.needs_dx or to_input:
                buffer = workspace.gradients[(len(program.rows) - row.layer) % 2]
                dx = buffer[: rows * row.n_inputs].reshape(rows, row.n_inputs)
            forward, backward = self.bind_row(row, dx)
            self.forward.append(forward)
            self.backward.append(backward)
        self.lowest = first_trained(program.rows)

    def bind_row(self, row: Row, dx: Array | None) -> tuple[Forward, Backward]:
        """A row by itself, with its places in the workspace."""
        workspace, rows = self.workspace, self.rows
        out, saved = workspace.part(row.output, rows, row.n_outputs), None
        if row.saved != ABSENT:
            start, shape = row.saved * workspace.capacity, saved_shape(row, rows)
            saved = workspace.flat[start : start + shape[0] * shape[1]].reshape(shape)
        return bind_row(self.program, row, out, saved, dx, workspace.mode)

    def differentiate(self, data: Data, step: int, trace: Array, part: Run | None = None) -> None:
        """Forward, loss and backward: fills the flat gradient and one row of a trace. ``part`` if
        the rows are a part of a batch: then penalties are left to who has all of it."""
        program = self.program
        inputs = self.go_forward(data.x, step)
        measure(program, data, inputs.pop(), self.dpred, trace, self.loss)
        if part is not None:
            divide_by_batch(program, self.dpred, trace, part.batch_weight)
        self.penalty[...] = 0
        self.go_back(inputs, self.dpred)
        if part is None:
            add_penalties(program, self.rows, True, self.penalty)
        trace[TRACE_PENALTY] = self.penalty

    def go_forward(self, x: Array, step: int) -> list[Array]:
        """The inputs of the parts, then the outputs of the last one."""
        inputs = [x]
        for forward in self.forward:
            inputs.append(forward(inputs[-1], step))
        return inputs

    def go_back(self, inputs: list[Array], dy: Array, to_input: bool = False) -> Array:
        """The parameters' gradient, and, all the way, the one by the input."""
        lowest = 0 if to_input else self.lowest
        for index in range(len(inputs) - 1, lowest - 1, -1):
            dy = self.backward[index](inputs[index], dy)
        return dy


class InferencePlan:
    """Forward only, with its own buffers, for one number of rows."""

    def __init__(self, program: Program, backend: Backend, rows: int) -> None:
        used = [row for row in program.rows if row.op != Op.DROPOUT]
        self.functions = [bind_inference(program, row) for row in used]
        widest = max(row.n_outputs for row in used)
        buffers = [backend.zeros(rows * widest, program.dtype) for _ in "ab"[: len(used) - 1]]
        self.outputs = [
            buffers[i % 2][: rows * row.n_outputs].reshape(rows, row.n_outputs)
            for i, row in enumerate(used[:-1])
        ]

    def run(self, x: Array, out: Array) -> None:
        for function, buffer in zip(self.functions, [*self.outputs, out], strict=True):
            function(x, buffer)
            x = buffer
