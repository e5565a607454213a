"""Consecutive rows of a program in compiled code, driven from outside: forward, then back."""

from __future__ import annotations

import numpy as np

from nnbackend.backends.numba.executor.table import CompiledTable, StepContext
from nnbackend.backends.numba.runtime import address_of
from nnbackend.backends.types import Array
from nnbackend.executor.rows import Mode
from nnbackend.kernels.codes import TRACE_PENALTY
from nnbackend.optimizers import Optimizer

_USUAL = Mode()


class DrivenContext(StepContext):
    """Rows of a program for batches of ``batch`` rows.

    Attributes:
        output: (batch, O), where ``forward`` leaves the outputs.
        dy: (batch, O), where ``backward`` expects the gradient by them; it writes there.
    """

    def __init__(self, table: CompiledTable, batch: int, workspace: Array, capacity: int) -> None:
        """``workspace`` holds the program's outputs for up to ``capacity`` rows."""
        super().__init__(table, batch, table.step_parts(batch))
        f, c = self.f, self.c
        deltas = self.program.backend.zeros(capacity * table.deltas_width, self.dtype)
        self.set_buffers({c.WORKSPACE: workspace, c.DELTAS: deltas}, capacity)
        self._one_rate, self._one_trace = np.zeros(1), np.zeros((1, table.trace_width))
        f[c.RATES], f[c.TRACE] = address_of(self._one_rate), address_of(self._one_trace)
        f[c.N_STEPS], f[c.KEEPS], f[c.N_DATA] = 1, 1, batch
        f[c.BATCH_SIZE] = f[c.ORDER_ROWS] = batch
        # the table where gradients go all the way down
        self._down = table.table.copy()
        self._down[:, c.NEEDS_DX] = 1
        width, last = table.n_outputs, table.rows[-1]
        self.output = self._part(workspace, last.output, width)
        self.dy = self._part(deltas, table.deltas_width - width, width)
        self._x: Array | None = None
        #: which tables the context has now: those all the way down, with penalties
        self._tables = (False, True)
        self._no_dx = np.empty((0, 0), self.dtype)
        self._places = address_of(self.output), address_of(self.dy)
        calls, fork = self.calls, self.parts > 1
        self._forward = self.unit.driver(calls.fork_forward if fork else calls.forward)
        self._backward = self.unit.driver(calls.fork_backward if fork else calls.backward)
        self._apply = self.unit.driver(calls.fork_apply if fork else calls.apply)

    def _part(self, flat: Array, offset: int, width: int) -> Array:
        start = offset * self.capacity
        return flat[start : start + self.batch * width].reshape(self.batch, width)

    def forward(self, x: Array, number: int, mode: Mode = _USUAL) -> Array:
        """Outputs in training mode, a view that the next pass overwrites; ``number`` decides the
        dropout masks."""
        f, c = self.f, self.c
        self._x = x  # read again on the backward pass
        f[c.X], f[c.FIRST_STEP], f[c.TRAINS] = address_of(x), number, int(mode.moves_statistics)
        f[c.FIRST_ROW], f[c.CHECKS] = mode.first_row, 0
        f[c.MODE], f[c.FIRST_PHASE], f[c.STATUS] = c.FORWARD, 0, 0
        f[c.N_PHASES] = self.table.last_forward + 1
        self.call()
        return self.output

    def backward(self, dx: Array | None, penalties: bool = False) -> None:
        """The gradient of every parameter from ``dy``, and ``dx`` (batch, I) if it is wanted."""
        self._go_back(dx, penalties, None)

    def update(self, optimizer: Optimizer, rate: float, number: int) -> bool:
        """The same with penalties, and the update of the parameters while their gradient is in
        the cache; False if the gradient is not finite, and then they stay finite."""
        self._one_rate[0], self.f[self.c.FIRST_STEP] = rate, number
        self._go_back(None, True, optimizer)
        return bool(self.f[self.c.STATUS] == 0)

    @property
    def penalty(self) -> float:
        """The penalties of the last backward pass that had them."""
        return float(self._one_trace[0, TRACE_PENALTY])

    def _go_back(self, dx: Array | None, penalties: bool, optimizer: Optimizer | None) -> None:
        f, c, table = self.f, self.c, self.table
        self.set_optimizer(optimizer, optimizer is not None)
        self._set_tables(dx is not None, penalties)
        f[c.DX] = address_of(dx)
        f[c.MODE], f[c.FIRST_PHASE], f[c.STATUS] = c.BACKWARD, table.last_forward, 0
        f[c.N_PHASES] -= table.last_forward
        self.call()

    def _set_tables(self, down: bool, penalties: bool) -> None:
        if (down, penalties) == self._tables:
            return
        f, c, table = self.f, self.c, self.table
        f[c.TABLE] = address_of(self._down if down else table.table)
        f[c.FIRST_TRAINED] = 0 if down else table.first_trained
        f[c.FLOATS] = address_of(table.floats if penalties else table.plain_floats)
        self._tables = (down, penalties)

    # -- straight from a caller's arrays, checked in compiled code --------------------------------

    def forward_of(self, x: Array, number: int) -> Array | None:
        """``forward`` of rows of the right dtype, its outputs in a new array; None, and nothing
        has moved, if they have not the expected shape and order or are not finite."""
        out = np.empty((self.batch, self.table.n_outputs), self.dtype)
        if not self._forward(self.function, self.address, x, out, self._places[0], number):
            return None
        self._x = x
        return out

    def backward_of(self, dy: Array, dx: Array | None, penalties: bool) -> bool:
        """``backward`` from a gradient of the right dtype; False if it has not the expected shape
        or is not finite."""
        self._set_tables(dx is not None, penalties)
        dx = self._no_dx if dx is None else dx
        done: bool = self._backward(self.function, self.address, dy, self._places[1], dx)
        return done

    def apply(self, optimizer: Optimizer, rate: float, number: int) -> bool:
        """One update from the flat gradient; False if it is not finite."""
        if optimizer.changes != self.settings_seen:
            self.set_optimizer(optimizer, True)
        clips = int(optimizer.clip_norm is not None)
        done: bool = self._apply(self.function, self.address, rate, number, clips)
        return done
