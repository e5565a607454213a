"""What is done with each column of a table before a network sees it, learnt once from its rows.

Numbers stay as they are, but for an offset that float32 has no digits for; text becomes categories,
dates and times become numbers and their place in the year, week and day; missing values get a
value and a mark. Columns that cannot help are left out. The same is then done with other tables.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from nnbackend._types import HostArray
from nnbackend.errors import DataError

#: Finds the error for a row of a column, from what belongs there.
Wrong = Callable[[str, int], DataError]
Kind = Literal["number", "category", "time", "left out"]
KINDS = ("number", "category", "time", "left out")

#: A number whose distance from 0 is so many times its spread loses digits in float32.
FAR = 1000.0
#: Categories of a column that are told apart; rarer ones are alike. Up to so many have an input
#: each even where others get vectors, of which there may be more.
MOST_CATEGORIES, FEW_CATEGORIES, MOST_VECTORS = 64, 8, 10_000
#: Text among this share of numbers or more is a mistake in a column of numbers, and so is what only
#: looks like a date among dates.
MOSTLY_NUMBERS = 0.9
#: Rows of a matrix that are put together at a time.
_BLOCK_ROWS = 1024
#: Names of columns that number the rows.
_ROW_NUMBERS = re.compile(r"|unnamed: \d+|id|index|row|row_?id|row_?number|no\.?", re.IGNORECASE)
_DATE = re.compile(
    r"(?P<day>\d{4}-\d\d?-\d\d?)"
    r"([ T](?P<time>\d\d?:\d\d(:\d\d(\.\d+)?)?))?(?P<zone>Z|[+-]\d\d(:?\d\d)?)?"
)
#: Seconds of a day, a week and a mean year, and a Monday's distance from the epoch, 1970-01-01.
_DAY, _WEEK, _YEAR, _MONDAY = 86400.0, 604800.0, 31556952.0, 4 * 86400.0


@dataclass(frozen=True)
class Column:
    """What is done with one column.

    Attributes:
        name: of the column.
        kind: "number", "category", "time" or "left out".
        fill: number for a missing value, the median; None where none may be missing.
        marks: whether one more input says that the value is missing.
        offset: is subtracted first, in float64.
        values: categories, "" for missing values, each with an input of its own; a category that is
            none of them has zeros in all.
        embedded: the input is the category's number for ``nn.Embedding``, from 1; 0 for others.
        day: whether a time has an hour.
        why: it is left out.
    """

    name: str
    kind: Kind
    fill: float | None = None
    marks: bool = False
    offset: float = 0.0
    values: tuple[str, ...] = ()
    embedded: bool = False
    day: bool = False
    why: str = ""

    @property
    def width(self) -> int:
        """Inputs of the network."""
        categories = 1 if self.embedded else len(self.values)
        each = {"number": 1, "category": categories, "time": 7 if self.day else 5}
        return each.get(self.kind, 0) + self.marks

    @property
    def vector(self) -> int:
        """Numbers of a category's vector: a common rule for how many are enough."""
        return min(50, math.ceil(1.6 * math.pow(len(self.values) + 1, 0.56)))

    @property
    def is_plain(self) -> bool:
        """Whether the column's numbers stay as they are."""
        return self.kind == "number" and not self.marks and not self.offset

    @property
    def description(self) -> str:
        missing = f"; missing values as {self.fill:.6g}, and marked" if self.marks else ""
        if self.kind == "category":
            how = f"{self.vector} learnt numbers" if self.embedded else "an input"
            return f"{len(self.values)} categories, {how} for each"
        if self.kind == "time":
            return f"its number, place in the year and week{', hour' * self.day}{missing}"
        if self.kind == "left out":
            return self.why
        return f"its distance from {self.offset:.10g}{missing}" if self.offset else missing[2:]


