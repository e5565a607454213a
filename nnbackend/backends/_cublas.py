"""Matrix products by cuBLAS through ctypes: CuPy's own calls refuse to be captured in a graph.

Numbers are those of cublas_api.h and library_types.h.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from nnbackend.backends.base import Array
from nnbackend.errors import NNBackendError

_NO, _TRANSPOSED = 0, 1  # cublasOperation_t
_DEFAULT_ALGORITHM = -1  # cublasGemmAlgo_t
#: cudaDataType_t of a matrix, uint16 holding the bits of bfloat16 numbers.
_KINDS = {"float32": 0, "float64": 1, "uint16": 14}
#: cublasComputeType_t by the result's dtype, and the one that rounds to TF32.
_COMPUTE, _TF32 = {"float32": 68, "float64": 70}, 77
_SCALARS: dict[str, Any] = {"float32": ctypes.c_float, "float64": ctypes.c_double}
#: Bytes that a product may use: what cuBLAS takes for itself on the newest GPUs.
WORKSPACE = 32 << 20


class Products:
    """out = a b on one device, on any of its streams."""

    def __init__(self, handle: Any, workspace: int) -> None:
        """
        Args:
            handle: function that returns the thread's cublasHandle_t.
            workspace: address of WORKSPACE bytes on the device.
        """
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        path = pathfinder.load_nvidia_dynamic_lib("cublas").abs_path
        self._library, self._handle, self._workspace = ctypes.CDLL(path), handle, workspace

    def __call__(
        self, a: Array, b: Array, out: Array, a_t: bool, b_t: bool, tf32: bool, stream: int
    ) -> None:
        """Row-major out (M, N) = a b. cuBLAS counts in columns: it is asked for out^T = b^T a^T."""
        rows, columns = out.shape
        inner = a.shape[0] if a_t else a.shape[1]
        a_kind, b_kind, out_kind = (_KINDS[x.dtype.name] for x in (a, b, out))
        rounds = tf32 and out.dtype == np.float32 and a.dtype == np.float32
        compute = _TF32 if rounds else _COMPUTE[out.dtype.name]
        scalar = _SCALARS[out.dtype.name]
        handle, size = ctypes.c_void_p(self._handle()), ctypes.c_int
        self._check("cublasSetStream_v2", handle, ctypes.c_void_p(stream))
        # after the stream, which resets it
        self._check(
            "cublasSetWorkspace_v2", handle, ctypes.c_void_p(self._workspace),
            ctypes.c_size_t(WORKSPACE),
        )  # fmt: skip
        one, zero = scalar(1.0), scalar(0.0)
        self._check(
            "cublasGemmEx", handle, _TRANSPOSED if b_t else _NO, _TRANSPOSED if a_t else _NO,
            size(columns), size(rows), size(inner), ctypes.byref(one),
            ctypes.c_void_p(b.data.ptr), b_kind, size(b.shape[1]),
            ctypes.c_void_p(a.data.ptr), a_kind, size(a.shape[1]), ctypes.byref(zero),
            ctypes.c_void_p(out.data.ptr), out_kind, size(columns), compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise NNBackendError(f"{function} answers with cublasStatus_t {status}")
