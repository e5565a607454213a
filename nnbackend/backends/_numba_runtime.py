"""What the Numba backend needs from the process: cache folder, threads, the BLAS, compiled code.

Everything is done once, when the first Numba backend is opened.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nnbackend._checks import check_size
from nnbackend.backends.base import Array
from nnbackend.errors import BackendUnavailableError, DataError
from nnbackend.kernels.processor import USES_BLAS

#: What has to be installed; SciPy is there for its BLAS.
MODULES = ("numba", "scipy", "threadpoolctl") if USES_BLAS else ("numba",)
INSTALL = 'pip install "nnbackend[numba]"'
#: Seconds that each kind of file takes to compile, said beforehand.
_SECONDS = {"phase": 10, "operation": 9, "products": 7, "losses": 3, "fork": 1}


def missing_modules() -> list[str]:
    """Names of required packages that are not installed."""
    return [name for name in MODULES if importlib.util.find_spec(name) is None]


def address_of(array: Array | None) -> int:
    """Where an array's data lie; 0 for None."""
    return 0 if array is None else int(array.__array_interface__["data"][0])


# -- the cache folder -----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Folder for compiled code, named by everything that decides what it contains.

    Below ``NUMBA_CACHE_DIR``, or the user's cache folder, or, where neither can be written, a
    folder of our own among the temporary files.
    """
    name = f"nnbackend-{_fingerprint()}"
    for base in _cache_bases():
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK) and _is_own(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


def _cache_bases() -> list[Path]:
    from numba.misc.appdirs import user_cache_dir

    bases = []
    if os.environ.get("NUMBA_CACHE_DIR"):
        bases.append(Path(os.environ["NUMBA_CACHE_DIR"]))
    bases.append(Path(user_cache_dir("nnbackend", appauthor=False)))
    user = os.getuid() if hasattr(os, "getuid") else "user"
    bases.append(Path(tempfile.gettempdir()) / f"nnbackend-cache-{user}")
    return bases


def _is_own(folder: Path) -> bool:
    """Compiled code is run: nobody else may have written it."""
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others


def _fingerprint() -> str:
    """Hash of the kernels' sources, the versions that compile them and the processor."""
    import llvmlite
    import numba
    import numpy

    from nnbackend import kernels

    digest = hashlib.sha256()
    for path in sorted(Path(next(iter(kernels.__path__))).glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    from llvmlite import binding

    versions = (sys.version, numba.__version__, llvmlite.__version__, numpy.__version__)
    digest.update(repr((versions, platform.machine(), binding.get_host_cpu_name())).encode())
    digest.update(repr(sorted(binding.get_host_cpu_features().items())).encode())
    checked = "checked-" if numba.config.BOUNDSCHECK else ""
    return checked + digest.hexdigest()[:16]


# -- threads --------------------------------------------------------------------------------------


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
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        wanted = os.environ.get("NN_NUM_THREADS", "").strip()
        if wanted:
            if not wanted.isdigit():
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


# -- the process's one runtime --------------------------------------------------------------------


class Runtime:
    """Compiled code, and the threads it may use."""

    def __init__(self) -> None:
        from nnbackend.kernels import cpu, cpu_intrinsics

        cpu_intrinsics.register_symbols()
        if USES_BLAS:
            _hold_blas()
        self.cpu = cpu
        self.threads = Threads()
        self.folder = cache_folder()
        self.unit = cpu.Unit(self.folder)
        self._lock = threading.RLock()

    def entry(self, kind: str, dtype: str) -> int:
        """Address of the function that runs "phase"s or single "operation"s in ``dtype``."""
        file = f"{kind}_{dtype}"
        if not self.unit.is_loaded(file):  # each operation asks: it has to be quick
            with self._lock:
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
        if processors > 1:
            groups[-1] += self.unit.missing(("fork",))
        files = [file for group in groups for file in group]
        here, *elsewhere = groups if processors >= len(groups) else [files]
        seconds = max(
            sum(_SECONDS[file.partition("_")[0]] for file in g) for g in (here, *elsewhere)
        )
        sys.stderr.write(
            f"nnbackend: compiling the Numba kernels for {_described(kinds, dtypes)}; once on this "
            f"machine, about {seconds} s ... "
        )
        sys.stderr.flush()
        start = time.perf_counter()
        with ExitStack() as stack:
            for group in elsewhere:
                stack.enter_context(_compiling_elsewhere(group))
            for file in here:
                self.unit.compile(file)
        for file in files:
            self.unit.entry(file)
        sys.stderr.write(f"done in {time.perf_counter() - start:.1f} s\n")


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
            helper.wait()


def start_python(source: str) -> subprocess.Popen[bytes] | None:
    """Another Python that finds the same modules and says nothing; None where this is not a plain
    interpreter, or it cannot be started."""
    if "python" not in Path(sys.executable or "").name.lower():
        return None
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", source], env={**os.environ, "PYTHONPATH": path},
            stdin=nothing, stdout=nothing, stderr=nothing,
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
_lock = threading.Lock()


def runtime() -> Runtime:
    """The runtime, made at the first call."""
    global _runtime
    with _lock:
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
