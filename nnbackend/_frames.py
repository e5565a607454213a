"""Numbers of DataFrames whose columns have types of their own, as pandas' nullable ones do."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.errors import DTypeError

#: Packages whose tables narwhals knows.
FRAMES = ("pandas", "polars", "pyarrow", "modin", "cudf", "dask", "duckdb", "ibis")


def frame_numbers(what: str, value: object) -> np.ndarray[Any, Any] | None:
    """A DataFrame (N, columns) or a Series (N,) in float64, NaN where a value is missing; None if
    it is none of those.

    Raises:
        DTypeError: a column holds something else than numbers.
        ImportError: narwhals, which reads them, is not installed.
    """
    if type(value).__module__.partition(".")[0] not in FRAMES:
        return None
    try:
        import narwhals
    except ImportError as error:
        raise ImportError(
            f"{what} is a table with columns of several types, which needs narwhals: "
            f'pip install "nnbackend[tables]". Or convert it first, for example with '
            f".to_numpy('float32')"
        ) from error
    try:
        frame: Any = narwhals.from_native(value, eager_only=True, allow_series=True)
    except TypeError:
        return None
    is_series = isinstance(frame, narwhals.Series)
    columns = [_numbers(what, s) for s in ([frame] if is_series else frame.iter_columns())]
    return columns[0] if is_series else np.stack(columns, axis=1)


def _numbers(what: str, series: Any) -> np.ndarray[Any, Any]:
    import narwhals

    dtype = series.dtype
    if not (dtype.is_numeric() or dtype == narwhals.Boolean):
        raise DTypeError(
            f"{what}: column {series.name!r} holds {dtype}, and networks learn from numbers. Leave "
            f"it out or encode it; the command line and nn.datasets.read_csv do that with files"
        )
    values = series.cast(narwhals.Float64).to_numpy()
    return np.asarray(values, np.float64)
