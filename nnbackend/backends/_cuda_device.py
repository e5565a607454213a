"""The device of the CUDA backend over CuPy: memory, launches and products on one GPU."""

from __future__ import annotations

import atexit
import importlib
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnbackend.backends._cublas import WORKSPACE, Products
from nnbackend.backends._cuda_kernels import THREADS, Launch, source
from nnbackend.backends.base import Array, DType, is_on_gpu
from nnbackend.backends.cuda_backend import Device
from nnbackend.errors import DeviceError, OutOfMemoryError

#: Blocks for which a multiprocessor has room: 2048 threads.
RESIDENT_BLOCKS = 2048 // THREADS
_REAL = {"float32": "float", "float64": "double"}


class _Captured:
    """A graph, launched on the stream that is current then, in order with everything else."""

    def __init__(self, device: CupyDevice, graph: Any) -> None:
        self.device, self.graph = device, graph

    def launch(self) -> None:
        with self.device._on():
            self.graph.launch()


class CupyDevice(Device):
    """One GPU. Everything runs on CuPy's current stream, in the order in which it was asked for."""

    def __init__(self, index: int) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self.index, self.name = index, f"cuda:{index}"
        runtime = self._cupy.cuda.runtime
        processors = int(runtime.getDeviceProperties(index)["multiProcessorCount"])
        self.most_blocks = RESIDENT_BLOCKS * processors
        self._programs: dict[str, Any] = {}
        self._kernels: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._captured: weakref.WeakSet[_Captured] = weakref.WeakSet()
        atexit.register(self._forget_graphs)  # after CuPy's own, so that it runs before
        with self._on():
            self._workspace = self._cupy.empty(WORKSPACE, np.uint8)
        self._products = Products(
            self._cupy.cuda.device.get_cublas_handle, self._workspace.data.ptr
        )

    def _on(self) -> Any:
        return self._cupy.cuda.Device(self.index)

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
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        try:
            with self._on():
                return self._cupy.zeros(sizes, dtype)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            with self._on() as device:
                free, total = device.mem_info
            raise OutOfMemoryError(
                f"{self.name} has not the memory for an array of shape {sizes}: "
                f"{math.prod(sizes) * dtype.itemsize:,} bytes asked, {free:,} of {total:,} free; "
                f"choose narrower layers or a smaller batch_size, or keep the data on the host"
            ) from error

    def free_bytes(self) -> int:
        with self._on() as device:
            # what CuPy's pool has taken and does not use is free as well
            return int(device.mem_info[0]) + int(self._cupy.get_default_memory_pool().free_bytes())

    def from_host(self, x: np.ndarray[Any, Any]) -> Array:
        out = self.zeros(x.shape, x.dtype)
        with self._on():
            out.set(x)
        return out

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        with self._on():
            return np.asarray(x.get(order="C"))

    def launch(self, launch: Launch) -> None:
        with self._on():
            kernel = self._kernel(launch.kernel, launch.dtype)
            # CuPy has no null pointer: its None is no argument at all
            arguments = tuple(np.uint64(0) if a is None else a for a in launch.arguments)
            kernel((launch.blocks,), (THREADS,), arguments)

    def _kernel(self, name: str, dtype: DType | None) -> Any:
        real = _REAL[dtype.name] if dtype is not None else next(iter(self._programs), "float")
        kernel = self._kernels.get((name, real))
        if kernel is None:
            with self._lock:
                if real not in self._programs:
                    # CuPy compiles for this GPU, and keeps what it compiled in its cache folder
                    self._programs[real] = self._cupy.RawModule(
                        code=source(), options=("-std=c++17", f"-DReal={real}"), backend="nvrtc"
                    )
                kernel = self._kernels[name, real] = self._programs[real].get_function(name)
        return kernel

    def product(self, a: Array, b: Array, out: Array, a_t: bool, b_t: bool, tf32: bool) -> None:
        with self._on():
            stream = self._cupy.cuda.get_current_stream().ptr
            self._products(a, b, out, a_t, b_t, tf32, stream)

    def address(self, x: Array) -> int:
        return int(x.data.ptr)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with self._on(), self._cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                work()
            finally:
                graph = stream.end_capture()
        captured = _Captured(self, graph)
        self._captured.add(captured)
        return captured.launch

    def _forget_graphs(self) -> None:
        """Graphs have to be gone before CuPy takes its leave of CUDA."""
        for captured in list(self._captured):
            captured.graph = None

    def synchronize(self) -> None:
        with self._on() as device:
            device.synchronize()