@dataclass(frozen=True)
class Preparation:
    """What is done with the columns of a table, in their order.

    Columns of the kinds "category" and "time" are passed as text.

    Attributes:
        target_offset: is subtracted from targets that are numbers, in float64.
        decimal: the mark of decimals in the file, "." or ",", if its numbers showed it.
    """

    columns: tuple[Column, ...]
    target_offset: float = 0.0
    decimal: str | None = None

    @classmethod
    def learnt(
        cls,
        names: Sequence[str],
        values: Sequence[HostArray | str],
        wrong: Sequence[Wrong],
        rows: HostArray | None = None,
        embeds: bool = False,
    ) -> Preparation:
        """From columns: numbers in float64 with NaN for what is missing, or text with None; or why
        one cannot be learnt from.

        Args:
            rows: numbers of those to learn from, all by default.
            embeds: whether columns of many categories become numbers for ``nn.Embedding``.

        Raises:
            DataError: text among numbers, numbers that are not finite, or no column to learn from.
        """
        given = zip(names, values, wrong, strict=True)
        some = slice(None) if rows is None else rows
        learnt = tuple(_learnt(*column, some, embeds) for column in given)
        if all(column.kind == "left out" for column in learnt):
            listed = "; ".join(f"{column.name!r}: {column.why}" for column in learnt)
            raise DataError(f"there is no column to learn from: {listed}")
        return cls(learnt)

    @property
    def used(self) -> tuple[Column, ...]:
        """Columns that the network sees."""
        return tuple(column for column in self.columns if column.kind != "left out")

    @property
    def embedded(self) -> tuple[Column, ...]:
        """Columns whose inputs are numbers of categories; these inputs come first."""
        return tuple(column for column in self.used if column.embedded)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to remember: a row of the table is a row of the input."""
        numbers = all(column.is_plain for column in self.columns)
        return numbers and not self.target_offset and self.decimal is None

    def encoded(self, values: Sequence[HostArray], wrong: Sequence[Wrong]) -> HostArray:
        """Inputs (N, width) float32 from the columns that are ``used``, in that order, but for
        those that are ``embedded``, which come first.

        Raises:
            DataError: no time where the training had times; numbers that are not finite.
        """
        given = sorted(zip(self.used, values, wrong, strict=True), key=lambda c: not c[0].embedded)
        with np.errstate(over="ignore"):
            parts = [_encoded(*each).astype(np.float32) for each in given]
        return _side_by_side(parts)

    def plain(self) -> dict[str, Any]:
        """As a model file's notes hold it."""
        columns = [{**asdict(column), "values": list(column.values)} for column in self.columns]
        return {
            "columns": columns, "target_offset": self.target_offset, "decimal": self.decimal
        }  # fmt: skip

    @classmethod
    def of_numbers(cls, names: Sequence[str]) -> Preparation:
        """Of columns that are numbers, all there, and stay as they are."""
        return cls(tuple(Column(name, "number") for name in names))

    @classmethod
    def from_plain(cls, notes: Mapping[str, Any]) -> Preparation:
        """From what ``plain`` gave.

        Raises:
            KeyError, TypeError, ValueError: it gave something else.
        """
        columns = tuple(
            Column(**{**entry, "values": tuple(entry["values"])}) for entry in notes["columns"]
        )
        for column in columns:
            texts = (column.name, column.why, *column.values)
            numbers = (column.offset, 0.0 if column.fill is None else column.fill)
            if column.embedded not in (True, False) or (column.embedded and not column.values):
                raise ValueError(f"categories of another kind: {column}")
            if column.kind not in KINDS or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"a column of another kind: {column}")
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"numbers must be finite: {column}")
        decimal = notes.get("decimal")
        if decimal not in (None, ".", ","):
            raise ValueError(f"a mark of decimals of another kind: {decimal}")
        return cls(columns, float(notes["target_offset"]), decimal)


# -- learning -----------------------------------------------------------------------------------


def _learnt(
    name: str, values: HostArray | str, wrong: Wrong, rows: HostArray | slice, embeds: bool
) -> Column:
    if isinstance(values, str):
        return Column(name, "left out", why=values)
    if values.dtype.kind == "f":
        return _number(name, values, wrong, rows)
    present = [text.strip() for text in values if text is not None]
    if not present:
        return Column(name, "left out", why="it is empty")
    looks_so = all(map(_DATE.fullmatch, present))
    times, others = _seconds_of(values) if looks_so else (values, [])
    # part numbers such as 1000-50-60 are no days of a calendar
    if looks_so and len(others) <= (1.0 - MOSTLY_NUMBERS) * len(present):
        if others:
            raise wrong("date or time", others[0])
        column = _number(name, times, wrong, rows)
        if column.kind == "left out":
            return column
        there = times[rows]
        there = there[np.isfinite(there)]
        hours = np.unique(there % _DAY).size > 1
        return replace(column, kind="time", offset=float(np.median(there)), day=hours)
    some = values[rows]
    # what is missing is a category, too
    counts = Counter("" if text is None else text.strip() for text in some)
    if len(counts) == 1:
        return Column(name, "left out", why="it is the same in every row")
    if len(counts) == len(some) > 2:
        return Column(name, "left out", why="its text differs in every row")
    if embeds and len(counts) > FEW_CATEGORIES:
        # a category that is met once stands for those that will be met later
        often = [text for text, count in counts.most_common(MOST_VECTORS) if count > 1]
        if often:
            return Column(name, "category", values=tuple(sorted(often)), embedded=True)
    kept = [text for text, _ in counts.most_common(MOST_CATEGORIES)]
    return Column(name, "category", values=tuple(sorted(kept)))


