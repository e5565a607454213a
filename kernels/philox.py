"""Philox4x32-10: random bits as a pure function of a key and a counter.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC11 (2011). Any backend gets the same bits, in any order, from any thread.
"""

from __future__ import annotations

from typing import Any

ROUNDS = 10
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
MASK = 0xFFFFFFFF


def philox_words(xp: Any, first: Any, stream: int, seed: int) -> tuple[Any, Any, Any, Any]:
    """The four 32-bit words of each counter.

    Args:
        xp: the array module: any that has ``full_like`` and integers that wrap around.
        first: uint64 (or int64) array, shape (N,), the counters' first words, each below 2**32.
        stream: 96 bits, the counters' other three words, lowest first.
        seed: 64 bits, the key.

    Returns:
        Four arrays of that type, shape (N,), of values below 2**32.
    """
    x0 = first
    x1, x2, x3 = (xp.full_like(first, (stream >> shift) & MASK) for shift in (0, 32, 64))
    key0, key1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(ROUNDS):
        product0, product1 = x0 * MULTIPLIER_0, x2 * MULTIPLIER_1
        # the mask is for int64, whose sign is shifted in
        x0 = ((product1 >> 32) & MASK) ^ x1 ^ key0
        x1 = product1 & MASK
        x2 = ((product0 >> 32) & MASK) ^ x3 ^ key1
        x3 = product0 & MASK
        key0, key1 = (key0 + WEYL_0) & MASK, (key1 + WEYL_1) & MASK
    return x0, x1, x2, x3
