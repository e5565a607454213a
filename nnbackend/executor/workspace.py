"""Memory that the passes of a training step share."""

from __future__ import annotations

from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data
from nnbackend.executor.rows import Mode
from nnbackend.program.table import Program


class Workspace:
    """Buffers of a training step for up to ``capacity`` rows."""

    def __init__(self, program: Program, backend: Backend, capacity: int) -> None:
        dtype = program.dtype
        self.capacity = capacity
        self.flat = backend.zeros(capacity * program.workspace_width, dtype)
        self.x = backend.zeros((capacity, program.n_inputs), dtype)
        # dy of a row and dx for the row before it: two buffers take turns
        self.gradients = [backend.zeros(capacity * program.gradient_width, dtype) for _ in "ab"]
        self.weight = backend.zeros(capacity, dtype)
        self.targets: Array = None
        self.mode = Mode()

    def part(self, offset: int, rows: int, width: int) -> Array:
        """(rows, width) at ``offset`` elements per row of the batch."""
        start = offset * self.capacity
        return self.flat[start : start + rows * width].reshape(rows, width)

    def gather(self, backend: Backend, data: Data, idx: Array, place: int = 0) -> Data:
        """The rows ``idx`` of ``data``, copied here, from row ``place`` on."""
        own = self._own(backend, data, place, len(idx))
        for source, target in zip(data, own, strict=True):
            if source is not None:
                backend.take_rows(source, idx, target)
        return own

    def take(self, backend: Backend, data: Data, place: int) -> None:
        """Copy all rows of ``data`` here, from row ``place`` on."""
        for source, target in zip(data, self._own(backend, data, place, len(data.x)), strict=True):
            if source is not None:
                target[...] = source

    def data(self, rows: int, weighted: bool) -> Data:
        """The first rows of what was copied here."""
        weight = self.weight[:rows] if weighted else None
        return Data(self.x[:rows], self.targets[:rows], weight)

    def _own(self, backend: Backend, data: Data, place: int, rows: int) -> Data:
        """Places for so many rows of the form of ``data``."""
        targets, rest = self.targets, tuple(data.target.shape[1:])
        if targets is None or (tuple(targets.shape[1:]), targets.dtype) != (
            rest, data.target.dtype
        ):  # fmt: skip
            self.targets = backend.zeros((self.capacity, *rest), backend.dtype_of(data.target))
        some = slice(place, place + rows)
        weight = None if data.weight is None else self.weight[some]
        return Data(self.x[some], self.targets[some], weight)
