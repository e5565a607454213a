"""Tables in Parquet files, whose columns have types already, read by DuckDB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nnbackend._types import HostArray, PathLike
from nnbackend.data.duck import connection, duckdb_module, literal
from nnbackend.data.number_text import is_number
from nnbackend.data.tables import HEAD_ROWS, column_values
from nnbackend.data.unpacking import plain_file
from nnbackend.errors import DataError

#: Types that are numbers; others become text, but for those that hold several values.
_NUMBERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|REAL|DECIMAL(\(.*\))?")
_SEVERAL = re.compile(r".*\]|(STRUCT|MAP|UNION)\(.*|BLOB|BIT", re.DOTALL)


class ParquetTable:
    """The same as ``Table`` for a Parquet file."""

    unit = "row"
    decimal: str | None = None

    def __init__(self, path: PathLike) -> None:
        self.shown, self._duckdb = str(path), connection()
        with ExitStack() as stack:
            self._source = f"read_parquet({literal(plain_file(Path(path), stack))})"
            described = self._query(f"describe from {self._source}").fetchall()
            self.names = [row[0] for row in described]
            self._types = [str(row[1]) for row in described]
            self.unusable = {
                k: f"a row has several values, of type {kind}"
                for k, kind in enumerate(self._types) if _SEVERAL.fullmatch(kind)
            }  # fmt: skip
            head = self._query(f"from {self._source} limit {HEAD_ROWS}").fetchall()
            if not head:
                raise DataError(f"{self.shown} is empty; it must hold at least one row")
            columns = zip(*head, strict=True)
            self.variety = [len({str(v) for v in c if v is not None}) for c in columns]
            self._close = stack.pop_all().close

    def __enter__(self) -> ParquetTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _query(self, text: str) -> Any:
        try:
            return self._duckdb.execute(text)
        except duckdb_module().Error as error:
            raise DataError(f"{self.shown} cannot be read: {str(error).splitlines()[0]}") from error

    def _quoted(self, column: int) -> str:
        name = str(self.names[column]).replace('"', '""')
        return f'"{name}"'

    def is_numeric(self, column: int) -> bool:
        return _NUMBERS.fullmatch(self._types[column]) is not None

    def is_text(self, column: int) -> bool:
        """Whether a column is text even if all of it looks like numbers."""
        return False

    def plain_number(self, text: str) -> str | None:
        return text if is_number(text) else None

    def read(self, text: Sequence[int] = ()) -> list[HostArray]:
        """See ``Table.read``."""
        as_text = {*text}
        numeric = [self.is_numeric(k) and k not in as_text for k in range(len(self.names))]
        parts = []
        for k, number in enumerate(numeric):
            if k in self.unusable:
                parts.append(f"null::varchar as c{k}")  # nobody looks at it
            else:
                parts.append(f"{self._quoted(k)}::{'double' if number else 'varchar'} as c{k}")
        found = self._query(f"select {', '.join(parts)} from {self._source}").fetchnumpy()
        return column_values(found, numeric)

    def line(self, row: int) -> tuple[int, list[str]]:
        """The number from 1 and the fields of a row."""
        fields = self._query(f"from {self._source} limit 1 offset {row}").fetchone()
        return row + 1, ["" if field is None else str(field) for field in fields]
