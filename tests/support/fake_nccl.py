"""NCCL's part that the communicator uses, for stand-in devices in threads of one process."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from cuda_stand_in import CURRENT

NCCL_FLOAT32, NCCL_FLOAT64 = 7, 8
NCCL_SUM = 0
_NUMBERS = {NCCL_FLOAT32: (ctypes.c_float, 4), NCCL_FLOAT64: (ctypes.c_double, 8)}


class _Meeting:
    def __init__(self, size: int) -> None:
        self.places: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)


_meetings: dict[bytes, _Meeting] = {}
_lock = threading.Lock()
_made = 0


def get_version() -> int:
    return 22700


def get_unique_id() -> bytes:
    global _made
    with _lock:
        _made += 1
        return _made.to_bytes(128, "big")


class NcclCommunicator:
    """A rank; operations meet those of the other ranks with the same id."""

    def __init__(self, size: int, identity: bytes, rank: int) -> None:
        if not isinstance(identity, bytes):  # as CuPy 14 does
            raise TypeError(f"commId has incorrect type (expected bytes, got {type(identity)})")
        assert len(identity) == 128
        self.device = getattr(CURRENT, "device", None)
        assert self.device is not None, "it would be made on whatever device is the current one"
        with _lock:
            self._meeting = _meetings.setdefault(identity, _Meeting(size))
        self.rank, self.operations = rank, 0
        self._graphs: list[Any] = []

    def _exchange(self, value: Any) -> list[Any]:
        assert CURRENT.device is self.device
        self._meeting.places[self.rank] = value, self._way()
        self._meeting.barrier.wait(60)
        everyone = [value for value, _ in self._meeting.places]
        ways = {way for _, way in self._meeting.places}
        self._meeting.barrier.wait(60)
        assert len(ways) == 1, f"a graph's operations meet those of the same graph: {ways}"
        return everyone

    def _way(self) -> int | None:
        """Which graph this operation is a part of, None if it is part of none."""
        graph = self.device.replayed
        if graph is None:
            return None
        if not any(graph is known for known in self._graphs):
            self._graphs.append(graph)
        return next(i for i, known in enumerate(self._graphs) if graph is known)

    def allReduce(  # noqa: N802 as CuPy calls it
        self, send: int, receive: int, count: int, kind: int, operation: int, stream: int
    ) -> None:
        self.operations += 1
        everyone = self._exchange(_numbers(send, count, kind).copy())
        assert operation == NCCL_SUM
        _numbers(receive, count, kind)[:] = sum(everyone)

    def broadcast(
        self, send: int, receive: int, count: int, kind: int, root: int, stream: int
    ) -> None:
        self.operations += 1
        _numbers(receive, count, kind)[:] = self._exchange(_numbers(send, count, kind).copy())[root]


def _numbers(address: int, count: int, kind: int) -> Any:
    of, _ = _NUMBERS[kind]
    return np.ctypeslib.as_array((of * count).from_address(address))
