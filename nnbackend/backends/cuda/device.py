"""What the CUDA backend asks of one GPU.

``cupy_device.CupyDevice`` is it over CuPy; the tests bring one that runs the same kernels on the
CPU.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from nnbackend.backends.cuda.gemm import Product
from nnbackend.backends.cuda.kernels import Launch
from nnbackend.backends.cuda.tuning import TuningCache
from nnbackend.backends.types import Array, DType
from nnbackend.backends.uploads import Uploads


class Device(ABC):
    """What the backend asks of one device. Everything is ordered as it was asked for, but for what
    is asked for ``beside``."""

    name: str
    #: which of several ways are the fastest here
    tuning: TuningCache
    #: held by whoever captures, and by whoever must not come between launches of others
    lock: threading.RLock
    #: blocks of THREADS threads that keep it busy
    most_blocks: int
    #: blocks with a lot of shared memory that run at the same time
    multiprocessors: int
    #: bytes of shared memory that a block may be given, and blocks that may share theirs
    shared_bytes: int
    cluster_blocks: int

    @abstractmethod
    def owns(self, x: object) -> bool:
        """Whether ``x`` is an array on this device."""

    @abstractmethod
    def adopt(self, data: Any) -> Array | None:
        """An array that another library keeps on a GPU, without a copy; None for host data.

        Raises:
            DeviceError: it lies on another device.
        """

    @abstractmethod
    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        """A new array of zeros.

        Raises:
            OutOfMemoryError: with the bytes asked for, and those that are free.
        """

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory that new arrays may take."""

    @abstractmethod
    def from_host(self, x: np.ndarray[Any, Any]) -> Array:
        """A copy of a C-contiguous host array."""

    @abstractmethod
    def make_uploads(self) -> Uploads:
        """A way to copy to the device while it works."""

    @abstractmethod
    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        """A copy on the host; waits for it."""

    @abstractmethod
    def sort(self, x: Array) -> None:
        """Put the numbers of a contiguous array (N,) in ascending order."""

    @abstractmethod
    def compile(self, dtype: DType, definitions: str = "") -> None:
        """Compile and load the kernels of a dtype, or the one of ``definitions``, before they are
        launched."""

    @abstractmethod
    def launch(self, launch: Launch) -> None:
        """Run a kernel on blocks of THREADS threads."""

    @abstractmethod
    def prepare(self, launch: Launch) -> Callable[..., None]:
        """A function that does the launch with other numbers in place of its first arguments, as
        many as it is given, and none of them an array. Not to be called by two threads at once."""

    @abstractmethod
    def supports(self, product: Product) -> bool:
        """Whether there is a way to do the product's epilogue with it."""

    @abstractmethod
    def product(self, product: Product) -> None:
        """Multiply."""

    @abstractmethod
    def side_stream(self) -> AbstractContextManager[None]:
        """What is asked for inside waits for everything before, and may run beside what is asked
        for afterwards, until ``join``."""

    @abstractmethod
    def join(self) -> None:
        """What is asked for from now on waits for what runs beside, if anything does."""

    @abstractmethod
    def time(self, work: Callable[[], None], captured: bool = True) -> float:
        """How long the device takes for ``work``, which must be fit to be captured if it is to be
        measured without the host's share."""

    @abstractmethod
    def address(self, x: Array) -> int:
        """Where an array's numbers lie."""

    @abstractmethod
    def enqueue(self, call: Callable[[int], object]) -> None:
        """Have another library put work on the stream, whose address ``call`` is given; it may be
        captured."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` asks for, which is not done now: a function that does it all at once, any
        number of times, with the same arrays and numbers. ``work`` must only launch and multiply,
        and nothing for the first time."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for everything that was asked for."""
