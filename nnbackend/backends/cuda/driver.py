"""Launches of clusters by NVIDIA's driver through ctypes: CuPy knows blocks without one only.

Numbers and structures are those of cuda.h.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from nnbackend.errors import DeviceError

#: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
MOST_SHARED = 8
_CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


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


class ClusterStarter:
    """Starts a kernel whose blocks are one cluster, on the stream that it is called with.

    Args:
        function: CUfunction.
        threads: of each block.
        shared: bytes of memory of each block.
        arguments: address of the addresses of what the kernel is given.
    """

    def __init__(
        self, library: Any, function: int, blocks: int, threads: int, shared: int, arguments: int
    ) -> None:
        self._call = library.cuLaunchKernelEx
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
