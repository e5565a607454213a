"""Phases of a training step, for one part of the batch.

A step is a sequence of phases; in each, every part of the batch is handled by itself, and the
threads meet between them. Phases 0 ... F go forward (F batch norms need F meetings), F also takes
the loss and starts back; phases up to 2 F finish the way back; then each part takes a share of the
weight rows: their gradient and, while it is in the cache, their update. Clipping needs the whole
gradient first, so that the update is one phase more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels import cpu_context as c
from nnbackend.kernels.codes import Op, Update
from nnbackend.kernels.cpu_activations import activation_backward, activation_forward, keeps_input
from nnbackend.kernels.cpu_compile import compiled, view
from nnbackend.kernels.cpu_context import matrix, numbers_of, share, vector
from nnbackend.kernels.cpu_dense import (
    column_sums,
    dense_backward_data,
    dense_forward,
    take_rows,
)
from nnbackend.kernels.cpu_intrinsics import matrix_at, size_of, vector_at
from nnbackend.kernels.cpu_losses import SUM_SQUARED, loss_rows
from nnbackend.kernels.cpu_math import cast
from nnbackend.kernels.cpu_norms import (
    batch_norm_data,
    batch_norm_sums,
    batch_normalise,
    batch_statistics,
    inverse_deviation,
    join_statistics,
    layer_norm_data,
    layer_norm_forward,
    layer_norm_parameters,
    move_running,
    standardize_backward,
    standardize_forward,
    store,
)
from nnbackend.kernels.cpu_products import SCRATCH_BYTES, transposed_product
from nnbackend.kernels.cpu_random import dropout_mask, multiply
from nnbackend.kernels.cpu_statistics import confusion_counts, count_correct, regression_sums
from nnbackend.kernels.cpu_updates import (
    absolute_sum,
    adagrad_step,
    adam_step,
    add_penalty_gradient,
    all_finite,
    momentum_step,
    rmsprop_step,
    sgd_step,
    square_sum,
)
from nnbackend.kernels.cpu_vectors import add_to, copy, scale

DENSE, DROPOUT, BATCH_NORM = int(Op.DENSE), int(Op.DROPOUT), int(Op.BATCH_NORM)
ACTIVATION, LAYER_NORM, STANDARDIZE = int(Op.ACTIVATION), int(Op.LAYER_NORM), int(Op.STANDARDIZE)
SGD, ADAGRAD, RMSPROP, ADAM = (int(kind) for kind in Update)
N_COLUMNS = len(c.COLUMNS)
#: The first phase, the first row. (NumPy integers: Numba compiles a function for each literal.)
FIRST = np.int64(0)
#: Slices of the batch begin at multiples of this, which keeps the BLAS's and Philox's blocks whole.
ROW_MULTIPLE = 4
#: Weight rows of a part, and columns of its biases, in multiples of a vector register.
WEIGHT_MULTIPLE = 16
#: Weights of a block whose gradient is used while it is in the cache: 2 MiB in float32. Smaller
#: ones would make the BLAS pack the other factor anew too often (measured on 1024 x 1024 weights).
UPDATE_BLOCK = 1 << 19

#: Arrays of a batch norm in a part's area, float64: of the part's rows, of the batch, the
#: gradients of the part and of all.
(
    PART_MEAN, PART_SQUARE, MEAN, INV_STD, PART_DGAMMA, PART_DBETA, DGAMMA, DBETA,
) = map(np.int64, range(8))  # fmt: skip
NORM_ARRAYS = 8


@view
def table_of(f: Any) -> Any:
    return matrix_at(f[c.TABLE], 0, f[c.N_ROWS], N_COLUMNS, c.INT64)


@view
def floats_of(f: Any) -> Any:
    return matrix_at(f[c.FLOATS], 0, f[c.N_ROWS], c.N_FLOATS, c.FLOAT64)


@view
def sums_of(f: Any, part: int) -> Any:
    """The part's sums: loss, penalty, weights, metrics, square of the gradient."""
    width = f[c.SUMS_WIDTH]
    return vector_at(f[c.SUMS], part * width, width, c.FLOAT64)


@view
def parameters(f: Any, start: int, n: int, like: Any) -> Any:
    if start < 0:
        return vector_at(0, 0, 0, like)
    return vector(f[c.PARAMETERS], f[c.N_PARAMETERS], start, n, like)


