"""A communicator over MPI, for arrays on the CPU, that does not wait for ever."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.types import Array
from nnbackend.distributed.communicator import Communicator
from nnbackend.errors import DeviceError, RankError

INSTALL = 'pip install "nnbackend[mpi]"'
#: Looks at a request before the processor is given to other processes, and between looks at the
#: clock.
PATIENCE, LOOKS = 256, 512
#: How long ranks are waited for that have not answered, once it is known that somebody is missing.
ROLL_CALL_SECONDS = 2.0
#: How long mpiexec is given to pass on what was written, before it ends all processes.
OUTPUT_SECONDS = 0.3
#: How often those who wait look whether the ranks on their machine are alive.
DEATH_SECONDS = 1.0
#: Arrays up to this size are summed in a buffer that MPI was told of once: two copies take less
#: time than to tell it of the array.
SMALL_BYTES = 16384
#: Sizes of such arrays that are remembered, at most.
SMALL_SUMS = 32
_ROLL_CALL = 1

#: Give the processor to another process that is ready.
_let_others_run: Callable[[], None] = getattr(os, "sched_yield", partial(time.sleep, 0))


class MpiCommunicator(Communicator):
    """Over mpi4py, whose collective operations move the arrays.

    Args:
        comm: an ``mpi4py.MPI.Comm``; None takes all processes that ``mpiexec`` started.
        timeout: seconds after which an operation that other ranks have not joined raises
            ``RankError``, which names them; None waits for ever.
    """

    def __init__(self, comm: Any = None, timeout: float | None = 60.0) -> None:
        MPI = import_mpi()
        self._in_place = MPI.IN_PLACE
        self._abort = MPI.COMM_WORLD.Abort
        world = MPI.COMM_WORLD if comm is None else comm
        # two of our own: another library's messages are not taken for ours
        self._comm, self._calls = world.Dup(), world.Dup()
        self.rank, self.size, self.timeout = self._comm.rank, self._comm.size, timeout
        #: where each rank is: its host and process
        place = (socket.gethostname(), os.getpid())
        self.places: list[tuple[str, int]] = self._comm.allgather(place)
        here = [host for host, _ in self.places].count(socket.gethostname())
        # where ranks share processors, one that waits keeps another from working
        self._patience = PATIENCE if here <= (os.cpu_count() or 1) else 0
        self._broken: str | None = None
        # by shape and dtype: all ranks, whose calls are the same, make them at the same call
        self._small_sums: dict[tuple[Any, Any], tuple[HostArray, Any]] = {}
        self._persists = MPI.Get_version() >= (4, 0)  # has operations that can be begun again
        self._is_finalized = MPI.Is_finalized
        if self.size > 1:
            atexit.register(self._leave)

    # -- the four operations ------------------------------------------------------------------

    def all_reduce(self, array: Array) -> None:
        self._check_host(array)
        if self.size == 1:
            return
        small = self._small_sums.get((array.shape, array.dtype)) or self._new_small_sum(array)
        if small is None or self._broken is not None:
            self._complete("all_reduce", self._comm.Iallreduce, self._in_place, array)
            return
        buffer, request = small
        buffer[...] = array
        try:
            request.Start()
            self._wait("all_reduce", request)
        except BaseException as error:
            self._break_off("all_reduce", error)
            raise
        array[...] = buffer

    def broadcast(self, array: Array, root: int = 0) -> None:
        self._check_host(array)
        self._complete("broadcast", self._comm.Ibcast, array, root)

    def gather(self, array: HostArray) -> list[HostArray]:
        counts = np.empty(self.size, np.int64)
        own = np.array([array.size])
        self._complete("gather", self._comm.Iallgather, own, counts)
        everything = np.empty(int(counts.sum()), array.dtype)
        sizes, data = counts * array.itemsize, everything.view(np.uint8)
        sent = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if len(data):
            self._complete("gather", self._comm.Iallgatherv, sent, (data, sizes))
        return np.split(everything, np.cumsum(counts)[:-1])

    def barrier(self) -> None:
        self._complete("barrier", self._comm.Ibarrier)

    def lose_step(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason

    def _check_host(self, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            raise DeviceError(
                "a communicator over MPI moves arrays on the CPU, and this model is on a GPU; "
                'nn.distributed.init(backend="cuda") makes one over NCCL'
            )

    # -- sums of small arrays ---------------------------------------------------------------

    def _new_small_sum(self, array: HostArray) -> tuple[HostArray, Any] | None:
        """A buffer like the array, and the operation that sums it up; None for an array
        that MPI had better be told of each time."""
        if array.nbytes > SMALL_BYTES or not self._persists:
            return None
        if len(self._small_sums) >= SMALL_SUMS:
            self._free_small_sums()
        # an MPI may wait for all ranks in the next call, and for ever
        self._complete("all_reduce", self._comm.Ibarrier)
        buffer = np.empty(array.shape, array.dtype)
        small = buffer, self._comm.Allreduce_init(self._in_place, buffer)
        self._small_sums[array.shape, array.dtype] = small
        return small

    def _free_small_sums(self) -> None:
        for _, request in self._small_sums.values():
            request.Free()
        self._small_sums.clear()

    # -- waiting ------------------------------------------------------------------------------

    def _complete(self, what: str, start: Callable[..., Any], *arguments: Any) -> None:
        """Start an operation and wait until every rank has joined it."""
        if self._broken is not None:
            raise RankError(self._broken)
        try:
            self._wait(what, start(*arguments))
        except BaseException as error:
            self._break_off(what, error)
            raise

    def _break_off(self, what: str, error: BaseException) -> None:
        # others have joined it, or will: what comes next would be taken for it
        self.lose_step(
            f"an operation between ranks ({what}) was broken off by {type(error).__name__}"
        )

    def _wait(self, what: str, request: Any) -> None:
        looks, begun, looked = 0, 0.0, 0.0
        is_done, let_others_run = request.Test, _let_others_run
        while not is_done():
            looks += 1
            if looks <= self._patience:
                continue
            let_others_run()
            if looks % LOOKS == 0:
                now = time.monotonic()
                begun = begun or now
                looked = looked or now
                late = self.timeout is not None and now - begun > self.timeout
                if now - looked > DEATH_SECONDS:
                    looked, late = now, late or self._has_died()
                if late or self._is_called():
                    self._give_up(what, now - begun)

    def _has_died(self) -> bool:
        """Whether a rank on this machine is gone."""
        here = self.places[self.rank][0]
        return any(host == here and not _is_running(process) for host, process in self.places)

    def _is_called(self) -> bool:
        """Whether a rank has given up waiting, and asks who is there."""
        return bool(self._calls.Iprobe(tag=_ROLL_CALL))

    def _give_up(self, what: str, waited: float) -> None:
        """Find out who is missing, and raise the error."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        here = np.zeros(1)
        sent = [self._calls.Isend(here, rank, _ROLL_CALL) for rank in others]
        missing, end = set(others), time.monotonic() + ROLL_CALL_SECONDS
        while missing and time.monotonic() < end:
            for rank in sorted(missing):
                if self._calls.Iprobe(rank, _ROLL_CALL):
                    self._calls.Recv(np.empty(1), rank, _ROLL_CALL)
                    missing.remove(rank)
            time.sleep(0.005)
        for request in sent:
            request.Test()
        self._broken = f"rank {self.rank} waited {waited:.0f} s in {what} for all other ranks, "
        if missing:
            self._broken = (
                f"rank {self.rank} waited {waited:.0f} s in {what} for "
                f"{', '.join(map(self._name, sorted(missing)))}. Look at that process's own output "
                f"for an error; nn.distributed.init(timeout=...) allows more time"
            )
        else:
            self._broken += "which wait too: they made other calls, or the network is down"
        raise RankError(self._broken, tuple(sorted(missing)))

    def _name(self, rank: int) -> str:
        host, process = self.places[rank]
        text = f"rank {rank} (process {process} on {host}"
        if host == self.places[self.rank][0] and not _is_running(process):
            return f"{text}, which has died)"
        return f"{text})"

    def abort(self, code: int) -> None:
        """End this process and all other ranks at once, which would wait for it."""
        _flush()
        time.sleep(OUTPUT_SECONDS)
        self._abort(code)

    def _leave(self) -> None:
        if self._broken is not None:
            # MPI's own way to end would wait for a rank that is gone
            self.abort(1)
        elif not self._is_finalized():
            self._free_small_sums()


def import_mpi() -> Any:
    """``mpi4py.MPI``.

    Raises:
        ImportError: it is not installed, or finds no MPI; it says how to install one.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"ranks need mpi4py and an MPI: {INSTALL} ({error})") from error
    return MPI


def _is_running(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether it has ended, and only its parent does not know yet."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _flush() -> None:
    for out in (sys.stdout, sys.stderr):
        if out is not None:
            try:
                out.flush()
            except (OSError, ValueError):
                continue
