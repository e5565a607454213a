"""Tables in text files: their layout found out, and their columns read, by DuckDB."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend._checks import check_path
from nnbackend._types import HostArray, PathLike
from nnbackend.data.dialect import found_dialect
from nnbackend.data.duck import connection, duckdb_module, literal
from nnbackend.data.encodings import looked_through, old_encoding
from nnbackend.data.layout import Layout
from nnbackend.data.number_text import (
    MISSING,
    is_number,
    is_padded,
    may_be_number,
    number_in_sql,
    number_marks,
    plain_number,
)
from nnbackend.data.unpacking import OPENERS, copied_text, plain_file, readable
from nnbackend.errors import DataError

#: Rows that the layout is found out from, and bytes of them at most.
HEAD_ROWS, HEAD_BYTES = 300, 1 << 20
#: Characters of a line at most, as DuckDB has it.
MOST_LINE = 2_000_000
#: What may stand beside a missing value.
BLANKS = ("", " ", "  ")
_NULLS = {*MISSING, *map(str.upper, MISSING), *map(str.capitalize, MISSING), "NaN"}


class Table:
    """A file whose layout is known, and whose columns can be read.

    Attributes:
        names: of the columns; numbers from 0 where the file has no header.
        unit: what ``line`` counts.
        decimal: the mark of decimals, if the numbers leave no doubt about it.
    """

    unit = "line"
    #: columns that cannot be learnt from, and why
    unusable: Mapping[int, str] = {}

    def __init__(self, path: PathLike, layout: Layout, decimal: str | None = None) -> None:
        """``decimal``: the mark that another file of the kind showed."""
        path, layout = Path(check_path("path", path)), layout.check()
        self._duckdb = connection()
        self.shown = "standard input" if str(path) == "-" else str(path)
        with readable(self.shown), ExitStack() as stack:
            self._open(path, layout, stack)
            rows = self._rows(self._find_dialect(layout, stack))
            if not rows:
                raise DataError(f"{self.shown} is empty; it must hold at least one row")
            self._find_columns(rows, layout, decimal)
            self._close = stack.pop_all().close

    def _open(self, path: Path, layout: Layout, stack: ExitStack) -> None:
        """The file, or a copy of it that DuckDB reads; its encoding."""
        self._path = plain_file(path, stack)
        self._compressed = OPENERS.get(self._path.suffix.lower(), open)
        try:
            opened = partial(self._compressed, self._path, "rb")
            found, mixed = looked_through(opened)
            self._encoding = layout.encoding or found or old_encoding(opened, self.shown)
            # those that DuckDB reads quickly, or at all
            if mixed or self._encoding not in ("utf-8", "latin-1"):
                self._use_copy(copied_text(map(_with_feed, self._text()), stack))
        except (UnicodeError, EOFError, OSError, LookupError) as error:
            raise DataError(f"{self.shown} cannot be read: {error}") from error

    def _find_dialect(self, layout: Layout, stack: ExitStack) -> list[str]:
        """How lines are divided, and where the table begins; the first lines."""
        head = self._head()
        self._skip, self._sep, self._quote, comment = found_dialect(head, layout.sep, self._duckdb)
        if comment or self._sep == " ":
            # DuckDB takes the mark of a comment anywhere in a line for one
            lines = (
                "\n" if comment and line.startswith(comment) else _with_feed(line)
                for line in self._text()
            )
            if self._sep == " ":
                lines = (" ".join(line.split()) + "\n" for line in lines)
            self._use_copy(copied_text(lines, stack))
            head = self._head()
        while self._skip < len(head) and not head[self._skip].strip():
            self._skip += 1
        return head

    def _find_columns(self, rows: list[list[str]], layout: Layout, decimal: str | None) -> None:
        """Names and kinds of the columns, and how numbers and missing values are written."""
        first, *others = rows
        self._has_header = is_header(first, others) if layout.header is None else layout.header
        body = others if self._has_header else rows
        if not body:
            raise DataError(f"{self.shown} has a header and no rows")
        width = len(first)
        self._drops_last = self._ends_in_separators(first, body)
        width -= self._drops_last
        names = [field.strip() for field in first[:width]]
        self.names = names if self._has_header else [str(k) for k in range(width)]
        twice, times = Counter(self.names).most_common(1)[0]
        if times > 1:
            raise DataError(f"{self.shown} has two columns named {twice!r}; names must differ")
        columns = list(itertools.zip_longest(names, *body, fillvalue=""))[:width]
        columns = [column[1:] for column in columns]  # also of rows that are too short
        self._decimal, self._thousands, self.decimal = number_marks(
            columns, self._sep, layout.decimal, decimal
        )
        self._kinds = [self._looks_numeric(column) for column in columns]
        # which DuckDB would take out wherever they stand, of 1,5 too
        self._marked = {
            k for k, column in enumerate(columns)
            if self._thousands and any(self._thousands in text for text in column)
        }  # fmt: skip
        texts = {text for column in columns for text in column}
        self._all_nulls = _NULLS
        if any(text != text.strip() for text in texts):
            self._all_nulls = {a + null + b for null in _NULLS for a in BLANKS for b in BLANKS}
        # DuckDB need not look for what is not there, which takes time
        missing = {text for text in texts if text.strip() in _NULLS}
        self._nulls = {""} if all(self._kinds) and missing <= {""} else self._all_nulls
        #: distinct values of each column in the first rows
        self.variety = [len(set(column)) for column in columns]

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _use_copy(self, path: Path) -> None:
        """Read a plain copy in UTF-8 from now on."""
        self._path, self._compressed, self._encoding = path, open, "utf-8"

    # -- the layout -----------------------------------------------------------------------------

    def _text(self) -> Iterator[str]:
        name = {"utf-8": "utf-8-sig"}.get(self._encoding, self._encoding)
        with self._compressed(self._path, "rt", encoding=name, newline="") as file:
            while line := file.readline(MOST_LINE):
                if len(line) == MOST_LINE:
                    raise DataError(f"{self.shown} has a line of more than {MOST_LINE} characters")
                yield line

    def _head(self) -> list[str]:
        """The first lines."""
        lines, size = [], 0
        try:
            for line in self._text():
                lines.append(line)
                size += len(line)
                if len(lines) >= HEAD_ROWS or size > HEAD_BYTES:
                    break
        except (UnicodeError, EOFError, OSError, LookupError) as error:
            raise DataError(f"{self.shown} cannot be read as {self._encoding}: {error}") from error
        if any("\0" in line for line in lines):
            raise DataError(f"{self.shown} is not text: it holds bytes that are zero")
        return lines

    def _rows(self, head: list[str]) -> list[list[str]]:
        """Rows of the first lines, without blank ones."""
        try:
            reader = csv.reader(head[self._skip :], delimiter=self._sep, quotechar=self._quote)
            rows = [fields for fields in reader if any(field.strip() for field in fields)]
        except csv.Error as error:
            raise DataError(f"{self.shown}: {error}") from error
        is_cut = len(head) >= HEAD_ROWS or sum(map(len, head)) > HEAD_BYTES
        return rows[:-1] if is_cut and len(rows) > 2 else rows

    def _ends_in_separators(self, first: list[str], body: list[list[str]]) -> bool:
        """Whether each line ends in a separator, after which nothing comes."""
        # without names, an empty field or two show nothing
        named = not first[-1].strip() if self._has_header else len(body) > 2
        return len(first) > 1 and named and all(len(r) == len(first) and not r[-1].strip()
                                                for r in body)  # fmt: skip

    def _looks_numeric(self, column: Sequence[str]) -> bool:
        """Whether a column is numbers; 036 is text, which would lose its zero."""
        values = [text.strip() for text in column]
        return not any(map(is_padded, values)) and all(
            is_number(v) or v.lower() in MISSING or self.plain_number(v) is not None for v in values
        )

    def is_text(self, column: int) -> bool:
        """Whether a column is text even if all of it looks like numbers."""
        return False

    def plain_number(self, text: str) -> str | None:
        """A number as Python writes it, without marks of thousands; None if it is none."""
        return plain_number(text, self._decimal, self._thousands)

    def is_numeric(self, column: int) -> bool:
        """Whether the first rows of a column hold numbers."""
        return self._kinds[column]

    # -- columns --------------------------------------------------------------------------------

    def read(self, text: Sequence[int] = ()) -> list[HostArray]:
        """All columns: numbers in float64, NaN where there is none, or text, None where there is
        none. Those in ``text`` are text in any case."""
        as_text = {*text}
        with readable(self.shown):
            found = self._read([kind and k not in as_text for k, kind in enumerate(self._kinds)])
        if not len(found[0]):
            raise DataError(f"{self.shown} holds no row that can be read; look at its quotes")
        return found

    def _read(self, numeric: list[bool]) -> list[HostArray]:
        while True:
            try:
                return self._columns(numeric)
            except duckdb_module().OutOfMemoryException:
                raise
            except duckdb_module().Error as error:
                column = re.search(r'converting column "c(\d+)"', str(error))
                if column is None or not numeric[int(column[1])]:
                    raise self._readable(str(error)) from error
                if self._nulls is self._all_nulls:
                    numeric[int(column[1])] = False  # from a later line on there is text
                self._nulls = self._all_nulls

    def _columns(self, numeric: list[bool]) -> list[HostArray]:
        marked = {k for k in self._marked if numeric[k]}
        plain = [number and k not in marked for k, number in enumerate(numeric)]
        kinds = [("DOUBLE" if number else "VARCHAR") for number in plain]
        if self._drops_last:
            kinds.append("VARCHAR")
        columns = ", ".join(f"'c{k}': '{kind}'" for k, kind in enumerate(kinds))
        settings = {
            "auto_detect": "false",
            "columns": f"{{{columns}}}",
            "delim": literal(self._sep),
            "quote": literal(self._quote),
            "escape": literal(self._quote),
            "comment": "''",
            "skip": str(self._skip),
            "header": str(self._has_header).lower(),
            "encoding": literal(self._encoding),
            "decimal_separator": literal(self._decimal),
            "nullstr": f"[{', '.join(map(literal, sorted(self._nulls)))}]",
        }
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        parts = [f"c{k}" for k in range(len(numeric))]
        for k in marked:
            value = number_in_sql(f"c{k}", self._decimal, str(self._thousands))
            parts[k] = f"{value} as c{k}, c{k} is not null and {value} is null as other{k}"
        query = f"select {', '.join(parts)} from read_csv({literal(self._path)}, {listed})"
        found = self._duckdb.execute(query).fetchnumpy()
        contradicted = [k for k in marked if np.asarray(found[f"other{k}"]).any()]
        if contradicted:  # text, or marks in other places
            return self._columns([n and k not in contradicted for k, n in enumerate(numeric)])
        values = column_values(found, numeric)
        for column, number in zip(values, numeric, strict=True):
            if not number and self._nulls is not _NULLS:
                column[[(text or "").strip() in _NULLS for text in column]] = None
        return values

    def _readable(self, message: str) -> DataError:
        """DuckDB's message about a row that cannot be read, as ours."""
        line = re.search(r"CSV Error on Line: (\d+)", message)
        counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
        where = f"{self.shown}, line {line[1]}" if line else self.shown
        if counts:
            expected = int(counts[1]) - self._drops_last
            return DataError(
                f"{where}: {counts[2]} fields; every row must have {expected}, like the first line"
            )
        reason = next((part for part in message.split("\n")[1:] if part.strip()), message)
        return DataError(f"{where}: {reason}")

    def line(self, row: int) -> tuple[int, list[str]]:
        """The number from 1 and the fields of a row, for a message about it."""
        with readable(self.shown):
            return self._line(row)

    def _line(self, row: int) -> tuple[int, list[str]]:
        seen = -1 - self._has_header

        def lines() -> Iterator[str]:
            for number, line in enumerate(self._text()):
                yield "\n" if number < self._skip else line

        reader = csv.reader(lines(), delimiter=self._sep, quotechar=self._quote)
        for fields in reader:
            seen += len(fields) > 1 or any(field.strip() for field in fields)
            if seen == row:
                return reader.line_num, fields + [""] * (len(self.names) - len(fields))
        return 0, [""] * len(self.names)


