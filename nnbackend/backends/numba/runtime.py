"""What the Numba backend needs from the process: cache folder, threads, the BLAS, compiled code.

Everything is done once, when the first Numba backend is opened.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from nnbackend._output import write_note
from nnbackend.backends.numba.cache import cache_folders
from nnbackend.backends.numba.threads import Threads
from nnbackend.backends.types import Array
from nnbackend.errors import BackendUnavailableError
from nnbackend.kernels.locks import COMPILING
from nnbackend.kernels.processor import USES_BLAS

#: What has to be installed; SciPy is there for its BLAS.
MODULES = ("numba", "scipy", "threadpoolctl") if USES_BLAS else ("numba",)
INSTALL = 'pip install "nnbackend[numba]"'
#: Seconds that each kind of file takes to compile, said beforehand.
_SECONDS = {"phase": 10, "operation": 9, "products": 7, "losses": 3, "fork": 1}


def missing_modules() -> list[str]:
    """Names of required packages that are not installed."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


#: Where an array object keeps the address of its data: after the head of every Python object.
_DATA = object.__basicsize__
_int64_at = ctypes.c_int64.from_address


def address_of(array: Array | None) -> int:
    """Where an array's data lie; 0 for None."""
    # NumPy's own ways make an object or a dict each time, which takes ten times as long
    return 0 if array is None else _int64_at(id(array) + _DATA).value


def _public_address_of(array: Array | None) -> int:
    return 0 if array is None else int(array.__array_interface__["data"][0])


if address_of(_EXAMPLE := np.zeros(1)) != _public_address_of(_EXAMPLE):
    address_of = _public_address_of


@cache
def packed(n_arguments: int, n_numbers: int) -> Callable[..., bytes]:
    """Packs parts, scratch memory, arguments and numbers as an operation finds them, see
    ``kernels/cpu/program/operations.py``."""
    from nnbackend.kernels.cpu.program.operations import FIRST_ARGUMENT, N_ARGUMENTS

    gap = 8 * (N_ARGUMENTS - n_arguments)
    return struct.Struct(f"={FIRST_ARGUMENT + n_arguments}q{gap}x{n_numbers}d").pack


def signed(bits: int) -> int:
    """64 bits as the int64 with the same bits."""
    bits &= (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits


class Runtime:
    """Compiled code, and the threads it may use."""

    def __init__(self) -> None:
        from nnbackend.kernels.cpu import calls, entry
        from nnbackend.kernels.cpu.codegen import intrinsics, store

        intrinsics.register_symbols()
        if USES_BLAS:
            _hold_blas()
        self.cpu, self.calls = entry, calls
        self.threads = Threads()
        self.folders = cache_folders()
        self.unit = entry.Unit(store.Store(*self.folders))

    def entry(self, kind: str, dtype: str) -> int:
        """Address of the function that runs "phase"s or single "operation"s in ``dtype``."""
        file = f"{kind}_{dtype}"
        if not self.unit.is_loaded(file):  # each operation asks: it has to be quick
            with COMPILING:
                self.compile_files((kind,), (dtype,))
        return int(self.unit.entry(file))

    def compile_files(self, kinds: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
        """Compile what is missing, here and, if there are processors for that, in processes beside
        this one; what those leave undone is done when it is used."""
        # files of one dtype have much in common, which a process compiles once
        processors = self.threads.most
        hands = max(1, processors // len(dtypes))
        dealt = [deal(self.unit.missing(kinds, dtype), hands) for dtype in dtypes]
        groups = [group for hand in dealt for group in hand if group]
        if not groups:
            return
        if self.threads.parts(2) > 1:  # what forks starts the pool of threads
            groups[-1] += self.unit.missing(("fork",))
        files = [file for group in groups for file in group]
        here, *elsewhere = groups if processors >= len(groups) else [files]
        seconds = max(
            sum(_SECONDS[file.partition("_")[0]] for file in g) for g in (here, *elsewhere)
        )
        write_note(
            f"nnbackend: compiling the Numba kernels for {_described(kinds, dtypes)}; once on this "
            f"machine, about {seconds} s ... "
        )
        start = time.perf_counter()
        with ExitStack() as stack:
            for group in elsewhere:
                stack.enter_context(_compiling_elsewhere(group))
            for file in here:
                self.unit.compile(file)
        for file in files:
            self.unit.entry(file)
        write_note(f"done in {time.perf_counter() - start:.1f} s\n")


def _described(kinds: tuple[str, ...], dtypes: tuple[str, ...]) -> str:
    names = {"phase": "programs", "operation": "single operations"}
    return f"{' and '.join(names[kind] for kind in kinds)} in {' and '.join(dtypes)}"


def deal(files: list[str], hands: int) -> list[list[str]]:
    """Files, those that take longest first, dealt out there and back again."""
    dealt: list[list[str]] = [[] for _ in range(hands)]
    for i, file in enumerate(files):
        place = i % (2 * hands)
        dealt[min(place, 2 * hands - 1 - place)].append(file)
    return dealt


@contextmanager
def _compiling_elsewhere(files: list[str]) -> Iterator[None]:
    """Another process compiles some files meanwhile. It looks for this process's cache folder by
    itself: if it finds another one, or fails, nothing is lost but time."""
    helper = start_python(
        f"from {__name__} import runtime\nfor file in {files}: runtime().unit.compile(file)"
    )
    try:
        yield
        if helper:
            helper.wait()
    finally:
        if helper:
            helper.kill()
            helper.communicate()


#: A helper ends with its parent: then nobody holds the other end of its input. On Windows it waits
#: for the process instead: as long as somebody reads the input, libraries that ask what it is, as
#: they do when they are loaded, would wait, too.
_HELPER = """
import ctypes, os, threading
def watch():
    if os.name == "nt":
        kernel = ctypes.WinDLL("kernel32")
        kernel.OpenProcess.restype = ctypes.c_void_p
        parent = ctypes.c_void_p(kernel.OpenProcess(0x100000, False, {parent}))
        kernel.WaitForSingleObject(parent, ctypes.c_uint32(0xFFFFFFFF))
    else:
        os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
"""


def start_python(source: str) -> subprocess.Popen[bytes] | None:
    """Another Python that finds the same modules, says nothing and ends with this one; None where
    this is not a plain interpreter, or it cannot be started."""
    if "python" not in Path(sys.executable or "").name.lower():
        return None
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _HELPER.format(parent=os.getpid()) + source],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=nothing, stderr=nothing,
        )  # fmt: skip
    except OSError:
        return None


def _hold_blas() -> None:
    """Hold SciPy's BLAS to one thread: two pools of threads on one machine fight.

    NumPy's own BLAS, which the NumPy backend uses, keeps its threads.
    """
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    own = [lib for lib in found if "scipy" in Path(lib.filepath).parent.name]
    for lib in own or found:
        lib.set_num_threads(1)


_runtime: Runtime | None = None


def runtime() -> Runtime:
    """The runtime, made at the first call."""
    global _runtime
    with COMPILING:
        if _runtime is None:
            _runtime = Runtime()
        return _runtime


def threads() -> Threads:
    """The threads of the process's runtime."""
    missing = missing_modules()
    if missing:
        raise BackendUnavailableError(
            f"threads belong to the numba backend, which needs {' and '.join(missing)}; install "
            f"with: {INSTALL}"
        )
    return runtime().threads
