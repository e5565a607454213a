"""Batches that a run has, and rows to measure with."""

from __future__ import annotations

from collections.abc import Iterator

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.executor.base import Data


def example_rows(data: Data, rows: int, backend: CudaBackend) -> Data:
    """So many rows of the same form, to be measured with: what is found must not depend on how
    many rows a run happens to have."""
    like = (None if a is None else (rows, *a.shape[1:]) for a in data)
    made = (
        None if a is None or shape is None else backend.zeros(shape, a.dtype)
        for a, shape in zip(data, like, strict=True)
    )  # fmt: skip
    return Data(*made)


def batch_sizes(rows: int, batch: int, steps: int) -> Iterator[tuple[int, int]]:
    """Sizes of the batches to come, each with how many follow each other."""
    full, rest = divmod(rows, batch)
    if not rest:
        yield batch, steps
        return
    while steps > 0:
        yield batch, min(full, steps)
        if steps > full:
            yield rest, 1
        steps -= full + 1


def padded(rows: int) -> int:
    """So many rows or at most a quarter more: whoever asks for any number meets few of these."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step
