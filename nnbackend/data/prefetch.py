"""Blocks of data, copied to a device while it works on the previous block."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from nnbackend.backends.types import Array, DType
from nnbackend.backends.uploads import Uploads
from nnbackend.executor.base import Data

Rows = slice | np.ndarray[Any, Any]


class BlockSource(Protocol):
    """Rows that can be read a block at a time."""

    def block(self, rows: Rows) -> Data:
        """Some rows on the device, in the order asked for."""

    def host_block(self, rows: Rows) -> list[tuple[np.ndarray[Any, Any], DType]]:
        """The same on the host, each array with its dtype on the device."""

    def uploads(self) -> Uploads | None:
        """What copies blocks to the device while it works, if that is worthwhile here."""


class _Fetch(NamedTuple):
    rows: Rows
    slot: int
    arrays: Future[list[Array]]


class BlocksAhead:
    """The blocks of a source, each read and copied by a thread while the previous one is in use.

    A block is valid until the next one is asked for. If data is used in place, or without a
    thread, blocks are read when they are asked for.
    """

    def __init__(
        self,
        source: BlockSource,
        uploads: Uploads | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.source, self._uploads, self._pool = source, uploads, pool
        self._next: _Fetch | None = None
        self._slot = 0

    @classmethod
    @contextmanager
    def of(cls, source: BlockSource) -> Iterator[BlocksAhead]:
        uploads = source.uploads()
        if uploads is None:
            yield cls(source)
            return
        with ThreadPoolExecutor(1, "nnbackend-blocks") as pool:
            yield cls(source, uploads, pool)

    @property
    def fetches(self) -> bool:
        """Whether it helps to say which block comes next."""
        return self._pool is not None

    def get(self, rows: Rows, then: Rows | None = None) -> Data:
        """The block of ``rows`` on the device; meanwhile that of ``then`` is prepared."""
        if self._uploads is None or self._pool is None:
            return self.source.block(rows)
        fetch = self._next
        if fetch is None or not _same(fetch.rows, rows):
            fetch = self._start(rows, self._uploads, self._pool)
        arrays = fetch.arrays.result()
        self._uploads.arrive(fetch.slot)
        self._next = None if then is None else self._start(then, self._uploads, self._pool)
        return Data(*arrays)

    def _start(self, rows: Rows, uploads: Uploads, pool: ThreadPoolExecutor) -> _Fetch:
        slot, self._slot = self._slot, (self._slot + 1) % uploads.SLOTS
        uploads.release(slot)
        try:
            arrays = pool.submit(self._read, rows, slot, uploads)
        except RuntimeError:  # the main thread has ended, and another one still trains
            arrays = Future()
            arrays.set_result(self._read(rows, slot, uploads))
        return _Fetch(rows, slot, arrays)

    def _read(self, rows: Rows, slot: int, uploads: Uploads) -> list[Array]:
        return uploads.start(self.source.host_block(rows), slot)


def _same(one: Rows, other: Rows) -> bool:
    if isinstance(one, slice) or isinstance(other, slice):
        return isinstance(one, slice) and isinstance(other, slice) and one == other
    return np.array_equal(one, other)
