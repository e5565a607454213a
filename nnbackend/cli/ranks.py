"""The command line under ``mpiexec``: every process does the same, and the first one speaks."""

from __future__ import annotations

import os
import sys
import time

import nnbackend as nn
from nnbackend.distributed.communicator import Communicator
from nnbackend.distributed.launch import abort, launched_rank
from nnbackend.errors import DataError

#: Seconds that the others wait with an error, which is mostly that of the first one too.
AFTER_THE_FIRST = 1.0

_joined: list[Communicator] = []


def mute_others() -> None:
    """Standard output is the first process's."""
    if launched_rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 as long as the process


def communicator(backend: str | None, data: str) -> Communicator | None:
    """The ranks that ``mpiexec`` started with this one; None if there are no others."""
    if launched_rank() is None:
        return None
    comm = nn.distributed.init(backend)
    if comm.size == 1:
        return None
    _joined[:] = [comm]
    if data == "-":
        raise DataError(
            "standard input reaches one process only, and mpiexec started several; name a file "
            "that all of them can read"
        )
    return comm


def is_first(comm: Communicator | None) -> bool:
    """Whether this process writes files and pictures."""
    return comm is None or comm.rank == 0


def prefix() -> str:
    """What this process's error messages begin with, after those of the first one."""
    rank = launched_rank()
    if not rank:
        return ""
    time.sleep(AFTER_THE_FIRST)
    return f"rank {rank}: "


def end_all(code: int) -> None:
    """After an error, do not leave other ranks waiting for this one."""
    for comm in _joined:
        abort(comm, code)
