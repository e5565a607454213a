"""Figures of a model: loss and metrics, from a training trace or over a data source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.data.sources import Source
from nnbackend.errors import DataError, DTypeError, shown
from nnbackend.executor.base import Data, Executor, Trace, data_loss
from nnbackend.kernels.codes import TRACE_PENALTY, TRACE_SUMS
from nnbackend.losses import Loss, LossFunction, to_probabilities
from nnbackend.metrics import AnyMetric, MetricFunction, ScoreMetric, metric_name
from nnbackend.program.table import Program

RESERVED_CURVES = ("loss", "data_loss", "lr")
#: Targets, outputs and weights of some rows, on the host.
Kept = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]
#: Outputs for some rows.
Predict = Callable[[Array], Array]


def figures_of(
    program: Program,
    loss_sum: float,
    penalty: float,
    weight_sum: float,
    sums: np.ndarray[Any, Any],
) -> dict[str, float]:
    """Named figures from summed trace columns; "data_loss" only if there are penalties."""
    value = data_loss(program, loss_sum, weight_sum)
    figures = {"loss": value + penalty}
    if program.penalties:
        figures["data_loss"] = value
    if program.metrics:
        figures |= program.metric_values(sums, weight_sum)
    return figures


def epoch_figures(program: Program, traces: Trace) -> list[dict[str, float]]:
    """Loss and metrics of each epoch, for traces (epochs, steps, TRACE_SUMS + n_sums)."""
    totals, penalties = traces.sum(axis=1), traces[:, :, TRACE_PENALTY].mean(axis=1).tolist()
    loss_sums, _, weight_sums = totals[:, :TRACE_SUMS].T.tolist()
    return [
        figures_of(program, *sums)
        for sums in zip(loss_sums, penalties, weight_sums, totals[:, TRACE_SUMS:], strict=True)
    ]


def evaluate_source(
    executor: Executor,
    source: Source,
    functions: Sequence[ScoreMetric | MetricFunction],
    predict: Predict,
) -> dict[str, float]:
    """Loss and metrics by name in inference mode, including metrics that are functions;
    "data_loss" only if there are penalties."""
    program = executor.program
    totals: Trace = np.zeros(TRACE_SUMS + program.n_sums)
    kept: list[Kept] = []
    penalty, rows = 0.0, 0
    for block in source.blocks():
        part = executor.evaluate(block)
        penalty, rows = float(part[TRACE_PENALTY]), rows + len(block.x)
        totals += part
        if functions:
            kept.append(_kept(program, block, predict))
    if program.penalties_per_row:
        penalty /= max(rows, 1)
    loss_sum, _, weight_sum = totals[:TRACE_SUMS]
    figures = figures_of(program, float(loss_sum), penalty, float(weight_sum), totals[TRACE_SUMS:])
    return figures | _function_values(program, kept, functions)


def function_metrics(
    program: Program,
    source: Source,
    functions: Sequence[ScoreMetric | MetricFunction],
    predict: Predict,
) -> dict[str, float]:
    """The metrics that need all rows at once, over the training data."""
    kept = [_kept(program, block, predict) for block in source.blocks()]
    return _function_values(program, kept, functions)


def _kept(program: Program, block: Data, predict: Predict) -> Kept:
    to_numpy = program.backend.to_numpy
    weight = np.ones(len(block.x)) if block.weight is None else to_numpy(block.weight)
    return to_numpy(block.target), to_numpy(predict(block.x)), weight


def _function_values(
    program: Program, kept: list[Kept], functions: Sequence[ScoreMetric | MetricFunction]
) -> dict[str, float]:
    if not functions:
        return {}
    y_true, y_pred, weight = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    values: dict[str, float] = {}
    for f in functions:
        if isinstance(f, ScoreMetric):
            value = f(y_true, to_probabilities(program.loss, y_pred.copy()), weight)
        else:
            value = f(y_true, y_pred)
        try:
            values[metric_name(f)] = float(value)
        except (TypeError, ValueError):
            raise DTypeError(
                f"the metric {metric_name(f)!r} must return a number; it returned {shown(value)}"
            ) from None
    return values


def check_metrics(metrics: Sequence[AnyMetric], loss: Loss | LossFunction | None) -> None:
    """Refuse metrics that do not fit the loss, and those of the same name, which would share a
    curve."""
    if loss is None and metrics:
        raise DataError("metrics compare outputs with targets; they need a loss")
    for metric in metrics:
        if isinstance(metric, ScoreMetric):
            metric.check(loss)
    names = [metric_name(metric) for metric in metrics]
    taken = {name for name in names if names.count(name) > 1} | {*names} & {*RESERVED_CURVES}
    if taken:
        raise DataError(
            f"metrics need names of their own, other than {', '.join(RESERVED_CURVES)}; repeated "
            f"or reserved: {', '.join(sorted(taken))}"
        )
