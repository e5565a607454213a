"""Losses: what they expect of predictions and targets, and which backend formula each one uses.

Each is a callable ``(y_true, y_pred) -> (loss, dpred)``, so you write your own loss the same
way: a function of two backend arrays that returns the mean loss and its gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from nnbackend._checks import check_name, check_number, is_masked, keep
from nnbackend._frames import frame_numbers
from nnbackend._names import AnswersNames
from nnbackend._types import HostArray
from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.backends.conversion import as_device_array
from nnbackend.backends.types import Activation, Array, LossFormula, is_on_gpu
from nnbackend.errors import DataError, DTypeError, ShapeError
from nnbackend.kernels.codes import LOSSES as FORMULAS

LossFunction = Callable[[Array, Array], tuple[Any, Array]]
Link = Literal["softmax", "sigmoid"]
#: Logits that are looked at together.
SCORED = 1 << 17


class Loss(AnswersNames, ABC):
    """Base of the built-in losses.

    Attributes:
        name: of the formula, see ``Backend.loss``; and the name used in ``compile(loss=...)``.
        link: turns logits into probabilities in ``predict_proba``; None if there is none.
        from_logits: predictions are logits, so the last layer must not apply the link.
        probabilities: predictions or their links are probabilities.
        low, high: bounds of the targets.
    """

    name: ClassVar[str]
    link: ClassVar[Link | None] = None
    from_logits: ClassVar[bool] = False
    probabilities: ClassVar[bool] = False
    low: ClassVar[float] = -np.inf
    high: ClassVar[float] = np.inf

    @property
    def formula(self) -> LossFormula:
        """The formula, as passed to a backend."""
        return LossFormula(self.name)

    @property
    def takes_labels(self) -> bool:
        """Whether a target is one class of several, not a number for each output."""
        return self.probabilities and self.threshold is None

    @property
    def threshold(self) -> float | None:
        """Predictions above it mean "yes", for losses with a yes or no per output."""
        return None

    @abstractmethod
    def target(self, y: Any, n_outputs: int, dtype: np.dtype[Any]) -> HostArray:
        """Check targets and convert them to the form that backends take.

        Returns:
            (N, n_outputs) of ``dtype``, or (N,) int32 class labels.

        Raises:
            ShapeError, DataError, DTypeError: the rule, and the first offending row.
        """

    def apply(
        self,
        backend: Backend,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        loss: Array,
    ) -> None:
        """Run the backend's operation; see ``Backend.loss`` for the arguments."""
        backend.loss(self.formula, pred, target, weight, dpred, loss)

    @property
    def is_built_in(self) -> bool:
        """Whether ``formula`` describes ``apply``; False if a custom class overrides it."""
        return type(self).apply is Loss.apply and self.name in FORMULAS

    def __call__(self, y_true: Any, y_pred: Any) -> tuple[float, Array]:
        """The mean loss and its gradient with respect to ``y_pred`` (B, O), on the current
        backend."""
        backend = get_backend()
        dtype = getattr(y_pred, "dtype", None)
        dtype = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        pred = as_device_array(backend, y_pred, dtype)
        if pred.ndim != 2:
            raise ShapeError(f"y_pred must have shape (batch, outputs); received {pred.shape}")
        target = self.target(y_true, pred.shape[1], dtype)
        if len(target) != len(pred):
            raise ShapeError(
                f"y_true and y_pred must have as many rows; received {len(target)} and {len(pred)}"
            )
        dpred = backend.zeros(pred.shape, dtype)
        value = backend.zeros((), np.dtype(np.float64))
        device_target = backend.asarray(target, target.dtype)
        self.apply(backend, pred, device_target, None, dpred, value)
        return float(backend.to_numpy(value)), dpred

    def config(self) -> dict[str, Any]:
        """Name and settings, for a model file."""
        return {"name": self.name}


class _ClassLoss(Loss):
    """One class of C per row: labels (N,), or one row of C shares (one-hot)."""

    probabilities = True

    def target(self, y: Any, n_outputs: int, dtype: np.dtype[Any]) -> HostArray:
        if n_outputs < 2:
            raise ShapeError(
                f"{self.name} needs one output for each class, 2 or more; the model has "
                f"{n_outputs}. For yes or no with one output use sigmoid_cross_entropy"
            )
        values = numeric(y, of_classes=True)
        if values.ndim == 2 and values.shape[1] == n_outputs:
            return in_range(values, 0.0, np.inf, self.name, dtype)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise ShapeError(
                f"{self.name} with {n_outputs} outputs takes class labels of shape (N,) or rows "
                f"of shape (N, {n_outputs}); received {np.shape(y)}"
            )
        return class_labels(values, n_outputs)


