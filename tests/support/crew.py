"""Ranks that are threads of one process, for tests of what ranks compute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.ma

from nnbackend.distributed import Communicator
from nnbackend.errors import RankError

T = TypeVar("T")


class _Meeting:
    """Where threads put what they have, and take what all have."""

    def __init__(self, size: int) -> None:
        self.places: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)

    def exchange(self, rank: int, value: Any, timeout: float) -> list[Any]:
        try:
            self.places[rank] = value
            self.barrier.wait(timeout)
            everyone = list(self.places)
            self.barrier.wait(timeout)
        except threading.BrokenBarrierError:
            raise RankError("a rank did not come") from None
        return everyone


class ThreadCommunicator(Communicator):
    """One of ``size`` threads that meet."""

    def __init__(self, rank: int, size: int, meeting: _Meeting, timeout: float = 60.0) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self._meeting = meeting

    def all_reduce(self, array: Any) -> None:
        array[...] = sum(self._meeting.exchange(self.rank, array.copy(), self.timeout))

    def broadcast(self, array: Any, root: int = 0) -> None:
        array[...] = self._meeting.exchange(self.rank, array.copy(), self.timeout)[root]

    def gather(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return self._meeting.exchange(self.rank, array.copy(), self.timeout)

    def barrier(self) -> None:
        self._meeting.exchange(self.rank, None, self.timeout)


def together(size: int, work: Callable[[Communicator], T], timeout: float = 60.0) -> list[T]:
    """What ``work`` returns on each of ``size`` ranks; the first rank's error, if there is one."""
    meeting = _Meeting(size)

    def on_rank(rank: int) -> T:
        try:
            return work(ThreadCommunicator(rank, size, meeting, timeout))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(on_rank, rank) for rank in range(size)]
    errors = [future.exception() for future in futures]
    own = [e for e in errors if e is not None and "did not come" not in str(e)]
    for error in [*own, *errors]:
        if error is not None:
            raise error
    return [future.result() for future in futures]
