"""Matrix products by cuBLAS through ctypes, where cuBLASLt has none: CuPy's own calls refuse to be
captured in a graph.

Numbers are those of cublas_api.h and library_types.h.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from nnbackend.backends.cuda.gemm import Product, ProductError

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
        self._library, self._handle = load("cublas"), handle

    def __call__(self, product: Product, stream: int, workspace: int) -> None:
        """Row-major out (M, N) = a b. cuBLAS counts in columns: it is asked for out^T = b^T a^T.

        Args:
            workspace: address of WORKSPACE bytes that nothing else on another stream uses.
        """
        a, b, out, a_t, b_t, *_ = product
        rows, columns = out.shape
        inner = a.shape[0] if a_t else a.shape[1]
        a_kind, b_kind, out_kind = (KINDS[x.dtype.name] for x in (a, b, out))
        _, compute, one, zero = arithmetic(product)
        handle, size = ctypes.c_void_p(self._handle()), ctypes.c_int
        self._check("cublasSetStream_v2", handle, ctypes.c_void_p(stream))
        # after the stream, which resets it
        self._check(
            "cublasSetWorkspace_v2", handle, ctypes.c_void_p(workspace),
            ctypes.c_size_t(WORKSPACE),
        )  # fmt: skip
        self._check(
            "cublasGemmEx", handle, _TRANSPOSED if b_t else _NO, _TRANSPOSED if a_t else _NO,
            size(columns), size(rows), size(inner), ctypes.byref(one),
            ctypes.c_void_p(b.data.ptr), b_kind, size(b.shape[1]),
            ctypes.c_void_p(a.data.ptr), a_kind, size(a.shape[1]), ctypes.byref(zero),
            ctypes.c_void_p(out.data.ptr), out_kind, size(columns), compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip

    def _check(self, function: str, *arguments: Any) -> None:
        call(self._library, function, *arguments)


def load(name: str) -> ctypes.CDLL:
    """One of CUDA's libraries, wherever it is."""
    pathfinder: Any = importlib.import_module("cuda.pathfinder")
    return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib(name).abs_path)


def call(library: Any, function: str, *arguments: Any) -> None:
    """Call a function that answers with a cublasStatus_t.

    Raises:
        ProductError: the answer is not that it succeeded.
    """
    status = getattr(library, function)(*arguments)
    if status:
        raise ProductError(f"{function} answers with cublasStatus_t {status}")


def arithmetic(product: Product) -> tuple[int, int, Any, Any]:
    """How a product is added up: cudaDataType_t of its scalars, cublasComputeType_t, and the
    scalars one and zero."""
    out = product.out.dtype.name
    sums = "float32" if out == "uint16" else out
    rounds = product.tf32 and product.a.dtype == np.float32
    number = SCALARS[sums]
    return KINDS[sums], TF32 if rounds else COMPUTE[sums], number(1.0), number(0.0)
