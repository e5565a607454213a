"""What Numba has no word for: arrays at addresses, bits as numbers, calls by address, the BLAS.

Everything here becomes a few machine instructions. ``like`` is a scalar whose type decides the
element type, so that the same kernel source serves float32 and float64.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic
from numba.np.arrayobj import make_array, populate_array

from nnbackend.kernels.processor import USES_BLAS, X86

#: flush-to-zero and denormals-are-zero, Intel SDM volume 1, 10.2.3
_MXCSR_FLUSH = 0x8040
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BLAS_NAMES = {types.float32: "nnbackend_sgemm", types.float64: "nnbackend_dgemm"}


def register_symbols() -> None:
    """Give the call that lets other threads run, and SciPy's matrix products where they are used,
    the names that compiled code, cached code too, asks for."""
    for name in ("sgemm", "dgemm") if USES_BLAS else ():
        address = get_cython_function_address("scipy.linalg.cython_blas", name)
        binding.add_symbol(f"nnbackend_{name}", address)
    if os.name == "nt":  # pragma: no cover - Windows
        function = ctypes.WinDLL("kernel32").SwitchToThread  # type: ignore[attr-defined]
    else:
        function = ctypes.CDLL(None).sched_yield
    binding.add_symbol("nnbackend_yield", ctypes.cast(function, ctypes.c_void_p).value)


def _array(
    context: Any, builder: Any, kind: types.Array, address: Any, start: Any, shape: tuple[Any, ...]
) -> Any:
    array = make_array(kind)(context, builder)
    element = context.get_data_type(kind.dtype)
    item = context.get_abi_sizeof(element)
    data = builder.gep(builder.inttoptr(address, element.as_pointer()), [start])
    strides = [context.get_constant(types.intp, item)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    itemsize = context.get_constant(types.intp, item)
    populate_array(array, data, shape, strides, itemsize, None, None)
    return array._getvalue()


@intrinsic
def vector_at(typing_context: Any, address: Any, start: Any, n: Any, like: Any) -> Any:
    """The (n,) array at ``start`` elements after ``address``."""
    kind = types.Array(like, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _array(context, builder, kind, arguments[0], arguments[1], (arguments[2],))

    return kind(types.intp, types.intp, types.intp, like), codegen


@intrinsic
def matrix_at(
    typing_context: Any, address: Any, start: Any, rows: Any, columns: Any, like: Any
) -> Any:
    """The C-contiguous (rows, columns) array at ``start`` elements after ``address``."""
    kind = types.Array(like, 2, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _array(context, builder, kind, arguments[0], arguments[1], tuple(arguments[2:4]))

    return kind(types.intp, types.intp, types.intp, types.intp, like), codegen


@intrinsic
def cast(typing_context: Any, value: Any, like: Any) -> Any:
    """``value`` in the type of ``like``."""
    if isinstance(value, types.Literal):
        value = value.literal_type

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return like(value, like), codegen


@intrinsic
def size_of(typing_context: Any, like: Any) -> Any:
    """Bytes of a number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, context.get_abi_sizeof(arguments[0].type))

    return types.intp(like), codegen


