"""Figures of a model: loss and metrics, from a training trace or over a data source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.data.sources import Source
from nnbackend.errors import DataError
from nnbackend.executor.base import Executor, Trace, data_loss
from nnbackend.kernels.codes import TRACE_PENALTY, TRACE_SUMS
from nnbackend.metrics import MetricFunction, metric_name
from nnbackend.program.table import Program

RESERVED_CURVES = ("loss", "data_loss", "lr")
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
    executor: Executor, source: Source, functions: Sequence[MetricFunction], predict: Predict
) -> dict[str, float]:
    """Loss and metrics by name in inference mode, including metrics that are functions;
    "data_loss" only if there are penalties."""
    program = executor.program
    totals: Trace = np.zeros(TRACE_SUMS + program.n_sums)
    kept: list[tuple[Any, Any]] = []
    penalty = 0.0
    for block in source.blocks():
        part = executor.evaluate(block)
        penalty = float(part[TRACE_PENALTY])
        totals += part
        if functions:
            kept.append((program.backend.to_numpy(block.target), predict(block.x)))
    loss_sum, _, weight_sum = totals[:TRACE_SUMS]
    figures = figures_of(program, float(loss_sum), penalty, float(weight_sum), totals[TRACE_SUMS:])
    return figures | _function_values(program, kept, functions)


def function_metrics(
    program: Program, source: Source, functions: Sequence[MetricFunction], predict: Predict
) -> dict[str, float]:
    """The metrics that are functions, over the training data."""
    to_numpy = program.backend.to_numpy
    kept = [(to_numpy(block.target), predict(block.x)) for block in source.blocks()]
    return _function_values(program, kept, functions)


def _function_values(
    program: Program, kept: list[tuple[Any, Any]], functions: Sequence[MetricFunction]
) -> dict[str, float]:
    if not functions:
        return {}
    to_numpy = program.backend.to_numpy
    y_true = np.concatenate([to_numpy(target) for target, _ in kept])
    y_pred = np.concatenate([to_numpy(pred) for _, pred in kept])
    return {metric_name(f): float(f(y_true, y_pred)) for f in functions}


def check_metric_names(metrics: Sequence[Any]) -> None:
    """Refuse metrics of the same name, which would share a curve."""
    names = [metric_name(metric) for metric in metrics]
    taken = {name for name in names if names.count(name) > 1} | {*names} & {*RESERVED_CURVES}
    if taken:
        raise DataError(
            f"metrics need names of their own, other than {', '.join(RESERVED_CURVES)}; repeated "
            f"or reserved: {', '.join(sorted(taken))}"
        )
