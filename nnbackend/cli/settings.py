"""The options of ``nnbackend train``, from the command line or a TOML file, checked."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nnbackend._checks import check_dtype, check_name, check_number, check_seed, check_size
from nnbackend._files import existing_file
from nnbackend.data.dataset import Task, check_task
from nnbackend.data.layout import Layout
from nnbackend.data.split import RowNumbers, split_rows
from nnbackend.errors import DataError, DTypeError, NNBackendError, shown, unknown_name
from nnbackend.layers.activations import resolve_activation
from nnbackend.metrics import METRICS
from nnbackend.schedules import CosineDecay, Schedule

#: Learning rates that suit small and middle-sized networks, where none is given.
LEARNING_RATES = {"sgd": 0.1, "adagrad": 0.05, "rmsprop": 0.002, "adam": 0.005, "adamw": 0.005}
SCHEDULES = ("cosine", "constant")
#: What suits tables, which are small and noisy more often than not, where nothing of it is given.
FOR_TABLES: Mapping[str, Any] = {"optimizer": "adamw", "lr": 0.002, "weight_decay": 0.3}
#: Steps that a training has where no number of epochs is given, and bounds of the epochs.
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 5000, 10, 1000
#: Optimizers that know weight decay; adam becomes adamw.
DECAYING = ("adam", "adamw")


@dataclass(frozen=True)
class Settings:
    """The options of ``nnbackend train``, checked.

    Attributes:
        hidden: widths of the hidden layers.
        activation, dropout: function of, and rate after, each hidden layer.
        epochs: passes over the data; None for as many as about 5,000 steps take.
        lr: highest learning rate; None takes a default for the optimizer.
        schedule: "cosine" falls to 0 at the last step, "constant" stays.
        weight_decay: of adam, which becomes adamw, and of adamw; None takes its default.
        validation: share of rows kept for validation, 0 for none.
        patience: epochs that are not better on the validation rows before the training stops; None
            for never.
        class_weight: "balanced", or a dict from class name to weight; None for equal weights.
        metrics: names of the figures of every epoch; none for accuracy or r2.
        target: name or number of a CSV's target column; None takes the last.
        task: "auto", "classification" or "regression".
        features, drop: names of a table's columns to learn from, or to leave out; none for all.
        sep, decimal, encoding, header: how a table is written; None is found out.
    """

    hidden: tuple[int, ...] = (128, 64)
    activation: str = "relu"
    epochs: int | None = None
    batch_size: int = 32
    lr: float | None = None
    schedule: str = "cosine"
    optimizer: str = "adam"
    weight_decay: float | None = None
    dropout: float = 0.0
    validation: float = 0.2
    patience: int | None = None
    class_weight: str | dict[str, float] | None = None
    metrics: tuple[str, ...] = ()
    seed: int = 1
    dtype: str = "float32"
    target: str | None = None
    task: Task = "auto"
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    sep: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None

    def __post_init__(self) -> None:
        for width in self.hidden:
            check_size("hidden", width)
        resolve_activation(self.activation)
        if self.epochs is not None:
            check_size("epochs", self.epochs)
        check_size("batch_size", self.batch_size)
        check_number("dropout", self.dropout, 0.0, 1.0, high_open=True)
        check_number("validation", self.validation, 0.0, 1.0, high_open=True)
        check_task(self.task)
        if self.lr is not None:
            check_number("lr", self.lr, 0.0, low_open=True)
        check_name("optimizer", self.optimizer, LEARNING_RATES)
        check_name("schedule", self.schedule, SCHEDULES)
        if self.weight_decay is not None:
            check_number("weight_decay", self.weight_decay, 0.0)
            if self.optimizer not in DECAYING:
                raise DataError(
                    f"weight_decay works only with the optimizers adam and adamw; received "
                    f"{self.optimizer}"
                )
        if self.patience is not None:
            check_size("patience", self.patience)
            if not self.validation:
                raise DataError("patience watches the validation rows; validation must not be 0")
        for name in self.metrics:
            check_name("metrics", name, METRICS)
        self._check_class_weight()
        Layout(self.sep, self.decimal, self.encoding, self.header).check()
        check_seed(self.seed)
        check_dtype(self.dtype)
        if self.target is not None and not isinstance(self.target, str):
            raise DTypeError(
                f"target must be a column's name, or its number as text; received "
                f"{shown(self.target)}"
            )

    def _check_class_weight(self) -> None:
        weights = self.class_weight
        if isinstance(weights, Mapping):
            for name, weight in weights.items():
                check_number(f"class_weight of {name!r}", weight, 0.0)
        elif weights not in (None, "balanced"):
            raise DTypeError(
                f"class_weight must be 'balanced', or weights by class name; received "
                f"{shown(weights)}"
            )

    @property
    def layout(self) -> dict[str, Any]:
        """How a table is written."""
        return {name: getattr(self, name) for name in ("sep", "decimal", "encoding", "header")}

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """Name and settings of the optimizer, but for its rate."""
        if self.weight_decay is None:
            return {"name": self.optimizer}
        return {"name": "adamw", "weight_decay": self.weight_decay}

    def split(self, rows: int, labels: Any = None) -> tuple[RowNumbers, RowNumbers]:
        """Numbers of the rows trained on and of those held out, as ``fit`` chooses them."""
        return split_rows(rows, self.validation, self.seed, labels=labels)

    def steps_per_epoch(self, rows: int) -> int:
        """Steps over those of so many rows that are trained on."""
        return -(-(rows - round(rows * self.validation)) // self.batch_size)

    def with_epochs(self, rows: int) -> Settings:
        """The same with a number of epochs, for data of so many rows."""
        if self.epochs is not None:
            return self
        wanted = -(-STEPS // max(1, self.steps_per_epoch(rows)))
        return replace(self, epochs=max(LEAST_EPOCHS, min(MOST_EPOCHS, wanted)))

    def for_tables(self, given: Collection[str]) -> Settings:
        """The same with what suits tables, unless some of that is among the ``given``."""
        return self if FOR_TABLES.keys() & set(given) else replace(self, **FOR_TABLES)

    def learning_rate(self, rows: int) -> float | Schedule:
        """The rate, or the schedule over all steps of a training on so many rows."""
        highest = self.lr or LEARNING_RATES[self.optimizer]
        if self.schedule == "constant" or self.epochs is None:
            return highest
        return CosineDecay(highest, steps=self.epochs * self.steps_per_epoch(rows))

    def plain(self) -> dict[str, Any]:
        """As a model file's notes hold them, for other programs too."""
        return asdict(self) | {name: list(getattr(self, name)) for name in LISTS}

    @classmethod
    def from_plain(cls, notes: Mapping[str, Any]) -> Settings:
        """From what ``plain`` gave; a setting that is newer than a file has its default."""
        tuples = {name: tuple(notes[name]) for name in LISTS if name in notes}
        return cls(**{**notes, **tuples})


