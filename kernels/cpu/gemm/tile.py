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
from numba.extending import intrinsic

from nnbackend.kernels.cpu.gemm.vector_code import (
    I1,
    I32,
    I64,
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    Code,
)

#: Steps ahead for which a row of b is asked from memory, and steps of a turn with copied operands.
_AHEAD, TURN = 8, 4


def _tile_function(code: Code, rows: int, vectors: int, partial: bool) -> ir.Function:
    """tile(a, b, c; a_row, a_step, b_row, c_row, steps, last, add) for one size of tile.

    c = a b, or c += a b; ``last`` is the number of columns in the last vector if it is partial.
    """
    name = f"nnbackend_tile_{code.kind}_{rows}_{vectors}_{int(partial)}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 3, 7)
    a, b, c, a_row, a_step, b_row, c_row, steps, last, add = function.args
    start, places = code.builder, range(vectors)
    offsets = [I64(v * code.lanes) for v in places]
    mask = code.mask(last) if partial else None
    masks = [mask if v == vectors - 1 else None for v in places]
    a_rows = [code.at(a, start.mul(a_row, I64(i))) for i in range(rows)]
    c_rows = [code.at(c, start.mul(c_row, I64(i))) for i in range(rows)]
    fetching, entry, loop = (function.append_basic_block() for _ in range(3))
    start.cbranch(start.icmp_signed(">", steps, I64(_AHEAD)), fetching, entry)
    code.builder = ir.IRBuilder(fetching)
    for row in c_rows:
        for offset in offsets:
            code.prefetch(code.at(row, offset))
    code.builder.branch(entry)
    ir.IRBuilder(entry).branch(loop)

    code.builder = body = ir.IRBuilder(loop)
    step = body.phi(I64)
    sums = [[body.phi(code.vector) for _ in places] for _ in range(rows)]
    here = code.at(b, body.mul(step, b_row))
    loaded = [code.load(code.at(here, offset), m) for offset, m in zip(offsets, masks, strict=True)]
    below = code.at(here, body.mul(b_row, I64(_AHEAD)))
    for offset in offsets:
        code.prefetch(code.at(below, offset))
    if rows == TILE_ROWS:
        # the following tile's rows, each line of memory once
        line = I64(64 * code.lanes // VECTOR_BYTES)
        row = body.add(body.urem(step, line), I64(rows))
        column = body.sub(step, body.urem(step, line))
        code.prefetch(code.at(a, body.mul(row, a_row), column))
    a_offset = body.mul(step, a_step)
    following = []
    for row, row_sums in zip(a_rows, sums, strict=True):
        following.append(code.row(code.at(row, a_offset), loaded, row_sums))
    after = body.add(step, I64(1))
    step.add_incoming(I64(0), entry)
    step.add_incoming(after, loop)
    for row_sums, results in zip(sums, following, strict=True):
        for total, result in zip(row_sums, results, strict=True):
            total.add_incoming(code.zero, entry)
            total.add_incoming(result, loop)
    done = function.append_basic_block()
    body.cbranch(body.icmp_signed("<", after, steps), loop, done)
    _store(code, function, done, c_rows, following, masks, add)
    return function


def _store(
    code: Code,
    function: ir.Function,
    block: Any,
    rows: list[Any],
    sums: list[list[Any]],
    masks: list[Any],
    add: Any,
) -> None:
    """c = sums, or c += sums, and return."""
    adding, storing, end = (function.append_basic_block() for _ in range(3))
    build = ir.IRBuilder(block)
    build.cbranch(build.trunc(add, I1), adding, storing)
    for choice, adds in ((adding, True), (storing, False)):
        code.builder = ir.IRBuilder(choice)
        for row, row_sums in zip(rows, sums, strict=True):
            for v, (mask, value) in enumerate(zip(masks, row_sums, strict=True)):
                place = code.at(row, I64(v * code.lanes))
                if adds:
                    value = code.builder.fadd(value, code.load(place, mask))
                code.store(value, place, mask)
        code.builder.branch(end)
    ir.IRBuilder(end).ret_void()


def _copied_tile_function(code: Code, rows: int, vectors: int, partial: bool) -> ir.Function:
    """tile(a, b, c, ahead; ahead_step, c_row, steps, last, add), the same for copies of a (steps,
    rows) and of b (steps, whole vectors), whose distances are known, TURN steps at a time.

    Lines of memory that come next are asked for a few at a time: all of a tile of c at once would
    keep those of b waiting.
    """
    name = f"nnbackend_copied_tile_{code.kind}_{rows}_{vectors}_{int(partial)}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 4, 5)
    a, b, c, ahead, ahead_step, c_row, steps, last, add = function.args
    start, places, lanes = code.builder, range(vectors), code.lanes
    masks = [code.mask(last) if partial and v == vectors - 1 else None for v in places]
    c_rows = [code.at(c, start.mul(c_row, I64(i))) for i in range(rows)]
    next_tile = start.mul(steps, I64(rows))
    entry, loop, done = start.block, function.append_basic_block(), function.append_basic_block()
    start.branch(loop)

    code.builder = body = ir.IRBuilder(loop)
    step = body.phi(I64)
    here_a, here_b, here_c, here_ahead = (body.phi(a.type) for _ in range(4))
    sums = [[body.phi(code.vector) for _ in places] for _ in range(rows)]
    now = [list(row) for row in sums]
    for v in places:
        code.prefetch(code.at(here_c, I64(v * lanes)))
    line = 64 * lanes // VECTOR_BYTES
    for offset in range(0, TURN * rows, line):
        code.prefetch(code.at(here_a, next_tile, I64(offset)))
    code.prefetch(here_ahead, 2)
    for turn in range(TURN):
        loaded = []
        for v in places:
            loaded.append(code.load(code.at(here_b, I64((turn * vectors + v) * lanes))))
            code.prefetch(code.at(here_b, I64(((turn + _AHEAD) * vectors + v) * lanes)))
        for i in range(rows):
            now[i] = code.row(code.at(here_a, I64(turn * rows + i)), loaded, now[i])
    after = body.add(step, I64(TURN))
    more = body.icmp_signed("<", after, I64(TURN * rows))
    changes = [
        (step, I64(0), after),
        (here_a, a, code.at(here_a, I64(TURN * rows))),
        (here_b, b, code.at(here_b, I64(TURN * vectors * lanes))),
        (here_c, c, body.select(more, code.at(here_c, c_row), here_c)),
        (here_ahead, ahead, code.at(here_ahead, ahead_step)),
    ]
    for row, results in zip(sums, now, strict=True):
        changes += [(s, code.zero, result) for s, result in zip(row, results, strict=True)]
    for value, first, following in changes:
        value.add_incoming(first, entry)
        value.add_incoming(following, loop)
    body.cbranch(body.icmp_signed("<", after, steps), loop, done)
    _store(code, function, done, c_rows, now, masks, add)
    return function


def _any_tile_function(code: Code) -> ir.Function:
    """tile(a, b, c, ahead; ahead_step, a_row, a_step, b_row, c_row, steps, rows, columns, add), any
    size, copied or not."""
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
    often = [kind for kind in kinds if kind[0] >= TILE_ROWS - 1 and kind[1] >= TILE_VECTORS - 1]
    functions_of_copies = {kind: _copied_tile_function(code, *kind) for kind in often}
    function = code.begin(name, 4, 9)
    a, b, c, ahead, ahead_step, a_row, a_step, b_row, c_row, steps, rows, columns, add = (
        function.args
    )
    build = code.builder
    last = build.and_(columns, I64(code.lanes - 1))
    partial = build.zext(build.icmp_signed("!=", last, I64(0)), I64)
    vectors = build.udiv(build.add(columns, I64(code.lanes - 1)), I64(code.lanes))
    # the place of (rows, vectors, partial) among the kinds, plus 2 (TILE_VECTORS + 1)
    which = build.add(build.mul(rows, I64(TILE_VECTORS)), vectors)
    which = build.add(build.shl(which, I64(1)), partial)
    common = c_row, steps, last, add
    end = function.append_basic_block()
    choice = build.switch(which, end)
    for place, kind in enumerate(kinds):
        block = function.append_basic_block()
        choice.add_case(I64(place + 2 * (TILE_VECTORS + 1)), block)
        case = ir.IRBuilder(block)
        if kind in functions_of_copies:
            copied = case.icmp_signed("==", case.and_(steps, I64(TURN - 1)), I64(0))
            distances = ((a_row, 1), (a_step, kind[0]), (b_row, kind[1] * code.lanes))
            for distance, known in distances:
                copied = case.and_(copied, case.icmp_signed("==", distance, I64(known)))
            with case.if_then(copied):
                function_of_copies = functions_of_copies[kind]
                case.call(function_of_copies, (a, b, c, ahead, ahead_step, *common), tail=True)
                case.branch(end)
        case.call(functions[place], (a, b, c, a_row, a_step, b_row, *common), tail=True)
        case.branch(end)
    ir.IRBuilder(end).ret_void()
    return function


def _transpose_function(code: Code) -> ir.Function:
    """transpose(source, out; source_row, rows, out_row) for a square of vectors."""
    name = f"nnbackend_transpose_{code.kind}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 2, 3)
    source, out, source_row, rows, out_row = function.args
    build, lanes = code.builder, code.lanes
    final = build.sub(rows, I64(1))
    block = []
    for i in range(lanes):
        row = build.select(build.icmp_signed("<", I64(i), rows), I64(i), final)
        block.append(code.load(code.at(source, build.mul(row, source_row))))
    distance = lanes // 2
    while distance:
        # exchange the off-diagonal squares of this size
        low = [j if not j & distance else j - distance + lanes for j in range(lanes)]
        high = [j + distance if not j & distance else j + lanes for j in range(lanes)]
        kinds = [ir.Constant(ir.VectorType(I32, lanes), order) for order in (low, high)]
        for i in range(lanes):
            if not i & distance:
                pair = block[i], block[i + distance]
                block[i], block[i + distance] = (build.shuffle_vector(*pair, k) for k in kinds)
        distance //= 2
    for i, column in enumerate(block):
        code.store(column, code.at(out, build.mul(out_row, I64(i))))
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
    ahead_step: Any,
    like: Any,
) -> Any:
    """c (rows, columns) = a b, or c += a b, over ``steps`` > 0 of the inner dimension.

    ``rows`` is at most TILE_ROWS, ``columns`` at most TILE_VECTORS vectors, both at least 1; a, b
    and c are addresses, ``*_row``, ``a_step`` and ``ahead_step`` distances in elements. Columns of
    b are contiguous. A tile of copies brings a line of memory near every TURN steps, from ``ahead``
    on.
    """
    signature = types.void(*(types.int64,) * 10, types.boolean, types.int64, types.int64, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        n_rows, n_columns, n_steps, a_, ar, at, b_, br, c_, cr, adds, next_, nexts, _ = arguments
        code, pointers = Code.inside(context, builder, like, (a_, b_, c_, next_))
        sizes = (nexts, ar, at, br, cr, n_steps, n_rows, n_columns, builder.zext(adds, I64))
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
        code, places = Code.inside(context, builder, like, (source_, out_))
        builder.call(_transpose_function(code), (*places, source_step, n_rows, out_step))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_lanes(typing_context: Any, source: Any, out: Any, n: Any, like: Any) -> Any:
    """Copy n numbers, at most as many as a vector has; ``out`` receives a whole vector."""
    signature = types.void(types.int64, types.int64, types.int64, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, places = Code.inside(context, builder, like, arguments[:2])
        code.builder = builder
        code.store(code.load(places[0], code.mask(arguments[2])), places[1])
        return context.get_dummy_value()

    return signature, codegen
