"""A layer's part in a step: rows of the batch forward through it, their gradients back."""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled, view
from nnbackend.kernels.cpu.codegen.intrinsics import vector_at
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.ops.activations import (
    activation_backward,
    activation_forward,
    keeps_input,
)
from nnbackend.kernels.cpu.ops.dense import dense_backward_data, dense_forward, end_forward
from nnbackend.kernels.cpu.ops.embedding import embedding_data, embedding_forward
from nnbackend.kernels.cpu.ops.norms import (
    batch_norm_data,
    batch_normalise,
    end_statistics,
    join_statistics,
    layer_norm_data,
    layer_norm_forward,
    standardize_backward,
    standardize_forward,
    store,
)
from nnbackend.kernels.cpu.ops.random import dropout, multiply
from nnbackend.kernels.cpu.ops.sparse import sparse_product
from nnbackend.kernels.cpu.ops.vectors import add_to, copy
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.context import share
from nnbackend.kernels.cpu.program.views import (
    ACTIVATION,
    BATCH_NORM,
    DBETA,
    DENSE,
    DGAMMA,
    DROPOUT,
    EMBEDDING,
    INV_STD,
    LAYER_NORM,
    MEAN,
    PART_DBETA,
    PART_DGAMMA,
    PART_MEAN,
    PART_SQUARE,
    ROW_MULTIPLE,
    STANDARDIZE,
    delta,
    embedding_weight,
    gradients,
    input_delta,
    input_rows,
    is_sparse,
    layer_norm_saved,
    norm_area,
    nothing,
    parameters,
    scratch_of,
    sparse_rows,
    state,
    weights,
    work,
)


@compiled
def apply_row(
    f: Any, table: Any, floats: Any, r: int, part: int, x: Any, out: Any, saved: Any, like: Any
) -> None:
    """Rows of the batch through a layer that treats training and inference alike."""
    op, width = table[r, c.OP], table[r, c.OUTPUTS]
    parameter = cast(floats[r, 0], like)
    if op == DENSE:
        b = parameters(f, table[r, c.PARAMETER_1], width, like)
        dense_forward(
            x, weights(f, table, r, like), b, table[r, c.ACTIVATION], parameter, out, saved,
            scratch_of(f, part),
        )  # fmt: skip
    elif op == ACTIVATION:
        copy(x.reshape(x.size), out.reshape(out.size))
        activation_forward(table[r, c.ACTIVATION], parameter, out)
    elif op == STANDARDIZE:
        mean, spread = (
            state(f, table[r, c.STATE_0], width, like),
            state(f, table[r, c.STATE_1], width, like),
        )
        standardize_forward(x, mean, spread, out)
    elif op == LAYER_NORM:
        gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
        beta = parameters(f, table[r, c.PARAMETER_1], width, like)
        empty = vector_at(0, 0, 0, like)
        layer_norm_forward(x, gamma, beta, parameter, out, empty, empty)
    elif op == EMBEDDING:
        embedding_forward(x, embedding_weight(f, table, floats, r, like), out)


@compiled
def forward_row(
    f: Any, table: Any, floats: Any, r: int, first: int, last: int, part: int, like: Any
) -> None:
    """Rows first ... last of the batch through row r of the table, in training."""
    op, width = table[r, c.OP], table[r, c.OUTPUTS]
    x = input_rows(f, table, r, first, last, like)
    out = work(f, table[r, c.OUTPUT], width, first, last, like)
    if op == DROPOUT:
        saved = work(f, table[r, c.SAVED], width, first, last, like)
        dropout(
            x.reshape(x.size), floats[r, 0], f[c.DROPOUT_KEY], f[c.STEP], table[r, c.LAYER],
            (f[c.FIRST_ROW] + first) * width, out.reshape(out.size), saved.reshape(saved.size),
        )  # fmt: skip
    elif op == BATCH_NORM:
        mean, inv_std = join_parts(f, table, floats, r, part, like)
        gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
        beta = parameters(f, table[r, c.PARAMETER_1], width, like)
        batch_normalise(x, mean, inv_std, gamma, beta, out)
    elif op == LAYER_NORM:
        gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
        beta = parameters(f, table[r, c.PARAMETER_1], width, like)
        means, inv_stds = layer_norm_saved(f, table, r, first, last, like)
        layer_norm_forward(x, gamma, beta, cast(floats[r, 0], like), out, means, inv_stds)
    else:
        saved = nothing(like)
        if op == DENSE and keeps_input(table[r, c.ACTIVATION]):
            saved = work(f, table[r, c.SAVED], width, first, last, like)
        if is_sparse(f, r):
            values, columns, starts, numbers = sparse_rows(f, first, last, like)
            sparse_product(values, columns, starts, numbers, weights(f, table, r, like), out)
            b = parameters(f, table[r, c.PARAMETER_1], width, like)
            end_forward(b, table[r, c.ACTIVATION], cast(floats[r, 0], like), out, saved)
        else:
            apply_row(f, table, floats, r, part, x, out, saved, like)


