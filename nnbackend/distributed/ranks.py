"""How ranks share the rows of a batch, and add up and compare what each has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from nnbackend._types import HostArray
from nnbackend.distributed.communicator import Communicator
from nnbackend.errors import DataError, RankError, shown
from nnbackend.executor.base import Data
from nnbackend.program.table import Program

#: Blocks that ``exact`` divides a batch into, whatever the number of ranks.
EXACT_BLOCKS = 16
#: A block begins at a multiple of so many rows, so that dropout's random numbers, four of which are
#: made at a time, begin anew.
ROW_MULTIPLE = 4

#: First and last + 1 of some rows.
Block = tuple[int, int]


class BatchOfRanks(NamedTuple):
    """This rank's rows of a batch, the place of the first one in it, and how many each rank has."""

    data: Data
    place: int
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Of all ranks."""
        return sum(self.counts)


class Ranks:
    """The ranks of one ``fit``, ``evaluate`` or ``predict``.

    Args:
        exact: divide batches into the same blocks whatever the number of ranks, and add in the
            order of the blocks, so that results have the same bits.
        sharded: each rank has rows of its own; else each has all rows.
    """

    def __init__(self, comm: Communicator, exact: bool = False, sharded: bool = False) -> None:
        self.comm, self.exact, self.sharded = comm, exact, sharded
        self.rank, self.size = comm.rank, comm.size
        self._blocks = EXACT_BLOCKS if exact else comm.size
        first, last = (self._blocks * rank // self.size for rank in (self.rank, self.rank + 1))
        self._own = range(first, last)

    # -- rows ---------------------------------------------------------------------------------

    def blocks(self, rows: int) -> list[Block]:
        """This rank's blocks of so many rows; blocks without rows are left out."""
        found = (self._block(rows, number) for number in self._own)
        return [block for block in found if block[0] < block[1]]

    def all_have_rows(self, rows: int) -> bool:
        """Whether every block of so many rows has some."""
        return -(-rows // ROW_MULTIPLE) >= self._blocks

    @property
    def most_blocks(self) -> int:
        """Most blocks that this rank can have."""
        return len(self._own)

    def _block(self, rows: int, number: int) -> Block:
        units = -(-rows // ROW_MULTIPLE)
        first, last = (units * n // self._blocks * ROW_MULTIPLE for n in (number, number + 1))
        return min(rows, first), min(rows, last)

    # -- adding -------------------------------------------------------------------------------

    def gather_blocks(self, values: HostArray) -> HostArray:
        """The values (k, ...) of this rank's k blocks, and those of all blocks (n, ...)."""
        parts = self.comm.gather(np.ascontiguousarray(values).reshape(-1))
        return np.concatenate(parts).reshape(-1, *values.shape[1:])

    def add(self, values: HostArray) -> HostArray:
        """The sum over all blocks (...), of the values (k, ...) of this rank's k blocks, in the
        order of the blocks."""
        return added(self.gather_blocks(values))

    # -- batches of which each rank has a part of its own -----------------------------------------

    def batches(self, program: Program, blocks: Iterable[Data]) -> Iterator[BatchOfRanks]:
        """Batches that are each the next of ``blocks`` on every rank; until all ranks have had
        theirs, those that are through take part without rows."""
        left, rows = iter(blocks), 0
        while True:
            data = next(left, None)
            own = 0 if data is None else len(data.x)
            weighted = data is not None and data.weight is not None
            parts = self.comm.gather(np.array([own, int(weighted), int(data is not None)]))
            counts = tuple(int(part[0]) for part in parts)
            if not any(part[2] for part in parts):
                break
            if not any(counts):
                continue
            rows += sum(counts)
            place = sum(-(-count // ROW_MULTIPLE) * ROW_MULTIPLE for count in counts[: self.rank])
            data = _with_weights(program, data, any(part[1] for part in parts))
            yield BatchOfRanks(data, place, counts)
        if not rows:
            raise DataError("no rank has a batch; the iterables must give at least one (x, y)")

    # -- agreeing -----------------------------------------------------------------------------

    def gather_objects(self, value: Any) -> list[Any]:
        """What every rank has, which JSON can hold."""
        own = np.frombuffer(json.dumps(value).encode(), np.uint8)
        return [json.loads(part.tobytes()) for part in self.comm.gather(own)]

    def agree_on_chunk(self, steps: int, interrupted: bool) -> tuple[int, bool]:
        """The next chunk's length, that of rank 0, and whether any rank was interrupted."""
        parts = self.comm.gather(np.array([steps, int(interrupted)]))
        return int(parts[0][0]), any(bool(part[1]) for part in parts)

    def agree_on_end(self, stopped: str | None, program: Program) -> str | None:
        """After an epoch: why a rank stops, the first of them, if one does.

        Raises:
            RankError: a rank has other parameters, or another learning rate.
        """
        backend, optimizer = program.backend, program.optimizer
        total = float(backend.to_numpy(backend.total(program.storage.parameters)))
        rate = None if optimizer is None else repr(optimizer.lr)
        self.check_alike({"parameters that add up to": repr(total), "a learning rate of": rate})
        reasons = self.gather_objects(stopped)
        return next((reason for reason in reasons if reason is not None), None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank inside, where no rank waits for another, fails on all.

        Raises:
            RankError: on the others, with that rank's message.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        messages = self.gather_objects(None if failed is None else str(failed))
        if failed is not None:
            raise failed
        for rank, message in enumerate(messages):
            if message is not None:
                raise RankError(f"rank {rank}: {message}", (rank,))

    def check_alike(self, settings: Mapping[str, Any]) -> None:
        """Refuse ranks that differ, by a hash; then the first difference is named.

        Raises:
            RankError: rank, name and both values.
        """
        text = json.dumps(settings, default=str)
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if all(np.array_equal(other, digest) for other in self.comm.gather(digest)):
            return
        everyone = self.gather_objects(json.loads(text))
        first = everyone[0]
        for rank, other in enumerate(everyone):
            for name in {**first, **other}:
                if other.get(name) != first.get(name):
                    raise RankError(
                        f"all ranks must do the same with the same: rank {rank} has {name} "
                        f"{shown(other.get(name))}, rank 0 has {shown(first.get(name))}"
                        f"{_HINTS.get(name, '')}",
                        (rank,),
                    )


def _with_weights(program: Program, data: Data | None, weighted: bool) -> Data:
    """Rows, none if there are none, with weights if other ranks have such."""
    zeros, dtype = program.backend.zeros, program.dtype
    if data is None:
        data = Data(zeros((0, program.n_inputs), dtype), zeros((0, program.n_outputs), dtype))
    if not weighted or data.weight is not None:
        return data
    return data._replace(weight=zeros(len(data.x), dtype) + dtype.type(1))


_HINTS = {
    "seed": ". Without a seed each process draws its own; pass seed= to the model",
    "data": " (of x, y and weights). If every rank has rows of its own, pass sharded=True",
    "rows": ". If every rank has rows of its own, pass sharded=True",
}


def added(values: HostArray) -> HostArray:
    """The sum over the first axis, one after another."""
    total = np.zeros(values.shape[1:], values.dtype)
    for part in values:
        total += part
    return total
