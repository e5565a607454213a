"""Going back to the end of an epoch: after Ctrl-C, or when a loss is not finite.

If nothing runs between epochs, the state is copied only now and then; the epochs after the copy
are trained again, exactly, up to the last good one.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.data.prefetch import BlocksAhead
from nnbackend.executor.base import Trace
from nnbackend.kernels.codes import TRACE_SUMS
from nnbackend.program.table import Program
from nnbackend.training.epoch import ChunkRunner, Epoch
from nnbackend.training.state import TrainingState

#: How often the state is copied, where nothing looks on.
SNAPSHOT_SECONDS = 1.0


class Snapshot(NamedTuple):
    """Copies of everything that training changes, at the boundary of an epoch."""

    arrays: list[Array]
    step: int
    epoch: int
    order_block: int  #: the model's ``orders.block``

    @classmethod
    def take(
        cls,
        program: Program,
        step: int,
        epoch: int,
        order_block: int,
        before: Snapshot | None = None,
    ) -> Snapshot:
        """``before`` is no longer needed: its memory is reused."""
        if before is None:
            arrays = [program.backend.copy(array) for array in program.changing_arrays()]
            return cls(arrays, step, epoch, order_block)
        for kept, array in zip(before.arrays, program.changing_arrays(), strict=True):
            kept[...] = array
        return cls(before.arrays, step, epoch, order_block)

    def restore(self, program: Program, state: TrainingState) -> None:
        for array, copy in zip(program.changing_arrays(), self.arrays, strict=True):
            array[...] = copy
        state.step, state.epoch = self.step, self.epoch
        state.orders.block = self.order_block


class Fault(NamedTuple):
    """Where values became NaN or infinite: the step of the epoch, from 1, and the state before
    the epoch."""

    epoch: Epoch
    step: int
    good: Snapshot


class Recovery:
    """The last snapshot of a training run, and the epochs since."""

    def __init__(self, program: Program, state: TrainingState) -> None:
        self.program, self.state = program, state
        self.snapshot: Snapshot | None = None
        self.epochs: list[Epoch] = []
        self._time = 0.0

    def keep(self, looked_on: bool) -> Snapshot:
        """At the start of an epoch: save the state if the last snapshot is old, or if something
        runs between epochs. The last snapshot, new or not."""
        now = time.perf_counter()
        if self.snapshot is None or looked_on or now - self._time > SNAPSHOT_SECONDS:
            state = self.state
            self.snapshot = Snapshot.take(
                self.program, state.step, state.epoch, state.orders.block, self.snapshot
            )
            self._time = now
            self.epochs = []
        return self.snapshot

    def forget(self, runner: ChunkRunner, unfinished: Epoch, chunk_steps: int) -> None:
        """Undo an interrupted epoch, so that the model is where its history ends and training
        can continue as if nothing had happened."""
        self.restore()
        blocks = BlocksAhead(runner.source)
        for epoch in self.epochs:
            if epoch is unfinished:
                break
            rates = np.concatenate(epoch.rates)
            for first in range(0, len(rates), chunk_steps):
                runner.run(blocks, epoch, first, rates[first : first + chunk_steps])
        self.state.step, self.state.epoch = unfinished.first_step, unfinished.number
        self.state.orders.block = unfinished.order_block

    def find_fault(self, runner: ChunkRunner, failing: Epoch) -> Fault:
        """Train the epochs since the snapshot again to find where it broke."""
        good = self.restore()
        for epoch in self.epochs:
            good = Snapshot.take(self.program, epoch.first_step, epoch.number, epoch.order_block)
            step = self._bad_step(runner, epoch)
            if step is not None:
                return Fault(epoch, step, good)
            if epoch is failing:
                break
        # not repeatable: a user-written layer with a random generator of its own, for example
        return Fault(failing, failing.steps_done + 1, good)

    def restore(self) -> Snapshot:
        """Go back to the snapshot."""
        if self.snapshot is None:
            raise AssertionError("a snapshot is taken before the first step")
        self.snapshot.restore(self.program, self.state)
        return self.snapshot

    def _bad_step(self, runner: ChunkRunner, epoch: Epoch) -> int | None:
        """Repeat an epoch step by step; the first bad step, counted from 1, or None."""
        rates, blocks = np.concatenate(epoch.rates), BlocksAhead(runner.source)
        for step in range(len(rates)):
            trace = runner.run(blocks, epoch, step, rates[step : step + 1])
            if not is_finite(trace) or not parameters_finite(self.program):
                return step + 1
        return None


def is_finite(trace: Trace) -> bool:
    """Whether the losses of a trace are finite."""
    return bool(np.isfinite(trace[:, :TRACE_SUMS]).all())


def parameters_finite(program: Program) -> bool:
    """Whether parameters, state and the optimizer's vectors are finite."""
    return all(program.backend.all_finite(array) for array in program.changing_arrays())
