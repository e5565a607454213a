"""The loss of a batch, its metrics and penalties, with the backend's operations."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.errors import DTypeError, NotCompiledError, ShapeError, shown
from nnbackend.executor.base import Data
from nnbackend.kernels.codes import TRACE_LOSS, TRACE_SUMS, TRACE_WEIGHT
from nnbackend.losses import Loss
from nnbackend.program.table import NO_LOSS, Program


def measure(
    program: Program, data: Data, pred: Array, dpred: Array | None, trace: Array, value: Array
) -> None:
    """Loss and metric sums of a batch into ``trace``, the gradient into ``dpred`` if wanted;
    ``value`` () float64 is overwritten."""
    backend, loss = program.backend, program.loss
    weight_sum: Any = len(pred) if data.weight is None else program.backend.total(data.weight)
    if program.formula is not None:
        backend.loss(program.formula, pred, data.target, data.weight, dpred, value)
    elif isinstance(loss, Loss):
        loss.apply(backend, pred, data.target, data.weight, dpred, value)
    else:
        value[...], answer = call_loss(program, data.target, pred)
        if dpred is not None:
            dpred[...] = answer  # the backward pass writes into it
    trace[TRACE_LOSS] = value * (weight_sum if program.averages else 1)
    trace[TRACE_WEIGHT] = weight_sum
    start = TRACE_SUMS
    for statistic in program.statistics:
        out = trace[start : start + statistic.size]
        statistic.collect(backend, pred, data.target, data.weight, out)
        start += statistic.size


def divide_by_batch(program: Program, dpred: Array, trace: Array, batch_weight: float) -> None:
    """Make the gradient of a mean over these rows that of their part of a batch's mean; its sum of
    weights is 0 if they are all of it."""
    if program.averages and batch_weight:
        dpred *= trace[TRACE_WEIGHT] / batch_weight


def call_loss(program: Program, target: Array, pred: Array) -> tuple[Any, Array]:
    """Call a custom loss function and check its result."""
    loss = program.loss
    if loss is None:
        raise NotCompiledError(NO_LOSS)
    backend = program.backend
    # copies: what works in place would change what the backward pass, or the next epoch, uses
    answer: Any = loss(backend.copy(target), backend.copy(pred))
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise DTypeError(f"a loss function returns (loss, dpred); received {type(answer).__name__}")
    value, dpred = answer
    if np.ndim(value) != 0 or value is None or isinstance(value, str | bytes):
        raise ShapeError(
            f"a loss function returns (loss, dpred), the loss a single number; received "
            f"{shown(value) if np.ndim(value) == 0 else f'shape {np.shape(value)}'}"
        )
    if getattr(dpred, "shape", None) != pred.shape:
        raise ShapeError(
            f"a loss function returns dpred of the shape of y_pred, {tuple(pred.shape)}; "
            f"received {getattr(dpred, 'shape', type(dpred).__name__)}"
        )
    return value, backend.asarray(dpred, program.dtype)


def add_penalties(program: Program, rows: int, into_gradients: bool, penalty: Array) -> None:
    """L1 and L2 terms of a batch, added to ``penalty`` () and, if wanted, to the gradients."""
    storage, share = program.storage, 1.0 / rows if program.penalties_per_row else 1.0
    for term in program.penalties:
        part = slice(term.offset, term.offset + term.size)
        gradients = storage.gradients[part] if into_gradients and term.trainable else None
        l1, l2 = term.l1 * share, term.l2 * share
        program.backend.penalty(storage.parameters[part], l1, l2, gradients, penalty)
