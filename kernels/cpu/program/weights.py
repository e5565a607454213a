"""The last phases of a step: gradients of the weights, and their update."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import FIRST, ONE, YES, compiled
from nnbackend.kernels.cpu.codegen.intrinsics import linked, size_of, vector_at
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.gemm.copies import copy_a, copy_b, lanes_of, pieces, start_of
from nnbackend.kernels.cpu.gemm.products import (
    AHEAD_AT,
    AHEAD_NUMBERS,
    B_BYTES,
    BLOCK_TILES,
    BLOCK_VECTORS,
    COPY_BYTES,
    LINE,
    RESULT_BYTES,
    STEPS,
    SWAP_BYTES,
    address_of,
    aligned,
    look_ahead,
    multiply_block,
    multiply_wide,
    pays_to_copy_a,
    steps_of,
    transposed_product,
)
from nnbackend.kernels.cpu.gemm.vector_code import TILE_ROWS
from nnbackend.kernels.cpu.ops.dense import column_sums
from nnbackend.kernels.cpu.ops.embedding import embedding_weights
from nnbackend.kernels.cpu.ops.norms import layer_norm_parameters
from nnbackend.kernels.cpu.ops.sparse import sparse_transposed_product
from nnbackend.kernels.cpu.ops.updates import all_below
from nnbackend.kernels.cpu.ops.vectors import add_to, copy
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.context import matrix, share
from nnbackend.kernels.cpu.program.update import (
    AT_A_TIME,
    finish,
    look_at_gradient,
    run_clipped_update,
    use,
    use_some,
)
from nnbackend.kernels.cpu.program.views import (
    DENSE,
    EMBEDDING,
    LAYER_NORM,
    ROW_MULTIPLE,
    WEIGHT_MULTIPLE,
    delta,
    floats_of,
    gradients,
    input_rows,
    is_sparse,
    layer_norm_saved,
    partial,
    partial_start,
    scratch_of,
    sparse_rows,
    state,
    sums_of,
    table_of,
)
from nnbackend.kernels.processor import USES_BLAS

#: Weights of a block whose gradient is used while it is in the cache, together with the
#: optimizer's averages: 4 x 128 KiB in float32. From FUSED weights on that is worth it.
BLOCK, FUSED = RESULT_BYTES // 8, 1 << 14

#: ``run_update`` from code outside the object file that it belongs to.
linked_update = linked("update")


@compiled
def run_update(address: int, phase: int, part: int, like: Any) -> None:
    """A phase after those that go forward and back, or the end of their last, for one part."""
    f = c.open_context(address)
    if phase <= 2 * f[c.LAST_FORWARD]:
        run_partials(f, part, like)
    elif phase > 2 * f[c.LAST_FORWARD] + 1:
        run_clipped_update(f, part, like)
    elif f[c.MODE] == c.APPLY:
        look_at_gradient(f, part, like)
    else:
        run_weights(f, part, like)


@compiled
def run_weights(f: Any, part: int, like: Any) -> None:
    """This part's share of the parameters: gradient, penalty, and the update unless the gradient
    is clipped first."""
    table, floats = table_of(f), floats_of(f)
    parts, rows = f[c.N_PARTS], f[c.ROWS]
    if f[c.TRAINS] and not (loss_is_finite(f) and statistics_are_finite(f, like)):
        f[c.STATUS] = c.NOT_FINITE
        return
    for r in range(table.shape[0]):
        op, width = table[r, c.OP], table[r, c.OUTPUTS]
        if partial_start(f, r) >= 0:
            join_partials(f, table, floats, r, part, like)
        elif op == DENSE:
            first, last = share(table[r, c.INPUTS], part, parts, WEIGHT_MULTIPLE)
            size = (last - first) * width
            lanes = lanes_of(like)
            fused = size >= FUSED and lanes <= width <= BLOCK_VECTORS * lanes and not USES_BLAS
            fused = fused and not is_sparse(f, r)
            if fused and table[r, c.TRAINABLE] and f[c.TRAINS] and not f[c.CLIPS]:
                update_as_computed(f, table, floats, r, first, last, part, like)
            elif size:
                dense_weights(f, table, floats, r, first, last, part, like)
            dense_bias(f, table, floats, r, part, like)
        elif op == EMBEDDING:
            embedding(f, table, floats, r, part, like)
        elif table[r, c.TRAINABLE]:
            first, last = share(width, part, parts, WEIGHT_MULTIPLE)
            if last <= first:
                continue
            start_0, start_1 = table[r, c.PARAMETER_0] + first, table[r, c.PARAMETER_1] + first
            if op == LAYER_NORM:
                dy = delta(f, table[r, c.DELTA], width, FIRST, rows, like)
                x = input_rows(f, table, r, FIRST, rows, like)
                means, inv_stds = layer_norm_saved(f, table, r, FIRST, rows, like)
                dgamma = gradients(f, start_0, last - first, like)
                dbeta = gradients(f, start_1, last - first, like)
                layer_norm_parameters(dy, x, means, inv_stds, first, dgamma, dbeta)
            if table[r, c.PARAMETER_0] >= 0:
                finish(f, start_0, gradients(f, start_0, last - first, like), part, like)
            if table[r, c.PARAMETER_1] >= 0:
                finish(f, start_1, gradients(f, start_1, last - first, like), part, like)


@compiled
def run_partials(f: Any, part: int, like: Any) -> None:
    """Gradients of small weight matrices from this part's own rows, while they are in the cache of
    its processor: it would take longer to read all rows of a few columns from other caches."""
    table = table_of(f)
    first, last = share(f[c.ROWS], part, f[c.N_PARTS], ROW_MULTIPLE)
    for r in range(table.shape[0]):
        start = partial_start(f, r)
        if start < 0:
            continue
        inputs, width = table[r, c.INPUTS], table[r, c.OUTPUTS]
        dw = partial(f, part, start, inputs * width, like)
        db = partial(f, part, start + dw.size, width, like)
        if last > first:
            dz = delta(f, table[r, c.DELTA], width, first, last, like)
            weight_gradient(
                f, table, r, first, last, FIRST, dz, dw.reshape(inputs, width), part, like
            )
            if table[r, c.PARAMETER_1] >= 0:
                column_sums(dz, FIRST, db)
        else:
            dw[:] = cast(0.0, like)
            db[:] = cast(0.0, like)


@compiled
def join_partials(f: Any, table: Any, floats: Any, r: int, part: int, like: Any) -> None:
    """This part's share of weights and biases whose gradients the parts have from their rows."""
    start, width = partial_start(f, r), table[r, c.OUTPUTS]
    size = table[r, c.INPUTS] * width
    join_partial(f, start, size, table[r, c.PARAMETER_0], floats[r, 1], floats[r, 2], part, like)
    if table[r, c.PARAMETER_1] >= 0:
        join_partial(
            f, start + size, width, table[r, c.PARAMETER_1], floats[r, 3], floats[r, 4], part, like
        )