@view
def join_parts(f: Any, table: Any, floats: Any, r: int, part: int, like: Any) -> Any:
    """Mean and 1 / deviation of the whole batch from the parts'; each part does it for itself."""
    rows, parts = f[c.ROWS], f[c.N_PARTS]
    mean, square = norm_area(f, table, r, part, MEAN), norm_area(f, table, r, part, INV_STD)
    mean[:] = 0.0
    square[:] = 0.0
    count = 0
    for other in range(parts):
        first, last = share(rows, other, parts, ROW_MULTIPLE)
        if last > first:
            more = last - first
            mean2, square2 = (
                norm_area(f, table, r, other, PART_MEAN),
                norm_area(f, table, r, other, PART_SQUARE),
            )
            join_statistics(float(count), mean, square, float(more), mean2, square2)
            count += more
    width = table[r, c.OUTPUTS]
    end_statistics(
        mean, square, float(rows), floats[r, 0], floats[r, 1], part == 0 and f[c.TRAINS] != 0,
        state(f, table[r, c.STATE_0], width, like), state(f, table[r, c.STATE_1], width, like),
    )  # fmt: skip
    return mean, square


@compiled
def backward_row(
    f: Any, table: Any, floats: Any, r: int, first: int, last: int, part: int, like: Any
) -> None:
    """From the gradient by row r's output, in place to the one by z, to that by its input."""
    op, width = table[r, c.OP], table[r, c.OUTPUTS]
    dy = delta(f, table[r, c.DELTA], width, first, last, like)
    dx = nothing(like)
    if table[r, c.NEEDS_DX]:
        dx = input_delta(f, table, r, first, last, like)
    code, parameter = table[r, c.ACTIVATION], cast(floats[r, 0], like)
    if op == DENSE:
        kept = work(f, table[r, c.OUTPUT], width, first, last, like)
        if keeps_input(code):
            kept = work(f, table[r, c.SAVED], width, first, last, like)
        dense_backward_data(
            dy, weights(f, table, r, like), code, parameter, kept, dx, scratch_of(f, part)
        )
        return
    if not dx.size:
        return
    if op == ACTIVATION:
        kept = work(f, table[r, c.OUTPUT], width, first, last, like)
        if keeps_input(code):
            kept = input_rows(f, table, r, first, last, like)
        copy(dy.reshape(dy.size), dx.reshape(dx.size))
        activation_backward(code, parameter, dx, kept)
    elif op == DROPOUT:
        saved = work(f, table[r, c.SAVED], width, first, last, like)
        multiply(dy.reshape(dy.size), saved.reshape(saved.size), dx.reshape(dx.size))
    elif op == LAYER_NORM:
        x = input_rows(f, table, r, first, last, like)
        gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
        means, inv_stds = layer_norm_saved(f, table, r, first, last, like)
        layer_norm_data(dy, x, gamma, means, inv_stds, dx)
    elif op == EMBEDDING:
        embedding_data(dy, dx)
    elif op == STANDARDIZE:
        standardize_backward(dy, state(f, table[r, c.STATE_1], width, like), dx)


@compiled
def batch_norm_row(f: Any, table: Any, r: int, first: int, last: int, part: int, like: Any) -> None:
    """The second half of a batch norm's backward pass, from the sums of all parts."""
    width = table[r, c.OUTPUTS]
    dgamma, dbeta = norm_area(f, table, r, part, DGAMMA), norm_area(f, table, r, part, DBETA)
    dgamma[:] = 0.0
    dbeta[:] = 0.0
    for other in range(f[c.N_PARTS]):
        add_to(dgamma, norm_area(f, table, r, other, PART_DGAMMA))
        add_to(dbeta, norm_area(f, table, r, other, PART_DBETA))
    if part == 0:
        store(dgamma, gradients(f, table[r, c.PARAMETER_0], width, like))
        store(dbeta, gradients(f, table[r, c.PARAMETER_1], width, like))
    if table[r, c.NEEDS_DX]:
        dy = delta(f, table[r, c.DELTA], width, first, last, like)
        dx = input_delta(f, table, r, first, last, like)
        x = input_rows(f, table, r, first, last, like)
        mean, inv_std = norm_area(f, table, r, part, MEAN), norm_area(f, table, r, part, INV_STD)
        gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
        batch_norm_data(dy, x, mean, inv_std, gamma, dgamma, dbeta, float(f[c.ROWS]), dx)
