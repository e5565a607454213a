"""The data of a job: built in or from files, and whether it fits a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend import datasets
from nnbackend.cli.settings import Settings
from nnbackend.cli.trained import preparation_of
from nnbackend.data.csv import is_table
from nnbackend.data.dataset import Dataset, Task, align_classes
from nnbackend.data.idx import find_images, holds_idx
from nnbackend.data.readers import read
from nnbackend.data.table_target import MissingTargetError
from nnbackend.errors import DataError, ShapeError, unknown_name
from nnbackend.losses import Loss
from nnbackend.model.sequential import Sequential

#: Data sets that come with nnbackend, by name, each from a seed.
BUILT_IN: Mapping[str, Callable[[int], Any]] = {
    "digits": lambda seed: datasets.digits(),
    "spiral": lambda seed: datasets.spiral(seed=seed),
    "vertical": lambda seed: datasets.vertical(seed=seed),
    "moons": lambda seed: datasets.moons(seed=seed),
    "circles": lambda seed: datasets.circles(seed=seed),
    "sine": lambda seed: datasets.sine(),
}


def is_built_in(name: str) -> bool:
    """Whether a data set, and no file, has that name."""
    return name in BUILT_IN and not Path(name).exists()


def load_data(
    name: str,
    seed: int = 1,
    target: str | None = None,
    task: Task = "auto",
    features: tuple[str, ...] | None = None,
    with_targets: bool = True,
    **layout: Any,
) -> Dataset:
    """A file or folder, or a built-in data set by name; "-" is a table on standard input."""
    if is_built_in(name) or not is_table(name):
        given = [option for option, value in layout.items() if value not in (None, ())]
        if given:
            raise DataError(f"{given[0]} is for tables, such as .csv files; {name} is none")
    if is_built_in(name):
        x, y = BUILT_IN[name](seed)
        classes = None
        if y.dtype.kind == "i":
            classes = tuple(str(c) for c in range(int(y.max()) + 1))
        return Dataset(x, y, classes, image_shape=(8, 8) if name == "digits" else None)
    if name != "-" and not Path(name).exists():
        close = unknown_name("data set", name, BUILT_IN)
        raise DataError(f"there is no file or folder {name}, and the built-in {close}")
    return read(name, target, task, features, with_targets=with_targets, **layout)


def training_data(name: str, settings: Settings, model: Sequential | None = None) -> Dataset:
    """The data that these settings name; prepared as for ``model``, which has been trained."""
    if model is not None and is_table(name):
        target = settings.target or model.info.get("target_name")
        prepared = {"preparation": preparation_of(model), **settings.layout}
        return load_data(name, settings.seed, target, settings.task, **prepared)
    given = (settings.seed, settings.target, settings.task, settings.features or None)
    if settings.features and not is_table(name):
        raise DataError(f"features is for tables, such as .csv files; {name} is none")
    if settings.features and settings.target is None:
        raise DataError(
            "features are the columns to learn from, without the target: name it with target, too"
        )
    layout = {"drop": settings.drop, **settings.layout}
    if is_table(name):
        layout["embed"] = True
    if is_table(name) and settings.validation:
        layout["learn_from"] = partial(_training_rows, settings)
    data = load_data(name, *given, **layout)
    if is_built_in(name):
        own = "regression" if data.class_names is None else "classification"
        for option, value, fits in (
            ("target", settings.target, (None,)), ("task", settings.task, ("auto", own)),
        ):  # fmt: skip
            if value not in fits:
                raise DataError(f"{option} is for data of your own; {name} is for {own}")
    return data


def _training_rows(settings: Settings, count: int, labels: Any = None) -> Any:
    """Numbers of the rows that ``fit`` will train on."""
    try:
        return settings.split(count, labels)[0]
    except DataError:  # is said where the model is made, which knows better what is wrong
        return np.arange(count)


def data_for(
    model: Sequential,
    name: str,
    with_target: bool,
    layout: Mapping[str, Any],
    keep: tuple[str, ...] = (),
) -> Dataset:
    """Data for a trained model: its columns, its classes, its width.

    Args:
        with_target: read targets; without them a CSV needs no target column.
        layout: of a table; what is None is as in the training.
        keep: names of columns of a table, to be repeated beside the predictions.
    """
    info = model.info
    features = info.get("feature_names")
    classes = _classes_of(model)
    task: Task = "regression" if classes is None else "classification"
    target = info.get("target_name") if with_target or features is None else None
    prepared = {"preparation": preparation_of(model)} if is_table(name) else {}
    saved = info.get("settings") or {}
    layout = {k: saved.get(k) if value is None else value for k, value in layout.items()}
    try:
        data = load_data(
            test_images(name), model.seed, target, task, None, with_target, keep=keep,
            **prepared, **layout,
        )  # fmt: skip
    except MissingTargetError as error:
        raise DataError(
            f"{name} has no column {target!r}, the target this model was trained on; for data "
            f"without targets use predict"
        ) from error
    if with_target and data.y is None:
        raise DataError(f"{name} holds no targets to compare with")
    if data.x.shape[1] != model.n_inputs:
        raise ShapeError(f"the model takes {model.n_inputs} inputs; {name} has {data.x.shape[1]}")
    return align_classes(data, classes) if classes is not None and with_target else data


def _classes_of(model: Sequential) -> tuple[str, ...] | None:
    """The names of the model's classes, numbers where it has no names; None for quantities."""
    names = model.info.get("class_names")
    if names is not None:
        return tuple(names)
    loss = model.loss
    if not isinstance(loss, Loss) or not loss.probabilities:
        return None
    if not loss.takes_labels and model.n_outputs > 1:  # a yes or no for each output
        return None
    return tuple(str(k) for k in range(max(2, model.n_outputs)))


def test_images(name: str) -> str:
    """The test images of a folder in MNIST's layout, which a model was not trained on; else
    ``name`` itself."""
    folder = Path(name)
    if not folder.is_dir() or not holds_idx(folder):
        return name
    try:
        return str(find_images(folder, "t10k", "test"))
    except DataError:
        return name


def describe(data: Dataset, validation: float = 0.0) -> str:
    """One line: what was read, and what will be learnt from it."""
    held_out = round(len(data.x) * validation)
    rows = f"{len(data.x)} rows"
    if held_out:
        rows = f"{len(data.x) - held_out} training and {held_out} validation rows"
    what = "" if data.target_name is None else f"target {data.target_name!r}: "
    if data.class_names is None:
        return f"{what}numbers (regression); {rows}"
    remedy = "; --task regression for numbers" if _all_numbers(data.class_names) else ""
    hint = remedy if data.kind in ("csv", "npz") else ""
    return f"{what}{len(data.class_names)} classes{hint}; {rows}"


def _all_numbers(names: tuple[str, ...]) -> bool:
    return all(name.lstrip("-").replace(".", "", 1).isdigit() for name in names)
