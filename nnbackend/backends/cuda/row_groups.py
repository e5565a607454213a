"""Rows of a network that one kernel does together: a norm or an activation, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.following import Following
from nnbackend.backends.cuda.sums import SharedBatch, SharedNorm
from nnbackend.backends.types import LINEAR, Array
from nnbackend.executor.rows import activation_of, saved_shape
from nnbackend.kernels.codes import Op
from nnbackend.program.table import Program, Row

#: What a row's kernel can do as well, in this order; any of it may be missing.
_FOLLOWS = {Op.BATCH_NORM: (Op.ACTIVATION, Op.DROPOUT), Op.ACTIVATION: (Op.DROPOUT,)}


def groups_of(program: Program, table: Sequence[Row]) -> dict[int, int]:
    """Rows whose kernels do others as well, by number; with the last one of these."""
    found, i = {}, 0
    while i < len(table):
        first = last = i
        follows = () if _is_softmax(program, table[i]) else _FOLLOWS.get(Op(table[i].op), ())
        for op in follows:
            after = table[last + 1] if last + 1 < len(table) else None
            if after is not None and after.op == op and not _is_softmax(program, after):
                last += 1
        if last > first:
            found[first] = last
        i = last + 1
    return found


def _is_softmax(program: Program, row: Row) -> bool:
    return row.op == Op.ACTIVATION and activation_of(program, row).name == "softmax"


def bind_group(
    program: Program,
    backend: CudaBackend,
    rows: Sequence[Row],
    x: Array,
    out: Array,
    slopes: Array | None,
    dy: Array | None,
    dx: Array | None,
    batch: SharedBatch | None = None,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward, from x to out, both (B, N), and backward, from dy to dx.

    Args:
        slopes: (B, N), to be filled; None if there is no backward pass.
        dx: None if it is not wanted.
        batch: what the rows of x are a part of, if they are.
    """
    row, last, rate, layer = rows[0], rows[-1], 0.0, 0
    if last.op == Op.DROPOUT:
        rate, layer = float(program.floats[last.layer][0]), last.layer
    activations = (activation_of(program, own) for own in rows if own.op == Op.ACTIVATION)
    act = next(activations, LINEAR)
    following = Following.of(act, rate, program.dropout_key, layer, slopes)
    if row.op == Op.ACTIVATION:
        return (
            lambda: backend.activation_and_dropout(following, x, out),
            lambda: backend.dropout_backward(dy, slopes, dx),
        )
    (gamma, beta), gradients, state = program.arrays[row.layer]
    momentum, eps = (float(number) for number in program.floats[row.layer][:2])
    saved = backend.zeros(saved_shape(row, len(x)), program.dtype)
    shared = None
    if batch is not None:
        shared = SharedNorm(batch, backend.zeros((2, row.n_outputs), np.dtype(np.float64)))

    def forward() -> None:
        backend.batch_norm_forward(
            x, gamma, beta, *state, momentum, eps, out, saved, following, shared
        )

    def backward() -> None:
        backend.batch_norm_backward(dy, x, gamma, saved, *gradients, dx, slopes, shared)

    return forward, backward