@compiled
def join_partial(
    f: Any, start: int, size: int, parameter: int, l1: float, l2: float, part: int, like: Any
) -> None:
    """This part's share of ``size`` parameters from ``parameter`` on: the sum of their partial
    gradients, from ``start`` on in each part's area, then what follows from it."""
    first, last = share(size, part, f[c.N_PARTS], WEIGHT_MULTIPLE)
    for low in range(first, last, AT_A_TIME):
        some = min(AT_A_TIME, last - low)
        g = gradients(f, parameter + low, some, like)
        copy(partial(f, FIRST, start + low, some, like), g)
        for other in range(1, f[c.N_PARTS]):
            add_to(g, partial(f, other, start + low, some, like))
        use_some(f, ONE, parameter + low, g, l1, l2, part, like)


@compiled
def embedding(f: Any, table: Any, floats: Any, r: int, part: int, like: Any) -> None:
    """This part's share of an embedding's categories."""
    inputs, rows, count = table[r, c.INPUTS], f[c.ROWS], np.int64(floats[r, 0])
    width = table[r, c.OUTPUTS] - inputs + 1
    first, last = share(count, part, f[c.N_PARTS], ONE)
    if not table[r, c.TRAINABLE] or last <= first:
        return
    start = table[r, c.PARAMETER_0] + first * width
    g = matrix(f[c.GRADIENTS], f[c.N_PARAMETERS], start, last - first, width, like)
    dy = delta(f, table[r, c.DELTA], table[r, c.OUTPUTS], FIRST, rows, like)
    embedding_weights(dy, input_rows(f, table, r, FIRST, rows, like), count, first, g)
    finish(f, start, g.reshape(g.size), part, like)


@compiled
def loss_is_finite(f: Any) -> bool:
    """Whether the loss of all parts is."""
    loss = 0.0
    for part in range(f[c.N_PARTS]):
        loss += sums_of(f, part)[c.TRACE_LOSS]
    return loss - loss == 0.0


@compiled
def statistics_are_finite(f: Any, like: Any) -> bool:
    """Whether what norms have learnt of the batch is; the loss may be where it is not."""
    return all_below(state(f, 0, f[c.N_STATE], like), cast(math.inf, like))


@compiled
def weight_gradient(
    f: Any, table: Any, r: int, low: int, high: int, first: int, dz: Any, dw: Any, part: int,
    like: Any,
) -> None:  # fmt: skip
    """dw (m, O) = x^T dz for rows low ... high of the batch, and inputs ``first`` ... of row r of
    the table."""
    if is_sparse(f, r):
        values, columns, starts, numbers = sparse_rows(f, low, high, like)
        sparse_transposed_product(values, columns, starts, numbers, first, dz, dw)
    else:
        x = input_rows(f, table, r, low, high, like)
        transposed_product(x, first, dz, dw, scratch_of(f, part))