@view
def gradients(f: Any, start: int, n: int, like: Any) -> Any:
    return vector(f[c.GRADIENTS], f[c.N_PARAMETERS], start, n, like)


@view
def state(f: Any, start: int, n: int, like: Any) -> Any:
    return vector(f[c.STATE], f[c.N_STATE], start, n, like)


@view
def work(f: Any, offset: int, width: int, first: int, last: int, like: Any) -> Any:
    """Rows first ... last of the (capacity, width) array at ``offset`` in the workspace."""
    start = offset * f[c.CAPACITY] + first * width
    return matrix(f[c.WORKSPACE], f[c.WORKSPACE_SIZE], start, last - first, width, like)


@view
def delta(f: Any, offset: int, width: int, first: int, last: int, like: Any) -> Any:
    """The gradient by rows first ... last of a layer's output."""
    start = offset * f[c.CAPACITY] + first * width
    return matrix(f[c.DELTAS], f[c.DELTAS_SIZE], start, last - first, width, like)


@compiled
def scratch_of(f: Any, part: int) -> int:
    """Address of the part's scratch memory for products."""
    return f[c.SCRATCH] + part * SCRATCH_BYTES


@view
def nothing(like: Any) -> Any:
    """An empty matrix, for what is not there."""
    return matrix_at(0, 0, 0, 0, like)


@view
def input_rows(f: Any, table: Any, r: int, first: int, last: int, like: Any) -> Any:
    """What row r of the table reads: the batch, or the output of the row before."""
    width = table[r, c.INPUTS]
    if r == 0:
        return matrix(f[c.X_BATCH], f[c.ROWS] * width, first * width, last - first, width, like)
    return work(f, table[r - 1, c.OUTPUT], width, first, last, like)


@view
def weights(f: Any, table: Any, r: int, like: Any) -> Any:
    n_inputs, n_outputs = table[r, c.INPUTS], table[r, c.OUTPUTS]
    size = f[c.N_PARAMETERS]
    return matrix(f[c.PARAMETERS], size, table[r, c.PARAMETER_0], n_inputs, n_outputs, like)


@view
def norm_area(f: Any, table: Any, r: int, part: int, which: int) -> Any:
    """One of the (N,) float64 arrays of a batch norm in a part's area."""
    n = table[r, c.OUTPUTS]
    start = part * f[c.NORMS_WIDTH] + table[r, c.NORM] + which * n
    return vector_at(f[c.NORMS], start, n, c.FLOAT64)


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


@view
def layer_norm_saved(f: Any, table: Any, r: int, first: int, last: int, like: Any) -> Any:
    start = table[r, c.SAVED] * f[c.CAPACITY]
    size, capacity = f[c.WORKSPACE_SIZE], f[c.CAPACITY]
    means = vector(f[c.WORKSPACE], size, start + first, last - first, like)
    inv_stds = vector(f[c.WORKSPACE], size, start + capacity + first, last - first, like)
    return means, inv_stds


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
        flat = saved.reshape(saved.size)
        step, layer, key = f[c.STEP], table[r, c.LAYER], f[c.DROPOUT_KEY]
        keys = (np.uint32(key), np.uint32(key >> 32))
        stream = (np.uint32(step), np.uint32(step >> 32), np.uint32(layer))
        rate = floats[r, 0]
        threshold = np.uint32(np.int64(rate * 4294967296.0))
        kept = cast(1.0 / (1.0 - rate), like)
        dropout_mask(flat, keys, stream, first * width, threshold, kept)
        multiply(x.reshape(x.size), flat, out.reshape(out.size))
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
    if part == 0 and f[c.TRAINS]:
        width = table[r, c.OUTPUTS]
        running_mean = state(f, table[r, c.STATE_0], width, like)
        running_var = state(f, table[r, c.STATE_1], width, like)
        move_running(running_mean, running_var, mean, square, float(rows), floats[r, 0])
    inverse_deviation(square, float(rows), floats[r, 1], square)
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
        dx = delta(f, table[r - 1, c.DELTA], table[r, c.INPUTS], first, last, like)
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
        dx = delta(f, table[r - 1, c.DELTA], width, first, last, like)
        x = input_rows(f, table, r, first, last, like)
        mean, inv_std = norm_area(f, table, r, part, MEAN), norm_area(f, table, r, part, INV_STD)
        gamma = parameters(f, table[r, c.PARAMETER_0], width, like)
        batch_norm_data(dy, x, mean, inv_std, gamma, dgamma, dbeta, float(f[c.ROWS]), dx)


