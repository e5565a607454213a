"""Which communicator this process gets, by how it was started."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

from nnbackend._checks import check_number
from nnbackend._output import write_note
from nnbackend.backends import get_backend
from nnbackend.distributed.communicator import Alone, Communicator
from nnbackend.distributed.mpi import MpiCommunicator, import_mpi
from nnbackend.errors import BackendUnavailableError

#: What MPICH, Open MPI, PMIx and Intel MPI tell each process that they start.
_LAUNCHERS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "MPI_LOCALRANKID")

_made: dict[tuple[str, float | None], Communicator] = {}


def is_launched() -> bool:
    """Whether ``mpiexec`` or SLURM's ``srun`` started this process, as one of several or alone."""
    return launched_rank() is not None


def launched_rank() -> int | None:
    """This process's number, as ``mpiexec`` or ``srun`` tell it; None if neither started it."""
    for name in _LAUNCHERS:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    # srun's tasks have a step of several; the shell of salloc and sbatch's script have none
    if "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return int(os.environ.get("SLURM_PROCID", "0"))
    return None


def init(backend: str | None = None, timeout: float | None = 60.0) -> Communicator:
    """The ranks that this process belongs to: all those that ``mpiexec -n N python train.py`` (or
    ``srun``) started. A process that was started by itself is the only rank, which is said once.

    Ranks on one machine divide its processors: the numba backend uses as many threads as there
    are for each, unless ``NN_NUM_THREADS`` says how many. An error that nobody catches ends all
    ranks, which would wait for the one that has it.

    Args:
        backend: where the models will be: "cuda" or "cuda:1" makes a communicator over NCCL on
            that GPU, others one over MPI. None takes the current backend.
        timeout: seconds after which an operation that some ranks have not joined raises
            ``RankError`` on the others; None waits for ever.

    Raises:
        ImportError: several ranks, and no mpi4py or no MPI; it says how to install them.
    """
    if timeout is not None:
        timeout = check_number("timeout", timeout, 0.0, low_open=True)
    if not is_launched():
        if not _made:
            write_note(
                "nn.distributed: this process was not started by mpiexec, so it is the only rank\n"
            )
        return _made.setdefault(("", None), Alone())
    from nnbackend.backends.cuda.arrays import CudaArrays  # takes a while to load

    chosen = get_backend(backend)
    on_gpu = chosen.device if isinstance(chosen, CudaArrays) else ""
    if (on_gpu, timeout) not in _made:
        first = not _made
        comm: Communicator = MpiCommunicator(timeout=timeout)
        if isinstance(chosen, CudaArrays):
            from nnbackend.distributed.nccl import NcclCommunicator

            comm = NcclCommunicator(comm, chosen)
        if first and comm.size > 1:
            _divide_processors()
            _end_together(comm)
        _made[on_gpu, timeout] = comm
    return _made[on_gpu, timeout]


def _divide_processors() -> None:
    """Kernels of the ranks on this machine use its processors side by side."""
    MPI = import_mpi()
    here = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    own = sorted(_processors())
    everyone = here.allgather(own)
    shared = {number for processors in everyone for number in processors}
    # a launcher that binds has given each rank processors of its own
    bound = sum(len(processors) for processors in everyone) == len(shared)
    count = len(own) if bound else len(shared) // len(everyone)
    here.Free()
    if os.environ.get("NN_NUM_THREADS", "").strip():
        return
    with suppress(BackendUnavailableError):  # no kernels, no threads of theirs
        from nnbackend.backends.numba.runtime import threads

        threads().set(min(max(1, count), threads().most))


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _end_together(comm: Communicator) -> None:
    """From now on, an error that nobody catches ends all ranks."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        before(kind, error, trace)
        abort(comm, 1)

    sys.excepthook = hook


def abort(comm: Communicator, code: int) -> None:
    """End this process and all other ranks, if there are any."""
    if comm.size > 1:
        comm.abort(code)
