"""Phases of a training step, for one part of the batch.

A step is a sequence of phases; in each, every part of the batch is handled by itself, and the
threads meet between them. Phases 0 ... F go forward (F batch norms need F meetings), F also takes
the loss and starts back; phases up to 2 F finish the backward pass, and end with the gradients of
small weights from a part's own rows; then each part takes a share of the weights: their gradient,
or its sum over the parts, and, while it is in the cache, their update. Clipping needs the whole
gradient first, so that the update is one phase more. Driven from outside, a run goes forward only,
or back only from a gradient by the outputs that the host has put in its place.
"""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import FIRST, compiled
from nnbackend.kernels.cpu.codegen.intrinsics import vector_at
from nnbackend.kernels.cpu.gemm.products import address_of
from nnbackend.kernels.cpu.ops.norms import batch_norm_sums, batch_statistics
from nnbackend.kernels.cpu.ops.vectors import add_to
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.batch import check_rows, gather, linked_measure, loss_factor
from nnbackend.kernels.cpu.program.context import numbers_of, share
from nnbackend.kernels.cpu.program.layers import backward_row, batch_norm_row, forward_row
from nnbackend.kernels.cpu.program.views import (
    BATCH_NORM,
    INV_STD,
    MEAN,
    PART_DBETA,
    PART_DGAMMA,
    PART_MEAN,
    PART_SQUARE,
    ROW_MULTIPLE,
    delta,
    floats_of,
    input_rows,
    norm_area,
    sums_of,
    table_of,
    work,
)
from nnbackend.kernels.cpu.program.weights import linked_update


@compiled
def run_phase(f: Any, phase: int, part: int, like: Any) -> None:
    """One phase of a step for one part."""
    first, last = share(f[c.ROWS], part, f[c.N_PARTS], ROW_MULTIPLE)
    forward = f[c.LAST_FORWARD]
    if phase > 2 * forward:
        linked_update(f.ctypes.data, phase, part, like)
    elif forward == 0:
        # forward and back a block of rows at a time, while their outputs are in the cache
        for start in range(first, last, f[c.BLOCK_ROWS]):
            stop = min(last, start + f[c.BLOCK_ROWS])
            run_rows(f, FIRST, part, start, stop, like)
    else:
        run_rows(f, phase, part, first, last, like)
    if phase == 2 * forward and f[c.PARTIALS_WIDTH] and f[c.MODE] != c.FORWARD:
        linked_update(f.ctypes.data, phase, part, like)


@compiled
def run_rows(f: Any, phase: int, part: int, first: int, last: int, like: Any) -> None:
    """What a phase does for rows first ... last of the batch."""
    forward, mode = f[c.LAST_FORWARD], f[c.MODE]
    if phase == 0 and last > first and mode != c.BACKWARD:
        if f[c.ORDER]:
            gather(f, first, last, like)
        if f[c.CHECKS] and not check_rows(f, first, last, like):
            f[c.STATUS] = c.REFUSED
            return
    if phase <= forward and mode != c.BACKWARD:
        run_forward(f, phase, part, first, last, like)
    if phase == forward and mode == c.WHOLE:
        run_loss(f, part, first, last, like)
    if phase >= forward and mode != c.FORWARD:
        run_backward(f, 2 * forward - phase, part, first, last, like)


@compiled
def run_forward(f: Any, phase: int, part: int, first: int, last: int, like: Any) -> None:
    """The table's rows of this phase; then the statistics that the next phase begins with."""
    table, floats = table_of(f), floats_of(f)
    for r in range(table.shape[0]):
        # a part without rows still has its say in a batch norm: part 0 moves the running values
        if table[r, c.PHASE] == phase and (last > first or table[r, c.OP] == BATCH_NORM):
            forward_row(f, table, floats, r, first, last, part, like)
        if table[r, c.PHASE] == phase + 1:
            x = input_rows(f, table, r, first, last, like)
            mean, square = (
                norm_area(f, table, r, part, PART_MEAN),
                norm_area(f, table, r, part, PART_SQUARE),
            )
            batch_statistics(x, mean, square)
            return


@compiled
def run_loss(f: Any, part: int, first: int, last: int, like: Any) -> None:
    """Loss and metrics of rows first ... last, and the gradient by the outputs."""
    if last <= first:
        return
    table = table_of(f)
    r = table.shape[0] - 1
    pred = work(f, table[r, c.OUTPUT], table[r, c.OUTPUTS], first, last, like)
    dpred = delta(f, table[r, c.DELTA], table[r, c.OUTPUTS], first, last, like)
    linked_measure(
        f.ctypes.data, part, first, last, address_of(pred), address_of(dpred), loss_factor(f), like
    )


@compiled
def run_backward(f: Any, phase: int, part: int, first: int, last: int, like: Any) -> None:
    """Back through the rows of a forward phase, up to the sums of the batch norm it began with;
    and before them the second half of the batch norm that the phase after began with."""
    table, floats = table_of(f), floats_of(f)
    for r in range(table.shape[0] - 1, f[c.FIRST_TRAINED] - 1, -1):
        is_norm = table[r, c.OP] == BATCH_NORM
        if is_norm and table[r, c.PHASE] == phase + 1:
            batch_norm_row(f, table, r, first, last, part, like)
        if table[r, c.PHASE] != phase:
            continue
        if is_norm:
            dy = delta(f, table[r, c.DELTA], table[r, c.OUTPUTS], first, last, like)
            x = input_rows(f, table, r, first, last, like)
            mean, inv_std = (
                norm_area(f, table, r, part, MEAN),
                norm_area(f, table, r, part, INV_STD),
            )
            dgamma, dbeta = (
                norm_area(f, table, r, part, PART_DGAMMA),
                norm_area(f, table, r, part, PART_DBETA),
            )
            batch_norm_sums(dy, x, mean, inv_std, dgamma, dbeta)
        elif last > first:
            backward_row(f, table, floats, r, first, last, part, like)


@compiled
def end_step(f: Any, index: int) -> None:
    """Join the parts' sums into a row of the trace."""
    width = f[c.SUMS_WIDTH] - 1
    row = vector_at(f[c.TRACE], index * width, width, c.FLOAT64)
    row[:] = 0.0
    for part in range(f[c.N_PARTS]):
        add_to(row, sums_of(f, part)[:width])
    row[c.TRACE_WEIGHT] = numbers_of(f)[c.WEIGHT_SUM]
