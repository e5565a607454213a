"""Random orders of rows, the same on every backend: rows sorted by random numbers.

A shuffle swaps one row after another, which a GPU cannot do. So each row gets a 64-bit word of
Philox4x64-10, as NumPy's generator of that name gives them, and the rows are sorted by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Words of a block of Philox.
BLOCK_WORDS = 4
#: A device may sort 2^SPARE_BITS orders of up to 2^SPARE_ROW_BITS rows at once, by a key that
#: begins with the order's number: so many bits of the random word are not used.
SPARE_BITS, SPARE_ROW_BITS = 12, 20

Orders = np.ndarray[Any, np.dtype[np.int64]]


def blocks_of(rows: int) -> int:
    """Blocks of random words that an order takes."""
    return -(-rows // BLOCK_WORDS)


def bits_of(rows: int) -> tuple[int, int]:
    """Bits that hold a row's number, and bits that are spared for an order's."""
    low = (rows - 1).bit_length()
    return low, SPARE_BITS if low <= SPARE_ROW_BITS else 0


def draw_orders(out: Orders, key: int, block: int) -> None:
    """Fill ``out`` as ``Backend.random_orders`` says."""
    count, rows = out.shape
    low, spare = bits_of(rows)
    halves = np.array([key & (1 << 64) - 1, key >> 64], np.uint64)
    # NumPy moves the counter on before it makes a block
    generator = np.random.Philox(key=halves, counter=block)
    words = generator.random_raw(count * blocks_of(rows) * BLOCK_WORDS).reshape(count, -1)
    keys = out.view(np.uint64)
    np.bitwise_and(words[:, :rows], np.uint64(-(1 << low + spare) & (1 << 64) - 1), out=keys)
    keys |= np.arange(rows, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64((1 << low) - 1)
