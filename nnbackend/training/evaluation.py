"""Figures of a model: loss and metrics, from a training trace or over a data source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.data.sources import ArraySource, Source
from nnbackend.distributed.ranks import Ranks
from nnbackend.errors import DataError, DTypeError, shown
from nnbackend.executor.base import Data, Executor, Trace, data_loss
from nnbackend.kernels.codes import TRACE_PENALTY, TRACE_SUMS, TRACE_WEIGHT
from nnbackend.losses import Loss, LossFunction, to_scores
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
    """Named figures from summed trace columns; "data_loss" only if there are penalties, or
    were: a callback may watch it."""
    value = data_loss(program, loss_sum, weight_sum)
    figures = {"loss": value + penalty}
    if program.has_penalties:
        figures["data_loss"] = value
    if program.metrics:
        figures |= program.metric_values(sums, weight_sum)
    return figures


def epoch_figures(program: Program, traces: Trace) -> list[dict[str, float]]:
    """Loss and metrics of each epoch, for traces (epochs, steps, TRACE_SUMS + n_sums)."""
    totals, penalties = traces.sum(axis=1), traces[:, :, TRACE_PENALTY]
    if program.penalties_per_row:  # a smaller batch has a larger one, and counts less
        weights = np.maximum(traces[:, :, TRACE_WEIGHT], np.finfo(np.float64).tiny)
        penalties = np.average(penalties, axis=1, weights=weights).tolist()
    else:
        penalties = penalties.mean(axis=1).tolist()
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
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Loss and metrics by name in inference mode, including metrics that are functions;
    "data_loss" only if there are penalties. With ``ranks``, each takes its share of the rows."""
    program = executor.program
    totals: Trace = np.zeros(TRACE_SUMS + program.n_sums)
    kept: list[Kept] = []
    penalty, rows = 0.0, 0
    for blocks in _shares(source, ranks):
        parts, here = [np.zeros((0, len(totals) + 1))], []
        for block in blocks:
            parts.append(np.append(executor.evaluate(block), len(block.x))[None])
            if functions:
                here.append(_kept(program, block, predict))
        joined = np.concatenate(parts)
        if ranks is not None:
            joined = ranks.gather_blocks(joined)
            here = _gathered(program, here, ranks) if functions else here
        for *part, count in joined:
            penalty, rows = float(part[TRACE_PENALTY]), rows + int(count)
            totals += part
        kept += here
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
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """The metrics that need all rows at once, over the training data."""
    kept = []
    for blocks in _shares(source, ranks):
        here = [_kept(program, block, predict) for block in blocks]
        kept += here if ranks is None else _gathered(program, here, ranks)
    return _function_values(program, kept, functions)


def _shares(source: Source, ranks: Ranks | None) -> Iterator[Iterable[Data]]:
    """This rank's share of all rows, or of one batch after another, in blocks; a block is valid
    until the next one is asked for."""
    if ranks is None or ranks.sharded:
        yield source.blocks()
    elif isinstance(source, ArraySource):
        yield _share_of(source, ranks)
    else:
        for data in source.blocks():
            yield (data.rows(*block) for block in ranks.blocks(len(data.x)))


def _share_of(source: ArraySource, ranks: Ranks) -> Iterator[Data]:
    some = source.block_rows
    for first, last in ranks.blocks(source.n_rows):
        for start in range(first, last, some):
            yield source.block(slice(start, min(start + some, last)))


def _gathered(program: Program, kept: list[Kept], ranks: Ranks) -> list[Kept]:
    """The same of all ranks, in their order."""
    known = ranks.gather_objects([*kept[0][0].shape[1:], str(kept[0][0].dtype)] if kept else None)
    *width, dtype = next(form for form in known if form is not None)
    pred = np.zeros((0, program.n_outputs), program.dtype)
    nothing = (np.zeros((0, *width), dtype), pred, np.zeros(0))
    joined = (np.concatenate(parts) for parts in zip(nothing, *kept, strict=True))
    y_true, y_pred, weight = (ranks.gather_blocks(array) for array in joined)
    return [(y_true, y_pred, weight)]


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
            value = f(y_true, to_scores(program.loss, y_pred), weight)
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
