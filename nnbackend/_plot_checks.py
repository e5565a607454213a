"""Checks of what plots are given: each states the rule and what it received."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import check_names, check_size, is_whole, real_array
from nnbackend._types import HostArray
from nnbackend.errors import DataError, DTypeError, ShapeError, shown

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential


def check_axes(ax: object) -> None:
    """None, or an Axes of matplotlib."""
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        raise DTypeError(f"ax must be an Axes of matplotlib, or None; received {shown(ax)}")


def check_model(model: object) -> Sequential:
    from nnbackend.model.sequential import Sequential

    if not isinstance(model, Sequential):
        raise DTypeError(f"model must be an nn.Sequential; received {shown(model)}")
    return model


def check_no_model(rule: str, value: object) -> None:
    """Refuse a model where its predictions belong."""
    if hasattr(value, "predict"):
        raise DTypeError(f"{rule}, not a model: pass y and model.predict(x).argmax(axis=1)")


def check_curves(curves: Any, wanted: object) -> dict[str, HostArray]:
    """The curve of the wanted name and its validation's, those that are there: (epochs,) each, NaN
    where there is no number."""
    if not hasattr(curves, "keys") or not hasattr(curves, "__getitem__"):
        raise DTypeError(f"curves must be a dict, such as fit returns; received {shown(curves)}")
    names = [str(name) for name in curves.keys()]  # noqa: SIM118 - a DataFrame's too
    found = {name: curves[name] for name in (wanted, f"val_{wanted}")
             if isinstance(wanted, str) and name in names}  # fmt: skip
    if not found:
        raise DataError(f"there is no curve {shown(wanted)}; the curves are {', '.join(names)}")
    return {name: _curve(name, values) for name, values in found.items()}


def _curve(name: str, values: Any) -> HostArray:
    if isinstance(values, list | tuple):
        values = [np.nan if value is None else value for value in values]
    numbers = real_array(f"the curve {name!r}", values)
    if numbers.ndim != 1:
        raise ShapeError(
            f"the curve {name!r} must have a number for each epoch; received an array of shape "
            f"{numbers.shape}"
        )
    return numbers


def check_rows(what: str, x: object, width: int | None = None, finite: bool = True) -> HostArray:
    """(N, width) numbers, N at least 1."""
    values = real_array(what, x)
    wide = "columns" if width is None else width
    if values.ndim != 2 or not values.size or width not in (None, values.shape[1]):
        raise ShapeError(f"{what} must be an array (rows, {wide}); received shape {values.shape}")
    if finite and not np.isfinite(values).all():
        raise DataError(f"{what} must hold finite numbers; received NaN or infinity")
    return values


def check_labels(what: str, y: Any, rows: int | None = None) -> HostArray:
    """(N,) class labels, which are whole numbers from 0 on."""
    if isinstance(y, np.ndarray) and y.dtype.kind == "O":
        y = y.tolist()  # numbers, perhaps, from a table with text beside them
    values = real_array(what, y)
    if not values.size or values.size != max(values.shape, default=0):
        raise ShapeError(f"{what} must be class labels (rows,); received shape {values.shape}")
    values = values.reshape(-1)
    if rows is not None and len(values) != rows:
        raise ShapeError(f"x and {what} must have as many rows; received {rows} and {len(values)}")
    whole = (np.abs(values) < 1 << 31).all() and (values == np.floor(values)).all()
    if not whole or values.min() < 0:
        raise DataError(
            f"{what} must hold class labels, whole numbers from 0; received numbers from "
            f"{values.min():g} to {values.max():g}"
        )
    return values.astype(np.int64)


def check_class_names(names: Any, classes: int) -> list[str]:
    """A name for each of so many classes, or more; numbers where none are given."""
    found = names_of("class_names", names)
    if found is None:
        return [str(c) for c in range(classes)]
    if len(found) < classes:
        raise DataError(
            f"class_names must have a name for each class, 0 ... {classes - 1}; received "
            f"{len(found)} names"
        )
    return found


def check_feature_names(names: Any) -> list[str]:
    """Of two inputs."""
    found = names_of("feature_names", names) or ["$x_1$", "$x_2$"]
    if len(found) != 2:
        raise ShapeError(f"feature_names must name the two inputs; received {len(found)} names")
    return found


def names_of(what: str, names: Any) -> list[str] | None:
    """Names, or numbers that stand for them, in a list or by the number of each; None where there
    are none."""
    if isinstance(names, Mapping):
        missing = [k for k in range(len(names)) if k not in names]
        if missing:
            raise DataError(f"{what} must have a name for {missing[0]}; received {shown(names)}")
        names = [names[k] for k in range(len(names))]
    if isinstance(names, Iterable) and not isinstance(names, str | bytes):
        names = [str(name) if is_whole(name) else name for name in names]
    return (check_names(what, names) or None) if names is not None else None


def check_image_shape(shape: object) -> tuple[int, int]:
    """Height and width."""
    if not isinstance(shape, tuple | list | np.ndarray) or len(shape) != 2:
        raise DTypeError(f"shape must be (height, width); received {shown(shape)}")
    return check_size("the height", shape[0]), check_size("the width", shape[1])
