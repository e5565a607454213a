"""The locks that a fork waits for, so that the child finds them open and nothing half compiled.

A child process has only the thread that forked: a lock that another thread held stays shut there,
and the compiler, stopped in the middle, could not be used again.
"""

from __future__ import annotations

# these have locks of the same kind, which a thread that compiles takes inside ours: what is
# registered last is taken first
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import sys
import threading
from typing import Any

#: held while a backend is chosen and opened, and inside it while code is compiled and loaded
OPENING, COMPILING = threading.RLock(), threading.RLock()


def _locks() -> list[Any]:
    """In the order in which a thread takes them."""
    numba = sys.modules.get("numba.core.compiler_lock")
    numbas_own = getattr(numba, "global_compiler_lock", None)
    return [OPENING, COMPILING] if numbas_own is None else [OPENING, COMPILING, numbas_own]


_held: list[Any] = []


def _before() -> None:
    locks = _locks()
    for lock in locks:
        lock.acquire()
    _held.append(locks)


def _after() -> None:
    for lock in reversed(_held.pop()):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
