"""The batch of a step: where it lies, its rows, its targets, its loss and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.codes import CONFUSION, CORRECT, REGRESSION
from nnbackend.kernels.cpu.codegen.compile import compiled, view
from nnbackend.kernels.cpu.codegen.intrinsics import linked, matrix_at, size_of, vector_at
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.ops.dense import take_rows
from nnbackend.kernels.cpu.ops.losses import averages, loss_rows
from nnbackend.kernels.cpu.ops.statistics import confusion_counts, count_correct, regression_sums
from nnbackend.kernels.cpu.ops.updates import ADAM, all_finite, corrected
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.context import numbers_of
from nnbackend.kernels.cpu.program.views import nothing, sums_of

#: ``measure`` from code outside the object file that it belongs to.
linked_measure = linked("measure")


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
    """The rate of this update, and what Adam makes of it."""
    numbers[c.RATE] = rate
    if f[c.UPDATE] == ADAM:
        own_rate, own_eps = corrected(numbers[c.MOMENTUM :], rate, f[c.STEP] + 1)
        numbers[c.CORRECTED_RATE], numbers[c.CORRECTED_EPS] = own_rate, own_eps


@compiled
def gather(f: Any, first: int, last: int, like: Any) -> None:
    """Copy the rows that the order names for this slice of the batch."""
    order = vector_at(f[c.ORDER], f[c.ORDER_START] + first, last - first, c.INT64)
    n_data, width = f[c.N_DATA], f[c.N_INPUTS]
    if not f[c.X_STARTS]:
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
    address: int, part: int, first: int, last: int, pred: int, dpred: int, factor: float, like: Any
) -> None:
    """Loss and metrics of rows first ... last, added to the part's sums, and the gradient by the
    outputs times ``factor``; outputs and gradient are given by their addresses."""
    f = c.open_context(address)
    numbers, sums = numbers_of(f), sums_of(f, part)
    labels, target, weight = targets(f, first, last, like)
    outputs = matrix_at(pred, 0, last - first, f[c.N_OUTPUTS], like)
    gradient = matrix_at(dpred, 0, last - first, f[c.N_OUTPUTS], like)
    parameter = cast(numbers[c.LOSS_PARAMETER], like)
    sums[c.TRACE_LOSS] += loss_rows(
        f[c.LOSS], parameter, outputs, labels, target, weight, factor, gradient
    )
    for s in range(f[c.N_STATISTICS]):
        entry = vector_at(f[c.STATISTICS], s * c.STATISTIC_COLUMNS, c.STATISTIC_COLUMNS, c.FLOAT64)
        kind, by_threshold, threshold = int(entry[0]), entry[1] != 0.0, entry[2]
        out = sums[c.TRACE_SUMS + int(entry[4]) :]
        if kind == CORRECT:
            top = int(entry[3])
            count_correct(outputs, labels, target, weight, by_threshold, threshold, top, out)
        elif kind == CONFUSION:
            confusion_counts(outputs, labels, target, weight, by_threshold, threshold, out)
        elif kind == REGRESSION:
            regression_sums(outputs, target, weight, out)


@compiled
def loss_factor(f: Any) -> float:
    """What turns derivatives of rows into those of the loss: 1 / sum of weights for a mean."""
    if not averages(f[c.LOSS]):
        return 1.0
    numbers = numbers_of(f)
    total = max(numbers[c.BATCH_WEIGHT], numbers[c.WEIGHT_SUM])
    return 1.0 / total if total > 0.0 else 0.0
