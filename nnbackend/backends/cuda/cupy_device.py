"""The device of the CUDA backend over CuPy: memory, launches and products on one GPU."""

from __future__ import annotations

import atexit
import importlib
import math
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend._output import write_note
from nnbackend.backends.cuda.cublas import WORKSPACE, Products
from nnbackend.backends.cuda.cublaslt import LtProducts, Way
from nnbackend.backends.cuda.device import Device
from nnbackend.backends.cuda.driver import MOST_SHARED, Starter, load_driver
from nnbackend.backends.cuda.gemm import Epilogue, Product, ProductError
from nnbackend.backends.cuda.kernels import THREADS, Launch, program_of, source, source_version
from nnbackend.backends.cuda.pinned import PinnedUploads
from nnbackend.backends.cuda.tuning import TuningCache
from nnbackend.backends.types import Array, DType, is_on_gpu
from nnbackend.backends.uploads import Uploads
from nnbackend.errors import DeviceError, OutOfMemoryError

#: Blocks of a large launch for each multiprocessor. It has room for three to eight at a time, by
#: the registers that a kernel needs; with so many the last ones do not leave it idle for long.
BLOCKS = 32
#: Networks whose programs stay loaded though nobody uses them.
MOST_NETWORKS = 16
#: Blocks of a cluster that every GPU since Hopper (sm_90) can run.
CLUSTER = 8
#: How often work is done to measure it, in one graph which may take so long, and how many times
#: the graph is launched.
TIMED_REPEATS, TIMED_SECONDS, TIMED_TRIALS = 8, 2e-3, 5
#: How a number is written into eight bytes.
_FORMATS = {
    "int32": "i4x", "uint32": "I4x", "float32": "f4x", "int64": "q", "uint64": "Q", "float64": "d",
}  # fmt: skip
_REAL = {"float32": "float", "float64": "double"}
_NAME = {real: name for name, real in _REAL.items()}


class _Captured:
    """A graph, launched on the stream that is current then, in order with everything else."""

    def __init__(self, device: CupyDevice, graph: Any) -> None:
        self.device, self.graph = device, graph

    def launch(self) -> None:
        with self.device.on():
            self.graph.launch()