@intrinsic
def call_phase(
    typing_context: Any, function: Any, context_address: Any, phase: Any, part: Any
) -> Any:
    """Call the compiled ``phase`` function at the address ``function``."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        pointer = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(pointer, arguments[1:])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.int64), codegen


def symbol_of(name: str, like: Any) -> str:
    """What a function of an object file is called for an element type."""
    return f"nnbackend_{name}_{like}"


def linked(name: str) -> Any:
    """A function of another object file: ``function(*numbers, like)``, of which ``like`` only
    chooses among the functions of that name. Numbers are int64 or float64; nothing is returned.
    """

    @intrinsic
    def call(typing_context: Any, *arguments: Any) -> Any:
        like = arguments[-1]
        kinds = [types.float64 if isinstance(a, types.Float) else types.int64 for a in arguments]
        kinds[-1] = like

        def codegen(context: Any, builder: Any, signature: Any, packed: Any) -> Any:
            numbers = cgutils.unpack_tuple(builder, packed[0])[:-1]
            kind = ir.FunctionType(ir.VoidType(), [number.type for number in numbers])
            symbol = symbol_of(name, like)
            builder.call(cgutils.get_or_insert_function(builder.module, kind, symbol), numbers)
            return context.get_dummy_value()

        return types.none(types.StarArgTuple.from_types(tuple(kinds))), codegen

    return call


@intrinsic
def atomic_add(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at ``address`` in one go for all threads; returns what was there."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_replace(typing_context: Any, address: Any, old: Any, new: Any) -> Any:
    """Put ``new`` at ``address`` if ``old`` is there, in one go for all threads; whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _I64.as_pointer())
        answer = builder.cmpxchg(place, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(answer, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typing_context: Any, address: Any) -> Any:
    """The int64 at ``address`` as other threads left it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the processor that this thread waits for another."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def let_others_run(typing_context: Any) -> Any:
    """Give the rest of this thread's time to another one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I32, [])
        function = cgutils.get_or_insert_function(builder.module, kind, "nnbackend_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.none(), codegen


def _same_bits(source: Any, result: Any, llvm_result: Any) -> Any:
    """A function that takes the bits of one type as a number of another; its argument is first
    converted to the type, as Numba makes int64 of a sum of int32."""

    @intrinsic
    def convert(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm_result)

        return result(source), codegen

    return convert


float32_of_bits = _same_bits(types.int32, types.float32, ir.FloatType())
bits_of_float32 = _same_bits(types.float32, types.int32, _I32)
float64_of_bits = _same_bits(types.int64, types.float64, ir.DoubleType())
bits_of_float64 = _same_bits(types.float64, types.int64, _I64)


@intrinsic
def fused(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), codegen


@intrinsic
def high_word(typing_context: Any, a: Any, b: Any) -> Any:
    """The upper 32 bits of the product of two uint32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = [builder.zext(value, _I64) for value in arguments]
        product = builder.mul(*wide)
        return builder.trunc(builder.lshr(product, ir.Constant(_I64, 32)), _I32)

    return types.uint32(types.uint32, types.uint32), codegen


@intrinsic
def set_flush_subnormals(typing_context: Any, state: Any) -> Any:
    """Let this thread treat subnormal numbers as zero if ``state`` is -1, or go back to an
    earlier state; returns the state before. Subnormals cost a hundred cycles each, and a network
    that has learnt its batch by heart is full of them. Only x86 needs it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not X86:
            return arguments[0]
        byte_pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer])
        store = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        slot = cgutils.alloca_once(builder, _I32)
        place = builder.bitcast(slot, byte_pointer)
        builder.call(store, [place])
        before = builder.load(slot)
        flushing = builder.or_(before, ir.Constant(_I32, _MXCSR_FLUSH))
        asked = builder.icmp_signed("==", arguments[0], ir.Constant(_I32, -1))
        builder.store(builder.select(asked, flushing, arguments[0]), slot)
        builder.call(load, [place])
        return before

    return types.int32(types.int32), codegen


@intrinsic
def blas_product(
    typing_context: Any,
    transpose_a: Any,
    transpose_b: Any,
    m: Any,
    n: Any,
    k: Any,
    a: Any,
    lda: Any,
    b: Any,
    ldb: Any,
    c: Any,
    ldc: Any,
    like: Any,
) -> Any:
    """c = op(a) op(b) for row-major matrices at addresses, with leading dimensions.

    The BLAS counts in columns, so it is asked for c^T = op(b)^T op(a)^T.
    """
    addresses = (types.intp,) * 3
    signature = types.void(
        types.boolean, types.boolean, *addresses, *(types.intp,) * 6, like
    )  # fmt: skip

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ta, tb, m_, n_, k_, a_, lda_, b_, ldb_, c_, ldc_, _ = arguments
        number = context.get_data_type(like)
        byte = ir.IntType(8)
        pointers = [p.as_pointer() for p in (byte, byte, _I32, _I32, _I32, number, number)]
        pointers += [p.as_pointer() for p in (_I32, number, _I32, number, number, _I32)]
        kind = ir.FunctionType(ir.VoidType(), pointers)
        function = cgutils.get_or_insert_function(builder.module, kind, _BLAS_NAMES[like])

        def slot(kind: Any, value: Any) -> Any:
            place = cgutils.alloca_once(builder, kind)
            builder.store(value, place)
            return place

        def flag(value: Any) -> Any:
            bit = builder.trunc(value, ir.IntType(1))
            letter = builder.select(bit, ir.Constant(byte, ord("T")), ir.Constant(byte, ord("N")))
            return slot(byte, letter)

        def size(value: Any) -> Any:
            return slot(_I32, builder.trunc(value, _I32))

        def matrix(value: Any) -> Any:
            return builder.inttoptr(value, number.as_pointer())

        one, zero = (slot(number, ir.Constant(number, v)) for v in (1.0, 0.0))
        builder.call(
            function,
            [
                flag(tb), flag(ta), size(n_), size(m_), size(k_), one, matrix(b_), size(ldb_),
                matrix(a_), size(lda_), zero, matrix(c_), size(ldc_),
            ],
        )  # fmt: skip
        return context.get_dummy_value()

    return signature, codegen
