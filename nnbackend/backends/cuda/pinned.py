"""Uploads by way of pinned memory, which the GPU reads by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbackend.backends.cuda.gemm import ALIGNMENT
from nnbackend.backends.types import Array, DType
from nnbackend.backends.uploads import Uploads


class _Slot:
    """Memory on both sides: the host's is pinned, so that the GPU fetches it by itself."""

    def __init__(self, device: Any) -> None:
        self.device, self._cuda = device, device.cuda
        self.size = 0
        self._pinned: Any = None
        self._memory: Any = None
        self.copied, self.released = (self._cuda.Event(disable_timing=True) for _ in range(2))

    def start(
        self, arrays: Sequence[tuple[np.ndarray[Any, Any], DType]], stream: Any
    ) -> list[Array]:
        sizes = [x.size * dtype.itemsize for x, dtype in arrays]
        starts = [0, *np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()]
        self.copied.synchronize()  # the last copy has read the pinned memory
        if self.size < starts[-1]:
            self.size = starts[-1]
            self._memory = self.device.zeros(self.size, np.dtype(np.uint8))
            self._pinned = self._cuda.alloc_pinned_memory(self.size)
            # the zeros are there, and whoever had this memory before is done with it
            self._cuda.get_current_stream().synchronize()
        found = []
        for (x, dtype), start, size in zip(arrays, starts, sizes, strict=False):
            host = np.frombuffer(self._pinned, dtype, x.size, start).reshape(x.shape)
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(host, x, casting="unsafe")
            found.append(self._memory[start : start + size].view(dtype).reshape(x.shape))
        stream.wait_event(self.released)
        runtime = self._cuda.runtime
        runtime.memcpyAsync(
            self._memory.data.ptr, self._pinned.ptr, starts[-1], runtime.memcpyHostToDevice,
            stream.ptr,
        )  # fmt: skip
        self.copied.record(stream)
        return found


class PinnedUploads(Uploads):
    """By way of pinned memory, on a stream of their own."""

    def __init__(self, device: Any) -> None:
        self.device = device
        with device.on():
            self._stream = device.cuda.Stream(non_blocking=True)
            self._slots = [_Slot(device) for _ in range(self.SLOTS)]

    def start(self, arrays: Sequence[tuple[np.ndarray[Any, Any], DType]], slot: int) -> list[Array]:
        with self.device.on():
            return self._slots[slot].start(arrays, self._stream)

    def arrive(self, slot: int) -> None:
        with self.device.on():
            self.device.cuda.get_current_stream().wait_event(self._slots[slot].copied)

    def release(self, slot: int) -> None:
        with self.device.on():
            self._slots[slot].released.record(self.device.cuda.get_current_stream())