def read_config(path: Path) -> dict[str, Any]:
    """Settings from a TOML file; keys are the options' names, with - or _."""
    try:
        content = tomllib.loads(existing_file(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
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
        settings |= {
            name: tuple(value) if isinstance(value, list) else parse(str(value))
            for name, parse in LISTS.items()
            if (value := settings.get(name)) is not None
        }
        if isinstance(settings.get("class_weight"), str):
            settings["class_weight"] = parse_class_weight(settings["class_weight"])
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


def parse_names(text: str) -> tuple[str, ...]:
    """ "accuracy,f1" -> ("accuracy", "f1")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_class_weight(text: str) -> str | dict[str, float]:
    """ "balanced", or "no=1,yes=30" -> {"no": 1.0, "yes": 30.0}."""
    if text.strip() == "balanced":
        return "balanced"
    weights = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            name = ""
        if not name.strip():
            raise DataError(
                f"class-weight must be balanced, or weights by class such as no=1,yes=30; "
                f"received {text!r}"
            )
    return weights


#: Settings that are lists, and how text is read as one.
LISTS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "hidden": parse_widths, "metrics": parse_names, "features": parse_names, "drop": parse_names,
}  # fmt: skip
_PARSERS: dict[str, Callable[[str], Any]] = {**LISTS, "class_weight": parse_class_weight}


def from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among a command's options, by name, those that were given; every setting must be
    an option."""
    given = {f.name: options[f.name] for f in fields(Settings)}
    return {
        name: _PARSERS[name](value) if name in _PARSERS else value
        for name, value in given.items()
        if value is not None
    }
