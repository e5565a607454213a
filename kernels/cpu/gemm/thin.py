"""Products of thin matrices, whose tiles would be over before they are set up.

Where the inner dimension is a few steps, all of a panel of b stays in registers while the rows of
a pass by. Where the result has a few columns, each element is a dot product of two rows, and as
many as a vector has lanes are added up together.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nnbackend.kernels.cpu.gemm.tile import Code
from nnbackend.kernels.cpu.gemm.vector_code import VECTOR_BYTES

#: Steps, and vectors of a panel of b that stay in registers; columns of a result of dot products.
FEW_STEPS, PANEL_VECTORS, FEW_COLUMNS = 4, 4 if VECTOR_BYTES == 64 else 2, 4
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _loop(function: ir.Function, code: Code) -> tuple[Any, Any, Any]:
    """Begin a loop over 0 ... n - 1, n > 0: the index, the block before and the block itself."""
    before, block = code.builder.block, function.append_basic_block()
    code.builder.branch(block)
    code.builder = ir.IRBuilder(block)
    index = code.builder.phi(_I64)
    index.add_incoming(_I64(0), before)
    return index, before, block


def _repeat(function: ir.Function, code: Code, index: Any, block: Any, n: Any) -> None:
    """End that loop; what follows is written after it."""
    after, end = code.builder.add(index, _I64(1)), function.append_basic_block()
    index.add_incoming(after, code.builder.block)
    code.builder.cbranch(code.builder.icmp_signed("<", after, n), block, end)
    code.builder = ir.IRBuilder(end)


def _few_steps_function(code: Code, steps: int, vectors: int, partial: bool) -> ir.Function:
    """product(a, b, c; a_row, a_step, b_row, c_row, rows, last) for one panel of b."""
    name = f"nnbackend_few_steps_{code.kind}_{steps}_{vectors}_{int(partial)}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 3, 6)
    a, b, c, a_row, a_step, b_row, c_row, rows, last = function.args
    mask = code.mask(last) if partial else None
    places = [(_I64(v * code.lanes), mask if v == vectors - 1 else None) for v in range(vectors)]
    build = code.builder
    b_rows = [code.at(b, build.mul(b_row, _I64(k))) for k in range(steps)]
    panel = [[code.load(code.at(row, offset), m) for offset, m in places] for row in b_rows]
    i, _, block = _loop(function, code)
    build = code.builder
    here, out = code.at(a, build.mul(i, a_row)), code.at(c, build.mul(i, c_row))
    factors = [
        code.broadcast(build.load(code.at(here, build.mul(a_step, _I64(k)))), code.lanes)
        for k in range(steps)
    ]
    for v, (offset, m) in enumerate(places):
        total = build.fmul(factors[0], panel[0][v])
        for k in range(1, steps):
            total = code.multiply_add(factors[k], panel[k][v], total)
        code.store(total, code.at(out, offset), m)
    _repeat(function, code, i, block, rows)
    code.builder.ret_void()
    return function


def _any_few_steps_function(code: Code) -> ir.Function:
    """product(a, b, c; a_row, a_step, b_row, c_row, rows, columns, steps), panel by panel."""
    name = f"nnbackend_few_steps_{code.kind}"
    if name in code.module.globals:
        return code.module.globals[name]
    shapes = [
        (steps, vectors, partial)
        for steps in range(1, FEW_STEPS + 1)
        for vectors in range(1, PANEL_VECTORS + 1)
        for partial in (False, True)
    ]
    functions = {shape: _few_steps_function(code, *shape) for shape in shapes}
    function = code.begin(name, 3, 7)
    a, b, c, a_row, a_step, b_row, c_row, rows, columns, steps = function.args
    wide = _I64(PANEL_VECTORS * code.lanes)
    build = code.builder
    panels = build.sdiv(build.add(columns, build.sub(wide, _I64(1))), wide)
    p, _, block = _loop(function, code)
    build = code.builder
    left = build.mul(p, wide)
    more = build.sub(columns, left)
    own = build.select(build.icmp_signed("<", more, wide), more, wide)
    last = build.and_(own, _I64(code.lanes - 1))
    partial = build.zext(build.icmp_signed("!=", last, _I64(0)), _I64)
    vectors = build.sdiv(build.add(own, _I64(code.lanes - 1)), _I64(code.lanes))
    which = build.add(build.mul(steps, _I64(PANEL_VECTORS)), vectors)
    which = build.add(build.mul(which, _I64(2)), partial)
    end = function.append_basic_block()
    choice = build.switch(which, end)
    for (k, v, part), called in functions.items():
        case_block = function.append_basic_block()
        choice.add_case(_I64(2 * (k * PANEL_VECTORS + v) + int(part)), case_block)
        case = ir.IRBuilder(case_block)
        places = (a, case.gep(b, [left]), case.gep(c, [left]))
        case.call(called, (*places, a_row, a_step, b_row, c_row, rows, last))
        case.branch(end)
    code.builder = ir.IRBuilder(end)
    _repeat(function, code, p, block, panels)
    code.builder.ret_void()
    return function


def _add_up(code: Code, vectors: list[Any]) -> Any:
    """One vector, each lane of which is the sum of the lanes of one of as many vectors."""
    lanes, distance = code.lanes, 1
    while len(vectors) > 1:
        # neighbours' halves: afterwards lane l of a vector belongs to input l mod 2 distance
        low = [j if not j & distance else j - distance + lanes for j in range(lanes)]
        high = [j + distance if not j & distance else j + lanes for j in range(lanes)]
        kinds = [ir.Constant(ir.VectorType(_I32, lanes), order) for order in (low, high)]
        half = []
        for x, y in zip(vectors[::2], vectors[1::2], strict=True):
            parts = [code.builder.shuffle_vector(x, y, kind) for kind in kinds]
            half.append(code.builder.fadd(*parts))
        vectors, distance = half, 2 * distance
    return vectors[0]


def _dots_function(code: Code, columns: int) -> ir.Function:
    """dots(a, b, c; a_row, b_row, steps, rows): c (rows, columns) = a b^T for contiguous rows of a
    and b and a c without gaps."""
    name = f"nnbackend_dots_{code.kind}_{columns}"
    if name in code.module.globals:
        return code.module.globals[name]
    function = code.begin(name, 3, 4)
    a, b, c, a_row, b_row, steps, rows = function.args
    some = code.lanes // columns
    build, lanes = code.builder, _I64(code.lanes)
    whole = build.sdiv(steps, lanes)
    tail_mask = code.mask(build.sub(steps, build.mul(whole, lanes)))
    groups = build.sdiv(build.add(rows, _I64(some - 1)), _I64(some))
    group, _, group_block = _loop(function, code)
    build = code.builder
    first = build.mul(group, _I64(some))
    final = build.sub(rows, _I64(1))
    a_rows = []
    for i in range(some):
        row = build.add(first, _I64(i))
        row = build.select(build.icmp_signed("<", row, rows), row, final)
        a_rows.append(code.at(a, build.mul(row, a_row)))
    b_rows = [code.at(b, build.mul(b_row, _I64(j))) for j in range(columns)]

    def step(offset: Any, mask: Any, sums: list[Any]) -> list[Any]:
        others = [code.load(code.at(row, offset), mask) for row in b_rows]
        result = []
        for i, row in enumerate(a_rows):
            own = code.load(code.at(row, offset), mask)
            pairs = zip(others, sums[i * columns : (i + 1) * columns], strict=True)
            result += code.keep([code.multiply_add(own, other, s) for other, s in pairs])
        return result

    # the last steps, of which there may be none, come first: masked
    start = step(build.mul(whole, lanes), tail_mask, [code.zero] * (some * columns))
    before, inner, reduce = build.block, *(function.append_basic_block() for _ in range(2))
    build.cbranch(build.icmp_signed(">", whole, _I64(0)), inner, reduce)
    code.builder = build = ir.IRBuilder(inner)
    k = build.phi(_I64)
    sums = [build.phi(code.vector) for _ in start]
    following = step(build.mul(k, lanes), None, list(sums))
    after = build.add(k, _I64(1))
    for value, initial, new in [(k, _I64(0), after), *zip(sums, start, following, strict=True)]:
        value.add_incoming(initial, before)
        value.add_incoming(new, inner)
    build.cbranch(build.icmp_signed("<", after, whole), inner, reduce)
    code.builder = build = ir.IRBuilder(reduce)
    totals = []
    for initial, new in zip(start, following, strict=True):
        total = build.phi(code.vector)
        total.add_incoming(initial, before)
        total.add_incoming(new, inner)
        totals.append(total)
    result = _add_up(code, totals + [code.zero] * (code.lanes - len(totals)))
    there = build.mul(first, _I64(columns))
    left = build.sub(build.mul(rows, _I64(columns)), there)
    most = _I64(some * columns)
    n = build.select(build.icmp_signed("<", left, most), left, most)
    code.store(result, code.at(c, there), code.mask(n))
    _repeat(function, code, group, group_block, groups)
    code.builder.ret_void()
    return function


@intrinsic
def few_steps_product(
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
    like: Any,
) -> Any:
    """c (rows, columns) = a b for 1 ... FEW_STEPS steps; columns of b and c are contiguous."""
    signature = types.void(*(types.int64,) * 10, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        m, n, k, a_, ar, at, b_, br, c_, cr, _ = arguments
        code, pointers = Code.inside(context, builder, like, (a_, b_, c_))
        builder.call(_any_few_steps_function(code), (*pointers, ar, at, br, cr, m, n, k))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def dots(
    typing_context: Any,
    rows: Any,
    columns: Any,
    steps: Any,
    a: Any,
    a_row: Any,
    b: Any,
    b_row: Any,
    c: Any,
    like: Any,
) -> Any:
    """c (rows, columns), without gaps, = a b^T for 1 ... FEW_COLUMNS rows of b, at most as many as
    a vector has lanes; a and b have contiguous rows."""
    signature = types.void(*(types.int64,) * 8, like)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        m, n, k, a_, ar, b_, br, c_, _ = arguments
        code, pointers = Code.inside(context, builder, like, (a_, b_, c_))
        end = builder.append_basic_block()
        choice = builder.switch(n, end)
        for columns_ in range(1, min(FEW_COLUMNS, code.lanes) + 1):
            block = builder.append_basic_block()
            choice.add_case(_I64(columns_), block)
            case = ir.IRBuilder(block)
            case.call(_dots_function(code, columns_), (*pointers, ar, br, k, m))
            case.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, codegen
