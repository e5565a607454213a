"""Checks of settings that several modules share: each states the rule and what it received."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Container, Iterable, Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np

from nnbackend._frames import frame_numbers
from nnbackend.errors import DataError, DTypeError, ShapeError, shown, unknown_name


class Names(Container[object], Iterable[str], Protocol):
    """Known names: a dict by name, a tuple."""


def check_name(kind: str, name: object, choices: Names) -> str:
    """One of the known names."""
    if not isinstance(name, str) or name not in choices:
        raise unknown_name(kind, name, choices)
    return name


def check_flag(what: str, value: object) -> bool:
    """True or False; 1 and 0 are taken for them."""
    if not (isinstance(value, bool | np.bool_) or is_whole(value)) or value not in (0, 1):
        raise DTypeError(f"{what} must be True or False; received {shown(value)}")
    return bool(value)


def check_list(what: str, example: str, value: Any) -> list[Any]:
    """The items of a list or of another iterable."""
    try:
        return list(value)
    except TypeError as error:
        raise DTypeError(
            f"{what} come in a list, such as {example}; received {shown(value)}"
        ) from error


def check_mapping(what: str, value: object) -> dict[Any, Any]:
    """A dict, or something like it."""
    if not isinstance(value, Mapping):
        raise DTypeError(f"{what} must be a dict; received {shown(value)}")
    return dict(value)


def check_names(what: str, value: Any) -> list[str]:
    """A list of names."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise DTypeError(f"{what} must be a list of names; received {shown(value)}")
    names: list[str] = []
    for item in value:
        if not isinstance(item, str):
            raise DTypeError(f"{what} must be a list of names; it holds {shown(item)}")
        names.append(item)
    return names


def check_path(what: str, path: object) -> str:
    """The path of a file, as text."""
    if not isinstance(path, str | os.PathLike):
        raise DTypeError(f"{what} must be a path, as text or pathlib.Path; received {shown(path)}")
    text = os.fsdecode(path)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise DataError(
            f"{what} must be a path of characters that file names can have; received {text!r}"
        ) from None
    if not text or "\0" in text:
        raise DataError(f"{what} must be a path, not empty and without NUL; received {text!r}")
    return text


def is_whole(value: object) -> TypeGuard[numbers.Integral]:
    """Whether it is a whole number, which NumPy's lengths of time say of themselves, too."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.timedelta64)


def check_size(what: str, value: object, least: int = 1) -> int:
    """A whole number of at least ``least``, such as a width or a batch size."""
    if not is_whole(value):
        raise DTypeError(f"{what} must be a whole number; received {shown(value)}")
    if value < least:
        raise ShapeError(f"{what} must be at least {least}; received {shown(value)}")
    if int(value) >= 1 << 63:
        raise ShapeError(f"{what} must be below 2^63; received {shown(value)}")
    return int(value)


def check_number(
    what: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """A finite number within [low, high], either end excluded where it is open."""
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, numbers.Real):
        raise DTypeError(f"{what} must be a number; received {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # a whole number past the largest float
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    inside = (number > low if low_open else number >= low) and (
        number < high if high_open else number <= high
    )
    if not inside or not math.isfinite(number):
        raise DataError(f"{what} must be {_interval(low, high, low_open, high_open)}; "
                        f"received {number:g}")  # fmt: skip
    return number + 0.0  # not -0


def _interval(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if high == math.inf:
        if low == -math.inf:
            return "finite"
        return f"{'above' if low_open else 'at least'} {low:g}"
    return f"in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"


def check_seed(seed: object) -> int | None:
    """None, or a whole number that is not negative."""
    if seed is None:
        return None
    if not is_whole(seed):
        raise DTypeError(f"seed must be a whole number or None; received {shown(seed)}")
    if seed < 0:
        raise DataError(f"seed must be at least 0; received {shown(seed)}")
    return int(seed)


def check_dtype(dtype: object) -> np.dtype[Any]:
    """float32 or float64, given by name or as a NumPy type."""
    try:
        # np.dtype(None) is float64
        given = "O" if dtype is None else dtype
        result: np.dtype[Any] | None = np.dtype(given)  # type: ignore[call-overload]
    except Exception:  # of what it is given, NumPy may ask anything
        result = None
    if result is None or result not in (np.dtype("float32"), np.dtype("float64")):
        raise DTypeError(f"dtype must be 'float32' or 'float64'; received {shown(dtype)}")
    return result


def is_masked(value: object) -> bool:
    """Whether this is a masked array; NumPy imports those only when they are used."""
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(value, masked.MaskedArray)


def real_array(what: str, value: object) -> np.ndarray[Any, Any]:
    """``value`` as an array of real numbers, whatever its shape; no copy of one that is."""
    try:
        values = np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of several lengths
        raise ShapeError(f"{what} must be an array, its rows of one length: {error}") from error
    if values.dtype.kind == "O":
        frame = frame_numbers(what, value)
        values = values if frame is None else frame
    check_real(what, values.dtype)
    return values


def check_real(what: str, dtype: np.dtype[Any]) -> None:
    """Refuse complex numbers, objects and text."""
    if dtype.kind not in "fiub":
        raise DTypeError(
            f"{what} must hold real numbers; received dtype {dtype}. Convert it first, for "
            f"example with .astype('float32')"
        )


def check_values(
    what: str, value: object, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """Finite real numbers for an array of ``shape`` and ``dtype``; (1, N) is accepted for (N,)."""
    values = real_array(what, value)
    if values.shape != shape and values.shape != (1, *shape):
        raise ShapeError(
            f"{what} has shape {shape}; received {values.shape}{turned(values.shape, shape)}"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(dtype)).all()
    if not finite:
        raise DataError(
            f"{what} must hold finite {dtype} numbers; received NaN, infinity or a number that is "
            f"too large"
        )
    return values.reshape(shape)


def turned(given: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What a message about a weight's shape adds, if the weight is only transposed."""
    if len(shape) == 2 and given == shape[::-1]:
        return ". Here a weight is (n_inputs, n_outputs): pass its transpose, .T"
    return ""


def check_coupled_rows(rows: int) -> None:
    """A variance needs two rows."""
    if rows < 2:
        raise ShapeError(
            f"BatchNorm in training needs batches of at least 2 rows; received {rows}. If a single "
            f"row is left at the end of the data, fit(..., drop_last=True) leaves it out; another "
            f"batch_size helps as well"
        )


def keep(settings: object, **checked: float) -> None:
    """Hold checked settings in a frozen dataclass, as plain numbers that a model file can hold."""
    for name, value in checked.items():
        object.__setattr__(settings, name, value)


def declares_all(kind: type, declaration: str, methods: tuple[str, ...]) -> bool:
    """Whether a declaration still says what a class does: the class that makes it, or one below
    that leaves ``methods`` as they are.

    Compiled code does what a class declares; where one's own class does something else, its
    methods have to be called.
    """
    declaring = next(base for base in kind.__mro__ if declaration in vars(base))
    return all(getattr(kind, name) is getattr(declaring, name) for name in methods)
