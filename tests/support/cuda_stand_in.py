"""A CUDA device on the CPU: the same kernels, built as C++ behind ``cuda/shim.h``.

It runs what a GPU would be asked to run, with arrays in memory that ends at a guard page. What may
run beside other work runs at once or as late as possible, so that a missing wait shows. Products
and their epilogues are NumPy's. What it cannot show: tensor cores, what cuBLASLt makes of an
epilogue, work that really runs at the same time, and time.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import os
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.device import Device
from nnbackend.backends.cuda.gemm import Epilogue, Product
from nnbackend.backends.cuda.kernels import FILES, KERNEL, THREADS, Launch, signatures, source
from nnbackend.backends.cuda.tuning import TuningCache
from nnbackend.backends.types import Availability, is_on_gpu
from nnbackend.backends.uploads import Uploads
from nnbackend.errors import DeviceError, OutOfMemoryError

SHIM = Path(__file__).parent / "shim.h"
#: The name by which tests ask for the CUDA backend on this device.
STAND_IN = "cuda_stand_in"
#: Orders in which the threads of a block run.
ASCENDING, DESCENDING, RANDOM = range(3)
ALIGNMENT = 256
_POISON = 0xFF
#: Absent on Windows, where the device is not built.
_LIBC: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
#: The shim has one device.
_RUNNING = threading.Lock()
#: ``device``: where another library's work goes, as with CUDA's current device.
CURRENT = threading.local()
_LETTERS = {
    "Size": "l",
    "Word": "u",
    "Wide": "w",
    "int": "i",
    "double": "d",
    "Bf16": "h",
    "StepState": "?",
}


class DeviceArray(np.ndarray):
    """An array on the stand-in device: host arrays are none, so that a copy cannot be forgotten."""


class _OfThread(threading.local):
    """What a thread is capturing, as CUDA captures what a stream is asked for, and no other one."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None
        self.on_side = False
        self.waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []


