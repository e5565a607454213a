"""Tables that are in memory already: DataFrames of pandas, polars and others, read by narwhals."""

from __future__ import annotations

import datetime
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnbackend._frames import dense, narwhals_module, opened_frame
from nnbackend._types import HostArray
from nnbackend.data.number_text import is_number
from nnbackend.data.tables import HEAD_ROWS
from nnbackend.errors import DataError, DTypeError, shown


class FrameTable:
    """The same as ``Table`` for a DataFrame."""

    unit, shown = "row", "the DataFrame"
    decimal: str | None = None
    unusable: Mapping[int, str] = {}

    def __init__(self, frame: object) -> None:
        found = opened_frame(self.shown, frame)
        if found is None or isinstance(found, narwhals_module(self.shown).Series):
            raise DTypeError(
                f"a table must be a DataFrame of pandas, polars or another library that narwhals "
                f"knows; received {shown(frame)}. nn.datasets.read_csv reads files"
            )
        self._columns = list(map(dense, found.iter_columns()))
        self.names = [str(column.name) for column in self._columns]
        #: columns that are numbered by whole numbers, by these
        self.numbered = {
            int(column.name): k for k, column in enumerate(self._columns)
            if isinstance(column.name, numbers.Integral)
        }  # fmt: skip
        doubled, times = Counter(self.names).most_common(1)[0] if self.names else ("", 0)
        if times > 1:
            raise DataError(f"{self.shown} must have columns of different names: two are {doubled}")
        if not self._columns or not len(found):
            raise DataError(f"{self.shown} is empty; it must hold at least one row and column")
        heads = (_texts(column.head(HEAD_ROWS)) for column in self._columns)
        self.variety = [len({*texts} - {None}) for texts in heads]

    def __enter__(self) -> FrameTable:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def is_numeric(self, column: int) -> bool:
        dtype = self._columns[column].dtype
        return bool(dtype.is_numeric()) or self._is_length_of_time(column)

    def _is_length_of_time(self, column: int) -> bool:
        return bool(self._columns[column].dtype == narwhals_module(self.shown).Duration)

    def is_text(self, column: int) -> bool:
        """Whether a column is text even if all of it looks like numbers."""
        # columns of Python objects may be numbers
        object_ = narwhals_module(self.shown).Object
        return not self.is_numeric(column) and self._columns[column].dtype != object_

    def plain_number(self, text: str) -> str | None:
        return text.strip() if is_number(text.strip()) else None

    def read(self, text: Sequence[int] = ()) -> list[HostArray]:
        """See ``Table.read``."""
        as_text = {*text}
        return [
            self._numbers(k) if self.is_numeric(k) and k not in as_text else self._text(k)
            for k in range(len(self.names))
        ]

    def line(self, row: int) -> tuple[int, list[str]]:
        """The number from 1 and the fields of a row."""
        fields = [_texts(column[row : row + 1])[0] for column in self._columns]
        return row + 1, ["" if field is None else field for field in fields]

    def _numbers(self, column: int) -> HostArray:
        given = self._columns[column]
        seconds = self._is_length_of_time(column)
        if seconds:
            given = given.dt.total_microseconds()
        values = given.cast(narwhals_module(self.shown).Float64).to_numpy()
        return np.asarray(values, np.float64) * (1e-6 if seconds else 1.0)

    def _text(self, column: int) -> HostArray:
        texts = _texts(self._columns[column])
        found = np.empty(len(texts), object)
        found[:] = texts
        return found


def _texts(values: Any) -> list[str | None]:
    """A column as a file would have it; None where a value is missing."""
    missing = values.is_null().to_list()
    single = values.dtype == narwhals_module("a DataFrame").Float32
    found = map(_shortest, values.to_list()) if single else values.to_list()
    return [None if gone else _as_text(value) for value, gone in zip(found, missing, strict=True)]


def _shortest(value: Any) -> Any:
    """The number of fewest digits that is the same in float32: 0.1, not 0.10000000149."""
    return None if value is None else float(str(np.float32(value)))


def _as_text(value: Any) -> str | None:
    """As a file would have it; None for a NaN."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