# -- helpers ------------------------------------------------------------------------------------


def _with_feed(line: str) -> str:
    """The line with the end that Unix has."""
    return line.rstrip("\r\n") + "\n" if line.endswith(("\r", "\n")) else line


def is_header(first: list[str], others: list[list[str]]) -> bool:
    """Whether the first line names columns: text stands above numbers somewhere; or there is no
    number in it at all; or its numbers are a scale, as wavelengths are, beside a name that is not
    one of its column's values; or they number the columns from 0, as pandas does."""
    texts = [text.strip() for text in first]
    named = [k for k, text in enumerate(texts) if text.lower() not in MISSING
             and not may_be_number(text)]  # fmt: skip
    below = [[row[k].strip() for row in others if k < len(row)] for k in range(len(texts))]
    if _numbers_columns(texts, below):
        return True
    if any(2 * sum(map(may_be_number, below[k])) > len(below[k]) for k in named):
        return True
    if not any(map(may_be_number, texts)):
        return bool(named)
    numbers = [float(text) for text in texts if is_number(text)]
    steps = np.diff(numbers)
    is_scale = len(numbers) > 2 and steps[0] != 0 and np.allclose(steps, steps[0])
    return bool(is_scale and named and all(texts[k] not in below[k] for k in named))


def _numbers_columns(texts: list[str], below: list[list[str]]) -> bool:
    """Whether a line is 0, 1, 2 ..., perhaps after an empty field above numbers of rows, and cannot
    well be a row: whole numbers above decimals, in all columns but the last; or eight or more, and
    no row has the same numbers or such that follow one another."""
    has_rows = len(texts) > 1 and not texts[0]
    counted = texts[1:] if has_rows else texts
    n = len(counted)
    if counted != [str(k) for k in range(n)] or not below[0]:
        return False
    if has_rows:
        return below[0] == [str(k) for k in range(len(below[0]))]
    if n > 3 and all("." in text for column in below[:-1] for text in column):
        return True
    rows = list(zip(*below, strict=False))
    return n >= 8 and not any(
        sorted(row) == sorted(counted) or (is_number(row[0]) and list(row) ==
                                           [str(int(float(row[0])) + k) for k in range(n)])
        for row in rows
    )  # fmt: skip


def column_values(found: Mapping[str, Any], numeric: Sequence[bool]) -> list[HostArray]:
    """The columns c0, c1 ... of DuckDB's masked arrays: numbers with NaN, or text with None."""
    result: list[HostArray] = []
    for k, number in enumerate(numeric):
        values = found[f"c{k}"]
        if number:
            result.append(np.ma.filled(values, np.nan).astype(np.float64, copy=False))
        else:
            text = np.ma.getdata(values).astype(object)
            text[np.ma.getmaskarray(values)] = None
            result.append(text)
    return result
