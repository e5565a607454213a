"""Updates that ranks divide: each sums up its part of the gradient, updates these parameters, and
sends them to the others. The bytes that are sent are those of one sum over the whole gradient."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from nnbackend.distributed.ranks import Ranks
from nnbackend.executor.updates import Updates
from nnbackend.program.table import Program

#: Parts begin at multiples of so many elements, a line of the cache in any dtype.
MULTIPLE = 16


class PartUpdates:
    """Updates of this rank's part of the parameters.

    The optimizer's vectors are up to date in this part alone until ``finish``.
    """

    def __init__(self, program: Program, ranks: Ranks) -> None:
        self.program, self.comm = program, ranks.comm
        backend, storage = program.backend, program.storage
        size, trained = ranks.size, storage.trained
        cuts = [trained * rank // size // MULTIPLE * MULTIPLE for rank in range(size)] + [trained]
        self.counts = [last - first for first, last in pairwise(cuts)]
        starts = [0, *accumulate(self.counts)]
        self._part = slice(starts[ranks.rank], starts[ranks.rank + 1])
        self._gradients = storage.gradients[:trained]
        self._own = backend.zeros(self.counts[ranks.rank], program.dtype)
        self._updates = Updates(program, backend, self._part, self._own)
        self._faults = backend.zeros(1, program.dtype)

    @classmethod
    def of(cls, program: Program, ranks: Ranks) -> PartUpdates | None:
        """None where ranks do not divide updates: bits must be exact, there is little to update,
        or penalties are added to the whole gradient."""
        large = program.storage.trained >= MULTIPLE * ranks.size
        on_host = isinstance(program.storage.parameters, np.ndarray)
        if ranks.exact or not (ranks.comm.scatters and large and on_host) or program.penalties:
            return None
        return cls(program, ranks)

    def fits(self) -> bool:
        """Whether the optimizer's settings ask for nothing about the whole gradient."""
        optimizer = self.program.optimizer
        return optimizer is not None and optimizer.is_built_in and optimizer.clip_norm is None

    def apply(self, rate: float, number: int) -> bool:
        """One step of the optimizer; False on all ranks, and nothing is updated, if the gradient
        is not finite."""
        self.comm.reduce_scatter(self._gradients, self.counts, self._own)
        self._faults[...] = not self._updates.is_finite()
        self.comm.all_reduce(self._faults)
        if self._faults[0]:
            return False
        with np.errstate(all="ignore"):
            self._updates.update(rate, number)
        self.comm.all_gather(self.program.storage.parameters[: len(self._gradients)], self.counts)
        return True

    def finish(self, gradient: bool) -> None:
        """Give all ranks the optimizer's vectors and, if it is wanted, the last gradient."""
        for slot in self.program.slots:
            self.comm.all_gather(slot, self.counts)
        if gradient:
            self._gradients[self._part] = self._own
            self.comm.all_gather(self._gradients, self.counts)
