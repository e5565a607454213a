"""Numbers of DataFrames whose columns have types of their own, as pandas' nullable ones do."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.errors import DataError, DTypeError

#: Packages whose tables narwhals knows.
FRAMES = ("pandas", "polars", "pyarrow", "modin", "cudf", "dask", "duckdb", "ibis")


def narwhals_module(what: str) -> Any:
    """narwhals, which reads ``what``.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import narwhals
    except ImportError as error:
        raise ImportError(
            f"{what} is a table with columns of several types, which needs narwhals: "
            f'pip install "nnbackend[tables]". Or convert it first, for example with '
            f".to_numpy('float32')"
        ) from error
    return narwhals


def opened_frame(what: str, value: object) -> Any:
    """A DataFrame or Series as narwhals has it; None if it is none of those.

    Raises:
        DataError: two columns have the same name.
        ImportError: narwhals is not installed.
    """
    if type(value).__module__.partition(".")[0] not in FRAMES:
        return None
    narwhals = narwhals_module(what)
    try:
        return narwhals.from_native(value, eager_only=True, allow_series=True)
    except TypeError:
        return None
    except narwhals.exceptions.DuplicateError as error:
        raise DataError(f"{what} must have columns of different names: {error}") from error


def dense(series: Any) -> Any:
    """A column that pandas keeps sparse as one of numbers, which narwhals knows."""
    native = series.to_native()
    if not hasattr(native, "sparse"):
        return series
    return narwhals_module("a DataFrame").from_native(native.sparse.to_dense(), series_only=True)


def frame_numbers(what: str, value: object) -> np.ndarray[Any, Any] | None:
    """A DataFrame (N, columns) or a Series (N,) in float64, NaN where a value is missing; None if
    it is none of those.

    Raises:
        DTypeError: a column holds something else than numbers.
        ImportError: narwhals, which reads them, is not installed.
    """
    frame = opened_frame(what, value)
    if frame is None:
        return None
    is_series = isinstance(frame, narwhals_module(what).Series)
    columns = [_numbers(what, s) for s in ([frame] if is_series else frame.iter_columns())]
    return columns[0] if is_series else np.stack(columns, axis=1)


def _numbers(what: str, series: Any) -> np.ndarray[Any, Any]:
    narwhals, dtype = narwhals_module(what), series.dtype
    if not (dtype.is_numeric() or dtype == narwhals.Boolean):
        raise DTypeError(
            f"{what}: column {series.name!r} holds {dtype}, and networks learn from numbers. "
            f"nn.datasets.read_frame makes numbers of text, times and what is missing, and the "
            f"same of other rows; or leave the column out"
        )
    values = series.cast(narwhals.Float64).to_numpy()
    return np.asarray(values, np.float64)
