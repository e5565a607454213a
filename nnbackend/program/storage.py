"""The flat vectors of a model: parameters, gradients and state, each one array on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, DType

#: What is trained and decayed, trained only, neither, or not a parameter at all.
Group = Literal["weight", "bias", "frozen", "state"]


class ArraySpec(NamedTuple):
    """An array that a layer has, by the layer's number in the model."""

    layer: int
    name: str
    shape: tuple[int, ...]
    group: Group


class Segment(NamedTuple):
    """Where an array of a layer lies in a flat vector."""

    layer: int
    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def key(self) -> str:
        """Its name in a model file."""
        return f"layers.{self.layer}.{self.name}"

    def of(self, flat: Array) -> Array:
        """This part of ``flat``, in its shape."""
        return flat[self.offset : self.offset + self.size].reshape(self.shape)


class Storage:
    """The flat vectors of a model, of which the layers' arrays are views.

    Order of the parameters: trained weights, other trained values (biases, norms), frozen ones.
    Only the first two have optimizer state, only the first are decayed.

    Attributes:
        parameters, gradients: (P,).   state: (S,), not trained.
        watched: the state where whoever is refused a step can go back to a copy of it; None where
            there is none, and on a GPU, where nobody waits for a refusal.
        decayed, trained: lengths of the leading parts of ``parameters``.
        segments: of the parameters.   state_segments: of the state.
    """

    def __init__(self, specs: Sequence[ArraySpec], backend: Backend, dtype: DType) -> None:
        self.backend, self.dtype = backend, dtype
        end, ends = 0, []
        self.segments: list[Segment] = []
        for group in ("weight", "bias", "frozen"):
            segments, end = self._laid_out(specs, group, end)
            self.segments += segments
            ends.append(end)
        self.decayed, self.trained, total = ends
        self.state_segments, state_end = self._laid_out(specs, "state", 0)
        self.parameters = backend.zeros(total, dtype)
        self.gradients = backend.zeros(total, dtype)
        self.state = backend.zeros(state_end, dtype)
        self.watched = self.state if state_end and isinstance(self.state, np.ndarray) else None

    def _laid_out(
        self, specs: Sequence[ArraySpec], group: str, end: int
    ) -> tuple[list[Segment], int]:
        """Places for the arrays of a group, each aligned, and where they end."""
        step = max(1, self.backend.alignment // self.dtype.itemsize)
        segments = []
        for spec in specs:
            if spec.group == group:
                segments.append(Segment(spec.layer, spec.name, end, spec.shape))
                end += -(-segments[-1].size // step) * step
        return segments, end

    @property
    def key(self) -> tuple[tuple[Segment, ...], tuple[Segment, ...], int]:
        """What is where: two storages with the same key hold arrays of the same layers."""
        return tuple(self.segments), tuple(self.state_segments), self.trained

    def trained_segments(self) -> Iterator[Segment]:
        """Of the parameters that have optimizer state."""
        return (segment for segment in self.segments if segment.offset < self.trained)
