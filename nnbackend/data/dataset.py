"""What a reader returns: rows, targets, and their names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from nnbackend._checks import check_name
from nnbackend._types import HostArray
from nnbackend.data.preparation import Column, Preparation
from nnbackend.errors import DataError
from nnbackend.layers import Embedding, Layer, Standardize

Task = Literal["auto", "classification", "regression"]
TASKS = ("auto", "classification", "regression")

#: In task "auto", whole numbers with more distinct values than this are quantities, not classes.
MOST_CLASSES = 20


@dataclass(frozen=True)
class Dataset:
    """Rows and what is known about them; unpacks to ``(x, y)``.

    Attributes:
        x: (N, I) float32.
        y: (N,) int64 class numbers, (N, O) float32 quantities, or None if the file has none.
        class_names: name of each class, or None for quantities.
        feature_names, target_name: of columns, where the file names them, in the order of the
            table.
        image_shape: (height, width) where rows are pictures.
        row_names: a name for each row, where rows are files.
        kind: "idx", "npz", "csv", "images" or "builtin".
        kept: columns of a table that were asked for as text, by name.
        preparation: of a table, what was done with its columns.
    """

    x: HostArray
    y: HostArray | None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    target_name: str | None = None
    image_shape: tuple[int, int] | None = None
    kind: str = "builtin"
    row_names: tuple[str, ...] | None = None
    kept: Mapping[str, list[str]] = field(default_factory=dict)
    preparation: Preparation | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y))

    def input_layers(self) -> list[Layer]:
        """Layers for a model of a table to begin with: numbers are standardised, and categories get
        vectors where they are numbers (``read_csv(..., embed=True)``). The last one's
        ``n_outputs`` are the inputs of the next layer."""
        width = self.x.shape[1]
        embedded: tuple[Column, ...] = ()
        if self.preparation is not None:
            embedded = self.preparation.embedded
        layers: list[Layer] = [Standardize(width, skip=len(embedded))]
        for column in embedded:
            layers.append(Embedding(width, len(column.values) + 1, column.vector))
            width += column.vector - 1
        return layers


def align_classes(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """The same rows, with classes numbered in the order of these names."""
    if data.class_names is None or data.y is None:
        return data
    given = data.class_names
    if {name.lower() for name in names} == {"true", "false"}:  # each program writes them in its way
        truths = {name.lower(): name for name in names}
        given = tuple(truths.get(name.lower(), name) for name in given)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise DataError(
            f"the data has classes that the model does not know: {', '.join(unknown)}; it knows "
            f"{', '.join(names)}"
        )
    numbers = np.array([names.index(name) for name in given])
    return replace(data, y=numbers[data.y], class_names=names)


def as_targets(y: HostArray, task: Task, where: str) -> tuple[HostArray, tuple[str, ...] | None]:
    """Class numbers with names, or quantities (N, O) float32."""
    check_task(task)
    text = y.dtype.kind in "US"
    if not text and y.dtype.kind not in "fiub":
        raise DataError(f"{where}: targets must be numbers or text; found {y.dtype}")
    if not text and not np.isfinite(y).all():
        raise DataError(f"{where}: targets must be finite; found NaN or infinity")
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if task != "regression" and _is_one_hot(flat):
        return flat.argmax(axis=1).astype(np.int64), tuple(str(k) for k in range(flat.shape[1]))
    whole = flat.ndim == 1 and (text or bool((flat == np.floor(flat)).all()))
    classes = task == "classification" or text
    if task == "auto" and whole and not text:
        classes = len(np.unique(flat)) <= MOST_CLASSES
    if not classes:
        with np.errstate(over="ignore"):
            quantities = y.reshape(len(y), math.prod(y.shape[1:])).astype(np.float32)
        if not np.isfinite(quantities).all():
            raise DataError(f"{where}: targets must fit into float32, up to 3.4e38")
        return quantities, None
    if flat.ndim != 1:
        raise DataError(f"{where}: classes must be one column; found shape {y.shape}")
    values, numbers = np.unique(flat, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), tuple(map(_name, values))


def _name(value: Any) -> str:
    """A class's name, which does not depend on how its number is stored."""
    if isinstance(value, np.floating):
        return str(int(value)) if value.is_integer() else repr(float(str(value)))
    return str(int(value)) if isinstance(value, np.bool_) else str(value)


def _is_one_hot(y: HostArray) -> bool:
    """Whether each row has a one in a single place and zeros elsewhere."""
    if y.ndim != 2 or y.shape[1] < 2 or y.dtype.kind not in "fiub":
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def check_task(task: str) -> None:
    """Refuse an unknown task."""
    check_name("task", task, TASKS)