class CpuDevice(Device):
    """Runs launches at once, in a chosen order of threads.

    Args:
        order: of the threads of a block.
        late: what may run beside runs when it is waited for, not at once.
        epilogues: what its products can do; asked which of several ways is the fastest, it takes
            the one with the fewest launches, or with ``slow_epilogues`` the one with the most.
        shared_bytes: of a block; 0 keeps no network in shared memory.
        cluster_blocks: that may share theirs.
        multiprocessors: blocks that may meet.
    """

    name = "a stand-in"

    def __init__(
        self,
        order: int = ASCENDING,
        most_blocks: int = 2,
        memory: float = math.inf,
        late: bool = False,
        epilogues: Sequence[Epilogue] = tuple(Epilogue),
        slow_epilogues: bool = False,
        shared_bytes: int = 227 << 10,
        cluster_blocks: int = 2,
        multiprocessors: int = 3,
    ) -> None:
        self.order, self.most_blocks, self.memory = order, most_blocks, memory
        self.late, self.epilogues, self.slow_epilogues = late, epilogues, slow_epilogues
        self.shared_bytes, self.cluster_blocks = shared_bytes, cluster_blocks
        self.multiprocessors = multiprocessors
        self.tuning, self.lock = TuningCache("a stand-in"), threading.RLock()
        self.launches = self.replays = 0
        self.epilogues_done: set[Epilogue] = set()
        self._mine = _OfThread()
        #: the graph that is under way
        self.replayed: list[Any] | None = None
        self._capturing: int | None = None
        #: arrays behind whose end somebody wrote
        self.overruns: list[str] = []

    def owns(self, x: object) -> bool:
        return isinstance(x, DeviceArray)

    def adopt(self, data: Any) -> Any:
        if is_on_gpu(data):
            raise DeviceError(f"a model on {self.name} cannot take an array on a GPU")
        return None

    def free_bytes(self) -> int:
        return int(min(self.memory, 1 << 40))

    def zeros(self, shape: int | Sequence[int], dtype: Any) -> Any:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        array = self._memory(sizes, np.dtype(dtype))
        array.view(np.ndarray)[...] = 0
        return array

    def _memory(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Poisoned memory, as close to a page that nobody may touch as its alignment allows."""
        self._not_while_capturing("an allocation")
        size, page = math.prod(shape) * dtype.itemsize, mmap.PAGESIZE
        if size > self.memory:
            raise OutOfMemoryError(f"{self.name} has not {size:,} bytes; {self.memory:,} are free")
        room = -(-size // ALIGNMENT) * ALIGNMENT
        pages = -(-room // page) * page
        memory = mmap.mmap(-1, pages + page)
        whole = np.frombuffer(memory, np.uint8)
        guard = ctypes.c_void_p(whole.ctypes.data + pages)
        if _LIBC.mprotect(guard, ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        whole = whole[:pages]
        whole[:] = _POISON
        start = pages - room
        rest = whole[start + size :]
        array = whole[start : start + size].view(dtype).reshape(shape).view(DeviceArray)
        what = f"{shape} {dtype}"
        weakref.finalize(array, _look_behind, rest, self.overruns, what).atexit = False
        return array

    def from_host(self, x: np.ndarray) -> Any:
        array = self._memory(x.shape, x.dtype)
        array.view(np.ndarray)[...] = x
        return array

    def make_uploads(self) -> Uploads:
        return CpuUploads(self)

    def to_host(self, x: Any) -> np.ndarray:
        self._not_while_capturing("a copy to the host")
        return np.array(x.view(np.ndarray))

    def sort(self, x: Any) -> None:
        self._not_while_capturing("sorting")
        assert self.owns(x)
        assert x.ndim == 1
        x.view(np.ndarray).sort()

    def address(self, x: Any) -> int:
        return int(x.ctypes.data)

    def enqueue(self, call: Callable[[int], object]) -> None:
        self._do(self._on, call)

    def _on(self, call: Callable[[int], object]) -> None:
        CURRENT.device = self
        try:
            call(0)
        finally:
            CURRENT.device = None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with self.lock:
            self._mine.recorded = recorded = []
            self._capturing = threading.get_ident()
            try:
                work()
                assert not self._mine.waiting, "what runs beside was not joined"
            finally:
                self._mine.recorded = self._capturing = None

        def replay() -> None:
            self.replays += 1
            self.replayed = recorded
            try:
                for do, arguments in recorded:
                    do(*arguments)
            finally:
                self.replayed = None

        return replay

    def _not_while_capturing(self, what: str) -> None:
        assert self._mine.recorded is None, f"{what} cannot be captured"

    def _do(self, what: Callable[..., None], *arguments: Any) -> None:
        """Now, when it is waited for, or as part of a graph."""
        if self._mine.on_side and self.late:
            self._mine.waiting.append((what, arguments))
        elif self._mine.recorded is not None:
            self._mine.recorded.append((what, arguments))
        else:
            what(*arguments)

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        assert not self._mine.on_side
        assert self._capturing in (None, threading.get_ident()), "the second stream is captured"
        self._mine.on_side = True
        try:
            yield
        finally:
            self._mine.on_side = False

    def join(self) -> None:
        waiting, self._mine.waiting = self._mine.waiting, []
        for what, arguments in waiting:
            self._do(what, *arguments)

    def time(self, work: Callable[[], None], captured: bool = True) -> float:
        before = self.launches
        work()
        count = self.launches - before
        return 1 / count if self.slow_epilogues else count

    def compile(self, dtype: Any, definitions: str = "") -> None:
        program(dtype, definitions)

    def launch(self, launch: Launch) -> None:
        self._do(self._launch, launch)

    def prepare(self, launch: Launch) -> Callable[..., None]:
        def run(*numbers: float) -> None:
            kinds = [type(value) for value in launch.arguments[: len(numbers)]]
            own = [kind(number) for kind, number in zip(kinds, numbers, strict=True)]
            arguments = (*own, *launch.arguments[len(numbers) :])
            self.launch(launch._replace(arguments=arguments))

        return run

    def _launch(self, launch: Launch) -> None:
        self.launches += 1
        kept, values = [], (ctypes.c_void_p * len(launch.arguments))()
        for i, (argument, value) in enumerate(
            zip(signatures()[launch.kernel], launch.arguments, strict=True)
        ):
            if argument.is_pointer:
                assert value is None or self.owns(value), f"{launch.kernel}: {argument.name}"
                number = ctypes.c_void_p(None if value is None else value.ctypes.data)
            else:
                number = np.ctypeslib.as_ctypes_type(value.dtype)(value)
            kept.append(number)
            values[i] = ctypes.addressof(number)
        # where no dtype is named, a GPU takes whichever program it has
        library = program(launch.dtype or np.dtype(np.float64), launch.definitions)
        run = library[f"launch_{launch.kernel}"]
        run.restype = ctypes.c_char_p
        with _RUNNING:
            failure = run(
                launch.blocks,
                THREADS,
                self.order,
                self.launches,
                ctypes.c_size_t(launch.shared),
                values,
            )
        if failure:
            raise AssertionError(f"{launch.kernel}: {failure.decode()}")

    def supports(self, product: Product) -> bool:
        _check(product)
        return product.epilogue in self.epilogues

    def product(self, product: Product) -> None:
        assert self.supports(product)
        self._do(self._multiply, product)

    def _multiply(self, product: Product) -> None:
        a, b, out, a_t, b_t, tf32, epilogue, vector = product
        assert all(self.owns(x) for x in (a, b, out, vector) if x is not None)
        self.launches += 1
        self.epilogues_done.add(epilogue)
        left, right = (_as_multiplied(x.view(np.ndarray), tf32) for x in (a, b))
        right = right.T if b_t else right
        with np.errstate(all="ignore"):
            sums = np.matmul(left.T if a_t else left, right)
            if epilogue in (Epilogue.BIAS, Epilogue.RELU):
                sums += _as_multiplied(vector.view(np.ndarray), False)
            if epilogue is Epilogue.RELU:
                sums = np.maximum(sums, 0)
        if epilogue is Epilogue.COLUMN_SUMS:
            vector.view(np.ndarray)[...] = right.sum(axis=0, dtype=np.float64)
        out.view(np.ndarray)[...] = to_bf16(sums) if out.dtype == np.uint16 else sums

    def synchronize(self) -> None:
        self._not_while_capturing("waiting")
        with self.lock:
            assert self._capturing is None


def _check(product: Product) -> None:
    """What cuBLASLt asks of a product's arrays."""
    a, b, out, a_t, b_t, _, epilogue, vector = product
    rows, inner = a.shape[::-1] if a_t else a.shape
    same, columns = b.shape[::-1] if b_t else b.shape
    assert (rows, columns) == out.shape
    assert inner == same
    assert a.dtype == b.dtype
    assert out.dtype in ([np.uint16, np.float32] if a.dtype == np.uint16 else [a.dtype])
    assert all(x.flags.c_contiguous for x in (a, b, out))
    needs_vector = epilogue is not Epilogue.PLAIN
    assert (vector is not None) == needs_vector
    if vector is not None:
        assert vector.shape == (columns,)
        assert vector.dtype == out.dtype


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _as_multiplied(x: np.ndarray, tf32: bool) -> np.ndarray:
    """The numbers that a tensor core multiplies, as float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    if tf32 and x.dtype == np.float32:
        bits = x.view(np.uint32)
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return x


def _look_behind(rest: np.ndarray, overruns: list[str], what: str) -> None:
    # no ufunc: the collector may call this while NumPy changes its error state, of which CPython
    # would then keep a value that is gone
    if rest.tobytes().strip(bytes([_POISON])):
        overruns.append(what)


def letters(kernel: str, dtype: np.dtype[Any]) -> str:
    """What the shim says of a kernel's arguments, from what the backend knows of them."""
    real = "f" if dtype == np.float32 else "d"
    found = ""
    for argument in signatures()[kernel]:
        letter = real if argument.kind == "Real" else _LETTERS[argument.kind]
        found += letter.upper() if argument.is_pointer else letter
    return found


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def helpers() -> str:
    """The source up to the kernels: types, and what all of them use."""
    return source().partition(f'#line 1 "cuda/{FILES[1]}.cu"')[0]


def build(text: str, real: str, path: Path, definitions: str = "") -> ctypes.CDLL:
    """The kernels of a source, or the last one of a program that has definitions, as a library at
    ``path``."""
    names = [name for name, _ in KERNEL.findall(text)]
    if definitions:
        names = names[-1:]
    registered = "\n".join(f"REGISTER({name})" for name in names)
    text = f'#define Real {real}\n#include "{SHIM}"\n{text}\n{registered}\n'
    part = path.with_name(f"{path.stem}-{os.getpid()}")
    part.with_suffix(".cpp").write_text(text)
    # a network's kernel is used for a few steps only
    flags = ["-O1" if definitions else "-O2", "-std=c++17", "-shared", "-fPIC"]
    command = [compiler(), *flags, "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    command += ["-o", str(part.with_suffix(".so")), str(part.with_suffix(".cpp"))]
    subprocess.run(command, check=True)
    part.with_suffix(".so").replace(path)
    part.with_suffix(".cpp").unlink()
    return ctypes.CDLL(str(path))


@cache
def program(dtype: np.dtype[Any], definitions: str = "") -> ctypes.CDLL:
    """The kernels of a dtype, or the one of a program with definitions, built once for a source."""
    real = "float" if dtype == np.float32 else "double"
    key = hashlib.sha256((source(definitions) + SHIM.read_text()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nnbackend-cuda-stand-in-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{real}-{key}.so"
    with _building:  # devices of several threads
        if path.exists():
            return ctypes.CDLL(str(path))
        return build(source(definitions), real, path, definitions)


_building = threading.Lock()


class CpuUploads(Uploads):
    """Uploads that arrive when they are waited for, and not a moment before; what was in a slot is
    poisoned when the next upload to it begins."""

    def __init__(self, device: CpuDevice) -> None:
        self.device = device
        self.started = 0
        self._slots: dict[int, list[tuple[Any, np.ndarray]]] = {}
        self._released: set[int] = set(range(self.SLOTS))

    def start(self, arrays: Sequence[tuple[np.ndarray, Any]], slot: int) -> list[Any]:
        assert slot in self._released, "the slot is in use"
        self._released.remove(slot)
        self.started += 1
        for array, _ in self._slots.get(slot, ()):
            array.view(np.ndarray).view(np.uint8)[...] = _POISON
        found = [self.device._memory(x.shape, dtype) for x, dtype in arrays]
        self._slots[slot] = [
            (array, x.astype(dtype)) for array, (x, dtype) in zip(found, arrays, strict=True)
        ]
        return found

    def arrive(self, slot: int) -> None:
        for array, x in self._slots[slot]:
            array.view(np.ndarray)[...] = x

    def release(self, slot: int) -> None:
        self._released.add(slot)


class StandInBackend(CudaBackend):
    """The CUDA backend on the stand-in device."""

    name = "cuda_stand_in"
    device_class: type[CpuDevice] = CpuDevice

    @classmethod
    def is_available(cls) -> Availability:
        return Availability(True, devices=("cuda_stand_in:0",))

    def __init__(
        self,
        index: int | None = None,
        device: Device | None = None,
        precision: str = "fp32",
        **settings: Any,
    ) -> None:
        super().__init__(index, device or self.device_class(**settings), precision)


class StandInAsCuda(StandInBackend):
    """The same under the name of the backend whose place it takes: ``gpu_check.sh --stand-in``."""

    name = "cuda"

    @classmethod
    def is_available(cls) -> Availability:
        return Availability(True, devices=("cuda:0",))
