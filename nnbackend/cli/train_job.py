"""A training job as the command line runs it: settings -> data -> model -> fit."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend.cli.keep_best import KeepBest
from nnbackend.cli.settings import Settings
from nnbackend.cli.trained import load_trained
from nnbackend.data.dataset import Dataset, align_classes
from nnbackend.data.validation import ClassWeight
from nnbackend.distributed.communicator import Communicator
from nnbackend.errors import CheckpointError, DataError, unknown_name
from nnbackend.layers import Dense, Dropout
from nnbackend.layers.base import Layer
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import resolve_optimizer
from nnbackend.training.history import History

#: More classes than this, with fewer rows of each, are names or numbers of rows.
MANY_CLASSES, ROWS_PER_CLASS = 100, 5

#: Settings that a resumed training cannot change: they made the arrays in the file, or count
#: the steps that its learning rate follows.
FIXED = (
    "hidden", "activation", "dropout", "dtype", "optimizer", "weight_decay", "seed", "validation",
    "task", "batch_size", "metrics",
)  # fmt: skip
#: Settings from which the learning rate of every step follows.
RATE = ("lr", "schedule", "epochs")
#: Settings that may be others when a training goes on: how the data are read, which must be the
#: same in the end, what rows weigh, and when to stop.
FREE = (
    "patience", "class_weight", "target", "features", "drop", "sep", "decimal", "encoding",
    "header",
)  # fmt: skip


def build_model(settings: Settings, data: Dataset, backend: str | None = None) -> Sequential:
    """A compiled model for this data."""
    x, y = data
    if y is None:
        raise DataError("the data holds no targets to learn")
    classification = data.class_names is not None
    if data.class_names is not None:
        check_classes(data.class_names, y)
    outputs = len(data.class_names) if data.class_names is not None else y.shape[1]
    layers: list[Layer] = data.input_layers() if data.kind == "csv" else []
    width = int(layers[-1].n_outputs or 0) if layers else x.shape[1]
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
            {**settings.optimizer_settings, "lr": settings.learning_rate(len(x))}
        ),
        metrics=settings.metrics or (["accuracy"] if classification else ["r2"]),
    )
    model.info = {
        "settings": settings.plain(),
        "class_names": _list(data.class_names),
        "feature_names": _list(data.feature_names),
        "target_name": data.target_name,
        "image_shape": _list(data.image_shape),
        "kind": data.kind,
        "preparation": None,
    }
    if data.preparation is not None and not data.preparation.is_plain:
        model.info["preparation"] = data.preparation.plain()
    return model


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
        saved = Settings.from_plain(saved_settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its settings cannot be read: {error}") from error
    lacking = [name for name in ("class_names", "feature_names") if name not in model.info]
    if lacking:
        raise CheckpointError(f"{path} lacks the notes {', '.join(lacking)}")
    for name in FIXED:
        if name in given and given[name] != getattr(saved, name):
            raise CheckpointError(
                f"{path} was trained with {name} {getattr(saved, name)}; received "
                f"{given[name]}. Leave that option out, or start again without --resume"
            )
    settings = replace(saved, **given)
    if settings.epochs is None:
        raise CheckpointError(f"{path} lacks the number of epochs; pass --epochs")
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


def train(
    settings: Settings, model: Sequential, data: Dataset, comm: Communicator | None = None
) -> History:
    """Fit until the model has had ``settings.epochs`` epochs in total, or patience is at an end;
    the weights are then those of the epoch that was best on the validation rows. ``comm``: of the
    processes that train together."""
    x, y = data
    if settings.epochs is None:
        raise AssertionError("the number of epochs follows from the data")
    before = Settings.from_plain(model.info["settings"])
    if any(getattr(before, name) != getattr(settings, name) for name in RATE):
        model.optimizer.lr = settings.learning_rate(len(x))
    model.info["settings"] = settings.plain()
    best = None
    if settings.validation:
        # the loss tells more than accuracy does where there are few rows
        watched = settings.metrics[0] if settings.metrics else "loss"
        best = KeepBest(watched, settings.patience)
    history = model.fit(
        x,
        y,
        epochs=settings.epochs - model.epoch,
        batch_size=settings.batch_size,
        validation_split=settings.validation,
        class_weight=class_weight(settings, data),
        callbacks=best,
        comm=comm,
    )
    model.info["kept_epoch"] = None if best is None else best.kept_epoch
    return history


def save(model: Sequential, path: Path) -> OSError | None:
    """Write the model; where that fails, into the folder of temporary files, which the error
    names."""
    try:
        model.save(path)
    except OSError as error:
        other = Path(tempfile.gettempdir()) / f"{uuid.uuid4().hex[:8]}-{path.name}"
        try:
            model.save(other)
        except OSError:
            return error
        return OSError(error.errno, f"{error.strerror}; the model is in {other}", str(path))
    return None


def class_weight(settings: Settings, data: Dataset) -> ClassWeight | None:
    """Weights by the number of the class."""
    weights, names = settings.class_weight, data.class_names
    if weights is None:
        return None
    if names is None:
        raise DataError("class-weight works only with classes; this target is numbers (regression)")
    if isinstance(weights, str):
        return "balanced"
    for name in weights:
        if name not in names:
            raise unknown_name("a class with a weight", name, names)
    return {names.index(name): weight for name, weight in weights.items()}
