"""The executor of the Numba backend: whole runs of steps in one call of compiled code."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.numba.backend import NumbaBackend
from nnbackend.backends.numba.executor.driven import DrivenContext
from nnbackend.backends.numba.executor.inference import Inferences
from nnbackend.backends.numba.executor.mixed import MixedExecutor
from nnbackend.backends.numba.executor.table import CompiledTable
from nnbackend.backends.numba.executor.training import Training
from nnbackend.backends.types import Array
from nnbackend.errors import DataError
from nnbackend.executor.base import NO_FORWARD, Data, Executor, Run, Trace, total_loss
from nnbackend.executor.updates import Updates
from nnbackend.kernels.codes import Op
from nnbackend.program.table import Program

#: Sizes of batches whose plans are kept.
KEPT = 8


class CompiledExecutor(Executor):
    """Runs programs of built-in layers and losses in compiled code, without the GIL."""

    how = "compiled"
    ops = MixedExecutor.ops
    mixed: ClassVar[type[Executor]] = MixedExecutor

    def __init__(self, program: Program, backend: NumbaBackend) -> None:
        self.program = program
        self.compiled = CompiledTable(program, backend)
        self._inferences = Inferences(self.compiled)
        #: the plans used last, and those of other sizes of batch, which have their memory in common
        self._training: Training | None = None
        self._trainings: dict[int, Training] = {}
        self._driven: DrivenContext | None = None
        self._driven_by_rows: dict[int, DrivenContext] = {}
        self._workspace: Array = None
        self._capacity = 0
        self._updates = Updates(program, backend)
        backend.runtime.threads.watch(self)

    @property
    def takes_sparse_rows(self) -> bool:
        return bool(self.program.rows[0].op == Op.DENSE)

    def use_threads(self, most: int) -> None:
        self.compiled.most_parts = most
        self.threads_changed()

    def threads_changed(self) -> None:
        """Plan anew: ``set_num_threads`` was called, or this is a forked child."""
        self._training, self._driven = None, None
        self._trainings.clear()
        self._driven_by_rows.clear()
        self._inferences.forget()

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
        if plan is None:
            return None
        loss = plan.step(x, y, number, weight)
        if loss is None and self._is_of_another_size(x, plan):
            return self._plan(len(x)).step(x, y, number, weight)
        return loss

    def gradient(self, data: Data, step: int = 0) -> float:
        rows = len(data.x)
        trace = self._plan(rows).run(Run(data, None, rows, np.zeros(1), step), trains=False)
        return total_loss(self.program, trace[0])

    def differentiate(self, run: Run) -> Trace:
        return self._plan(run.batch_size).run(run, trains=False, part=True)

    def gradient_of(self, x: Any, y: Any, number: int, weight: Any) -> float | None:
        plan = self._training
        if plan is None:
            return None
        loss = plan.gradient(x, y, number, weight)
        if loss is None and self._is_of_another_size(x, plan):
            return self._plan(len(x)).gradient(x, y, number, weight)
        return loss

    def _is_of_another_size(self, x: Any, plan: Training) -> bool:
        """Whether there is a plan for these rows, and it is not the one used last."""
        return (
            type(x) is np.ndarray
            and x.ndim == 2
            and len(x) != plan.batch
            and len(x) in self._trainings
        )

    def _plan(self, batch: int) -> Training:
        before = self._training
        if before is not None and before.batch == batch:
            return before
        plan = self._trainings.get(batch)
        if plan is None:
            plan = Training(self.compiled, batch, self.compiled.step_parts(batch), before)
            if before is not None and plan.capacity > before.capacity:
                self._trainings.clear()  # or each would hold memory of its own
            _keep(self._trainings, batch, plan)
        self._training = plan
        return plan

    # -- driven from outside ------------------------------------------------------------------

    def forward(self, x: Array, number: int) -> Array:
        driven = self._driven = self._driven_by_rows.get(len(x)) or self._make_driven(len(x))
        return driven.forward(x, number)

    def _make_driven(self, rows: int) -> DrivenContext:
        if rows > self._capacity:
            self._capacity = -(-rows // 16) * 16
            size = self._capacity * self.program.workspace_width
            self._workspace = self.program.backend.zeros(size, self.program.dtype)
            self._driven_by_rows.clear()
        driven = DrivenContext(self.compiled, rows, self._workspace, self._capacity)
        _keep(self._driven_by_rows, rows, driven)
        return driven

    def forward_of(self, x: Any, number: int) -> Array | None:
        driven = self._driven
        if driven is None or x.__class__ is not np.ndarray or x.dtype is not driven.dtype:
            return None
        out = driven.forward_of(x, number)
        if (
            out is None
            and x.ndim == 2
            and len(x) in self._driven_by_rows
            and len(x) != driven.batch
        ):
            driven = self._driven = self._driven_by_rows[len(x)]
            out = driven.forward_of(x, number)
        return out

    def backward_of(self, dy: Any, dx: Array | None, penalties: bool) -> bool:
        driven = self._driven
        if driven is None or dy.__class__ is not np.ndarray or dy.dtype is not driven.dtype:
            return False
        return bool(dy.flags.c_contiguous) and driven.backward_of(dy, dx, penalties)

    def backward(self, dy: Array, dx: Array | None, penalties: bool) -> None:
        driven = self._driven
        if driven is None:
            raise DataError(NO_FORWARD)
        driven.dy[...] = dy
        driven.backward(dx, penalties)

    def apply(self, rate: float, number: int) -> bool:
        optimizer, driven = self.program.optimizer, self._driven
        if driven is None or optimizer is None or self.program.storage.trained == 0:
            return self._updates.apply(rate, number)
        return driven.apply(optimizer, rate, number)

    # -- inference ------------------------------------------------------------------------

    def evaluate(self, data: Data) -> Trace:
        return self._inferences.evaluate(data)

    def predict(self, x: Array, out: Array) -> None:
        self._inferences.predict(x, out)

    def call(self, x: Any) -> Array | None:
        return self._inferences.call(x)


def _keep(plans: dict[int, Any], batch: int, plan: Any) -> None:
    """Have room for one more, in place of the oldest one."""
    if len(plans) >= KEPT:
        del plans[next(iter(plans))]
    plans[batch] = plan
