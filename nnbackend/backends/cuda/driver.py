"""Launches of blocks that meet, by NVIDIA's driver through ctypes: CuPy knows no others.

Numbers and structures are those of cuda.h.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from nnbackend.errors import DeviceError

#: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
MOST_SHARED = 8
_COOPERATIVE, _CLUSTER_DIMENSION = 2, 4  # CU_LAUNCH_ATTRIBUTE_...


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: which one, and a union of 64 bytes."""

    _fields_ = [("id", ctypes.c_int), ("_pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class _Config(ctypes.Structure):
    """CUlaunchConfig"""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class Starter:
    """Starts a kernel whose blocks run at the same time, on the stream that it is called with.

    Args:
        function: CUfunction.
        together: "cluster", or "grid": the launch then fails unless there is room for all blocks.
        threads: of each block.
        shared: bytes of memory of each block.
        arguments: address of the addresses of what the kernel is given.
    """

    def __init__(
        self,
        library: Any,
        function: int,
        together: str,
        blocks: int,
        threads: int,
        shared: int,
        arguments: int,
    ) -> None:
        self._call = library.cuLaunchKernelEx
        self._attribute = _Attribute(_COOPERATIVE, 0, (1,))
        if together == "cluster":
            self._attribute = _Attribute(_CLUSTER_DIMENSION, 0, (blocks, 1, 1))
        self._config = _Config(
            (blocks, 1, 1), (threads, 1, 1), shared, None, ctypes.pointer(self._attribute), 1,
        )  # fmt: skip
        self._given = (
            ctypes.byref(self._config), ctypes.c_void_p(function), ctypes.c_void_p(arguments), None,
        )  # fmt: skip

    def __call__(self, stream: int) -> None:
        self._config.stream = stream
        status = self._call(*self._given)
        if status:
            raise DeviceError(f"cuLaunchKernelEx answers with CUresult {status}")


def load_driver() -> Any:
    """The driver's library, which CuPy has loaded already."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
