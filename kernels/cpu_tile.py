"""The inner loop of every matrix product: a tile of the result that stays in registers.

A tile is up to ``TILE_ROWS`` rows by ``TILE_VECTORS`` vectors. For each step along the inner
dimension a few vectors of b are loaded, and each row's element of a, broadcast, is multiplied
with them and added: with all but a few registers holding sums, the processor's multipliers are
busy all the time (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).

Written as LLVM code, because LLVM does not find this form in a loop by itself.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic


def _shape() -> tuple[int, int, int]:
    """Bytes of a vector, and rows and vectors of a tile, for the processor compiled for."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 64, 9, 3  # 32 registers: 27 sums, 3 of b, 1 of a
    if "+avx" in features:
        return 32, 6, 2  # 16 registers: 12 sums, 2 of b, 1 of a
    if triple.startswith(("aarch64", "arm64")):
        return 16, 8, 3  # 32 registers: 24 sums, 3 of b, 1 of a
    return 16, 6, 2


VECTOR_BYTES, TILE_ROWS, TILE_VECTORS = _shape()
#: Steps ahead for which a row of b is asked from memory.
_AHEAD = 8
_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_SIZES = {types.float32: 4, types.float64: 8}


class _Code:
    """Writes functions over vectors of one element type into a module."""

    def __init__(self, module: ir.Module, number: ir.Type, size: int) -> None:
        self.module, self.number = module, number
        self.lanes = VECTOR_BYTES // size
        self.vector = ir.VectorType(number, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.kind = f"v{self.lanes}f{8 * size}"
        self.builder = ir.IRBuilder()

    def begin(self, name: str, n_pointers: int, n_sizes: int) -> ir.Function:
        """A function of some pointers, which do not overlap, and then some int64."""
        pointers, sizes = [self.number.as_pointer()] * n_pointers, [_I64] * n_sizes
        kind = ir.FunctionType(ir.VoidType(), pointers + sizes)
        function = ir.Function(self.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        # without these LLVM halves the widest vectors, for fear of lower clock rates
        for attribute in ("min-legal-vector-width", "prefer-vector-width"):
            set.add(function.attributes, f'"{attribute}"="{8 * VECTOR_BYTES}"')
        for pointer in function.args[:n_pointers]:
            pointer.add_attribute("noalias")
        self.builder = ir.IRBuilder(function.append_basic_block())
        return function

    def _call(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.module, kind, name)
        return self.builder.call(function, arguments)

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """The pointer so many elements on."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def load(self, pointer: Any, mask: Any = None) -> Any:
        place = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(place, align=4)
        name = f"llvm.masked.load.{self.kind}.p0"
        return self._call(name, self.vector, place, _I32(4), mask, self.zero)

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        place = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, place, align=4)
        else:
            name = f"llvm.masked.store.{self.kind}.p0"
            self._call(name, ir.VoidType(), value, place, _I32(4), mask)

    def prefetch(self, pointer: Any) -> None:
        place = self.builder.bitcast(pointer, _I8.as_pointer())
        self._call("llvm.prefetch.p0", ir.VoidType(), place, _I32(0), _I32(3), _I32(1))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self._call(f"llvm.fmuladd.{self.kind}", self.vector, a, b, c)

    def broadcast(self, value: Any, lanes: int) -> Any:
        vector = ir.VectorType(value.type, lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def mask(self, n: Any) -> Any:
        """True in the first n lanes."""
        lanes = ir.VectorType(_I32, self.lanes)
        numbers = ir.Constant(lanes, list(range(self.lanes)))
        bound = self.broadcast(self.builder.trunc(n, _I32), self.lanes)
        return self.builder.icmp_signed("<", numbers, bound)


def _tile_function(code: _Code, rows: int, vectors: int, partial: bool) -> ir.Function:
    """tile(a, b, c, ahead; a_row, a_step, b_row, c_row, steps, last, add) for one size of tile.

    c = a b, or c += a b; ``last`` is the number of columns in the last vector if it is partial.
    """
    name = f"nnbackend_tile_{code.kind}_{rows}_{vectors}_{int(partial)}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 4, 7)
    a, b, c, ahead, a_row, a_step, b_row, c_row, steps, last, add = function.args
    start, places = code.builder, range(vectors)
    offsets = [_I64(v * code.lanes) for v in places]
    mask = code.mask(last) if partial else None
    masks = [mask if v == vectors - 1 else None for v in places]
    a_rows = [code.at(a, start.mul(a_row, _I64(i))) for i in range(rows)]
    c_rows = [code.at(c, start.mul(c_row, _I64(i))) for i in range(rows)]
    fetching, entry, loop = (function.append_basic_block() for _ in range(3))
    start.cbranch(start.icmp_signed(">", steps, _I64(_AHEAD)), fetching, entry)
    code.builder = ir.IRBuilder(fetching)
    for row in c_rows:
        for offset in offsets:
            code.prefetch(code.at(row, offset))
    code.builder.branch(entry)
    ir.IRBuilder(entry).branch(loop)

    code.builder = body = ir.IRBuilder(loop)
    step = body.phi(_I64)
    sums = [[body.phi(code.vector) for _ in places] for _ in range(rows)]
    here = code.at(b, body.mul(step, b_row))
    loaded = [code.load(code.at(here, offset), m) for offset, m in zip(offsets, masks, strict=True)]
    below = code.at(here, body.mul(b_row, _I64(_AHEAD)))
    for offset in offsets:
        code.prefetch(code.at(below, offset))
    line = _I64(64 * code.lanes // VECTOR_BYTES)
    if 2 * rows > TILE_ROWS:
        code.prefetch(code.at(ahead, body.mul(step, line)))
    if rows == TILE_ROWS:
        # the following tile's rows, each line of memory once
        row = body.add(body.urem(step, line), _I64(rows))
        column = body.sub(step, body.urem(step, line))
        code.prefetch(code.at(a, body.mul(row, a_row), column))
    a_offset = body.mul(step, a_step)
    following = []
    for row, row_sums in zip(a_rows, sums, strict=True):
        factor = code.broadcast(body.load(code.at(row, a_offset)), code.lanes)
        following.append(
            [code.multiply_add(factor, x, s) for x, s in zip(loaded, row_sums, strict=True)]
        )
    after = body.add(step, _I64(1))
    step.add_incoming(_I64(0), entry)
    step.add_incoming(after, loop)
    for row_sums, results in zip(sums, following, strict=True):
        for total, result in zip(row_sums, results, strict=True):
            total.add_incoming(code.zero, entry)
            total.add_incoming(result, loop)
    done, adding, storing, end = (function.append_basic_block() for _ in range(4))
    body.cbranch(body.icmp_signed("<", after, steps), loop, done)
    final = ir.IRBuilder(done)
    final.cbranch(final.trunc(add, _I1), adding, storing)
    for block, adds in ((adding, True), (storing, False)):
        code.builder = ir.IRBuilder(block)
        for row, results in zip(c_rows, following, strict=True):
            for offset, m, result in zip(offsets, masks, results, strict=True):
                place = code.at(row, offset)
                if adds:
                    result = code.builder.fadd(result, code.load(place, m))
                code.store(result, place, m)
        code.builder.branch(end)
    ir.IRBuilder(end).ret_void()
    return function


def _any_tile_function(code: _Code) -> ir.Function:
    """tile(a, b, c, ahead; a_row, a_step, b_row, c_row, steps, rows, columns, add), any size."""
    name = f"nnbackend_tile_{code.kind}"
    if name in code.module.globals:
        return code.module.globals[name]
    kinds = [
        (rows, vectors, partial)
        for rows in range(1, TILE_ROWS + 1)
        for vectors in range(1, TILE_VECTORS + 1)
        for partial in (False, True)
    ]
    functions = [_tile_function(code, *kind) for kind in kinds]
    function = code.begin(name, 4, 8)
    *shared, rows, columns, add = function.args
    build = code.builder
    last = build.and_(columns, _I64(code.lanes - 1))
    partial = build.zext(build.icmp_signed("!=", last, _I64(0)), _I64)
    vectors = build.udiv(build.add(columns, _I64(code.lanes - 1)), _I64(code.lanes))
    # the place of (rows, vectors, partial) among the kinds, plus 2 (TILE_VECTORS + 1)
    which = build.add(build.mul(rows, _I64(TILE_VECTORS)), vectors)
    which = build.add(build.shl(which, _I64(1)), partial)
    end = function.append_basic_block()
    choice = build.switch(which, end)
    for place, kind in enumerate(functions):
        block = function.append_basic_block()
        choice.add_case(_I64(place + 2 * (TILE_VECTORS + 1)), block)
        case = ir.IRBuilder(block)
        case.call(kind, (*shared, last, add), tail=True)
        case.branch(end)
    ir.IRBuilder(end).ret_void()
    return function


def _transpose_function(code: _Code) -> ir.Function:
    """transpose(source, out; source_row, rows, out_row) for a square of vectors."""
    name = f"nnbackend_transpose_{code.kind}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 2, 3)
    source, out, source_row, rows, out_row = function.args
    build, lanes = code.builder, code.lanes
    final = build.sub(rows, _I64(1))
    block = []
    for i in range(lanes):
        row = build.select(build.icmp_signed("<", _I64(i), rows), _I64(i), final)
        block.append(code.load(code.at(source, build.mul(row, source_row))))
    distance = lanes // 2
    while distance:
        # exchange the off-diagonal squares of this size
        low = [j if not j & distance else j - distance + lanes for j in range(lanes)]
        high = [j + distance if not j & distance else j + lanes for j in range(lanes)]
        kinds = [ir.Constant(ir.VectorType(_I32, lanes), order) for order in (low, high)]
        for i in range(lanes):
            if not i & distance:
                pair = block[i], block[i + distance]
                block[i], block[i + distance] = (build.shuffle_vector(*pair, k) for k in kinds)
        distance //= 2
    for i, column in enumerate(block):
        code.store(column, code.at(out, build.mul(out_row, _I64(i))))
    build.ret_void()
    return function


@intrinsic
def tile(
    typing_context: Any,
    rows: Any,
    columns: Any,
    steps: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_row: Any,
    c: Any,
    c_row: Any,
    add: Any,
    ahead: Any,
    like: Any,
) -> Any:
    """c (rows, columns) = a b, or c += a b, over ``steps`` > 0 of the inner dimension.

    ``rows`` is at most TILE_ROWS, ``columns`` at most TILE_VECTORS vectors, both at least 1; a, b
    and c are addresses, ``*_row`` and ``a_step`` distances in elements. Columns of b are
    contiguous. Meanwhile the memory from ``ahead`` on is brought near, 64 bytes a step.
    """
    signature = types.void(*(types.int64,) * 10, types.boolean, types.int64, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        n_rows, n_columns, n_steps, a_, ar, at, b_, br, c_, cr, adds, next_, _ = arguments
        code = _Code(builder.module, context.get_data_type(like), _SIZES[like])
        pointers = [builder.inttoptr(x, code.number.as_pointer()) for x in (a_, b_, c_, next_)]
        sizes = (ar, at, br, cr, n_steps, n_rows, n_columns, builder.zext(adds, _I64))
        builder.call(_any_tile_function(code), (*pointers, *sizes))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def transpose_square(
    typing_context: Any, source: Any, source_row: Any, rows: Any, out: Any, out_row: Any, like: Any
) -> Any:
    """out[j, i] = source[min(i, rows - 1), j] for a square of as many lanes as a vector has.

    ``source`` and ``out`` are addresses, their rows so many elements apart.
    """
    signature = types.void(*(types.int64,) * 5, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_, source_step, n_rows, out_, out_step, _ = arguments
        code = _Code(builder.module, context.get_data_type(like), _SIZES[like])
        places = [builder.inttoptr(x, code.number.as_pointer()) for x in (source_, out_)]
        builder.call(_transpose_function(code), (*places, source_step, n_rows, out_step))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_lanes(typing_context: Any, source: Any, out: Any, n: Any, like: Any) -> Any:
    """Copy n numbers, at most as many as a vector has; ``out`` receives a whole vector."""
    signature = types.void(types.int64, types.int64, types.int64, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(builder.module, context.get_data_type(like), _SIZES[like])
        code.builder = builder
        places = [builder.inttoptr(x, code.number.as_pointer()) for x in arguments[:2]]
        code.store(code.load(places[0], code.mask(arguments[2])), places[1])
        return context.get_dummy_value()

    return signature, codegen