class CupyDevice(Device):
    """One GPU. Everything runs on CuPy's current stream, in the order in which it was asked for;
    what runs beside, on a stream of our own."""

    def __init__(self, index: int) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self.cuda: Any = self._cupy.cuda
        self.index, self.name = index, f"cuda:{index}"
        properties = self.cuda.runtime.getDeviceProperties(index)
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.most_blocks = BLOCKS * self.multiprocessors
        self.shared_bytes = int(properties["sharedMemPerBlockOptin"])
        self.cluster_blocks = CLUSTER if properties["major"] >= 9 else 1
        self._programs: dict[tuple[str, str], Any] = {}
        self._kernels: dict[tuple[str, str, str], Any] = {}
        self._lock, self.lock = threading.Lock(), threading.RLock()
        self._captured: weakref.WeakSet[_Captured] = weakref.WeakSet()
        atexit.register(self._forget_graphs)  # after CuPy's own, so that it runs before
        with self.on():
            # products that run beside each other must not share a workspace
            self._workspaces = [self._cupy.empty(WORKSPACE, np.uint8) for _ in range(2)]
            self._side = self.cuda.Stream(non_blocking=True)
            self._runs_beside = False
            self._lt = make_lt_products(self._quickest)
        self._products = Products(self.cuda.device.get_cublas_handle)
        library = "cublasGemmEx" if self._lt is None else f"cuBLASLt {self._lt.version}"
        self.tuning = TuningCache(f"{properties['name'].decode()}, {library}", tuning_path())

    def on(self) -> Any:
        """A context in which this GPU is CuPy's current one."""
        return self.cuda.Device(self.index)

    def owns(self, x: object) -> bool:
        return isinstance(x, self._cupy.ndarray) and x.device.id == self.index

    def adopt(self, data: Any) -> Array | None:
        if hasattr(data, "__cuda_array_interface__"):
            array = self._cupy.asarray(data)
        elif is_on_gpu(data):
            array = self._cupy.from_dlpack(data)
        else:
            return None
        if array.device.id != self.index:
            raise DeviceError(
                f"a model on {self.name} takes arrays on {self.name} or on the host; received one "
                f"on cuda:{array.device.id}. Copy it, or move the model with "
                f"model.to('cuda:{array.device.id}')"
            )
        return array

    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        return self._new("zeros", (shape,) if isinstance(shape, int) else tuple(shape), dtype)

    def _new(self, how: str, sizes: tuple[int, ...], dtype: DType) -> Array:
        with self._memory_for(sizes, dtype):
            return getattr(self._cupy, how)(sizes, dtype)

    @contextmanager
    def _memory_for(self, sizes: tuple[int, ...], dtype: DType) -> Iterator[None]:
        """What is done inside takes memory for an array of this shape."""
        try:
            with self.on():
                yield
        except self.cuda.memory.OutOfMemoryError as error:
            with self.on() as device:
                free, total = device.mem_info
            raise OutOfMemoryError(
                f"{self.name} has not the memory for an array of shape {sizes}: "
                f"{math.prod(sizes) * dtype.itemsize:,} bytes asked, {free:,} of {total:,} free; "
                f"choose narrower layers or a smaller batch_size, or keep the data on the host"
            ) from error

    def free_bytes(self) -> int:
        with self.on() as device:
            # what CuPy's pool has taken and does not use is free as well
            return int(device.mem_info[0]) + int(self._cupy.get_default_memory_pool().free_bytes())

    def from_host(self, x: np.ndarray[Any, Any]) -> Array:
        out = self._new("empty", x.shape, x.dtype)
        with self.on():
            out.set(x)
        return out

    def make_uploads(self) -> Uploads:
        return PinnedUploads(self)

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        with self.on():
            return np.asarray(x.get(order="C"))

    def sort(self, x: Array) -> None:
        with self._memory_for(x.shape, x.dtype):
            x.sort()

    def compile(self, dtype: DType, definitions: str = "") -> None:
        with self.on(), self._lock:
            # quick where CuPy has kept it; a note that it has may be older than its cache
            self._program(_REAL[dtype.name], definitions).compile()

    def launch(self, launch: Launch) -> None:
        with self.on():
            kernel = self._kernel(launch.kernel, launch.dtype, launch.definitions)
            # CuPy has no null pointer: its None is no argument at all
            arguments = tuple(np.uint64(0) if a is None else a for a in launch.arguments)
            kernel((launch.blocks,), (THREADS,), arguments)

    def prepare(self, launch: Launch) -> Callable[..., None]:
        # what a kernel is given lies in places of eight bytes, whose addresses the driver gets
        given = [
            value if isinstance(value, np.generic) else np.uint64(0 if value is None else
                                                                  self.address(value))
            for value in launch.arguments
        ]  # fmt: skip
        formats = [_FORMATS[value.dtype.name] for value in given]
        values = bytearray(struct.pack("<" + "".join(formats), *given))
        start = np.frombuffer(values, np.uint8).ctypes.data
        addresses = np.array([start + 8 * k for k in range(len(given))], np.uint64)
        with self.on():
            kernel = self._kernel(launch.kernel, launch.dtype, launch.definitions)
            starter = self._starter(launch, kernel.kernel.ptr, addresses.ctypes.data)
        packed = {n: struct.Struct("<" + "".join(formats[:n])) for n in range(len(formats) + 1)}
        current, kept = self.cuda.get_current_stream, (launch, addresses, kernel)

        def run(*numbers: float) -> None:
            packed[len(numbers)].pack_into(values, 0, *numbers)
            with self.on():
                starter(current().ptr)

        run.kept = kept  # type: ignore[attr-defined] # as long as the function
        return run

    def _starter(self, launch: Launch, function: int, arguments: int) -> Callable[[int], object]:
        """Starts a kernel on a stream; ``arguments`` is the address of their addresses."""
        driver, blocks = self.cuda.driver, launch.blocks
        shared = launch.shared
        if shared:
            driver.funcSetAttribute(function, MOST_SHARED, shared)
        if shared and blocks > 1:
            sizes = (blocks, THREADS, shared)
            return Starter(load_driver(), function, launch.together, *sizes, arguments)
        start = driver.launchKernel
        return lambda stream: start(
            function, blocks, 1, 1, THREADS, 1, 1, shared, stream, arguments, 0
        )

    def _kernel(self, name: str, dtype: DType | None, definitions: str = "") -> Any:
        if dtype is None:
            loaded = tuple(self._programs)
            real = next((real for real, own in loaded if not own), "float")
        else:
            real = _REAL[dtype.name]
        kernel = self._kernels.get((name, real, definitions))
        if kernel is None:
            with self._lock:
                program = self._program(real, definitions)
                kernel = self._kernels[name, real, definitions] = program.get_function(name)
                self._forget_networks()
        return kernel

    def _forget_networks(self) -> None:
        """Keep the programs of few networks: whoever uses one holds it."""
        loaded: tuple[dict[Any, Any], ...] = (self._programs, self._kernels)
        for kept in loaded:
            networks = [key for key in kept if key[-1]]
            for key in networks[:-MOST_NETWORKS]:
                del kept[key]

    def _program(self, real: str, definitions: str) -> Any:
        """All kernels of a dtype, or the one of ``definitions``, compiled for this GPU."""
        program = self._programs.get((real, definitions))
        if program is None:
            program = self._programs[real, definitions] = self._compiled(real, definitions)
        return program

    def _compiled(self, real: str, definitions: str) -> Any:
        """CuPy keeps what it compiles in its cache folder."""
        program = self._cupy.RawModule(
            code=source(definitions), options=("-std=c++17", f"-DReal={real}"), backend="nvrtc"
        )
        compilers = f"CuPy {self._cupy.__version__} NVRTC {self.cuda.nvrtc.getVersion()}"
        key = f"compiled {real} {source_version(definitions)} {compilers}"
        if self.tuning.get(key) is not None:
            return program
        _, called, seconds = program_of(definitions)
        where = f"in {_NAME[real]}; once on this GPU, about {seconds} s"
        write_note(f"nnbackend: compiling {called} {where} ... ")
        start = time.perf_counter()
        program.compile()
        write_note(f"done in {time.perf_counter() - start:.1f} s\n")
        self.tuning.keep(key, "kept by CuPy")
        return program

    def supports(self, product: Product) -> bool:
        with self.on():
            if self._lt is not None and self._lt.supports(product):
                return True
        return product.epilogue is Epilogue.PLAIN

    def product(self, product: Product) -> None:
        with self.on():
            if self._lt is not None and self._lt.supports(product):
                self._lt(product, *self._place())
            else:
                self._products(product, *self._place())

    def _place(self) -> tuple[int, int]:
        """The current stream, and a workspace for products on it."""
        stream = self.cuda.get_current_stream().ptr
        return stream, self._workspaces[stream == self._side.ptr].data.ptr

    def _quickest(self, key: str, ways: Sequence[Way]) -> int:
        """Which of several ways to do a product takes the least time here."""
        choice = self.tuning.get(key)
        if choice is None or not choice.isdigit() or int(choice) >= len(ways):
            seconds = [self._time_or_never(way) for way in ways]
            choice = str(seconds.index(min(seconds)))
            self.tuning.keep(key, choice)
        return int(choice)

    def _time_or_never(self, way: Way) -> float:
        try:
            return self.time(lambda: way(*self._place()))
        except ProductError:  # an algorithm that is refused after all
            return math.inf

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        with self.on():
            self._let_wait(self._side, self.cuda.get_current_stream())
            self._runs_beside = True
            with self._side:
                yield

    def join(self) -> None:
        # a stream that is captured may not wait for one that has no part in it
        if self._runs_beside:
            self._runs_beside = False
            with self.on():
                self._let_wait(self.cuda.get_current_stream(), self._side)

    def _let_wait(self, one: Any, other: Any) -> None:
        """``one`` goes on when ``other`` has done what it was asked for so far."""
        event = self.cuda.Event(disable_timing=True)
        event.record(other)
        one.wait_event(event)

    def time(self, work: Callable[[], None], captured: bool = True) -> float:
        work()  # whatever happens for the first time must not be captured, or measured
        once = self._between_events(work)
        repeats = max(1, min(TIMED_REPEATS, int(TIMED_SECONDS / max(once, 1e-9))))

        def repeat() -> None:
            for _ in range(repeats):
                work()

        replay = self.capture(repeat) if captured else repeat
        replay()
        return min(self._between_events(replay) for _ in range(TIMED_TRIALS)) / repeats

    def _between_events(self, work: Callable[[], None]) -> float:
        """Seconds that the GPU takes, the launches included if it is idle."""
        with self.on():
            start, stop = self.cuda.Event(), self.cuda.Event()
            start.record()
            work()
            stop.record()
            stop.synchronize()
            return float(self.cuda.get_elapsed_time(start, stop)) / 1e3

    def address(self, x: Array) -> int:
        return int(x.data.ptr)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with self.lock, self.on(), self.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                work()
            except BaseException:
                with suppress(Exception):  # of a capture that is broken off: not the cause
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        captured = _Captured(self, graph)
        self._captured.add(captured)
        return captured.launch

    def _forget_graphs(self) -> None:
        """Graphs have to be gone before CuPy takes its leave of CUDA."""
        for captured in list(self._captured):
            captured.graph = None

    def enqueue(self, call: Callable[[int], object]) -> None:
        with self.on():
            call(self.cuda.get_current_stream().ptr)

    def synchronize(self) -> None:
        with self.lock, self.on() as device:  # which is forbidden while a stream is captured
            device.synchronize()


def tuning_path() -> Path:
    """Beside the kernels that CuPy keeps."""
    folder = os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache"
    return Path(folder).expanduser() / "nnbackend-tuning.json"


def make_lt_products(choose: Callable[[str, Sequence[Way]], int]) -> LtProducts | None:
    """cuBLASLt, or None where it cannot be had."""
    try:
        return LtProducts(choose)
    # what looks for libraries raises RuntimeErrors of its own
    except (ImportError, OSError, RuntimeError, ProductError):
        return None


_devices: dict[int, CupyDevice] = {}
_devices_lock = threading.Lock()


def device_of(index: int) -> CupyDevice:
    """The device, one object for all backends on it: "cuda" and "cuda:0" share its streams."""
    with _devices_lock:
        if index not in _devices:
            _devices[index] = CupyDevice(index)
        return _devices[index]
