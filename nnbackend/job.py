"""A training job as the command line runs it: settings -> data -> model -> fit -> picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend import datasets, plot
from nnbackend._checks import check_number, check_size
from nnbackend.errors import DataError, unknown_name
from nnbackend.history import History
from nnbackend.layer import Layer
from nnbackend.layers import Dense, Dropout
from nnbackend.model import Sequential
from nnbackend.optimizers import resolve_optimizer
from nnbackend.schedules import CosineDecay, Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HostArray = np.ndarray[Any, Any]

#: Learning rates that suit small and middle-sized networks, where none is given.
LEARNING_RATES = {"sgd": 0.1, "adagrad": 0.05, "rmsprop": 0.002, "adam": 0.005, "adamw": 0.005}
SCHEDULES = ("cosine", "constant")

#: Data sets by name, each from a seed.
DATASETS: Mapping[str, Callable[[int], tuple[HostArray, HostArray]]] = {
    "digits": lambda seed: datasets.digits(),
    "spiral": lambda seed: datasets.spiral(seed=seed),
    "vertical": lambda seed: datasets.vertical(seed=seed),
    "sine": lambda seed: datasets.sine(),
}


@dataclass(frozen=True)
class Settings:
    """The options of ``nnbackend train``, checked.

    Attributes:
        hidden: widths of the hidden layers.
        activation, dropout: of and after each hidden layer.
        lr: highest learning rate; None takes what suits the optimizer.
        schedule: "cosine" falls to 0 at the last step, "constant" stays.
        validation: share of rows kept for validation, 0 for none.
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
    backend: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for width in self.hidden:
            check_size("hidden", width)
        check_size("epochs", self.epochs)
        check_size("batch_size", self.batch_size)
        check_number("dropout", self.dropout, 0.0, 1.0, high_open=True)
        check_number("validation", self.validation, 0.0, 1.0, high_open=True)
        if self.lr is not None:
            check_number("lr", self.lr, 0.0, low_open=True)
        for kind, name, choices in (
            ("optimizer", self.optimizer, LEARNING_RATES),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if name not in choices:
                raise unknown_name(kind, name, choices)


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
            f"hidden must be whole numbers above 0 with commas between them, such as 128,64, or "
            f"0 for no hidden layer; received {text!r}"
        )
    return widths


def load_data(name: str, seed: int) -> tuple[HostArray, HostArray]:
    """The data set called ``name``."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name](seed)


def is_classification(y: HostArray) -> bool:
    """Whole numbers are class labels."""
    return y.dtype.kind in "iu"


def build_model(settings: Settings, x: HostArray, y: HostArray) -> Sequential:
    """A compiled model for this data."""
    classification = is_classification(y)
    outputs = int(y.max()) + 1 if classification else y.shape[1]
    layers: list[Layer] = []
    width = x.shape[1]
    for units in settings.hidden:
        layers.append(Dense(width, units, activation=settings.activation))
        if settings.dropout:
            layers.append(Dropout(settings.dropout))
        width = units
    layers.append(Dense(width, outputs))
    model = Sequential(layers, settings.seed, settings.dtype, settings.backend)
    highest = settings.lr or LEARNING_RATES[settings.optimizer]
    lr: float | Schedule = highest
    if settings.schedule == "cosine":
        rows = len(x) - round(len(x) * settings.validation)
        lr = CosineDecay(highest, steps=settings.epochs * -(-rows // settings.batch_size))
    model.compile(
        loss="softmax_cross_entropy" if classification else "mean_squared_error",
        optimizer=resolve_optimizer({"name": settings.optimizer, "lr": lr}),
        metrics=["accuracy"] if classification else ["r2"],
    )
    return model


def train(settings: Settings, model: Sequential, x: HostArray, y: HostArray) -> History:
    """Fit with the settings' epochs, batches and validation share."""
    return model.fit(
        x,
        y,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        validation_split=settings.validation,
    )


def result_text(history: History) -> str:
    """One line: epochs, time, and how good the model is."""
    last = history.last()
    measure = next((name for name in ("accuracy", "r2") if name in last), "loss")
    parts = [f"{history.epochs} epochs in {sum(history.seconds):.2f} s"]
    for name, label in ((measure, "training"), (f"val_{measure}", "validation")):
        if name in last:
            value = f"{100 * last[name]:.2f} %" if measure == "accuracy" else f"{last[name]:.4f}"
            parts.append(f"{label} {measure} {value}")
    return ", ".join(parts)


def picture(history: History) -> Figure:
    """Curves of the loss and of what is measured, side by side."""
    figure = plot.new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    plot.history(history, "loss", left)
    plot.history(history, "accuracy" if "accuracy" in history else "r2", right)
    return figure
