"""A training job as the command line runs it: settings -> data -> model -> fit -> picture."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend import plot
from nnbackend._checks import check_dtype, check_name, check_number, check_seed, check_size
from nnbackend.cli.job_data import align_classes
from nnbackend.cli.trained import load_trained
from nnbackend.data.dataset import Dataset, Task, check_task, existing
from nnbackend.data.split import split_rows
from nnbackend.errors import (
    CheckpointError,
    DataError,
    DTypeError,
    NNBackendError,
    shown,
    unknown_name,
)
from nnbackend.layers import Dense, Dropout, Standardize
from nnbackend.layers.activations import resolve_activation
from nnbackend.layers.base import Layer
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import resolve_optimizer
from nnbackend.schedules import CosineDecay, Schedule
from nnbackend.training.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Learning rates that suit small and middle-sized networks, where none is given.
LEARNING_RATES = {"sgd": 0.1, "adagrad": 0.05, "rmsprop": 0.002, "adam": 0.005, "adamw": 0.005}
SCHEDULES = ("cosine", "constant")

#: More classes than this, with fewer rows of each, are names or numbers of rows.
MANY_CLASSES, ROWS_PER_CLASS = 100, 5

#: Settings that a resumed training cannot change: they made the arrays in the file, or count
#: the steps that its learning rate follows.
FIXED = (
    "hidden", "activation", "dropout", "dtype", "optimizer", "seed", "validation", "task",
    "batch_size",
)  # fmt: skip
#: Settings from which the learning rate of every step follows.
RATE = ("lr", "schedule", "epochs")


@dataclass(frozen=True)
class Settings:
    """The options of ``nnbackend train``, checked.

    Attributes:
        hidden: widths of the hidden layers.
        activation, dropout: function of, and rate after, each hidden layer.
        lr: highest learning rate; None takes a default for the optimizer.
        schedule: "cosine" falls to 0 at the last step, "constant" stays.
        validation: share of rows kept for validation, 0 for none.
        target: name or number of a CSV's target column; None takes the last.
        task: "auto", "classification" or "regression".
    """

    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"
    epochs: int = 30
    batch_size: int = 32
    lr: float | None = None
    schedule: str = "cosine"
    optimizer: str = "adam"
    dropout: float = 0.0
    validation: float = 0.2
    seed: int = 1
    dtype: str = "float32"
    target: str | None = None
    task: Task = "auto"

    def __post_init__(self) -> None:
        for width in self.hidden:
            check_size("hidden", width)
        resolve_activation(self.activation)
        check_size("epochs", self.epochs)
        check_size("batch_size", self.batch_size)
        check_number("dropout", self.dropout, 0.0, 1.0, high_open=True)
        check_number("validation", self.validation, 0.0, 1.0, high_open=True)
        check_task(self.task)
        if self.lr is not None:
            check_number("lr", self.lr, 0.0, low_open=True)
        check_name("optimizer", self.optimizer, LEARNING_RATES)
        check_name("schedule", self.schedule, SCHEDULES)
        check_seed(self.seed)
        check_dtype(self.dtype)
        if self.target is not None and not isinstance(self.target, str):
            raise DTypeError(
                f"target must be a column's name, or its number as text; received "
                f"{shown(self.target)}"
            )


def read_config(path: Path) -> dict[str, Any]:
    """Settings from a TOML file; keys are the options' names, with - or _."""
    try:
        content = tomllib.loads(existing(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply; settings are plain values") from error
    known = {f.name for f in fields(Settings)}
    settings = {key.replace("-", "_"): value for key, value in content.items()}
    for name in settings:
        if name not in known:
            raise DataError(f"{path}: {unknown_name('setting', name, known)}")
    if type(settings.get("target")) is int:
        settings["target"] = str(settings["target"])
    try:
        if "hidden" in settings:
            hidden = settings["hidden"]
            settings["hidden"] = (
                tuple(hidden) if isinstance(hidden, list) else parse_widths(str(hidden))
            )
        Settings(**settings)
    except NNBackendError as error:
        raise type(error)(f"{path}: {error}") from error
    return settings


def parse_widths(text: str) -> tuple[int, ...]:
    """ "128,64" -> (128, 64); "0" -> no hidden layers."""
    try:
        widths = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        widths = (-1,)
    if widths == (0,):
        return ()
    if not widths or min(widths) < 1:
        raise DataError(
            f"hidden must be whole numbers above 0, separated by commas, such as 128,64, or "
            f"0 for no hidden layer; received {text!r}"
        )
    return widths


# -- data -------------------------------------------------------------------------------------


def build_model(settings: Settings, data: Dataset, backend: str | None = None) -> Sequential:
    """A compiled model for this data."""
    x, y = data
    if y is None:
        raise DataError("the data holds no targets to learn")
    classification = data.class_names is not None
    if data.class_names is not None:
        check_classes(data.class_names, y)
    outputs = len(data.class_names) if data.class_names is not None else y.shape[1]
    layers: list[Layer] = [Standardize(x.shape[1])] if data.kind == "csv" else []
    width = x.shape[1]
    for units in settings.hidden:
        layers.append(Dense(width, units, activation=settings.activation))
        if settings.dropout:
            layers.append(Dropout(settings.dropout))
        width = units
    layers.append(Dense(width, outputs))
    if not classification and data.kind != "builtin":
        layers.append(_in_units_of(y))
    model = Sequential(layers, settings.seed, settings.dtype, backend)
    model.compile(
        loss="softmax_cross_entropy" if classification else "mean_squared_error",
        optimizer=resolve_optimizer(
            {"name": settings.optimizer, "lr": learning_rate(settings, len(x))}
        ),
        metrics=["accuracy"] if classification else ["r2"],
    )
    model.info = {
        "settings": _plain(settings),
        "class_names": _list(data.class_names),
        "feature_names": _list(data.feature_names),
        "target_name": data.target_name,
        "image_shape": _list(data.image_shape),
        "kind": data.kind,
    }
    return model


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as a model file's notes hold them, for other programs too."""
    return {**asdict(settings), "hidden": list(settings.hidden)}


def _list(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def check_classes(names: tuple[str, ...], y: np.ndarray[Any, Any]) -> None:
    """Refuse what is hardly meant as classes."""
    rows = len(y)
    if len(np.unique(y)) < 2:
        raise DataError(f"classification needs at least 2 classes; all rows are {names[y[0]]!r}")
    if len(names) > MANY_CLASSES and rows < ROWS_PER_CLASS * len(names):
        raise DataError(
            f"the target has {len(names)} different values in {rows} rows, too many for classes: "
            f"a network would need an output for each. Choose --task regression for numbers, or "
            f"another --target"
        )


def _in_units_of(y: np.ndarray[Any, Any]) -> Dense:
    """A fixed last layer from standardized outputs to the targets' own mean and scale, so that
    the layers before it learn numbers near 1 in any units."""
    mean, std = y.mean(axis=0, dtype=np.float64), y.std(axis=0, dtype=np.float64)
    scale = np.diag(np.where(std > 0, std, 1.0))
    return Dense(len(mean), len(mean), weight_init=scale, bias_init=mean, trainable=False)


def learning_rate(settings: Settings, rows: int) -> float | Schedule:
    """The rate, or the schedule over all of the training's steps."""
    highest = settings.lr or LEARNING_RATES[settings.optimizer]
    if settings.schedule == "constant":
        return highest
    trained = rows - round(rows * settings.validation)
    return CosineDecay(highest, steps=settings.epochs * -(-trained // settings.batch_size))


def resume(
    path: Path, given: Mapping[str, Any], backend: str | None
) -> tuple[Settings, Sequential]:
    """The model to continue with, and its settings updated with those given now.

    Raises:
        CheckpointError: ``nnbackend train`` did not write the file, or ``given`` contradicts it.
    """
    model = load_trained(path, backend)
    if "settings" not in model.info:
        raise CheckpointError(
            f"{path} was not written by nnbackend train, so its settings are not known; continue "
            f"in Python: nn.load(path).fit(...)"
        )
    saved_settings = dict(model.info["settings"])
    try:
        saved_settings["hidden"] = tuple(saved_settings["hidden"])
        saved = Settings(**saved_settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its settings cannot be read: {error}") from error
    lacking = [f.name for f in fields(Settings) if f.name not in saved_settings]
    lacking += [name for name in ("class_names", "feature_names") if name not in model.info]
    if lacking:
        raise CheckpointError(f"{path} lacks the settings {', '.join(lacking)}")
    for name in FIXED:
        if name in given and given[name] != getattr(saved, name):
            raise CheckpointError(
                f"{path} was trained with {name} {getattr(saved, name)}; received "
                f"{given[name]}. Leave that option out, or start again without --resume"
            )
    settings = replace(saved, **given)
    if model.epoch >= settings.epochs:
        raise CheckpointError(
            f"{path} has been trained for {model.epoch} epochs already; pass --epochs above "
            f"that to continue"
        )
    return settings, model


def check_resumed_data(model: Sequential, data: Dataset, path: Path) -> Dataset:
    """The data in the order of the model's classes, or an error if it is of a different kind."""
    if data.x.shape[1] != model.n_inputs:
        raise CheckpointError(
            f"{path} was trained on rows of {model.n_inputs} values; the data has {data.x.shape[1]}"
        )
    classes, features = model.info["class_names"], model.info["feature_names"]
    if (classes is None) != (data.class_names is None):
        raise CheckpointError(f"{path} was trained for a task that does not match this data")
    if features is not None and data.feature_names != tuple(features):
        raise CheckpointError(
            f"{path} was trained on the columns {', '.join(features)}; the data has "
            f"{', '.join(data.feature_names or ())}"
        )
    return data if classes is None else align_classes(data, tuple(classes))


def train(settings: Settings, model: Sequential, data: Dataset) -> History:
    """Fit until the model has had ``settings.epochs`` epochs in total."""
    x, y = data
    before = model.info["settings"]
    if any(before[name] != getattr(settings, name) for name in RATE):
        model.optimizer.lr = learning_rate(settings, len(x))
    model.info["settings"] = _plain(settings)
    return model.fit(
        x,
        y,
        epochs=settings.epochs - model.epoch,
        batch_size=settings.batch_size,
        validation_split=settings.validation,
    )


def result_text(history: History) -> str:
    """One line: epochs, time, and how good the model is."""
    last = history.last()
    measure = next((name for name in ("accuracy", "r2") if name in last), "loss")
    epochs = f"{history.epochs} epoch{'' if history.epochs == 1 else 's'}"
    parts = [f"{epochs} in {sum(history.seconds):.2f} s"]
    for name, label in ((measure, "training"), (f"val_{measure}", "validation")):
        if name in last:
            value = f"{100 * last[name]:.2f} %" if measure == "accuracy" else f"{last[name]:.4f}"
            parts.append(f"{label} {measure} {value}")
    return ", ".join(parts)


# -- picture ----------------------------------------------------------------------------------


def picture(model: Sequential, data: Dataset) -> Figure:
    """One page that suits the task: curves, then what the model does on held-out rows."""
    x, y = data
    share = model.info["settings"]["validation"]
    rows = np.arange(len(x))
    if share:
        labels = None if data.class_names is None else np.asarray(y)
        rows = split_rows(len(x), share, model.seed, labels=labels)[1]
    where = "validation rows" if share else "all rows"
    x, y = x[rows], y[rows]
    classes = data.class_names
    history = model.history
    panels: list[Callable[[Axes], Axes]] = [lambda ax: plot.history(history, "loss", ax)]
    if classes is None:
        panels += [
            lambda ax: plot.history(history, "r2", ax),
            lambda ax: _titled(plot.regression_fit(model, x, y, ax=ax), where),
        ]
    else:
        predicted = plot.predicted_classes(model, x)
        panels += [
            lambda ax: plot.history(history, "accuracy", ax),
            lambda ax: _titled(plot.confusion_matrix(y, predicted, classes, ax), where),
        ]
        if data.image_shape is not None:
            shape = data.image_shape
            panels += [
                lambda ax: plot.worst_mistakes(model, x, y, shape, 15, classes, ax),
                lambda ax: plot.first_layer_weights(model, shape, 24, ax),
            ]
        elif model.n_inputs == 2:
            panels.append(
                lambda ax: _titled(
                    plot.decision_regions(model, x, y, ax, 200, classes, data.feature_names), where
                )
            )
    return plot.page(panels)


def _titled(ax: Axes, title: str) -> Axes:
    ax.set_title(title, fontsize=9)
    return ax
