"""Matrix products by cuBLAS through ctypes, where cuBLASLt has none: CuPy's own calls refuse to be
captured in a graph.

Numbers are those of cublas_api.h and library_types.h.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from nnbackend.backends._cuda_products import Product, ProductError

_NO, _TRANSPOSED = 0, 1  # cublasOperation_t
_DEFAULT_ALGORITHM = -1  # cublasGemmAlgo_t
#: cudaDataType_t of a matrix, uint16 holding the bits of bfloat16 numbers.
KINDS = {"float32": 0, "float64": 1, "uint16": 14}
#: cublasComputeType_t by the dtype that is added up in, and the one that rounds to TF32.
COMPUTE, TF32 = {"float32": 68, "float64": 70}, 77
SCALARS: dict[str, Any] = {"float32": ctypes.c_float, "float64": ctypes.c_double}
#: Bytes that a product may use: what cuBLAS takes for itself on the newest GPUs.
WORKSPACE = 32 << 20


class Products:
    """Products on one device, on any of its streams, without epilogues."""

    def __init__(self, handle: Any) -> None:
        """
        Args:
            handle: function that returns the thread's cublasHandle_t.
        """
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        path = pathfinder.load_nvidia_dynamic_lib("cublas").abs_path
        self._library, self._handle = ctypes.CDLL(path), handle

    def __call__(self, product: Product, stream: int, workspace: int) -> None:
        """Row-major out (M, N) = a b. cuBLAS counts in columns: it is asked for out^T = b^T a^T.

        Args:
            workspace: address of WORKSPACE bytes that nothing else on another stream uses.
        """
        a, b, out, a_t, b_t, tf32, *_ = product
        rows, columns = out.shape
        inner = a.shape[0] if a_t else a.shape[1]
        a_kind, b_kind, out_kind = (KINDS[x.dtype.name] for x in (a, b, out))
        sums = "float32" if out.dtype.name == "uint16" else out.dtype.name
        compute = TF32 if tf32 and a.dtype == np.float32 else COMPUTE[sums]
        scalar = SCALARS[sums]
        handle, size = ctypes.c_void_p(self._handle()), ctypes.c_int
        self._check("cublasSetStream_v2", handle, ctypes.c_void_p(stream))
        # after the stream, which resets it
        self._check(
            "cublasSetWorkspace_v2", handle, ctypes.c_void_p(workspace),
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
            raise ProductError(f"{function} answers with cublasStatus_t {status}")