def _number(name: str, values: HostArray, wrong: Wrong, rows: HostArray | slice) -> Column:
    beyond = np.flatnonzero(np.isinf(values))
    if len(beyond):
        raise wrong("number", int(beyond[0]))
    present = values[rows]
    present = present[~np.isnan(present)]
    if not len(present):
        return Column(name, "left out", why="it is empty")
    marks, spread = bool(np.isnan(values).any()), float(present.std())
    if not spread and not marks:
        return Column(name, "left out", why="it is the same in every row")
    if _ROW_NUMBERS.fullmatch(name.strip()) and not marks and len(values) > 2:
        steps = np.diff(values)  # of all rows: those that are learnt from may be any
        if steps[0] != 0 and (steps == steps[0]).all():
            return Column(name, "left out", why="it numbers the rows")
    fill = float(np.median(present)) if marks else None
    return Column(name, "number", fill, marks, offset_of(present))


def offset_of(values: HostArray) -> float:
    """The median of numbers whose differences float32 would lose, else 0."""
    spread = float(values.std())
    far = spread > 0.0 and abs(float(values.mean())) > FAR * spread
    return float(np.median(values)) if far else 0.0


# -- encoding -----------------------------------------------------------------------------------


def _encoded(column: Column, values: HostArray, wrong: Wrong) -> HostArray:
    """Inputs (N, width) in float64."""
    if column.kind == "category":
        return _categories(column, values)
    if column.kind == "time":
        return _with_mark(column, _times(values, wrong), lambda t: _cycles(column, t), wrong)
    beyond = np.flatnonzero(np.isinf(values))
    if len(beyond):
        raise wrong("number", int(beyond[0]))
    return _with_mark(column, values, lambda x: (x - column.offset)[:, None], wrong)


def _side_by_side(parts: Sequence[HostArray]) -> HostArray:
    """Arrays (N, w) of one dtype as one, some rows at a time: what is written stays in the cache
    until all of its columns are there."""
    ends = list(itertools.accumulate(part.shape[1] for part in parts))
    whole = np.empty((len(parts[0]), ends[-1]), parts[0].dtype)
    for row in range(0, len(whole), _BLOCK_ROWS):
        rows = slice(row, row + _BLOCK_ROWS)
        for part, end in zip(parts, ends, strict=True):
            whole[rows, end - part.shape[1] : end] = part[rows]
    return whole


def _with_mark(
    column: Column, values: HostArray, inputs: Callable[[HostArray], HostArray], wrong: Wrong
) -> HostArray:
    missing = np.isnan(values)
    if column.fill is None and missing.any():
        what = "date or time" if column.kind == "time" else "number"
        raise wrong(what, int(np.flatnonzero(missing)[0]))
    parts = [inputs(np.where(missing, 0.0 if column.fill is None else column.fill, values))]
    if column.marks:
        parts.append(missing[:, None].astype(np.float64))
    return np.concatenate(parts, axis=1)


def _categories(column: Column, values: HostArray) -> HostArray:
    place = {text: k for k, text in enumerate(column.values)}
    if {text.lower() for text in column.values} <= {"true", "false", ""}:
        # each program writes them in its own way
        place = {way: k for text, k in place.items() for way in _ways(text)}
    rows = [place.get("" if text is None else text.strip(), -1) for text in values]
    if column.embedded:
        return np.array(rows, np.float64)[:, None] + 1.0
    found = np.zeros((len(values), len(column.values) + 1))
    found[np.arange(len(rows)), rows] = 1.0
    return found[:, :-1]


def _ways(truth: str) -> tuple[str, ...]:
    """How true or false may be written."""
    low = truth.lower()
    return (low, low.title(), low.upper(), {"true": "1", "false": "0"}.get(low, low))


def _times(values: HostArray, wrong: Wrong) -> HostArray:
    """Seconds since 1970 in float64, NaN where there is none."""
    seconds, others = _seconds_of(values)
    if others:
        raise wrong("date or time", others[0])
    return seconds


def _seconds_of(values: HostArray) -> tuple[HostArray, list[int]]:
    """Seconds since 1970, NaN where there is none, and the rows of what is no date or time."""
    found = [math.nan if text is None else _seconds(text.strip()) for text in values]
    others = [row for row, seconds in enumerate(found) if seconds is None]
    return np.array(found, np.float64), others


def _seconds(text: str) -> float | None:
    """Seconds since 1970; None if it is no date or time."""
    from datetime import UTC, datetime

    match = _DATE.fullmatch(text)
    if match is None:
        return None
    day = "-".join(part.zfill(2) for part in match["day"].split("-"))
    hour, _, rest = (match["time"] or "0:00").partition(":")
    try:
        moment = datetime.fromisoformat(f"{day} {hour.zfill(2)}:{rest}{match['zone'] or ''}")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _cycles(column: Column, seconds: HostArray) -> HostArray:
    """Days from the offset; sine and cosine of the place in the year, the week and the day."""
    periods = [(_YEAR, 0.0), (_WEEK, _MONDAY)] + [(_DAY, 0.0)] * column.day
    angles = [2.0 * np.pi * (((seconds - start) % period) / period) for period, start in periods]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.stack([(seconds - column.offset) / _DAY, *waves], axis=1)
