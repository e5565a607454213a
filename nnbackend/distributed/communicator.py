"""What ranks say to each other: four operations, which MPI, NCCL or a library of yours offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from nnbackend._types import HostArray
from nnbackend.backends.types import Array


class Communicator(ABC):
    """The ranks of a training: processes that each hold the whole model and a share of the rows.

    Every rank calls the same operations in the same order. An operation that cannot be completed,
    because a rank died or does something else, raises ``RankError``; it must not wait for ever.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        captures: whether ``add_in_order_of_stream`` can be part of a step that a GPU captures.
    """

    rank: int
    size: int
    captures: ClassVar[bool] = False

    @abstractmethod
    def all_reduce(self, array: Array) -> None:
        """array (n,) = the sum of every rank's, in place, with the same bits on all ranks. It is
        of the model's dtype and on the model's device."""

    @abstractmethod
    def broadcast(self, array: Array, root: int = 0) -> None:
        """array (n,) = that of the rank ``root``, in place; as for ``all_reduce``."""

    @abstractmethod
    def gather(self, array: HostArray) -> list[HostArray]:
        """Every rank's array (n,), in the order of the ranks, on every rank. The arrays are on
        the host, of one dtype, and may differ in length."""

    @abstractmethod
    def barrier(self) -> None:
        """Return when every rank has called this."""

    def add_in_order_of_stream(self, array: Array) -> None:
        """As ``all_reduce``, in the order of the device's work and without waiting for anybody on
        the host, for communicators that have it: see ``captures``."""
        raise NotImplementedError

    def abort(self, code: int) -> None:
        """End this process and all other ranks at once, where that can be done."""
        return

    def lose_step(self, reason: str) -> None:
        """This rank has left operations out that the others make; it may refuse all that come."""
        return


class Alone(Communicator):
    """The communicator of a process that was started by itself."""

    rank, size = 0, 1

    def all_reduce(self, array: Array) -> None:
        return

    def broadcast(self, array: Array, root: int = 0) -> None:
        return

    def gather(self, array: HostArray) -> list[HostArray]:
        return [array.copy()]

    def barrier(self) -> None:
        return
