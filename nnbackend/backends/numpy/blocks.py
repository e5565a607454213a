"""Cutting arrays into pieces that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

#: Elements of a block with temporaries: 64 KiB of float32.
BLOCK = 16384


def slices(size: int, length: int) -> Iterator[slice]:
    """Slices of at most ``length`` that cover ``range(size)``."""
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def row_slices(rows: int, width: int) -> Iterator[slice]:
    """Slices of whole rows, about BLOCK elements each."""
    return slices(rows, max(1, BLOCK // max(1, width)))