@compiled
def dense_weights(
    f: Any, table: Any, floats: Any, r: int, first: int, last: int, part: int, like: Any
) -> None:
    """Rows first ... last of a weight matrix: the gradient, then what follows from it."""
    width, rows = table[r, c.OUTPUTS], f[c.ROWS]
    start = table[r, c.PARAMETER_0] + first * width
    dw = matrix(f[c.GRADIENTS], f[c.N_PARAMETERS], start, last - first, width, like)
    if table[r, c.TRAINABLE]:
        dz = delta(f, table[r, c.DELTA], width, FIRST, rows, like)
        weight_gradient(f, table, r, FIRST, rows, first, dz, dw, part, like)
    g = dw.reshape(dw.size)
    use(f, table[r, c.TRAINABLE], start, g, floats[r, 1], floats[r, 2], part, like)


@compiled
def update_as_computed(
    f: Any, table: Any, floats: Any, r: int, first: int, last: int, part: int, like: Any
) -> None:
    """The same for a large matrix, a block of rows at a time: its gradient is used while it is in
    the cache, and weights and averages come from memory while the processor multiplies.

    The update alone would wait for memory, the product alone leaves memory idle.
    """
    width, rows = table[r, c.OUTPUTS], f[c.ROWS]
    x = input_rows(f, table, r, FIRST, rows, like)
    dz = delta(f, table[r, c.DELTA], width, FIRST, rows, like)
    a, b = address_of(x) + first * x.itemsize, address_of(dz)
    a_step, size = table[r, c.INPUTS], x.itemsize
    b_copy = aligned(scratch_of(f, part))
    a_copy, result = b_copy + B_BYTES, b_copy + COPY_BYTES + SWAP_BYTES
    copies_a = pays_to_copy_a(ONE, a_step, width, True, like)
    k_blocks = pieces(rows, STEPS)
    low, steps = steps_of(k_blocks - 1, rows, k_blocks)
    if low:
        start = table[r, c.PARAMETER_0] + first * width
        g = gradients(f, start, (last - first) * width, like)
        multiply_wide(
            last - first, width, low, a, ONE, a_step, b, width, ONE, address_of(g), width, b_copy,
            like,
        )  # fmt: skip
    m_blocks = pieces(last - first, BLOCK_TILES * TILE_ROWS)
    some = max(1, BLOCK // width // TILE_ROWS)
    # the last gradient of a run stays for the caller, if it is wanted
    is_last = f[c.STEP] + 1 == f[c.FIRST_STEP] + f[c.N_STEPS]
    at_once = low == 0 and not (is_last and f[c.KEEPS])
    ahead = vector_at(b_copy + AHEAD_AT, 0, AHEAD_NUMBERS, ONE)
    copy_b(steps, width, b + size * low * width, width, ONE, b_copy, like)
    for mb in range(m_blocks):
        i = start_of(mb, last - first, m_blocks)
        j = start_of(mb + 1, last - first, m_blocks)
        a_block, tiles = a + size * (low * a_step + i), pieces(j - i, TILE_ROWS)
        if copies_a:
            copy_a(j - i, steps, a_block, ONE, a_step, a_copy, like)
            a_block = a_copy
        for t in range(0, tiles, some):
            until = min(tiles, t + some)
            row = first + i + start_of(t, j - i, tiles)
            n = (first + i + start_of(until, j - i, tiles) - row) * width
            start = table[r, c.PARAMETER_0] + row * width
            g = vector_at(result, 0, n, like) if at_once else gradients(f, start, n, like)
            look_ahead_at_update(f, start, n, ahead, like)
            multiply_block(
                j - i, t, until, width, steps, a_block, ONE, a_step, copies_a, b_copy, width, YES,
                address_of(g), width, low > 0, ahead, like,
            )  # fmt: skip
            use(f, ONE, start, g, floats[r, 1], floats[r, 2], part, like)


@compiled
def look_ahead_at_update(f: Any, start: int, n: int, ahead: Any, like: Any) -> None:
    """Ask for the memory that the update of n parameters will read."""
    line = LINE // size_of(like)
    rows = pieces(n, line)
    ahead[:] = 0
    for region, address in enumerate((f[c.PARAMETERS], f[c.SLOT_0], f[c.SLOT_1])):
        if region <= f[c.N_SLOTS]:
            place = address + start * size_of(like)
            look_ahead(ahead, region, place, rows, line, line, ONE, like)


@compiled
def dense_bias(f: Any, table: Any, floats: Any, r: int, part: int, like: Any) -> None:
    """This part's share of a bias."""
    width = table[r, c.OUTPUTS]
    first, last = share(width, part, f[c.N_PARTS], WEIGHT_MULTIPLE)
    start = table[r, c.PARAMETER_1] + first
    if table[r, c.PARAMETER_1] < 0 or last <= first:
        return
    g = gradients(f, start, last - first, like)
    if table[r, c.TRAINABLE]:
        dz = delta(f, table[r, c.DELTA], width, FIRST, f[c.ROWS], like)
        column_sums(dz, first, g)
    use(f, table[r, c.TRAINABLE], start, g, floats[r, 3], floats[r, 4], part, like)
