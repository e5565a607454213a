"""Matrix products by cuBLASLt through ctypes, with bias, ReLU and bias gradient on the way.

cuBLASLt counts in columns: a row-major out = a b is asked for as out^T = b^T a^T, so that a bias
for each column of ``out`` is the bias for each row that cuBLASLt knows. Numbers are those of
cublasLt.h and library_types.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from nnbackend.backends.cuda.cublas import KINDS, WORKSPACE, arithmetic, call, load
from nnbackend.backends.cuda.gemm import ALIGNMENT, Epilogue, Product, ProductError
from nnbackend.backends.types import Array

#: cublasLtEpilogue_t
EPILOGUES = {
    Epilogue.PLAIN: 1,
    Epilogue.BIAS: 4,
    Epilogue.RELU: 2 | 4,
    Epilogue.COLUMN_SUMS: 256,
}
#: cublasLtMatmulDescAttributes_t
TRANSPOSED_A, TRANSPOSED_B, EPILOGUE, VECTOR = 3, 4, 7, 8
#: cublasLtMatmulPreferenceAttributes_t
MOST_WORKSPACE, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)
#: cublasLtReductionScheme_t: parts of a sum are kept in the type that is added up in. In place they
#: would be added in whatever order they arrive, and in the output's type rounded.
IN_ORDER = 2
#: Algorithms that are asked for. The library ranks them by a model of the GPU, and for matrices of
#: few columns the first is often not the fastest (H200: 5.4 us, where the third takes 3.4).
WANTED = 8
#: A way to do a product, on a stream and with a workspace.
Way = Callable[[int, int], None]
#: Bytes of a cublasLtMatmulAlgo_t.
_ALGORITHM = 64


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * (_ALGORITHM // 8)),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class _Plan(NamedTuple):
    """How products of one form are done."""

    descriptor: ctypes.c_void_p
    layouts: tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    algorithm: Any
    workspace: int
    scalars: tuple[Any, ...]


class LtProducts:
    """Products on one device, on any of its streams. Not to be called by two threads at once."""

    def __init__(self, choose: Callable[[str, Sequence[Way]], int]) -> None:
        """
        Args:
            choose: says which of several ways is the fastest; the text names the form of the
                product, on which the answer depends.

        Raises:
            OSError, ProductError: the library cannot be loaded or cannot start.
        """
        self._library, self._choose = load("cublasLt"), choose
        self._plans: dict[tuple[Any, ...], _Plan | None] = {}
        self._handle = ctypes.c_void_p()
        self._check("cublasLtCreate", ctypes.byref(self._handle))

    @property
    def version(self) -> str:
        return lt_version(self._library)

    def supports(self, product: Product) -> bool:
        """Whether there is an algorithm for products of this form; finds the fastest one, which
        must not happen during a capture, and overwrites the product's results."""
        return self._plan(product) is not None

    def __call__(self, product: Product, stream: int, workspace: int) -> None:
        """
        Args:
            workspace: address of WORKSPACE bytes that nothing else on another stream uses.
        """
        plan = self._plan(product)
        if plan is None:
            raise ProductError(f"cuBLASLt has no algorithm for {_form(product)}")
        self._run(plan, product, stream, workspace)

    def _run(self, plan: _Plan, product: Product, stream: int, workspace: int) -> None:
        self._point(plan.descriptor, product)
        one, zero = plan.scalars
        a, b, out = (ctypes.c_void_p(x.data.ptr) for x in (product.b, product.a, product.out))
        layout_a, layout_b, layout_out = plan.layouts
        self._check(
            "cublasLtMatmul", self._handle, plan.descriptor, ctypes.byref(one), a, layout_a, b,
            layout_b, ctypes.byref(zero), out, layout_out, out, layout_out,
            ctypes.byref(plan.algorithm), ctypes.c_void_p(workspace),
            ctypes.c_size_t(plan.workspace), ctypes.c_void_p(stream),
        )  # fmt: skip

    def _plan(self, product: Product) -> _Plan | None:
        form = _form(product)
        if form not in self._plans:
            self._plans[form] = self._find(product)
        return self._plans[form]

    def _find(self, product: Product) -> _Plan | None:
        """The fastest of the algorithms that the library offers and that add up in a fixed
        order."""
        made: list[tuple[str, ctypes.c_void_p]] = []
        plan = None
        try:
            plan = self._search(product, made)
            return plan
        finally:
            kept = () if plan is None else (plan.descriptor, *plan.layouts)
            for kind, created in made:
                if not any(created is one for one in kept):
                    self._check(f"{kind}Destroy", created)

    def _search(self, product: Product, made: list[tuple[str, ctypes.c_void_p]]) -> _Plan | None:
        """``made``: the library's objects that there are then."""

        def new(kind: str, *arguments: Any) -> ctypes.c_void_p:
            created = ctypes.c_void_p()
            self._check(f"{kind}Create", ctypes.byref(created), *arguments)
            made.append((kind, created))
            return created

        kind, compute, *scalars = arithmetic(product)
        descriptor = new("cublasLtMatmulDesc", compute, kind)
        for attribute, transposed in ((TRANSPOSED_A, product.b_t), (TRANSPOSED_B, product.a_t)):
            self._set("MatmulDesc", descriptor, attribute, ctypes.c_int32(transposed))
        epilogue = ctypes.c_uint32(EPILOGUES[product.epilogue])
        self._set("MatmulDesc", descriptor, EPILOGUE, epilogue)
        self._point(descriptor, product)  # the search looks at how the addresses are aligned
        a, b, c = (
            new("cublasLtMatrixLayout", *_layout(x)) for x in (product.b, product.a, product.out)
        )
        preference = new("cublasLtMatmulPreference")
        self._set("MatmulPreference", preference, MOST_WORKSPACE, ctypes.c_uint64(WORKSPACE))
        self._set("MatmulPreference", preference, REDUCTIONS, ctypes.c_uint32(IN_ORDER))
        arrays = (product.b, product.a, product.out, product.out)
        for attribute, array in zip(ALIGNMENTS, arrays, strict=True):
            aligned = ctypes.c_uint32(_aligned(array))
            self._set("MatmulPreference", preference, attribute, aligned)
        results, count = (_Result * WANTED)(), ctypes.c_int()
        status = self._library.cublasLtMatmulAlgoGetHeuristic(
            self._handle, descriptor, a, b, c, c, preference, WANTED, results,
            ctypes.byref(count),
        )  # fmt: skip
        if status:
            return None
        plans = [
            _Plan(descriptor, (a, b, c), result.algorithm, result.workspace, tuple(scalars))
            for result in results[: count.value] if not result.state
        ]  # fmt: skip
        if len(plans) < 2:
            return plans[0] if plans else None
        ways = [partial(self._run, plan, product) for plan in plans]
        return plans[self._choose(f"product {_form(product)}", ways)]

    def _point(self, descriptor: ctypes.c_void_p, product: Product) -> None:
        if product.vector is not None:
            address = ctypes.c_void_p(product.vector.data.ptr)
            self._set("MatmulDesc", descriptor, VECTOR, address)

    def _set(self, kind: str, what: ctypes.c_void_p, attribute: int, value: Any) -> None:
        self._check(
            f"cublasLt{kind}SetAttribute", what, attribute, ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        )  # fmt: skip

    def _check(self, function: str, *arguments: Any) -> None:
        call(self._library, function, *arguments)


def lt_version(library: ctypes.CDLL) -> str:
    """ "12.9.2"; the library says 120902."""
    ask = library.cublasLtGetVersion
    ask.restype = ctypes.c_size_t
    number = int(ask())
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def _aligned(x: Array) -> int:
    """The largest power of two that divides the address, as far as it makes a difference."""
    address = int(x.data.ptr)
    return min(address & -address, ALIGNMENT)


def _layout(x: Array) -> tuple[Any, ...]:
    """A row-major matrix is a column-major one with its sides exchanged."""
    rows, columns = x.shape
    size = ctypes.c_uint64
    return KINDS[x.dtype.name], size(columns), size(rows), ctypes.c_int64(columns)


def _form(product: Product) -> tuple[Any, ...]:
    """All that an algorithm is chosen by."""
    a, b, out = product.a, product.b, product.out
    arrays = (a, b, out, product.vector)
    aligned = tuple(0 if x is None else _aligned(x) for x in arrays)
    kinds = tuple("" if x is None else x.dtype.name for x in arrays)
    flags = (product.a_t, product.b_t, product.tf32, product.epilogue.value)
    return (*a.shape, *b.shape, *out.shape, *flags, *kinds, *aligned)