@compiled
def begin_step(f: Any, index: int, like: Any) -> None:
    """Where the batch lies, its weight, and the update's corrected rate."""
    per_epoch = (f[c.ORDER_ROWS] + f[c.BATCH_SIZE] - 1) // f[c.BATCH_SIZE]
    epoch, batch = index // per_epoch, index % per_epoch
    start = batch * f[c.BATCH_SIZE]
    rows = min(f[c.BATCH_SIZE], f[c.ORDER_ROWS] - start)
    f[c.STEP] = f[c.FIRST_STEP] + index
    f[c.ROWS] = rows
    f[c.ORDER_START] = epoch * f[c.ORDER_ROWS] + start
    size = size_of(like)
    if f[c.ORDER]:
        f[c.X_BATCH], f[c.TARGET_BATCH] = f[c.X_GATHERED], f[c.TARGET_GATHERED]
        f[c.LABELS_BATCH], f[c.WEIGHT_BATCH] = f[c.LABELS_GATHERED], f[c.WEIGHT_GATHERED]
    else:
        f[c.X_BATCH] = f[c.X] + start * f[c.N_INPUTS] * size
        f[c.TARGET_BATCH] = f[c.TARGET] + start * f[c.N_OUTPUTS] * size
        f[c.LABELS_BATCH] = f[c.LABELS] + start * 4
        f[c.WEIGHT_BATCH] = f[c.WEIGHT] + start * size
        if f[c.LABELS_64]:
            f[c.LABELS_BATCH] = f[c.LABELS_GATHERED]
    numbers = numbers_of(f)
    numbers[c.WEIGHT_SUM] = float(rows)
    if f[c.WEIGHT]:
        numbers[c.WEIGHT_SUM] = weight_sum(f, start, rows, like)
    if f[c.TRAINS]:
        correct_rate(f, numbers, vector_at(f[c.RATES], index, 1, c.FLOAT64)[0])
    for part in range(f[c.N_PARTS]):
        sums_of(f, part)[:] = 0.0


@compiled
def weight_sum(f: Any, start: int, rows: int, like: Any) -> float:
    """Sum of the batch's weights."""
    weight = vector_at(f[c.WEIGHT], 0, f[c.N_DATA], like)
    total = 0.0
    if f[c.ORDER]:
        order = vector_at(f[c.ORDER], f[c.ORDER_START], rows, c.INT64)
        for i in range(rows):
            total += weight[order[i]]
    else:
        for i in range(rows):
            total += weight[start + i]
    return total


@compiled
def correct_rate(f: Any, numbers: Any, rate: float) -> None:
    """Adam's bias corrections, moved out of the vectors into its rate and eps."""
    numbers[c.RATE] = rate
    if f[c.UPDATE] == ADAM:
        count = float(f[c.STEP] + 1)
        root = (1.0 - numbers[c.BETA_2] ** count) ** 0.5
        numbers[c.CORRECTED_RATE] = rate * root / (1.0 - numbers[c.BETA_1] ** count)
        numbers[c.CORRECTED_EPS] = numbers[c.EPS] * root


@compiled
def gather(f: Any, first: int, last: int, like: Any) -> None:
    """Copy the rows that the order names for this slice of the batch."""
    order = vector_at(f[c.ORDER], f[c.ORDER_START] + first, last - first, c.INT64)
    n_data, width = f[c.N_DATA], f[c.N_INPUTS]
    x = matrix_at(f[c.X], 0, n_data, width, like)
    take_rows(x, order, matrix_at(f[c.X_GATHERED], first * width, last - first, width, like))
    if f[c.LABELS]:
        labels = vector_at(f[c.LABELS], 0, n_data, c.INT32)
        taken = vector_at(f[c.LABELS_GATHERED], 0, last, c.INT32)
        for i in range(last - first):
            taken[first + i] = labels[order[i]]
    elif f[c.TARGET]:
        target = matrix_at(f[c.TARGET], 0, n_data, f[c.N_OUTPUTS], like)
        outputs = f[c.N_OUTPUTS]
        taken_rows = matrix_at(f[c.TARGET_GATHERED], first * outputs, last - first, outputs, like)
        take_rows(target, order, taken_rows)
    if f[c.WEIGHT]:
        weight = vector_at(f[c.WEIGHT], 0, n_data, like)
        kept = vector_at(f[c.WEIGHT_GATHERED], 0, last, like)
        for i in range(last - first):
            kept[first + i] = weight[order[i]]


