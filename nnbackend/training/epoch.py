"""An epoch in progress, and how its steps are run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.data.prefetch import BlocksAhead
from nnbackend.data.sources import ArraySource
from nnbackend.distributed.ranks import Ranks
from nnbackend.executor.base import Run, Trace, Trains
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
        executor: Trains,
        source: ArraySource,
        batch_size: int,
        n_rows: int,
        ranks: Ranks | None = None,
    ) -> None:
        """``n_rows`` are used in an epoch."""
        self.program, self.executor = program, executor
        self.source, self.batch_size, self.n_rows = source, batch_size, n_rows
        self.ranks = ranks

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
        first_step = epoch.first_step + first
        if self.ranks is not None and source.data is None:
            own_rows = partial(self._own, self.ranks, epoch)
            own = blocks.get(own_rows(rows), own_rows(following) if then else None)
            n_shared = stop - start
            return self.executor.run(
                Run(own, None, self.batch_size, rates, first_step, n_shared=n_shared)
            )
        if epoch.order is None:
            data = blocks.get(rows, following if then else None)
        elif source.data is None:
            data = blocks.get(epoch.order[rows], epoch.order[following] if then else None)
        else:
            data = source.data
            order = epoch.order[None, rows]
        # a gradient that nobody can look at need not be written to memory
        ends = stop == self.n_rows
        return self.executor.run(Run(data, order, self.batch_size, rates, first_step, ends))

    def _own(self, ranks: Ranks, epoch: Epoch, rows: slice) -> np.ndarray[Any, Any]:
        """This rank's rows of each batch of an epoch's ``rows``, which nobody else reads."""
        own = [
            np.arange(first + start, last + start)
            for start in range(rows.start, rows.stop, self.batch_size)
            for first, last in ranks.blocks(min(self.batch_size, rows.stop - start))
        ]
        places = np.concatenate([np.zeros(0, np.int64), *own])
        return places if epoch.order is None else epoch.order[places]
