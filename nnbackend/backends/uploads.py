"""Copies of host arrays to a device that work meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.types import Array, DType


class Uploads(ABC):
    """Host arrays on their way to a device while it works, each in one of SLOTS places."""

    #: one in use, one on its way
    SLOTS: ClassVar[int] = 2

    @abstractmethod
    def start(self, arrays: Sequence[tuple[np.ndarray[Any, Any], DType]], slot: int) -> list[Array]:
        """Copies of these arrays, converted, which are there after ``arrive(slot)``. May be called
        by a thread of its own; what was in the slot is overwritten."""

    @abstractmethod
    def arrive(self, slot: int) -> None:
        """Work that is asked for from now on waits for what was started in ``slot``."""

    @abstractmethod
    def release(self, slot: int) -> None:
        """What is started next in ``slot`` waits for the work that was asked for so far."""