@compiled
def check_rows(f: Any, first: int, last: int, like: Any) -> bool:
    """Whether a caller's own rows are such as the host's checks would let through."""
    width, outputs = f[c.N_INPUTS], f[c.N_OUTPUTS]
    n = last - first
    ok = all_finite(vector_at(f[c.X_BATCH], first * width, n * width, like))
    if f[c.LABELS_64]:
        given = vector_at(f[c.LABELS_64], first, n, c.INT64)
        labels = vector_at(f[c.LABELS_BATCH], first, n, c.INT32)
        for i in range(n):
            fits = 0 <= given[i] < outputs
            ok = ok and fits
            labels[i] = np.int32(given[i]) if fits else np.int32(0)
    elif f[c.TARGET]:
        target = vector_at(f[c.TARGET_BATCH], first * outputs, n * outputs, like)
        numbers = numbers_of(f)
        ok = ok and all_finite(target)
        for i in range(target.size):
            ok = ok and numbers[c.TARGET_LOW] <= target[i] <= numbers[c.TARGET_HIGH]
    return ok


@view
def targets(f: Any, first: int, last: int, like: Any) -> Any:
    """Labels (n,), targets (n, O) and weights (n,) of some rows; empty where there are none."""
    labels = vector_at(0, 0, 0, c.INT32)
    target, weight = nothing(like), vector_at(0, 0, 0, like)
    if f[c.LABELS] or f[c.LABELS_64]:
        labels = vector_at(f[c.LABELS_BATCH], first, last - first, c.INT32)
    elif f[c.TARGET]:
        target = matrix_at(
            f[c.TARGET_BATCH], first * f[c.N_OUTPUTS], last - first, f[c.N_OUTPUTS], like
        )
    if f[c.WEIGHT]:
        weight = vector_at(f[c.WEIGHT_BATCH], first, last - first, like)
    return labels, target, weight


@compiled
def measure(
    f: Any,
    pred: Any,
    dpred: Any,
    labels: Any,
    target: Any,
    weight: Any,
    factor: float,
    sums: Any,
    like: Any,
) -> None:
    """Loss and metrics of some rows, added to ``sums``, and the gradient by the outputs."""
    numbers = numbers_of(f)
    parameter = cast(numbers[c.LOSS_PARAMETER], like)
    sums[c.LOSS_SUM] += loss_rows(f[c.LOSS], parameter, pred, labels, target, weight, factor, dpred)
    for s in range(f[c.N_STATISTICS]):
        entry = vector_at(f[c.STATISTICS], s * c.STATISTIC_COLUMNS, c.STATISTIC_COLUMNS, c.FLOAT64)
        kind, by_threshold, threshold = int(entry[0]), entry[1] != 0.0, entry[2]
        out = sums[c.METRICS + int(entry[4]) :]
        if kind == 0:
            count_correct(pred, labels, target, weight, by_threshold, threshold, int(entry[3]), out)
        elif kind == 1:
            confusion_counts(pred, labels, target, weight, by_threshold, threshold, out)
        else:
            regression_sums(pred, target, weight, out)


@compiled
def loss_factor(f: Any) -> float:
    """What turns derivatives of rows into those of the loss: 1 / sum of weights for a mean."""
    if f[c.LOSS] == SUM_SQUARED:
        return 1.0
    total = numbers_of(f)[c.WEIGHT_SUM]
    return 1.0 / total if total > 0.0 else 0.0


@compiled
def run_phase(f: Any, phase: int, part: int, like: Any) -> None:
    """One phase of a step for one part."""
    first, last = share(f[c.ROWS], part, f[c.N_PARTS], ROW_MULTIPLE)
    forward = f[c.LAST_FORWARD]
    if phase > 2 * forward + 1:
        run_clipped_update(f, part, like)
    elif phase == 2 * forward + 1:
        run_weights(f, part, like)
    elif forward == 0:
        # there and back a block of rows at a time, while their outputs are in the cache
        for start in range(first, last, f[c.BLOCK_ROWS]):
            stop = min(last, start + f[c.BLOCK_ROWS])
            run_rows(f, FIRST, part, start, stop, like)
    else:
        run_rows(f, phase, part, first, last, like)