class _OutputLoss(Loss):
    """One number per output; (N,) is taken as (N, 1) for one output."""

    def target(self, y: Any, n_outputs: int, dtype: np.dtype[Any]) -> HostArray:
        values = numeric(y, of_classes=self.probabilities)
        if values.ndim == 1 and n_outputs == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != n_outputs:
            one = "(N,) or " if n_outputs == 1 else ""
            raise ShapeError(
                f"{self.name} takes targets of shape {one}(N, {n_outputs}), one column for each "
                f"output; received {np.shape(y)}"
            )
        return in_range(values, self.low, self.high, self.name, dtype)


class SoftmaxCrossEntropy(_ClassLoss):
    """-log softmax(z)_label, averaged over rows; the model's outputs z are logits."""

    name = "softmax_cross_entropy"
    link = "softmax"
    from_logits = True


class CategoricalCrossEntropy(_ClassLoss):
    """-log p_label, averaged over rows; the model's outputs p are probabilities."""

    name = "categorical_cross_entropy"


class SigmoidCrossEntropy(_OutputLoss):
    """-t log s - (1 - t) log(1 - s), s = sigmoid(z); the model's outputs z are logits."""

    name = "sigmoid_cross_entropy"
    link = "sigmoid"
    from_logits = True
    probabilities = True
    low, high = 0.0, 1.0

    @property
    def threshold(self) -> float:
        return 0.0


class BinaryCrossEntropy(_OutputLoss):
    """-t log p - (1 - t) log(1 - p); the model's outputs p are probabilities."""

    name = "binary_cross_entropy"
    probabilities = True
    low, high = 0.0, 1.0

    @property
    def threshold(self) -> float:
        return 0.5


class MeanSquaredError(_OutputLoss):
    """(p - t)^2, averaged over outputs and rows."""

    name = "mean_squared_error"


class SumSquaredError(_OutputLoss):
    """(p - t)^2, summed over outputs and rows."""

    name = "sum_squared_error"


class MeanAbsoluteError(_OutputLoss):
    """|p - t|, averaged over outputs and rows."""

    name = "mean_absolute_error"


@dataclass(frozen=True)
class Huber(_OutputLoss):
    """e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2); e = p - t (Huber, 1964)."""

    delta: float = 1.0
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        keep(self, delta=check_number("Huber.delta", self.delta, 0.0, low_open=True))

    @property
    def formula(self) -> LossFormula:
        return LossFormula(self.name, self.delta)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


class Poisson(_OutputLoss):
    """p - t log p; the model's outputs p are rates: end with "exponential" or "softplus"."""

    name = "poisson"
    low = 0.0


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (
        SoftmaxCrossEntropy,
        SigmoidCrossEntropy,
        CategoricalCrossEntropy,
        BinaryCrossEntropy,
        MeanSquaredError,
        SumSquaredError,
        MeanAbsoluteError,
        Huber,
        Poisson,
    )
}


def resolve_loss(spec: str | Loss | LossFunction | Mapping[str, Any]) -> Loss | LossFunction:
    """The loss behind a name, an object, a callable or a saved configuration."""
    if isinstance(spec, Loss) or (callable(spec) and not isinstance(spec, type)):
        return spec
    if isinstance(spec, type) and issubclass(spec, Loss):
        return spec()
    settings = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = check_name("loss", settings.pop("name", None), LOSSES)
    return LOSSES[name](**settings)


def to_probabilities(loss: Loss | LossFunction | None, outputs: HostArray) -> HostArray:
    """Outputs (N, O) with the loss's link applied, in place; as they are if it has none."""
    if isinstance(loss, Loss) and loss.link is not None:
        get_backend("numpy").activation_forward(Activation(loss.link), outputs, outputs)
    return outputs


