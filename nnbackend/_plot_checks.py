"""Checks of what plots are given: each states the rule and what it received."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import check_mapping, check_names, check_size, real_array
from nnbackend.errors import DataError, DTypeError, ShapeError, shown

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential

HostArray = np.ndarray[Any, Any]


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


def check_curves(curves: object, wanted: object) -> dict[str, HostArray]:
    """By their names, (epochs,) each; there is one of the wanted name, or its validation's."""
    found = {}
    for name, values in check_mapping("curves", curves).items():
        if not isinstance(name, str):
            raise DTypeError(f"curves must have names, as text; received {shown(name)}")
        found[name] = real_array(f"the curve {name!r}", values)
        if found[name].ndim != 1:
            raise ShapeError(
                f"the curve {name!r} must have a number for each epoch; received an array of "
                f"shape {found[name].shape}"
            )
    if not isinstance(wanted, str) or not {wanted, f"val_{wanted}"} & found.keys():
        raise DataError(f"there is no curve {shown(wanted)}; the curves are {', '.join(found)}")
    return found


def check_rows(what: str, x: object, width: int | None = None) -> HostArray:
    """(N, width) finite numbers, N at least 1."""
    values = real_array(what, x)
    wide = "columns" if width is None else width
    if values.ndim != 2 or not values.size or width not in (None, values.shape[1]):
        raise ShapeError(f"{what} must be an array (rows, {wide}); received shape {values.shape}")
    if not np.isfinite(values).all():
        raise DataError(f"{what} must hold finite numbers; received NaN or infinity")
    return values


def check_labels(what: str, y: object, rows: int | None = None) -> HostArray:
    """(N,) class labels, which are whole numbers from 0 on."""
    values = real_array(what, y)
    if values.ndim not in (1, 2) or values.size != len(values) or not values.size:
        raise ShapeError(f"{what} must be class labels (rows,); received shape {values.shape}")
    values = values.reshape(-1)
    if rows is not None and len(values) != rows:
        raise ShapeError(f"x and {what} must have as many rows; received {rows} and {len(values)}")
    if not (np.abs(values) < 1 << 31).all() or (values != np.floor(values)).any():
        raise DataError(f"{what} must hold class labels, whole numbers from 0; received others")
    return values.astype(np.int64)


def check_class_names(names: Sequence[str] | None, labels: HostArray, least: int) -> list[str]:
    """A name for each of ``least`` classes or more; numbers where none are given."""
    low, high = int(labels.min()), int(labels.max())
    given = None if names is None else check_names("class_names", names)
    found = [str(c) for c in range(max(least, high + 1))] if given is None else given
    if low < 0 or max(high + 1, least) > len(found):
        raise DataError(
            f"labels must lie in 0 ... {len(found) - 1}, with a name for each; received {low} to "
            f"{max(high, least - 1)}"
        )
    return found


def check_image_shape(shape: object) -> tuple[int, int]:
    """Height and width."""
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise DTypeError(f"shape must be (height, width); received {shown(shape)}")
    return check_size("the height", shape[0]), check_size("the width", shape[1])
