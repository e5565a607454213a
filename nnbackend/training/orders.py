"""The orders in which epochs take their rows, drawn ahead while a device is busy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

Order = np.ndarray[Any, np.dtype[np.int64]]


class _Drawn(NamedTuple):
    """Orders (count, n_rows), and the generator's state before each, and after the last one."""

    orders: Order
    states: list[dict[str, Any]]


class Orders:
    """What ``generator.permutation(n_rows)`` gives, one order after another.

    Shuffling takes about 50 ns per row on the host: as long as training a small network on a GPU.
    With ``pool``, a copy of the generator draws the next orders meanwhile. The generator itself
    is never ahead: a model file keeps its state.
    """

    def __init__(
        self, generator: np.random.Generator, n_rows: int, pool: ThreadPoolExecutor | None = None
    ) -> None:
        self.generator, self.n_rows, self._pool = generator, n_rows, pool
        self._next: Future[_Drawn] | None = None
        self._ready: _Drawn | None = None
        self._ended = False

    @classmethod
    @contextmanager
    def of(cls, generator: np.random.Generator, n_rows: int, ahead: bool) -> Iterator[Orders]:
        """
        Args:
            ahead: whether the host is idle while a device works.
        """
        if not ahead:
            yield cls(generator, n_rows)
            return
        with ThreadPoolExecutor(1, "nnbackend-orders") as pool:
            orders = cls(generator, n_rows, pool)
            try:
                yield orders
            finally:
                orders._ended = True  # nobody waits for what is being drawn

    def take(self, count: int) -> Order:
        """The next orders (count, n_rows)."""
        bits, drawn = self.generator.bit_generator, self._drawn_ahead()
        if drawn is None:
            return self._shuffled(self.generator, count)
        used = 0
        if drawn.states[0] == bits.state:  # nobody has set it back
            used = min(count, len(drawn.states) - 1)
            bits.state = drawn.states[used]
            self._ready = _Drawn(drawn.orders[used:], drawn.states[used:])
        if used == count:
            return drawn.orders[:count]
        rest = self._shuffled(self.generator, count - used)
        return np.concatenate([drawn.orders[:used], rest])

    def draw_ahead(self, count: int) -> None:
        """Begin to draw the orders that the next ``take`` will ask for, if they can be drawn in
        the background."""
        there = 0 if self._ready is None else len(self._ready.orders)
        if self._pool is not None and count > there:
            # refused where the main thread has ended, and another one still trains
            with suppress(RuntimeError):
                self._next = self._pool.submit(self._draw, copy.deepcopy(self.generator), count)

    def _drawn_ahead(self) -> _Drawn | None:
        if self._next is not None:
            self._ready, self._next = self._next.result(), None
        return self._ready

    def _draw(self, generator: np.random.Generator, count: int) -> _Drawn:
        orders: list[Order] = []
        states = [dict(generator.bit_generator.state)]
        while len(orders) < count and not self._ended:
            orders.append(self._shuffled(generator, 1))
            states.append(dict(generator.bit_generator.state))
        return _Drawn(np.concatenate(orders or [self._shuffled(generator, 0)]), states)

    def _shuffled(self, generator: np.random.Generator, count: int) -> Order:
        orders = np.tile(np.arange(self.n_rows), (count, 1))
        for order in orders:
            generator.shuffle(order)  # what permutation(n_rows) does
        return orders
