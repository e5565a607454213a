"""Whole steps of a program in compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.backends.numba.executor.table import CompiledTable, StepContext
from nnbackend.backends.numba.runtime import address_of
from nnbackend.backends.types import Array
from nnbackend.executor.base import Run, SparseRows, Trace, not_finite_step

_INT64, _INT32 = np.dtype(np.int64), np.dtype(np.int32)


class Training(StepContext):
    """A context for training with batches of ``batch`` rows."""

    def __init__(
        self, table: CompiledTable, batch: int, parts: int, before: Training | None
    ) -> None:
        super().__init__(table, batch, parts)
        c, program, dtype = self.c, self.program, self.dtype
        if before is not None and before.capacity >= batch:
            self.set_buffers(before.buffers, before.capacity)
        else:
            zeros, capacity = program.backend.zeros, self.capacity
            buffers = {
                c.WORKSPACE: zeros(capacity * program.workspace_width, dtype),
                c.DELTAS: zeros(capacity * table.deltas_width, dtype),
                c.TARGET_GATHERED: zeros(capacity * program.n_outputs, dtype),
                c.LABELS_GATHERED: zeros(capacity, _INT32),
                c.WEIGHT_GATHERED: zeros(capacity, dtype),
            }
            self.set_buffers(buffers, capacity)
        self.one_rate, self.one_trace = np.zeros(1), np.zeros((1, table.trace_width))
        self._once = self.unit.driver(self.calls.fork_step if parts > 1 else self.calls.step)
        #: how a caller's own targets may look: their dtype and the field of their address
        self._own_target: tuple[Any, int] = (None, 0)
        self._weight: Any = None
        self._trains = True

    def run(self, run: Run, trains: bool = True, part: bool = False) -> Trace:
        """Train, or only take the gradient of one batch; of a part of one, without penalties."""
        f, c, program = self.f, self.c, self.program
        data, order, rows, steps = run.data, run.order, run.n_rows, len(run.rates)
        if isinstance(data.x, SparseRows) and order is None:
            epochs = -(-steps // -(-rows // run.batch_size))
            order = np.tile(np.arange(rows), epochs)  # compiled code takes such rows by number
        rates = np.ascontiguousarray(run.rates, dtype=np.float64)
        trace = np.zeros((steps, self.table.trace_width))
        self.set_optimizer(program.optimizer, trains)
        labels = data.target.ndim == 1
        self._set_rows(data.x, order is not None)
        f[c.LABELS] = address_of(data.target) if labels else 0
        f[c.TARGET] = 0 if labels else address_of(data.target)
        f[c.LABELS_64], f[c.WEIGHT] = 0, address_of(data.weight)
        f[c.ORDER], f[c.ORDER_ROWS] = address_of(order), rows
        f[c.BATCH_SIZE], f[c.N_STEPS] = min(run.batch_size, rows), steps
        f[c.FIRST_STEP], f[c.FIRST_ROW] = run.first_step, run.first_row
        self.numbers[c.BATCH_WEIGHT] = run.batch_weight
        f[c.FLOATS] = address_of(self.table.plain_floats if part else self.table.floats)
        f[c.RATES], f[c.TRACE] = address_of(rates), address_of(trace)
        f[c.CHECKS], f[c.KEEPS], f[c.STATUS] = 0, int(run.keep_gradient), 0
        self.call()
        if f[c.STATUS] == c.NOT_FINITE:
            trace[f[c.STEP] - run.first_step :] = np.nan
        self._own_target = (None, 0)
        if order is None and steps == 1 and not part:
            self._expect_own(rows, labels)
        self._trains = trains
        return trace

    def _set_rows(self, x: Any, gathers: bool) -> None:
        """Where the rows lie, and where those that an order names are copied to."""
        f, c = self.f, self.c
        f[c.N_DATA] = len(x)
        if isinstance(x, SparseRows):
            f[c.X], f[c.X_COLUMNS] = address_of(x.values), address_of(x.columns)
            f[c.X_STARTS] = address_of(x.starts)
            return
        f[c.X], f[c.X_STARTS] = address_of(x), 0
        if gathers:
            if c.X_GATHERED not in self.buffers:
                size = self.capacity * self.program.n_inputs
                self.buffers[c.X_GATHERED] = self.program.backend.zeros(size, self.dtype)
            f[c.X_GATHERED] = address_of(self.buffers[c.X_GATHERED])

    # -- a caller's own batch, straight from its arrays ------------------------------------------

    def _expect_own(self, rows: int, labels: bool) -> None:
        """After a checked step: take the next batch of the same kind as it comes."""
        f, c = self.f, self.c
        f[c.BATCH_SIZE] = f[c.ORDER_ROWS] = f[c.N_DATA] = rows
        f[c.LABELS] = f[c.TARGET] = f[c.LABELS_64] = f[c.WEIGHT] = f[c.ORDER] = 0
        f[c.N_STEPS], f[c.CHECKS], f[c.KEEPS] = 1, 1, 1
        f[c.RATES], f[c.TRACE] = address_of(self.one_rate), address_of(self.one_trace)
        self._weight = None
        if labels:
            self._own_target = (_INT64, c.LABELS_64)
        else:
            self._own_target = (self.dtype, c.TARGET)

    def step(self, x: Any, y: Any, number: int, weight: Any = None) -> Array | None:
        """One update on a caller's arrays, checked in compiled code; None where they need other
        checks, or are no arrays."""
        loss = self._single(x, y, number, weight, True)
        if loss is None or loss == loss:
            return None if loss is None else np.array(loss)
        if self.f[self.c.STATUS] == self.c.NOT_FINITE:
            raise not_finite_step(number)
        return None

    def gradient(self, x: Any, y: Any, number: int, weight: Any) -> float | None:
        """The loss and its gradient, likewise."""
        loss = self._single(x, y, number, weight, False)
        return None if self.f[self.c.STATUS] == self.c.REFUSED else loss

    def _single(self, x: Any, y: Any, number: int, weight: Any, trains: bool) -> float | None:
        target_dtype, field = self._own_target
        if target_dtype is None or type(x) is not np.ndarray or type(y) is not np.ndarray:
            return None
        if x.dtype is not self.dtype or not x.flags.c_contiguous:
            if x.dtype.kind != "f" or x.ndim != 2:
                return None
            x = _converted(x, self.dtype)
        if y.dtype is not target_dtype or not y.flags.c_contiguous:
            if y.dtype.kind not in ("iu" if target_dtype is _INT64 else "f"):
                return None
            y = _converted(y, target_dtype)
        if weight is not self._weight and not self._take_weight(weight):
            return None
        optimizer = self.program.optimizer
        if optimizer is None:
            return None
        if optimizer.changes != self.settings_seen or trains is not self._trains:
            if len(optimizer.slots) != len(self.program.slots):
                return None
            self.set_optimizer(optimizer, trains)
            self._trains = trains
        rate = self.fixed_rate
        if rate is None:
            rate = float(optimizer.rates(number, 1)[0])
        loss: float = self._once(self.function, self.address, x, y, field, number, rate)
        return loss

    def _take_weight(self, weight: Any) -> bool:
        """Use these weights of the rows, or none; False if they need other checks."""
        f, c = self.f, self.c
        if weight is not None:
            if type(weight) is not np.ndarray or weight.dtype.kind != "f":
                return False
            if weight.shape != (f[c.BATCH_SIZE],):
                return False
            weight = _converted(weight, self.dtype)
            # neither negative nor infinite nor NaN, which compare as nothing
            if not (weight.min() >= 0 and weight.max() <= np.finfo(self.dtype).max):
                return False
        # held: compiled code has its address; and the caller may change it, so it is never "seen"
        self._held, self._weight = weight, None if weight is None else _NEVER
        f[c.WEIGHT] = address_of(weight)
        return True


_NEVER = object()


def _converted(array: Any, dtype: np.dtype[Any]) -> Any:
    """The same numbers in ``dtype`` and rows one after the other; what overflows is found later."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, dtype)
