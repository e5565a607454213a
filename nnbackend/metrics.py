"""Metrics: sums over rows that a backend collects, and the figures computed from them.

Every built-in metric is a function of sums, so it is exact over any split into batches.
What needs all rows at once is computed in a separate pass: AUC, and a callable
``(y_true, y_pred) -> number`` on NumPy arrays, which is given the model's raw outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from nnbackend._checks import check_name, check_number, check_size, keep
from nnbackend._names import AnswersNames
from nnbackend._types import HostArray
from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array
from nnbackend.errors import DataError, ShapeError
from nnbackend.losses import Loss, LossFunction, to_probabilities

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
        one_class: of two classes only the second counts, as with one yes-or-no output.
    """

    kind: Literal["correct", "confusion", "regression"]
    threshold: float | None
    top: int
    shape: tuple[int, ...]
    one_class: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def read(self, sums: Sums) -> Sums:
        """The sums (size,) in their shape, or of the one class that counts."""
        shaped = sums.reshape(self.shape)
        return shaped[:, 1:] if self.one_class else shaped

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


class Metric(AnswersNames, ABC):
    """Base of the built-in metrics that are computed from sums.

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
        """The metric from the sums (in the statistic's shape, or only those of the second class)
        and the sum of the weights."""

    def config(self) -> dict[str, Any]:
        return {"name": self.name}


class ClassMetric(Metric):
    """Counts classes, which are read from a model's outputs.

    Args:
        threshold: each output by itself is yes or no, and yes if it is larger than this. None
            leaves it to the loss: the class of softmax is the one with the largest output, and a
            sigmoid's answer is yes from a probability of 0.5 on. Where the loss is a function of
            one's own, None takes the largest output.
    """

    def __init__(self, threshold: float | None = None) -> None:
        name = f"{type(self).__name__}.threshold"
        self.threshold = None if threshold is None else check_number(name, threshold)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def config(self) -> dict[str, Any]:
        own = {} if self.threshold is None else {"threshold": self.threshold}
        return {"name": self.name, **own}

    def _threshold(self, loss: Loss | LossFunction | None, n_outputs: int) -> float | None:
        """None means "the largest"."""
        own = self.threshold
        if own is not None and isinstance(loss, Loss) and loss.takes_labels:
            raise DataError(
                f"{self.name} with a threshold is for outputs of yes and no, and {loss.name} has "
                f"one class for each row; leave the threshold out"
            )
        if own is not None:
            return own
        kind = type(self).__name__
        if isinstance(loss, Loss):
            if not loss.probabilities:
                raise DataError(
                    f"{self.name} counts classes, and {loss.name} is a loss for numbers; use the "
                    f"metrics mae, mse or r2; nn.metrics.{kind}(threshold=0.5) for outputs of yes "
                    f"and no; or a function, such as lambda t, p: (t.argmax(1) == "
                    f"p.argmax(1)).mean()"
                )
            return loss.threshold
        if n_outputs == 1:
            raise DataError(
                f"{self.name} cannot know which outputs mean yes if the loss is a function of your "
                f"own: say nn.metrics.{kind}(threshold=0.5) for probabilities, threshold=0 for "
                f"logits and for targets of -1 and 1"
            )
        return None


class Accuracy(ClassMetric):
    """Share of rows with the right class; with yes-or-no outputs, share of right outputs."""

    name = "accuracy"

    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        return Statistic("correct", self._threshold(loss, n_outputs), 1, ())

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
        if n_outputs == 1 or (isinstance(loss, Loss) and not loss.takes_labels):
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


class _ConfusionMetric(ClassMetric):
    """From counts per class: averaged over classes with equal weight (macro), or, of two classes,
    for the second one ("yes"), as scikit-learn has it. A class that neither occurs nor is predicted
    does not count."""

    def statistic(self, loss: Loss | LossFunction | None, n_outputs: int) -> Statistic:
        threshold = self._threshold(loss, n_outputs)
        second = threshold is None and n_outputs == 2
        return Statistic("confusion", threshold, 1, (3, n_outputs), second)


class Precision(_ConfusionMetric):
    """Hits / predictions of the class; of more than two classes, their mean."""

    name = "precision"

    def value(self, sums: Sums, weight_sum: float) -> float:
        hits, predicted, _ = sums
        return _mean_of_seen(_ratios(hits, predicted), sums)


class Recall(_ConfusionMetric):
    """Hits / occurrences of the class; of more than two classes, their mean."""

    name = "recall"

    def value(self, sums: Sums, weight_sum: float) -> float:
        hits, _, actual = sums
        return _mean_of_seen(_ratios(hits, actual), sums)


class F1(_ConfusionMetric):
    """2 hits / (predictions + occurrences) of the class; of more than two classes, their mean."""

    name = "f1"

    def value(self, sums: Sums, weight_sum: float) -> float:
        hits, predicted, actual = sums
        return _mean_of_seen(_ratios(2 * hits, predicted + actual), sums)


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


def _mean_of_seen(shares: Sums, sums: Sums) -> float:
    """The mean over classes that occur or are predicted; 0 if there are none."""
    _, predicted, actual = sums
    seen = predicted + actual > 0
    return float(shares[seen].mean()) if seen.any() else 0.0


class ScoreMetric(AnswersNames, ABC):
    """Base of the built-in metrics that need all rows at once."""

    name: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @abstractmethod
    def check(self, loss: Loss | LossFunction | None) -> None:
        """Raise an error if the metric does not fit the loss."""

    @abstractmethod
    def __call__(self, y_true: Any, y_pred: Any, weight: Any = None) -> float:
        """The metric of targets (N,) or (N, O) and scores (N, O), which rank rows as their
        probabilities do, weighted by (N,)."""

    def config(self) -> dict[str, Any]:
        return {"name": self.name}


class AUC(ScoreMetric):
    """Area under the ROC curve: how probable it is that a row of the class has a higher score than
    a row of another class, equal scores counting half.

    Of two classes, for the second one. Of several classes or outputs, the mean over those of which
    there are rows in and out of the class (one against the rest, macro). NaN if there are none.

    >>> AUC()(np.array([0, 0, 1, 1]), np.array([[0.1], [0.4], [0.35], [0.8]]))
    0.75
    """

    name = "auc"

    def check(self, loss: Loss | LossFunction | None) -> None:
        if isinstance(loss, Loss) and not loss.probabilities:
            raise DataError(
                f"auc ranks rows by the probability of a class, and {loss.name} is a loss for "
                f"numbers; use the metrics mae, mse or r2"
            )

    def __call__(self, y_true: Any, y_pred: Any, weight: Any = None) -> float:
        y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
        if y_pred.ndim == 1:
            y_pred = y_pred[:, None]
        n_outputs = y_pred.shape[1]
        if y_true.ndim == 1 and n_outputs > 1:
            columns = y_true[:, None] == np.arange(n_outputs)
        else:
            columns = y_true.reshape(len(y_true), -1) > 0.5
        if len(y_true) != len(y_pred) or columns.shape[1] != n_outputs:
            raise ShapeError(
                f"auc needs a target for each score; received targets of shape {y_true.shape} and "
                f"scores of shape {y_pred.shape}"
            )
        weight = np.ones(len(y_pred)) if weight is None else np.asarray(weight, np.float64)
        first = 1 if n_outputs == 2 and y_true.ndim == 1 else 0
        areas = [
            _area(columns[:, k], y_pred[:, k], weight)
            for k in range(first, n_outputs)
            if 0 < (weight @ columns[:, k]) < weight.sum()
        ]
        return float(np.mean(areas)) if areas else float("nan")


def _area(positive: HostArray, score: HostArray, weight: HostArray) -> float:
    """Share of the weight of pairs (row of the class, other row) that are in the right order."""
    _, rank = np.unique(score, return_inverse=True)
    rank = rank.reshape(-1)
    n_ranks = int(rank.max()) + 1
    inside = np.bincount(rank, weight * positive, n_ranks)
    outside = np.bincount(rank, weight * ~positive, n_ranks)
    below = np.cumsum(outside) - 0.5 * outside
    return float(inside @ below / (inside.sum() * outside.sum()))


AnyMetric = Metric | ScoreMetric | MetricFunction

METRICS: dict[str, type[Metric | ScoreMetric]] = {
    cls.name: cls for cls in (Accuracy, TopKAccuracy, Precision, Recall, F1, AUC, MAE, MSE, R2)
}


def resolve_metric(spec: str | AnyMetric | Mapping[str, Any]) -> Any:
    """The Metric or callable behind a name, an object, a callable or a configuration."""
    if isinstance(spec, Metric) or (callable(spec) and not isinstance(spec, type)):
        return spec
    if isinstance(spec, type) and issubclass(spec, Metric | ScoreMetric):
        return spec()
    settings = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = check_name("metric", settings.pop("name", None), METRICS)
    return METRICS[name](**settings)


def measure(name: str, loss: Loss, target: HostArray, outputs: HostArray) -> float:
    """A built-in metric by name, of rows that lie on the host.

    Args:
        target: as ``loss.target`` gives it.
        outputs: (N, O), of a model with this loss.
    """
    metric = resolve_metric(name)
    if isinstance(metric, ScoreMetric):
        return metric(target, to_probabilities(loss, outputs.copy()))
    statistic = metric.statistic(loss, outputs.shape[1])
    sums = np.zeros(statistic.size)
    statistic.collect(get_backend("numpy"), outputs, target, None, sums)
    return float(metric.value(statistic.read(sums), float(len(outputs))))


def metric_name(metric: AnyMetric) -> str:
    """The key under which a metric's curve is kept."""
    if isinstance(metric, Metric | ScoreMetric):
        return metric.name
    return getattr(metric, "__name__", type(metric).__name__)