def to_scores(loss: Loss | LossFunction | None, outputs: HostArray) -> HostArray:
    """What ranks rows (N, O) as the probabilities of outputs do, without their rounding near 1: of
    logits, log p - log(1 - p)."""
    if not isinstance(loss, Loss) or loss.link != "softmax" or outputs.shape[1] < 2:
        return outputs
    scores = outputs.astype(np.float64)
    rows = max(1, SCORED // outputs.shape[1])
    with np.errstate(all="ignore"):
        for start in range(0, len(scores), rows):
            _subtract_rest(scores[start : start + rows])
    return scores


def _subtract_rest(z: HostArray) -> None:
    """z_c -= log sum exp z_j over all j but c, for logits (N, O), in place."""
    top = z.argmax(axis=1)[:, None]
    largest = np.take_along_axis(z, top, 1)
    # of the others, the largest logit is one unless it is the class's own
    parts = np.exp(z - largest)
    rest = np.log(np.maximum(parts.sum(axis=1, keepdims=True) - parts, 0.0)) + largest
    others = z.copy()
    np.put_along_axis(others, top, -np.inf, 1)
    second = np.maximum(others.max(axis=1, keepdims=True), np.finfo(np.float64).min)
    beside = np.log(np.exp(others - second).sum(axis=1, keepdims=True)) + second
    np.put_along_axis(rest, top, beside, 1)
    z -= rest


def loss_name(loss: Loss | LossFunction | None) -> str:
    """The built-in loss's name, or the function's."""
    if isinstance(loss, Loss):
        return loss.name
    return getattr(loss, "__name__", type(loss).__name__)


def function_target(y: Any, n_outputs: int, dtype: np.dtype[Any]) -> HostArray:
    """Targets for a user's own loss: labels stay labels, numbers get the model's dtype."""
    values = numeric(y, of_classes=True)
    if values.ndim == 1 and values.dtype.kind in "iub" and n_outputs > 1:
        return class_labels(values, n_outputs)
    if values.ndim == 1 and n_outputs == 1:
        values = values[:, None]
    return in_range(values, -np.inf, np.inf, "the loss", dtype)


def class_labels(values: HostArray, n_outputs: int) -> HostArray:
    """Labels (N,) as int32, or an error that names the first that is no class."""
    if values.dtype.kind == "f":
        _refuse(values != np.floor(values), values, "class labels must be whole numbers")
    _refuse(
        (values < 0) | (values >= n_outputs),
        values,
        f"class labels must lie in 0 ... {n_outputs - 1}, one for each of the model's "
        f"{n_outputs} outputs",
    )
    return values.astype(np.int32)


def numeric(y: Any, of_classes: bool = False) -> HostArray:
    """``y`` as a host array of numbers, or an error that names what it holds."""
    if is_masked(y):
        raise DTypeError("targets must not be a masked array; fill it with y.filled(value)")
    try:
        values = y.get() if is_on_gpu(y) else np.asarray(y)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"targets must be an array, its rows of one length: {error}") from error
    if values.dtype.kind == "O" and not holds_text(values):
        frame = frame_numbers("targets", y)
        values = values if frame is None else frame
    if values.dtype.kind not in "fiub":
        hint = ""
        if of_classes and (values.dtype.kind in "US" or holds_text(values)):
            hint = "; turn class names into numbers with np.unique(y, return_inverse=True)"
        elif values.dtype.kind in "OUS":
            kind = "int" if of_classes else "float"
            hint = f"; where it holds numbers, convert it first, as in np.array(y, {kind})"
        raise DTypeError(f"targets must be numbers; received dtype {values.dtype}{hint}")
    if values.ndim == 0:
        raise ShapeError("targets must have one entry for each row; received a single number")
    return values


def holds_text(values: HostArray) -> bool:
    """Whether an array of objects begins with text."""
    return values.size > 0 and isinstance(values.flat[0], str)


def in_range(
    values: HostArray, low: float, high: float, name: str, dtype: np.dtype[Any]
) -> HostArray:
    """``values`` in ``dtype``; NaN, infinity, and targets outside [low, high] are refused."""
    # not <= is true for NaN as well
    _refuse(~(np.abs(values) <= np.finfo(dtype).max), values, f"targets must be finite in {dtype}")
    if low > -np.inf or high < np.inf:
        rule = "at least 0" if high == np.inf else f"in [{low:g}, {high:g}]"
        _refuse((values < low) | (values > high), values, f"targets of {name} must be {rule}")
    return values.astype(dtype)


def _refuse(wrong: HostArray, values: HostArray, rule: str) -> None:
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f"row {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")
        raise DataError(f"{rule}; received {values[place]} in {where}")