@compiled
def run_rows(f: Any, phase: int, part: int, first: int, last: int, like: Any) -> None:
    """What a phase does for rows first ... last of the batch."""
    forward = f[c.LAST_FORWARD]
    if phase == 0 and last > first:
        if f[c.ORDER]:
            gather(f, first, last, like)
        if f[c.CHECKS] and not check_rows(f, first, last, like):
            f[c.STATUS] = c.REFUSED
            return
    if phase <= forward:
        run_forward(f, phase, part, first, last, like)
    if phase == forward:
        run_loss(f, part, first, last, like)
    if phase >= forward:
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
    if last <= first:
        return
    table = table_of(f)
    r = table.shape[0] - 1
    pred = work(f, table[r, c.OUTPUT], table[r, c.OUTPUTS], first, last, like)
    dpred = delta(f, table[r, c.DELTA], table[r, c.OUTPUTS], first, last, like)
    labels, target, weight = targets(f, first, last, like)
    measure(f, pred, dpred, labels, target, weight, loss_factor(f), sums_of(f, part), like)


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
def run_weights(f: Any, part: int, like: Any) -> None:
    """This part's share of the parameters: gradient, penalty, and the update unless the gradient
    is clipped first."""
    table, floats = table_of(f), floats_of(f)
    parts, rows = f[c.N_PARTS], f[c.ROWS]
    for r in range(table.shape[0]):
        op, width = table[r, c.OP], table[r, c.OUTPUTS]
        if op == DENSE:
            n_inputs = table[r, c.INPUTS]
            first, last = share(n_inputs, part, parts, WEIGHT_MULTIPLE)
            lines = max(WEIGHT_MULTIPLE, UPDATE_BLOCK // width)
            blocks = max(1, (last - first + lines - 1) // lines)
            for block in range(blocks):
                low, high = share(last - first, block, blocks, 1)
                dense_weights(f, table, floats, r, first + low, first + high, part, like)
            dense_bias(f, table, floats, r, part, like)
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
            finish(f, start_0, last - first, part, like)
            finish(f, start_1, last - first, part, like)


@compiled
def dense_weights(
    f: Any, table: Any, floats: Any, r: int, first: int, last: int, part: int, like: Any
) -> None:
    """Rows first ... last of a weight matrix."""
    width, rows = table[r, c.OUTPUTS], f[c.ROWS]
    size, start = (last - first) * width, table[r, c.PARAMETER_0] + first * width
    if size <= 0:
        return
    if table[r, c.TRAINABLE]:
        x = input_rows(f, table, r, FIRST, rows, like)
        dz = delta(f, table[r, c.DELTA], width, FIRST, rows, like)
        dw = matrix(f[c.GRADIENTS], f[c.N_PARAMETERS], start, last - first, width, like)
        transposed_product(x, first, dz, dw, scratch_of(f, part))
    penalise(f, table[r, c.TRAINABLE], start, size, floats[r, 1], floats[r, 2], part, like)
    if table[r, c.TRAINABLE]:
        finish(f, start, size, part, like)


@compiled
def dense_bias(f: Any, table: Any, floats: Any, r: int, part: int, like: Any) -> None:
    """This part's share of a bias."""
    width = table[r, c.OUTPUTS]
    first, last = share(width, part, f[c.N_PARTS], WEIGHT_MULTIPLE)
    start = table[r, c.PARAMETER_1] + first
    if table[r, c.PARAMETER_1] < 0 or last <= first:
        return
    if table[r, c.TRAINABLE]:
        dz = delta(f, table[r, c.DELTA], width, FIRST, f[c.ROWS], like)
        column_sums(dz, first, gradients(f, start, last - first, like))
    penalise(f, table[r, c.TRAINABLE], start, last - first, floats[r, 3], floats[r, 4], part, like)
    if table[r, c.TRAINABLE]:
        finish(f, start, last - first, part, like)


@compiled
def penalise(
    f: Any, trains: int, start: int, n: int, l1: float, l2: float, part: int, like: Any
) -> None:
    """Add an L1 and L2 term to the part's sums and to the gradient."""
    if l1 == 0.0 and l2 == 0.0:
        return
    w = parameters(f, start, n, like)
    sums_of(f, part)[c.PENALTY] += penalty_value(w, l1, l2)
    if trains:
        add_penalty_gradient(w, cast(l1, like), cast(l2, like), gradients(f, start, n, like))


@compiled
def penalty_value(w: Any, l1: float, l2: float) -> float:
    total = 0.0
    if l1 != 0.0:
        total += l1 * absolute_sum(w)
    if l2 != 0.0:
        total += l2 * square_sum(w)
    return total


@compiled
def finish(f: Any, start: int, n: int, part: int, like: Any) -> None:
    """The gradient of n parameters is there: use it, or add its square for the clipping."""
    if f[c.CLIPS]:
        sums = sums_of(f, part)
        sums[sums.size - 1] += square_sum(gradients(f, start, n, like))
    elif f[c.TRAINS]:
        update(f, start, n, like)


@compiled
def update(f: Any, start: int, n: int, like: Any) -> None:
    """One step of the optimizer for n parameters, all decayed or none."""
    numbers = numbers_of(f)
    w, g = parameters(f, start, n, like), gradients(f, start, n, like)
    empty = vector_at(0, 0, 0, like)
    slot_0 = vector(f[c.SLOT_0], f[c.N_TRAINED], start, n, like) if f[c.N_SLOTS] > 0 else empty
    slot_1 = vector(f[c.SLOT_1], f[c.N_TRAINED], start, n, like) if f[c.N_SLOTS] > 1 else empty
    kind, rate, eps = f[c.UPDATE], numbers[c.RATE], cast(numbers[c.EPS], like)
    lr = cast(rate, like)
    if kind == SGD:
        momentum = cast(numbers[c.MOMENTUM], like)
        if f[c.N_SLOTS] == 0:
            sgd_step(w, g, lr)
        elif numbers[c.NESTEROV] != 0.0:
            momentum_step(w, g, slot_0, lr, momentum, momentum, lr)
        else:
            momentum_step(w, g, slot_0, lr, momentum, cast(1.0, like), cast(0.0, like))
    elif kind == ADAGRAD:
        adagrad_step(w, g, slot_0, lr, eps)
    elif kind == RMSPROP:
        rho = numbers[c.RHO]
        rmsprop_step(w, g, slot_0, lr, cast(rho, like), cast(1.0 - rho, like), eps)
    else:
        keep = 1.0 - rate * numbers[c.DECAY] if start < f[c.N_DECAYED] else 1.0
        beta1, beta2 = numbers[c.BETA_1], numbers[c.BETA_2]
        adam_step(
            w, g, slot_0, slot_1, cast(keep, like), cast(numbers[c.CORRECTED_RATE], like),
            cast(beta1, like), cast(1.0 - beta1, like), cast(beta2, like), cast(1.0 - beta2, like),
            cast(numbers[c.CORRECTED_EPS], like),
        )  # fmt: skip


@compiled
def run_clipped_update(f: Any, part: int, like: Any) -> None:
    """Scale this part's share of the gradient to the allowed norm, then update."""
    square = 0.0
    for other in range(f[c.N_PARTS]):
        sums = sums_of(f, other)
        square += sums[sums.size - 1]
    norm, limit = square**0.5, numbers_of(f)[c.CLIP_NORM]
    factor = limit / norm if norm > limit else 1.0
    decayed, trained = f[c.N_DECAYED], f[c.N_TRAINED]
    for low, high in ((0, decayed), (decayed, trained)):
        first, last = share(high - low, part, f[c.N_PARTS], WEIGHT_MULTIPLE)
        if last > first:
            if factor != 1.0:
                scale(gradients(f, low + first, last - first, like), cast(factor, like))
            update(f, low + first, last - first, like)


@compiled
def end_step(f: Any, index: int) -> None:
    """Join the parts' sums into a row of the trace."""
    width = f[c.SUMS_WIDTH] - 1
    row = vector_at(f[c.TRACE], index * width, width, c.FLOAT64)
    row[:] = 0.0
    for part in range(f[c.N_PARTS]):
        add_to(row, sums_of(f, part)[:width])
    row[c.WEIGHTS] = numbers_of(f)[c.WEIGHT_SUM]
