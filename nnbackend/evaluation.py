"""A model's loss and metrics over a source of data, in inference mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.executor import METRIC_SUMS, PENALTY, Trace
from nnbackend.metrics import Metric, MetricFunction, metric_name
from nnbackend.sources import Source
from nnbackend.training import figures_of

if TYPE_CHECKING:
    from nnbackend.model import Sequential


def evaluate_source(model: Sequential, source: Source) -> dict[str, float]:
    """Loss and metrics by name; "data_loss" only where there are penalties."""
    totals: Trace = np.zeros(METRIC_SUMS + model.program.n_sums)
    kept: list[tuple[Any, Any]] = []
    functions = [m for m in model.metrics if not isinstance(m, Metric)]
    penalty = 0.0
    for block in source.blocks():
        part = model.executor.evaluate(block)
        penalty = float(part[PENALTY])
        totals += part
        if functions:
            kept.append((model.backend.to_numpy(block.target), model(block.x)))
    loss_sum, _, weight_sum = totals[:METRIC_SUMS]
    figures = figures_of(
        model.program, float(loss_sum), penalty, float(weight_sum), totals[METRIC_SUMS:]
    )
    return figures | _function_values(model, kept, functions)


def function_metrics(model: Sequential, source: Source) -> dict[str, float]:
    """The metrics that are functions, over the training data."""
    functions = [m for m in model.metrics if not isinstance(m, Metric)]
    to_numpy = model.backend.to_numpy
    kept = [(to_numpy(block.target), model(block.x)) for block in source.blocks()]
    return _function_values(model, kept, functions)


def _function_values(
    model: Sequential, kept: list[tuple[Any, Any]], functions: Sequence[MetricFunction]
) -> dict[str, float]:
    if not functions:
        return {}
    to_numpy = model.backend.to_numpy
    y_true = np.concatenate([to_numpy(target) for target, _ in kept])
    y_pred = np.concatenate([to_numpy(pred) for _, pred in kept])
    return {metric_name(f): float(f(y_true, y_pred)) for f in functions}
