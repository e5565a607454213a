"""How many threads compiled code may use, and of which pool."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnbackend._checks import check_size
from nnbackend._output import warn
from nnbackend.errors import DataError


class Threads:
    """How many threads kernels may use, and whether this process can fork work at all.

    Attributes:
        layer: "tbb" or "omp"; "serial" where only Numba's workqueue is there, which is not safe
            to use from two Python threads.
    """

    def __init__(self) -> None:
        import numba

        _load_tbb()
        self.layer = _threading_layer()
        self.most = int(numba.config.NUMBA_NUM_THREADS)
        self.count = 1 if self.layer == "serial" else self.most
        self._started = False
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        #: how many calls are inside ``one``, and how many threads there were before
        self._one_lock = threading.Lock()
        self._inside = self._before = 0
        wanted = os.environ.get("NN_NUM_THREADS", "").strip()
        if wanted:
            if not (wanted.isascii() and wanted.isdecimal()):
                raise DataError(f"NN_NUM_THREADS must be a whole number; received {wanted!r}")
            self.set(int(wanted), "NN_NUM_THREADS")
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def set(self, count: int, name: str = "set_num_threads") -> None:
        """Use at most ``count`` threads from the next step on."""
        count = check_size(name, count)
        if count > self.most:
            raise DataError(
                f"{name}: this process has {self.most} threads for kernels, one for each "
                f"processor it may use; received {count}. NUMBA_NUM_THREADS, set before Python "
                f"starts, changes that"
            )
        self.count = 1 if self.layer == "serial" else count
        self._announce()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Inside, there is one thread; several calls may be inside at a time."""
        with self._one_lock:
            self._inside += 1
            if self._inside == 1:
                self._before = self.count
                self.set(1)
        try:
            yield
        finally:
            with self._one_lock:
                self._inside -= 1
                if not self._inside:
                    self.set(self._before)

    def parts(self, work: int) -> int:
        """Threads for ``work`` grains of work, each of which is worth a thread."""
        wanted = min(self.count, work)
        if wanted > 1 and not self._started:
            self._start()
            wanted = min(self.count, work)
        return max(1, wanted)

    def _start(self) -> None:
        """Before the pool makes its threads: both pools end the process where they cannot."""
        self._started = True
        if not can_start_threads(self.most - 1):
            self.layer, self.count = "serial", 1
            warn(
                "this process cannot start more threads, because of a limit of processes or of "
                "memory; the numba backend uses one thread",
                RuntimeWarning,
            )
            self._announce()

    def watch(self, listener: Any) -> None:
        """Call ``listener.threads_changed()`` when the number changes."""
        self._listeners.add(listener)

    def _after_fork(self) -> None:
        # the other threads of the pool do not exist here
        self.layer, self.count = "serial", 1
        self._announce()

    def _announce(self) -> None:
        for listener in list(self._listeners):
            listener.threads_changed()


def can_start_threads(count: int) -> bool:
    """Whether this process may have ``count`` more threads, tried."""
    release = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        return False
    finally:
        release.set()
        for thread in started:
            thread.join()
    return True


def _load_tbb() -> None:
    """The wheel ``tbb`` puts its library where only this environment's Python looks."""
    names = ("tbb12.dll",) if os.name == "nt" else ("libtbb.so.12", "libtbb.12.dylib")
    folders = [Path(sys.prefix) / part for part in ("lib", "Library/bin")]
    for path in (folder / name for folder in folders for name in names):
        if path.exists():
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            return


def _threading_layer() -> str:
    """The first of Numba's safe layers that loads."""
    import numba

    asked = str(numba.config.THREADING_LAYER)
    wanted = {"tbb": ("tbb",), "omp": ("omp",), "workqueue": ()}.get(asked, ("tbb", "omp"))
    for name in wanted:
        try:
            importlib.import_module(f"numba.np.ufunc.{name}pool")
        except ImportError:
            continue
        if asked in ("default", "safe", "threadsafe", "forksafe"):
            numba.config.THREADING_LAYER = name
        return name
    return "serial"
