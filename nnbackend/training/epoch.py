"""An epoch in progress, and how its steps are run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.data.prefetch import BlocksAhead
from nnbackend.data.sources import ArraySource
from nnbackend.executor.base import Executor, Run, Trace
from nnbackend.program.table import Program


@dataclass(slots=True)
class Epoch:
    """An epoch in progress or done: what is needed to train it again, and its trace so far.

    Attributes:
        order: of the rows, int64, on the device; on the host if the data stays there.
        order_block: the model's ``orders.block`` before it.
    """

    number: int
    order: Array | None
    order_block: int
    first_step: int
    rates: list[np.ndarray[Any, Any]] = field(default_factory=list)
    trace: list[Trace] = field(default_factory=list)
    steps_done: int = 0
    start: float = field(default_factory=time.perf_counter)


class ChunkRunner:
    """Has the executor run some steps of an epoch over arrays."""

    def __init__(
        self,
        program: Program,
        executor: Executor,
        source: ArraySource,
        batch_size: int,
        n_rows: int,
    ) -> None:
        """``n_rows`` are used in an epoch."""
        self.program, self.executor = program, executor
        self.source, self.batch_size, self.n_rows = source, batch_size, n_rows

    def run(
        self,
        blocks: BlocksAhead,
        epoch: Epoch,
        first: int,
        rates: np.ndarray[Any, Any],
        then: int = 0,
    ) -> Trace:
        """Run the steps from number ``first`` on, one for each rate; ``then`` more follow."""
        source = self.source
        start = first * self.batch_size
        stop = min(start + len(rates) * self.batch_size, self.n_rows)
        end = min(stop + then * self.batch_size, self.n_rows)
        order, rows, following = None, slice(start, stop), slice(stop, end)
        if epoch.order is None:
            data = blocks.get(rows, following if then else None)
        elif source.data is None:
            data = blocks.get(epoch.order[rows], epoch.order[following] if then else None)
        else:
            data = source.data
            order = epoch.order[None, rows]
        # a gradient that nobody can look at need not be written to memory
        ends = stop == self.n_rows
        first_step = epoch.first_step + first
        return self.executor.run(Run(data, order, self.batch_size, rates, first_step, ends))
