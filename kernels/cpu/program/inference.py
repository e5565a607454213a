"""A program in inference mode: outputs, and loss and metrics over them, for one part of the rows.

Rows go through all layers a block at a time, in two buffers that take turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import compiled, view
from nnbackend.kernels.cpu.codegen.intrinsics import atomic_add, matrix_at, vector_at
from nnbackend.kernels.cpu.gemm.copies import pieces
from nnbackend.kernels.cpu.gemm.products import address_of
from nnbackend.kernels.cpu.ops.norms import batch_norm_inference
from nnbackend.kernels.cpu.ops.updates import penalty_value
from nnbackend.kernels.cpu.ops.vectors import add_to, copy
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.batch import linked_measure, targets
from nnbackend.kernels.cpu.program.context import matrix, share
from nnbackend.kernels.cpu.program.layers import apply_row
from nnbackend.kernels.cpu.program.views import (
    BATCH_NORM,
    DENSE,
    DROPOUT,
    INV_STD,
    ROW_MULTIPLE,
    floats_of,
    norm_area,
    nothing,
    parameters,
    state,
    sums_of,
    table_of,
)

#: Buffers of a part: 0 and 1 take turns, then the outputs and their gradient.
N_BUFFERS = 4
OUTPUTS, SCRATCH = np.int64(2), np.int64(3)


@view
def buffer(f: Any, part: int, which: int, rows: int, width: int, like: Any) -> Any:
    """A buffer for a block of rows."""
    start = (N_BUFFERS * part + which) * f[c.CAPACITY] * f[c.WIDEST]
    return matrix(f[c.WORKSPACE], f[c.WORKSPACE_SIZE], start, rows, width, like)


@compiled
def infer(f: Any, part: int, x: Any, out: Any, like: Any) -> None:
    """out (n, O) = outputs for x (n, I), n at most the block's capacity."""
    table, floats = table_of(f), floats_of(f)
    last, turn, rows = -1, np.int64(0), x.shape[0]
    for r in range(table.shape[0]):
        if table[r, c.OP] != DROPOUT:
            last = r
    for r in range(last + 1):
        op, width = table[r, c.OP], table[r, c.OUTPUTS]
        if op == DROPOUT:
            continue
        target = out if r == last else buffer(f, part, turn, rows, width, like)
        turn = 1 - turn
        if op == BATCH_NORM:
            running_mean = state(f, table[r, c.STATE_0], width, like)
            running_var = state(f, table[r, c.STATE_1], width, like)
            gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
            beta = parameters(f, table[r, c.PARAMETER_1], width, like)
            inv_std = norm_area(f, table, r, part, INV_STD)
            batch_norm_inference(
                x, gamma, beta, running_mean, running_var, floats[r, 1], inv_std, target
            )
        else:
            apply_row(f, table, floats, r, part, x, target, nothing(like), like)
        x = target
    if last < 0:
        copy(x.reshape(x.size), out.reshape(out.size))


@compiled
def run_predict(f: Any, part: int, like: Any) -> None:
    """Outputs of rows from X to OUT, a block at a time: who is done with one takes the next."""
    n, parts, block = f[c.N_DATA], f[c.N_PARTS], f[c.CAPACITY]
    if parts == 1:
        for start in range(0, n, block):
            predict_rows(f, part, start, min(start + block, n), like)
        return
    # as many blocks for each, so that all are done at the same time
    blocks = pieces(pieces(n, block), parts) * parts
    block = min(block, pieces(pieces(n, blocks), ROW_MULTIPLE) * ROW_MULTIPLE)
    place = f.ctypes.data + f.itemsize * c.NEXT_ROW
    start = atomic_add(place, block)
    while start < n:
        predict_rows(f, part, start, min(start + block, n), like)
        start = atomic_add(place, block)


@compiled
def predict_rows(f: Any, part: int, first: int, last: int, like: Any) -> None:
    """Outputs of a block of rows."""
    n_inputs, n_outputs = f[c.N_INPUTS], f[c.N_OUTPUTS]
    x = matrix_at(f[c.X], first * n_inputs, last - first, n_inputs, like)
    out = matrix_at(f[c.OUT], first * n_outputs, last - first, n_outputs, like)
    infer(f, part, x, out, like)


@compiled
def run_evaluate(f: Any, part: int, like: Any) -> None:
    """Loss and metric sums of this part's share of the rows."""
    first, last = share(f[c.N_DATA], part, f[c.N_PARTS], ROW_MULTIPLE)
    n_inputs, n_outputs = f[c.N_INPUTS], f[c.N_OUTPUTS]
    sums = sums_of(f, part)
    sums[:] = 0.0
    for start in range(first, last, f[c.CAPACITY]):
        stop = min(start + f[c.CAPACITY], last)
        x = matrix_at(f[c.X], start * n_inputs, stop - start, n_inputs, like)
        pred = buffer(f, part, OUTPUTS, stop - start, n_outputs, like)
        scratch = buffer(f, part, SCRATCH, stop - start, n_outputs, like)
        infer(f, part, x, pred, like)
        linked_measure(
            f.ctypes.data, part, start, stop, address_of(pred), address_of(scratch), 1.0, like
        )
        weight = targets(f, start, stop, like)[2]
        if weight.size:
            for i in range(weight.size):
                sums[c.TRACE_WEIGHT] += weight[i]
        else:
            sums[c.TRACE_WEIGHT] += float(stop - start)


@compiled
def end_evaluate(f: Any, like: Any) -> None:
    """Join the parts' sums into the one row of the trace; add the penalties."""
    table, floats = table_of(f), floats_of(f)
    width = f[c.SUMS_WIDTH] - 1
    row = vector_at(f[c.TRACE], 0, width, c.FLOAT64)
    row[:] = 0.0
    for part in range(f[c.N_PARTS]):
        add_to(row, sums_of(f, part)[:width])
    for r in range(table.shape[0]):
        if table[r, c.OP] == DENSE:
            size = table[r, c.INPUTS] * table[r, c.OUTPUTS]
            w = parameters(f, table[r, c.PARAMETER_0], size, like)
            row[c.TRACE_PENALTY] += penalty_value(w, floats[r, 1], floats[r, 2])
            if table[r, c.PARAMETER_1] >= 0:
                b = parameters(f, table[r, c.PARAMETER_1], table[r, c.OUTPUTS], like)
                row[c.TRACE_PENALTY] += penalty_value(b, floats[r, 3], floats[r, 4])
