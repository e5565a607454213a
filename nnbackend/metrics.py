"""Metrics: sums over rows that a backend collects, and the figures computed from them.

Every built-in metric is a function of sums, so it is exact over any split into batches.
A callable ``(y_true, y_pred) -> number`` on NumPy arrays is accepted as well; it is computed
from the model's raw outputs in a separate pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from nnbackend._checks import check_name, check_size, keep
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array
from nnbackend.errors import DataError, ShapeError
from nnbackend.losses import Loss, LossFunction

Sums = np.ndarray[Any, np.dtype[np.float64]]
MetricFunction = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], Any]


class Statistic(NamedTuple):
    """Sums that a backend collects; metrics that need the same sums share one.

    Attributes:
        kind: "correct" is ``count_correct``, "confusion" ``confusion_counts``, "regression"
            ``regression_sums``.
        threshold: of yes-or-no outputs, else None.
        top: for "correct".
        shape: of the sums.
    """

    kind: Literal["correct", "confusion", "regression"]
    threshold: float | None
    top: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def collect(
        self, backend: Backend, pred: Array, target: Array, weight: Array | None, out: Array
    ) -> None:
        """Overwrite ``out`` (size,) float64 with the sums of these rows."""
        view = out.reshape(self.shape)
        if self.kind == "correct":
            backend.count_correct(pred, target, weight, self.threshold, self.top, view)
        elif self.kind == "confusion":
            backend.confusion_counts(pred, target, weight, self.threshold, view)
        else:
            backend.regression_sums(pred, target, weight, view)


class Metric(ABC):
    """Base of the built-in metrics.

    Attributes:
        name: of the curve.
        better: whether "higher" or "lower" values are better.
    """

    name: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @abstractmethod
    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        """The sums this metric needs, or an error if it does not fit the loss."""

    @abstractmethod
    def value(self, sums: Sums, weight_sum: float) -> float:
        """The metric from the sums (in the statistic's shape) and the sum of the weights."""

    def config(self) -> dict[str, Any]:
        return {"name": self.name}


def _threshold(metric: str, loss: Loss | LossFunction | None, n_outputs: int) -> float | None:
    """How classes are read from the outputs: None means "the largest"."""
    if isinstance(loss, Loss):
        if not loss.probabilities:
            raise DataError(
                f"{metric} counts classes, and {loss.name} is a loss for numbers; "
                f"use the metrics mae, mse or r2"
            )
        return loss.threshold
    return 0.5 if n_outputs == 1 else None


class Accuracy(Metric):
    """Share of rows with the right class; with yes-or-no outputs, share of right outputs."""

    name = "accuracy"

    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        return Statistic("correct", _threshold(self.name, loss, n_outputs), 1, ())

    def value(self, sums: Sums, weight_sum: float) -> float:
        return _ratio(float(sums), weight_sum)


@dataclass(frozen=True)
class TopKAccuracy(Metric):
    """Share of rows whose class is among the k largest outputs."""

    k: int = 5
    name: ClassVar[str] = "top_k_accuracy"

    def __post_init__(self) -> None:
        keep(self, k=check_size("TopKAccuracy.k", self.k))

    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        if _threshold(self.name, loss, n_outputs) is not None:
            raise DataError("top_k_accuracy needs a loss over classes, such as "
                            "softmax_cross_entropy")  # fmt: skip
        if self.k >= n_outputs:
            raise ShapeError(
                f"top_k_accuracy with k={self.k} needs more than {self.k} classes; the model has "
                f"{n_outputs} outputs. Use nn.metrics.TopKAccuracy(k={max(1, n_outputs - 1)})"
            )
        return Statistic("correct", None, self.k, ())

    def value(self, sums: Sums, weight_sum: float) -> float:
        return _ratio(float(sums), weight_sum)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


class _ConfusionMetric(Metric):
    """From counts per class; averaged over classes with equal weight (macro), or, with one
    yes-or-no output, for the class "yes". A class that never occurs counts as 0."""

    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        return Statistic("confusion", _threshold(self.name, loss, n_outputs), 1, (3, n_outputs))


class Precision(_ConfusionMetric):
    """Hits / predictions of the class, averaged over classes."""

    name = "precision"

    def value(self, sums: Sums, weight_sum: float) -> float:
        hits, predicted, _ = sums
        return float(_ratios(hits, predicted).mean())


class Recall(_ConfusionMetric):
    """Hits / occurrences of the class, averaged over classes."""

    name = "recall"

    def value(self, sums: Sums, weight_sum: float) -> float:
        hits, _, actual = sums
        return float(_ratios(hits, actual).mean())


class F1(_ConfusionMetric):
    """2 hits / (predictions + occurrences) of the class, averaged over classes."""

    name = "f1"

    def value(self, sums: Sums, weight_sum: float) -> float:
        hits, predicted, actual = sums
        return float(_ratios(2 * hits, predicted + actual).mean())


class _RegressionMetric(Metric):
    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        if isinstance(loss, Loss) and loss.probabilities and loss.threshold is None:
            raise DataError(f"{self.name} compares numbers, and {loss.name} is a loss over "
                            f"classes; use accuracy, precision, recall or f1")  # fmt: skip
        return Statistic("regression", None, 1, (4, n_outputs))


class MAE(_RegressionMetric):
    """Mean of |prediction - target| over outputs and rows."""

    name = "mae"
    better = "lower"

    def value(self, sums: Sums, weight_sum: float) -> float:
        return _ratio(float(sums[0].mean()), weight_sum)


class MSE(_RegressionMetric):
    """Mean of (prediction - target)^2 over outputs and rows."""

    name = "mse"
    better = "lower"

    def value(self, sums: Sums, weight_sum: float) -> float:
        return _ratio(float(sums[1].mean()), weight_sum)


class R2(_RegressionMetric):
    """1 - sum (p - t)^2 / sum (t - mean t)^2, averaged over outputs; 0 for constant targets
    unless they are predicted exactly, which counts as 1. Targets whose spread is less than 1e-7 of
    their size count as constant."""

    name = "r2"

    def value(self, sums: Sums, weight_sum: float) -> float:
        _, residual, t, t_square = sums
        if weight_sum <= 0:
            return 0.0
        spread = np.maximum(t_square - t * t / weight_sum, 0.0)
        constant = spread <= 1e-14 * t_square
        safe = np.where(constant, 1.0, spread)
        return float(np.where(constant, residual == 0, 1.0 - residual / safe).mean())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _ratios(part: Sums, whole: Sums) -> Sums:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


METRICS: dict[str, type[Metric]] = {
    cls.name: cls for cls in (Accuracy, TopKAccuracy, Precision, Recall, F1, MAE, MSE, R2)
}


def resolve_metric(spec: str | Metric | MetricFunction | Mapping[str, Any]) -> Any:
    """The Metric or callable behind a name, an object, a callable or a configuration."""
    if isinstance(spec, Metric) or (callable(spec) and not isinstance(spec, type)):
        return spec
    if isinstance(spec, type) and issubclass(spec, Metric):
        return spec()
    settings = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = check_name("metric", settings.pop("name", None), METRICS)
    return METRICS[name](**settings)


def metric_name(metric: Metric | MetricFunction) -> str:
    """The key under which a metric's curve is kept."""
    if isinstance(metric, Metric):
        return metric.name
    return getattr(metric, "__name__", type(metric).__name__)
