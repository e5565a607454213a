"""Training steps that ranks share: each takes the gradient of its rows, one sum makes it that of
the batch, and every rank makes the same update."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.distributed.plan import BlockedPlan, placed
from nnbackend.distributed.ranks import BatchOfRanks, Block, Ranks
from nnbackend.errors import DataError
from nnbackend.executor.base import Data, Executor, Rates, Run, Trace
from nnbackend.executor.loss import add_penalties
from nnbackend.executor.updates import Updates
from nnbackend.executor.workspace import Workspace
from nnbackend.kernels.codes import TRACE_PENALTY, TRACE_SUMS
from nnbackend.program.table import Program

_FLOAT64 = np.dtype(np.float64)
#: Numbers of a block's gradient that are gathered at a time.
GATHERED = 1 << 20
#: Batches whose rows are remembered, at most.
SEEN = 64


class SharedTraining:
    """Runs training steps whose batches are shared by ranks.

    Attributes:
        pace: as of an executor.
    """

    def __init__(self, program: Program, executor: Executor, ranks: Ranks) -> None:
        """``executor`` takes the gradient of this rank's rows."""
        self.program, self.executor, self.ranks = program, executor, ranks
        self.backend, storage = program.backend, program.storage
        self.pace: tuple[int, float] | None = None
        self._gradients = storage.gradients[: storage.trained]
        self._updates = Updates(program, program.backend)
        self._penalty = program.backend.zeros((), _FLOAT64)
        self._workspace: Workspace | None = None
        self._plans: dict[tuple[int, tuple[Block, ...]], BlockedPlan] = {}
        #: how many rows each rank had in batches before
        self._seen: set[tuple[int, ...]] = set()
        #: whether a step that is not captured goes layer by layer
        self._blocked = ranks.exact or program.couples_rows
        if ranks.exact and program.own_layers:
            raise DataError(
                "exact=True takes gradients block by block, which layers written in Python cannot "
                "do; train without it"
            )

    def prepare(self, batch_size: int, data: Data | None) -> None:
        """Compile what the training needs."""
        if not (self._blocked or self._captures()):
            self.executor.prepare(max(1, _rows_in(self.ranks.blocks(batch_size))), data)

    def run(self, run: Run) -> Trace:
        """As ``Executor.run``, over batches of all ranks; each takes its blocks of every batch,
        which are the next rows of ``run.data`` where it has this rank's alone."""
        parts = list(self._divided(run))
        traces, penalties = self._new_traces(len(parts)), np.zeros(len(parts))
        captured = self._captures()
        index = 0
        while index < len(parts):
            together = list(takewhile(self._all_have_rows, parts[index:])) if captured else []
            if together:
                some = slice(index, index + len(together))
                captured_steps = [(part, rows) for part, _, rows in together]
                traces[0, some], penalties[some] = self._run_captured(captured_steps)
                index += len(together)
                continue
            part, blocks, rows = parts[index]
            # of many steps, whoever reads the trace looks at the parameters
            goes_on, penalties[index] = self._step(
                part, blocks, rows, traces[:, index], len(parts) == 1
            )
            if not goes_on:
                traces[:, index:] = np.nan
                break
            index += 1
        return self._joined(traces, penalties)

    def _divided(self, run: Run) -> Iterator[tuple[Run, list[Block], int]]:
        """For each step: this rank's rows, its blocks of the batch, and the batch's rows."""
        total = run.n_rows if run.n_shared is None else run.n_shared
        steps_per_epoch, done = -(-total // run.batch_size), 0
        most = max(1, _rows_in(self.ranks.blocks(run.batch_size)))
        for index in range(len(run.rates)):
            epoch, batch = divmod(index, steps_per_epoch)
            start = batch * run.batch_size
            rows = min(run.batch_size, total - start)
            blocks = self.ranks.blocks(rows)
            own, place = _rows_in(blocks), blocks[0][0] if blocks else 0
            first = done if run.n_shared is not None else start + place
            done += own
            data, order = run.data, None
            if run.order is None:
                data = data.rows(first, first + own)
            else:
                order = run.order[epoch : epoch + 1, first : first + own]
            rates = run.rates[index : index + 1]
            number = run.first_step + index
            part = Run(data, order, max(most, own), rates, number, first_row=place)
            yield part, blocks, rows

    def _captures(self) -> bool:
        """Whether the model's steps are such as a GPU captures whole, the sum over ranks within
        them."""
        if self.ranks.exact or self.program.optimizer is None:
            return False
        return self.ranks.comm.captures and self.executor.captures

    def _all_have_rows(self, step: tuple[Run, list[Block], int]) -> bool:
        return self.ranks.all_have_rows(step[2])

    def _comes_again(self, batch: BatchOfRanks) -> bool:
        """Whether every rank has rows, and each as many as in a batch before: to capture a step
        takes longer than the step."""
        again = batch.counts in self._seen
        if not again and all(batch.counts):
            if len(self._seen) >= SEEN:
                self._seen.clear()
            self._seen.add(batch.counts)
        return again

    def _run_captured(
        self, steps: list[tuple[Run, int]], counts: tuple[int, ...] = ()
    ) -> tuple[Any, Any]:
        """Traces (S, T) of this rank's rows, and the penalties; each step with its batch's rows.
        ``counts`` are those of each rank, where these do not follow from the batch's."""
        comm = self.ranks.comm
        trace = self.executor.run_shared(steps, comm.add_in_order_of_stream, counts)
        comm.barrier()  # all ranks have started theirs: the GPU does not wait for ever
        traces = self.backend.to_numpy(trace)
        penalties = traces[:, TRACE_PENALTY].copy()
        traces[:, TRACE_PENALTY] = 0.0
        return traces, penalties

    def run_own(self, batch: BatchOfRanks, rates: Rates, number: int) -> Trace:
        """One step over a batch of which each rank has any number of rows."""
        own = len(batch.data.x)
        blocks = [(batch.place, batch.place + own)] if own else []
        part = Run(batch.data, None, max(1, own), rates, number, first_row=batch.place)
        traces, penalties = self._new_traces(1), np.zeros(1)
        if self._captures() and self._comes_again(batch):
            traces[0], penalties = self._run_captured([(part, batch.rows)], batch.counts)
            return self._joined(traces, penalties)
        goes_on, penalties[0] = self._step(part, blocks, batch.rows, traces[:, 0], True)
        if not goes_on:
            traces[:] = np.nan
        return self._joined(traces, penalties)

    # -- a step -------------------------------------------------------------------------------

    def _step(
        self, part: Run, blocks: list[Block], rows: int, traces: Trace, looks: bool
    ) -> tuple[bool, float]:
        """One step; False if its gradient is not finite, where that is looked at, and the penalty.
        The blocks' traces are put into ``traces``."""
        part = part._replace(batch_weight=self._batch_weight(part, blocks, rows))
        if self._blocked:
            traces[: len(blocks)] = self._differentiate_blocks(part, blocks, rows)
        else:
            traces[: len(blocks)] = self._differentiate(part, blocks)
        if not self.ranks.exact:
            self.ranks.comm.all_reduce(self._gradients)
        penalty = 0.0
        if self.program.penalties:
            self._penalty[...] = 0
            add_penalties(self.program, rows, True, self._penalty)
            penalty = float(self.backend.to_numpy(self._penalty))
        rate, number = float(part.rates[0]), part.first_step
        if looks and self.program.optimizer is not None:
            return self._updates.apply(rate, number), penalty
        with np.errstate(all="ignore"):
            self._updates.update(rate, number)
        return True, penalty

    def _batch_weight(self, part: Run, blocks: list[Block], rows: int) -> float:
        """The sum of weights of the batch."""
        weight = part.data.weight
        if weight is None or not self.program.averages:
            return float(rows)
        if part.order is not None:
            own = self.backend.zeros(part.n_rows, self.program.dtype)
            self.backend.take_rows(weight, part.order[0], own)
            weight = own
        begin = blocks[0][0] if blocks else 0
        sums = [
            float(self.backend.to_numpy(self.backend.total(weight[first - begin : last - begin])))
            for first, last in blocks
        ]
        return float(self.ranks.add(np.array(sums)))

    def _differentiate(self, part: Run, blocks: list[Block]) -> Trace:
        """This rank's part of the batch's gradient; the traces of its blocks, one or none."""
        trace = np.zeros((0, self._trace_width))
        if blocks:
            trace = self.executor.differentiate(part)
            if not np.isfinite(trace[:, :TRACE_SUMS]).all():
                # every rank must see it; one number, since between the parameters' are others that
                # nothing overwrites
                self._gradients[:1] = np.nan
        else:
            self._gradients[...] = 0
        return trace

    def _differentiate_blocks(self, part: Run, blocks: list[Block], rows: int) -> Trace:
        """The same layer by layer, with all of this rank's blocks."""
        plan = self._plan(blocks, part.batch_size)
        traces = plan.differentiate(part, rows)
        if self.ranks.exact:
            self._add_in_order(plan.gradients)
        elif not blocks:
            self._gradients[...] = 0
        return traces

    def _add_in_order(self, gradients: list[Array]) -> None:
        """The flat gradient = the sum of all blocks', one after another."""
        backend, total = self.backend, self._gradients
        for start in range(0, len(total), GATHERED):
            part = slice(start, min(start + GATHERED, len(total)))
            own = np.zeros((len(gradients), part.stop - start), self.program.dtype)
            for k, gradient in enumerate(gradients):
                own[k] = backend.to_numpy(gradient[part])
            total[part] = backend.asarray(self.ranks.add(own), self.program.dtype)

    def _plan(self, blocks: list[Block], most: int) -> BlockedPlan:
        begin = blocks[0][0] if blocks else 0
        own = tuple((first - begin, last - begin) for first, last in blocks)
        key = self.program.changes, own
        plan = self._plans.get(key)
        if plan is None:
            rows = placed(blocks)[-1][1] if blocks else 0
            if self._workspace is None or self._workspace.capacity < rows:
                capacity = -(-max(rows, most) // 16) * 16
                self._workspace = Workspace(self.program, self.backend, capacity)
                self._plans.clear()
            if len(self._plans) >= 16:
                self._plans.pop(next(iter(self._plans)))
            plan = self._plans[key] = BlockedPlan(self.program, self.ranks, self._workspace, own)
        return plan

    # -- traces -------------------------------------------------------------------------------

    @property
    def _trace_width(self) -> int:
        return int(TRACE_SUMS) + self.program.n_sums

    def _new_traces(self, steps: int) -> np.ndarray[Any, Any]:
        """(k, steps, T) for the most blocks that this rank can have."""
        return np.zeros((max(1, self.ranks.most_blocks), steps, self._trace_width))

    def _joined(self, traces: np.ndarray[Any, Any], penalties: np.ndarray[Any, Any]) -> Trace:
        trace = self.ranks.add(traces)
        trace[:, TRACE_PENALTY] += penalties
        return trace


def _rows_in(blocks: list[Block]) -> int:
    return blocks[-1][1] - blocks[0][0] if blocks else 0
