"""Checks of settings that several modules share: each states the rule and what it received."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from nnbackend.errors import DataError, DTypeError, ShapeError


def check_size(what: str, value: object) -> int:
    """A positive whole number, such as a width or a batch size."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise DTypeError(f"{what} must be a whole number; received {value!r}")
    if value < 1:
        raise ShapeError(f"{what} must be at least 1; received {value}")
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
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise DTypeError(f"{what} must be a number; received {value!r}")
    number = float(value)
    inside = (number > low if low_open else number >= low) and (
        number < high if high_open else number <= high
    )
    if not inside or not math.isfinite(number):
        raise DataError(f"{what} must be {_interval(low, high, low_open, high_open)}; "
                        f"received {number:g}")  # fmt: skip
    return number


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
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise DTypeError(f"seed must be a whole number or None; received {seed!r}")
    if seed < 0:
        raise DataError(f"seed must be at least 0; received {seed}")
    return int(seed)


def check_dtype(dtype: object) -> np.dtype[Any]:
    """float32 or float64, given by name or as a NumPy type."""
    try:
        # np.dtype(None) is float64
        result: np.dtype[Any] | None = np.dtype(dtype or "O")  # type: ignore[call-overload]
    except TypeError:
        result = None
    if result is None or result not in (np.dtype("float32"), np.dtype("float64")):
        raise DTypeError(f"dtype must be 'float32' or 'float64'; received {dtype!r}")
    return result


def check_coupled_rows(rows: int) -> None:
    """A variance needs two rows."""
    if rows < 2:
        raise ShapeError(
            f"BatchNorm in training needs batches of at least 2 rows; received {rows}. Choose a "
            f"batch_size that leaves no single row at the end of the data"
        )


def declares_all(kind: type, declaration: str, methods: tuple[str, ...]) -> bool:
    """Whether a declaration still says what a class does: the class that makes it, or one below
    that leaves ``methods`` as they are.

    Compiled code does what a class declares; where one's own class does something else, its
    methods have to be called.
    """
    declaring = next(base for base in kind.__mro__ if declaration in vars(base))
    return all(getattr(kind, name) is getattr(declaring, name) for name in methods)
