"""The errors that nnbackend raises. Each is also the built-in error that it resembles.

``except ValueError`` written for NumPy code thus keeps working. Every message states the rule, then
what was received, then how to fix it, so that a student can act on the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from nnbackend.training.history import History


class NNBackendError(Exception):
    """Base of every error raised on purpose by nnbackend."""


class BackendUnavailableError(NNBackendError, RuntimeError):
    """A backend requested by name cannot run on this machine."""


class UnknownNameError(NNBackendError, ValueError):
    """A name (backend, activation, loss, ...) is not among the known ones."""


class UnknownArgumentError(NNBackendError, TypeError):
    """A function or a class has no argument of that name."""


class ShapeError(NNBackendError, ValueError):
    """An array has the wrong rank or width, or layers do not fit together."""


class DataError(NNBackendError, ValueError):
    """Values are not usable: NaN, labels outside the classes, rates outside their range."""


class NotCompiledError(DataError, AttributeError):
    """Something that a model has only after ``compile`` was asked for before it. As an
    AttributeError it is what ``hasattr`` and ``inspect.getmembers`` expect."""


class CheckpointError(NNBackendError, ValueError):
    """A model file cannot be read, or does not belong to this model."""


class DTypeError(NNBackendError, TypeError):
    """An array or a setting has a type that cannot be used."""


class DeviceError(NNBackendError, RuntimeError):
    """Arrays or models on different devices were mixed, or a device does not exist."""


class ModelBusyError(NNBackendError, RuntimeError):
    """A second fit or train_step began while another one on the same model was running."""


class RankError(NNBackendError, RuntimeError):
    """Ranks of a distributed training differ, or one of them died or did not come in time.

    Attributes:
        ranks: those that the message names.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class OutOfMemoryError(NNBackendError, MemoryError):
    """The device does not have enough memory for the request."""


class _MemoryErrors:
    """A class, since each step pays for it: a generator would take a microsecond."""

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, MemoryError) and not isinstance(error, OutOfMemoryError):
            raise_as_ours(error)


def raise_as_ours(error: MemoryError) -> NoReturn:
    """Raise a plain MemoryError, of NumPy for example, as an OutOfMemoryError."""
    if isinstance(error, OutOfMemoryError):
        raise error
    what = str(error) or "an allocation failed"
    raise OutOfMemoryError(
        f"memory is used up: {what}. Use smaller batches or narrower layers"
    ) from error


#: Inside ``with memory_errors:`` a plain MemoryError, of NumPy for example, becomes an
#: OutOfMemoryError.
memory_errors = _MemoryErrors()


class NonFiniteLossError(NNBackendError, ArithmeticError):
    """The loss or a parameter became NaN or infinite during training.

    Attributes:
        history: the curves of the epochs that were completed before it happened.
        epoch, step: where it happened; both count from 1, ``step`` within the epoch.
    """

    def __init__(
        self, message: str, history: History | None = None, epoch: int = 0, step: int = 0
    ) -> None:
        super().__init__(message)
        self.history = history
        self.epoch = epoch
        self.step = step


#: Names that other libraries use.
_ALIASES: dict[str, tuple[str, ...]] = {
    "acc": ("accuracy",),
    "bce": ("binary_cross_entropy",),
    "bceloss": ("binary_cross_entropy",),
    "bcewithlogitsloss": ("sigmoid_cross_entropy",),
    "binary_accuracy": ("accuracy",),
    "categorical_accuracy": ("accuracy",),
    "cce": ("categorical_cross_entropy",),
    "cross_entropy": ("softmax_cross_entropy",),
    "crossentropy": ("softmax_cross_entropy",),
    "crossentropyloss": ("softmax_cross_entropy",),
    "f1_score": ("f1",),
    "he": ("he_normal",),
    "huber_loss": ("huber",),
    "identity": ("linear",),
    "kaiming": ("he_normal",),
    "kaiming_normal": ("he_normal",),
    "kaiming_uniform": ("he_uniform",),
    "l1": ("mean_absolute_error",),
    "l1loss": ("mean_absolute_error",),
    "logistic": ("sigmoid",),
    "mae": ("mean_absolute_error",),
    "mean_absolute_error": ("mae",),
    "mean_squared_error": ("mse",),
    "mse": ("mean_squared_error",),
    "mseloss": ("mean_squared_error",),
    "r2_score": ("r2",),
    "random_normal": ("normal",),
    "random_uniform": ("uniform",),
    "roc_auc": ("auc",),
    "roc_auc_score": ("auc",),
    "smooth_l1": ("huber",),
    "smoothl1loss": ("huber",),
    "sparse_categorical_accuracy": ("accuracy",),
    "sparse_categorical_crossentropy": ("softmax_cross_entropy",),
    "sse": ("sum_squared_error",),
    "swish": ("silu",),
    "val_acc": ("val_accuracy",),
    "xavier": ("glorot_uniform",),
    "xavier_normal": ("glorot_normal",),
    "xavier_uniform": ("glorot_uniform",),
    # other functions than those whose names look alike
    **dict.fromkeys(
        ("adadelta", "adamax", "hard_sigmoid", "hinge", "nadam", "relu6", "rmse", "selu", "sine",
         "softsign"),
        (),
    ),
}  # fmt: skip


def shown(value: object) -> str:
    """``value`` as a message shows it: its repr on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of 5,000 digits, or an object whose repr fails
        return f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= 120 else f"{text[:100]} ... ({type(value).__name__})"


def closest(name: object, choices: Iterable[str]) -> str | None:
    """The known name that somebody probably meant, if one is near."""
    import difflib

    choices = list(choices)
    given = name.lower() if isinstance(name, str) else ""
    meant = _ALIASES.get(given)
    if meant == () and given not in choices:
        return None
    known = next((own for own in meant or () if own in choices), None)
    if known is not None:
        return known
    close = difflib.get_close_matches(given, choices, n=1)
    return close[0] if close else None


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> UnknownNameError:
    """Build the error for a wrong name: the choices, and the closest match if one is near."""
    choices = sorted(choices)
    close = closest(name, choices)
    hint = f" Did you mean {close!r}?" if close else ""
    return UnknownNameError(
        f"{kind} must be one of {', '.join(choices)}; received {shown(name)}.{hint}"
    )
