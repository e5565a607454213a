"""The operations of a backend's contract, one at a time: the kernels of a program, called singly.

An operation finds its arguments in memory packed by the host: the number of parts and the address
of the parts' scratch memory, then N_ARGUMENTS addresses (0 for what is not there) and sizes in the
order in which ``nnbackend.backends.numba.backend`` packs them, then float64 numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import compiled, view
from nnbackend.kernels.cpu.codegen.intrinsics import matrix_at, vector_at
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.gemm.products import SCRATCH_BYTES, transposed_product
from nnbackend.kernels.cpu.ops.activations import activation_backward, activation_forward
from nnbackend.kernels.cpu.ops.dense import (
    column_sums,
    dense_backward_data,
    dense_forward,
)
from nnbackend.kernels.cpu.ops.embedding import (
    embedding_data,
    embedding_forward,
    embedding_weights,
)
from nnbackend.kernels.cpu.ops.losses import loss_rows
from nnbackend.kernels.cpu.ops.norms import (
    batch_norm_data,
    batch_norm_inference,
    batch_norm_sums,
    batch_normalise,
    batch_statistics,
    end_statistics,
    layer_norm_data,
    layer_norm_forward,
    layer_norm_parameters,
    standardize_backward,
    standardize_forward,
    store,
)
from nnbackend.kernels.cpu.ops.random import dropout, multiply, random_bits, words_of
from nnbackend.kernels.cpu.ops.statistics import confusion_counts, count_correct, regression_sums
from nnbackend.kernels.cpu.ops.updates import (
    add_penalty_gradient,
    penalty_value,
    square_sum,
    update_step,
)
from nnbackend.kernels.cpu.ops.vectors import copy, scale
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.context import share

#: Codes of the operations, in the groups of ``operate``.
(
    DENSE_FORWARD, DENSE_DATA, DENSE_WEIGHTS, DENSE_BACKWARD,
    ACTIVATION_FORWARD, ACTIVATION_BACKWARD,
    BATCH_NORM_FORWARD, BATCH_NORM_INFERENCE, BATCH_NORM_BACKWARD, LAYER_NORM_FORWARD,
    LAYER_NORM_BACKWARD, EMBEDDING_FORWARD, EMBEDDING_BACKWARD, DROPOUT_FORWARD, MULTIPLY,
    STANDARDIZE_FORWARD, STANDARDIZE_BACKWARD,
    LOSS, COUNT_CORRECT, CONFUSION_COUNTS, REGRESSION_SUMS, PENALTY, CLIP, UPDATE, RANDOM_BITS,
) = range(25)  # fmt: skip
#: Where an operation's own arguments begin.
FIRST_ARGUMENT = 2
N_ARGUMENTS = 16
N_OPERATION_NUMBERS = 12
#: Where an update's UPDATE_NUMBERS begin, after its rate and those that are corrected.
UPDATE_NUMBERS_AT = 3


@view
def _rows(address: int, first: int, last: int, width: int, like: Any) -> Any:
    """Rows first ... last of the matrix at ``address``; an empty one where there is none."""
    if address == 0:
        return matrix_at(0, 0, 0, 0, like)
    return matrix_at(address, first * width, last - first, width, like)


@view
def _vector(address: int, n: int, like: Any) -> Any:
    """(n,) at an address; empty where there is none."""
    return vector_at(address, 0, n if address else 0, like)


@compiled
def operate(address: int, operation: int, part: int, like: Any) -> None:
    """Run one part of an operation."""
    a = vector_at(address, FIRST_ARGUMENT, N_ARGUMENTS, c.INT64)
    head = vector_at(address, 0, FIRST_ARGUMENT, c.INT64)
    start = FIRST_ARGUMENT + N_ARGUMENTS
    numbers, parts = vector_at(address, start, N_OPERATION_NUMBERS, c.FLOAT64), head[0]
    if operation <= ACTIVATION_BACKWARD:
        _dense(a, numbers, operation, part, parts, head[1] + part * SCRATCH_BYTES, like)
    elif operation <= LAYER_NORM_BACKWARD:
        _norm(a, numbers, operation, like)
    elif operation <= EMBEDDING_BACKWARD:
        _embedding(a, operation, like)
    elif operation <= STANDARDIZE_BACKWARD:
        _by_element(a, numbers, operation, part, parts, like)
    elif operation <= REGRESSION_SUMS:
        _over_outputs(a, numbers, operation, like)
    elif operation <= UPDATE:
        _over_parameters(a, numbers, operation, part, parts, like)
    else:
        _random_bits(a)


@compiled
def _dense(
    a: Any, numbers: Any, operation: int, part: int, parts: int, scratch: int, like: Any
) -> None:
    """Products and activations of some rows of the batch."""
    parameter = cast(numbers[0], like)
    if operation == DENSE_FORWARD:
        x, w, b, out, saved, rows, n_inputs, n_outputs, code = a[:9]
        first, last = share(rows, part, parts, 4)
        if last > first:
            dense_forward(
                _rows(x, first, last, n_inputs, like), _rows(w, 0, n_inputs, n_outputs, like),
                _vector(b, n_outputs, like), code, parameter,
                _rows(out, first, last, n_outputs, like),
                _rows(saved, first, last, n_outputs, like), scratch,
            )  # fmt: skip
    elif operation == DENSE_DATA:
        dz, w, saved, dx, rows, n_inputs, n_outputs, code = a[:8]
        first, last = share(rows, part, parts, 4)
        if last > first:
            dense_backward_data(
                _rows(dz, first, last, n_outputs, like), _rows(w, 0, n_inputs, n_outputs, like),
                code, parameter, _rows(saved, first, last, n_outputs, like),
                _rows(dx, first, last, n_inputs, like), scratch,
            )  # fmt: skip
    elif operation == DENSE_WEIGHTS:
        x, dz_, dw, db, rows, n_inputs, n_outputs = a[:7]
        dz = _rows(dz_, 0, rows, n_outputs, like)
        first, last = share(n_inputs, part, parts, 16)
        if dw and last > first:
            whole = _rows(x, 0, rows, n_inputs, like)
            transposed_product(whole, first, dz, _rows(dw, first, last, n_outputs, like), scratch)
        first, last = share(n_outputs, part, parts, 16)
        if db and last > first:
            column_sums(dz, first, vector_at(db, first, last - first, like))
    elif operation == DENSE_BACKWARD:
        dy, x, w, saved, dw, db, dx, dz_, rows, n_inputs, n_outputs, code = a[:12]
        dz = _rows(dz_, 0, rows, n_outputs, like)
        if dz_ != dy:
            copy(_rows(dy, 0, rows, n_outputs, like).reshape(dz.size), dz.reshape(dz.size))
        dense_backward_data(
            dz, _rows(w, 0, n_inputs, n_outputs, like), code, parameter,
            _rows(saved, 0, rows, n_outputs, like), _rows(dx, 0, rows, n_inputs, like), scratch,
        )  # fmt: skip
        if dw:
            whole = _rows(x, 0, rows, n_inputs, like)
            transposed_product(whole, 0, dz, _rows(dw, 0, n_inputs, n_outputs, like), scratch)
        if db:
            column_sums(dz, 0, vector_at(db, 0, n_outputs, like))
    elif operation == ACTIVATION_FORWARD:
        x, out, rows, width, code = a[:5]
        first, last = share(rows, part, parts, 4)
        z = _rows(out, first, last, width, like)
        if z.size:
            if x != out:
                copy(_rows(x, first, last, width, like).reshape(z.size), z.reshape(z.size))
            activation_forward(code, parameter, z)
    else:
        dy, saved, out, rows, width, code = a[:6]
        first, last = share(rows, part, parts, 4)
        dz = _rows(out, first, last, width, like)
        if dz.size:
            if dy != out:
                copy(_rows(dy, first, last, width, like).reshape(dz.size), dz.reshape(dz.size))
            activation_backward(code, parameter, dz, _rows(saved, first, last, width, like))


@compiled
def _norm(a: Any, numbers: Any, operation: int, like: Any) -> None:
    """Norms, of the whole batch."""
    if operation == BATCH_NORM_FORWARD:
        x_, gamma, beta, running_mean, running_var, out, saved, rows, n, scratch_ = a[:10]
        x, scratch = _rows(x_, 0, rows, n, like), _rows(scratch_, 0, 2, n, c.FLOAT64)
        mean, square = scratch[0], scratch[1]
        batch_statistics(x, mean, square)
        end_statistics(
            mean, square, float(rows), numbers[0], numbers[1], True,
            _vector(running_mean, n, like), _vector(running_var, n, like),
        )  # fmt: skip
        kept = _rows(saved, 0, 2, n, like)
        store(mean, kept[0])
        store(square, kept[1])
        batch_normalise(
            x, mean, square, _vector(gamma, n, like), _vector(beta, n, like),
            _rows(out, 0, rows, n, like),
        )  # fmt: skip
    elif operation == BATCH_NORM_INFERENCE:
        x_, gamma, beta, running_mean, running_var, out, rows, n, scratch_ = a[:9]
        batch_norm_inference(
            _rows(x_, 0, rows, n, like), _vector(gamma, n, like), _vector(beta, n, like),
            _vector(running_mean, n, like), _vector(running_var, n, like), numbers[0],
            _vector(scratch_, n, c.FLOAT64), _rows(out, 0, rows, n, like),
        )  # fmt: skip
    elif operation == BATCH_NORM_BACKWARD:
        dy_, x_, gamma, saved, dgamma, dbeta, dx_, rows, n, scratch_ = a[:10]
        dy, x = _rows(dy_, 0, rows, n, like), _rows(x_, 0, rows, n, like)
        scratch, kept = _rows(scratch_, 0, 4, n, c.FLOAT64), _rows(saved, 0, 2, n, like)
        store(kept[0], scratch[2])
        store(kept[1], scratch[3])
        batch_norm_sums(dy, x, scratch[2], scratch[3], scratch[0], scratch[1])
        store(scratch[0], _vector(dgamma, n, like))
        store(scratch[1], _vector(dbeta, n, like))
        if dx_:
            batch_norm_data(
                dy, x, scratch[2], scratch[3], _vector(gamma, n, like), scratch[0], scratch[1],
                float(rows), _rows(dx_, 0, rows, n, like),
            )  # fmt: skip
    elif operation == LAYER_NORM_FORWARD:
        x_, gamma, beta, out, saved, rows, n = a[:7]
        kept = _rows(saved, 0, 2, rows, like)
        empty = vector_at(0, 0, 0, like)
        layer_norm_forward(
            _rows(x_, 0, rows, n, like), _vector(gamma, n, like), _vector(beta, n, like),
            cast(numbers[0], like), _rows(out, 0, rows, n, like),
            kept[0] if saved else empty, kept[1] if saved else empty,
        )  # fmt: skip
    else:
        dy_, x_, gamma, saved, dgamma, dbeta, dx_, rows, n = a[:9]
        dy, x, kept = (
            _rows(dy_, 0, rows, n, like),
            _rows(x_, 0, rows, n, like),
            _rows(saved, 0, 2, rows, like),
        )
        layer_norm_parameters(
            dy, x, kept[0], kept[1], 0, _vector(dgamma, n, like), _vector(dbeta, n, like)
        )
        if dx_:
            dx = _rows(dx_, 0, rows, n, like)
            layer_norm_data(dy, x, _vector(gamma, n, like), kept[0], kept[1], dx)


@compiled
def _embedding(a: Any, operation: int, like: Any) -> None:
    """Vectors of categories, for the whole batch."""
    if operation == EMBEDDING_FORWARD:
        x, weight, out, rows, inputs, count, width = a[:7]
        embedding_forward(
            _rows(x, 0, rows, inputs, like), _rows(weight, 0, count, width, like),
            _rows(out, 0, rows, inputs - 1 + width, like),
        )  # fmt: skip
    else:
        dy_, x, dweight, dx, rows, inputs, count, width = a[:8]
        dy = _rows(dy_, 0, rows, inputs - 1 + width, like)
        embedding_weights(
            dy, _rows(x, 0, rows, inputs, like), count, 0, _rows(dweight, 0, count, width, like)
        )
        if dx:
            embedding_data(dy, _rows(dx, 0, rows, inputs, like))


@compiled
def _by_element(a: Any, numbers: Any, operation: int, part: int, parts: int, like: Any) -> None:
    """Dropout and standardisation of some elements or rows."""
    if operation == DROPOUT_FORWARD:
        x, out, saved_, size, key, stream_low, stream_high, before = a[:8]
        first, last = share(size, part, parts, 4)
        n = last - first
        if n > 0:
            dropout(
                vector_at(x, first, n, like), numbers[0], key, stream_low, stream_high,
                before + first, vector_at(out, first, n, like), vector_at(saved_, first, n, like),
            )  # fmt: skip
    elif operation == MULTIPLY:
        dy, saved_, out, size = a[:4]
        first, last = share(size, part, parts, 4)
        multiply(
            vector_at(dy, first, last - first, like), vector_at(saved_, first, last - first, like),
            vector_at(out, first, last - first, like),
        )  # fmt: skip
    elif operation == STANDARDIZE_FORWARD:
        x, mean, spread, out, rows, n = a[:6]
        first, last = share(rows, part, parts, 4)
        standardize_forward(
            _rows(x, first, last, n, like), _vector(mean, n, like), _vector(spread, n, like),
            _rows(out, first, last, n, like),
        )  # fmt: skip
    else:
        dy, spread, out, rows, n = a[:5]
        first, last = share(rows, part, parts, 4)
        standardize_backward(
            _rows(dy, first, last, n, like), _vector(spread, n, like),
            _rows(out, first, last, n, like),
        )  # fmt: skip


@compiled
def _over_outputs(a: Any, numbers: Any, operation: int, like: Any) -> None:
    """Losses and statistics; rows of pred ... weight begin at a[5]."""
    pred_, labels_, target_, weight_, out_, first, last, width = a[:8]
    pred = _rows(pred_, first, last, width, like)
    labels = vector_at(labels_, first if labels_ else 0, last - first if labels_ else 0, c.INT32)
    target = _rows(target_, first, last, width, like)
    weight = vector_at(weight_, first if weight_ else 0, last - first if weight_ else 0, like)
    by_threshold, threshold = a[9] != 0, numbers[2]
    if operation == LOSS:
        dpred = _rows(a[10], 0, last - first, width, like)
        vector_at(out_, 0, 1, c.FLOAT64)[0] += numbers[3] * loss_rows(
            a[8], cast(numbers[0], like), pred, labels, target, weight, numbers[1], dpred
        )
    elif operation == COUNT_CORRECT:
        out = vector_at(out_, 0, 1, c.FLOAT64)
        count_correct(pred, labels, target, weight, by_threshold, threshold, a[8], out)
    elif operation == CONFUSION_COUNTS:
        out = vector_at(out_, 0, 3 * width, c.FLOAT64)
        confusion_counts(pred, labels, target, weight, by_threshold, threshold, out)
    else:
        regression_sums(pred, target, weight, vector_at(out_, 0, 4 * width, c.FLOAT64))


@compiled
def _over_parameters(
    a: Any, numbers: Any, operation: int, part: int, parts: int, like: Any
) -> None:
    """Penalty, clipping or update of a part of flat vectors (n,)."""
    size = a[0]
    first, last = share(size, part, parts, 16)
    n = last - first
    w = vector_at(a[1], first if a[1] else 0, n if a[1] else 0, like)
    g = vector_at(a[2], first if a[2] else 0, n if a[2] else 0, like)
    s = vector_at(a[3], first if a[3] else 0, n if a[3] else 0, like)
    t = vector_at(a[4], first if a[4] else 0, n if a[4] else 0, like)
    if operation == PENALTY:
        loss = vector_at(a[5], 0, 1, c.FLOAT64)
        loss[0] += penalty_value(w, numbers[0], 0.0)
        loss[0] += penalty_value(w, 0.0, numbers[1])
        if g.size:
            add_penalty_gradient(w, cast(numbers[0], like), cast(numbers[1], like), g)
    elif operation == CLIP:
        norm = square_sum(g) ** 0.5
        if norm > numbers[0]:
            scale(g, cast(numbers[0] / norm, like))
    else:
        update_step(
            a[6], numbers[UPDATE_NUMBERS_AT:], numbers[0], numbers[1], numbers[2], True, w, g, s, t,
            like,
        )  # fmt: skip


@compiled
def _random_bits(a: Any) -> None:
    out, size, offset, key, stream_low, stream_high = a[:6]
    low, high = words_of(stream_low)
    stream = (low, high, np.uint32(stream_high))
    random_bits(vector_at(out, 0, size, np.uint32(0)), words_of(key), stream, offset)
