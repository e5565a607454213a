"""What is summed over the rows of a batch: all of them, or those of one rank of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nnbackend.backends.types import Array


class SharedBatch(NamedTuple):
    """A batch that ranks share.

    Attributes:
        rows: of all ranks.
        counts: rows of each rank, where they are not a matter of ``rows``. A captured operation
            between ranks meets those of the same step on all ranks, so that all capture a step
            when one does.
        add: array (n,) = the sum of every rank's, in place, as a part of a captured step.
    """

    rows: int
    counts: tuple[int, ...]
    add: Callable[[Array], None]


class SharedNorm(NamedTuple):
    """A batch norm over a batch that ranks share.

    Attributes:
        batch: that batch.
        sums: (2, N) float64, of all ranks' rows while the norm goes forward, or back.
    """

    batch: SharedBatch
    sums: Array


class LossSums(NamedTuple):
    """Sums over a batch in parts, one of each block. Valid until the next operation.

    Attributes:
        loss: of the weighted losses of rows.
        hits: of the weights of rows whose class is guessed right; None if they were not wanted.
        blocks: number of parts.
        weight: (1,) sum of the weights; None for ones.
    """

    loss: Array
    hits: Array | None
    blocks: int
    weight: Array | None
