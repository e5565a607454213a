"""The orders in which epochs take their rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.orders import blocks_of
from nnbackend.backends.types import Array

_INT64 = np.dtype(np.int64)
#: Random numbers begin again after so many blocks.
MOST_BLOCKS = 1 << 62


@dataclass
class Orders:
    """Random orders of rows, one after another; see ``Backend.random_orders``.

    Attributes:
        key: of the random numbers, 128 bits.
        block: where the next order's random numbers begin.
    """

    key: int
    block: int = 0

    @classmethod
    def seeded(cls, sequence: np.random.SeedSequence) -> Orders:
        low, high = sequence.generate_state(2, np.uint64)
        return cls(int(low) | int(high) << 64)

    def take(self, backend: Backend, count: int, n_rows: int) -> Array:
        """The next orders (count, n_rows) int64, on the device."""
        orders = backend.empty((count, n_rows), _INT64)
        backend.random_orders(orders, self.key, self.block)
        self.block = (self.block + count * blocks_of(n_rows)) % MOST_BLOCKS
        return orders
