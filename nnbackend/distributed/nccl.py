"""A communicator over NCCL, for arrays on GPUs, one for each rank; MPI brings the ranks together.

Not run on several GPUs yet: it is checked on the stand-in of the tests, and on one GPU alone.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.cuda.arrays import CudaArrays
from nnbackend.backends.types import Array
from nnbackend.distributed.communicator import Communicator
from nnbackend.errors import DeviceError

INSTALL = 'pip install "nnbackend[nccl]"'
#: NCCL's communicators, kept to the end of the process: one that is taken down waits for every
#: graph that has captured it.
_KEPT: list[Any] = []
_TYPES = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64"}


class NcclCommunicator(Communicator):
    """Over CuPy's NCCL, on the device's stream.

    Before an operation that is not part of a captured step, ranks meet on the host, where one that
    is gone is noticed: NCCL itself would wait for it for ever.

    Args:
        host: brings the ranks together, and moves what is on the host.
        backend: of the models, on this rank's own GPU.
        library: a module such as ``cupy.cuda.nccl``; None takes that one.
    """

    captures: ClassVar[bool] = True

    def __init__(self, host: Communicator, backend: CudaArrays, library: Any = None) -> None:
        self.host, self.backend = host, backend
        self.rank, self.size = host.rank, host.size
        self._nccl = import_nccl() if library is None else library
        own = self._nccl.get_unique_id() if self.rank == 0 else b""
        identity = host.gather(np.frombuffer(own, np.uint8))[0].tobytes()
        # on the GPU that is the current one
        backend.gpu.enqueue(lambda _: self._make(identity))

    def _make(self, identity: bytes) -> None:
        self._comm = self._nccl.NcclCommunicator(self.size, identity, self.rank)
        _KEPT.append(self._comm)

    def all_reduce(self, array: Array) -> None:
        self.host.barrier()
        self._start("allReduce", array, self._nccl.NCCL_SUM)

    def add_in_order_of_stream(self, array: Array) -> None:
        self._start("allReduce", array, self._nccl.NCCL_SUM)

    def broadcast(self, array: Array, root: int = 0) -> None:
        self.host.barrier()
        self._start("broadcast", array, root)

    def gather(self, array: HostArray) -> list[HostArray]:
        return self.host.gather(array)

    def barrier(self) -> None:
        self.host.barrier()

    def lose_step(self, reason: str) -> None:
        self.host.lose_step(reason)

    def abort(self, code: int) -> None:
        self.host.abort(code)

    def _start(self, operation: str, array: Array, choice: int) -> None:
        gpu, name = self.backend.gpu, self.backend.dtype_of(array).name
        if not self.backend.owns(array) or name not in _TYPES:
            raise DeviceError(
                f"this communicator moves arrays on {self.backend.device}; received one elsewhere. "
                f"Give the model backend={self.backend.device!r}"
            )
        kind, address = getattr(self._nccl, _TYPES[name]), gpu.address(array)
        work = getattr(self._comm, operation)
        gpu.enqueue(lambda stream: work(address, address, array.size, kind, choice, stream))


def import_nccl() -> Any:
    """``cupy.cuda.nccl``.

    Raises:
        ImportError: CuPy finds no NCCL; it says how to install one.
    """
    try:
        library = importlib.import_module("cupy.cuda.nccl")
        library.get_version()
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ImportError(f"ranks on GPUs need NCCL: {INSTALL} ({error})") from error
    return library
