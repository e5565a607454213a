"""How the lines of a table in a text file are divided: found out from the first ones."""

from __future__ import annotations

import csv
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnbackend.data.duck import duckdb_module, literal
from nnbackend.data.number_text import MISSING, may_be_number

#: What may stand between fields, the likelier first.
SEPARATORS = ",;\t|"
#: Lines before the table itself, at most.
MOST_PREAMBLE = 20


class Dialect(NamedTuple):
    """``comment`` begins lines that are passed over, "" if there are none; ``skip`` lines go before
    the table."""

    skip: int
    sep: str
    quote: str
    comment: str


def found_dialect(head: Sequence[str], sep: str | None, duckdb: Any) -> Dialect:
    """From a file's first lines; ``sep`` as it was said, or None."""
    marked = re.fullmatch(r"sep=(.)\s*", head[0]) if head else None
    if marked:
        return Dialect(1, sep or marked[1], '"', "")
    lines = [line for line in head if line.strip() and not line.startswith("#")]
    said, quote, mark = sep is not None, '"', ""
    if sep is None:
        sep, quote, mark = _sniffed(lines, duckdb)
    notes = [k for k, line in enumerate(head) if line.startswith("#")]
    width = _width(lines[0], sep, quote) if lines else 0
    first = head.index(lines[0]) if lines else len(head)
    before, within = [k for k in notes if k < first], [k for k in notes if k >= first]
    # those that have as many fields as the rows
    as_wide = {k for k in notes if _width(head[k], sep, quote) == width > 1}
    if before and before[-1] in as_wide and re.match(r"#\w", head[before[-1]]):
        return Dialect(before[-1], sep, quote, "")  # it names the columns
    comment, skip = "#" if notes else mark, 0
    if within and as_wide.issuperset(within) and not _is_number_first(lines[1:], sep, quote):
        # rows whose text begins so, such as colours
        comment, skip = "", before[-1] + 1 if before else 0
    if not said:
        skip = max(skip, _preamble(head, sep, comment))
    return Dialect(skip, sep, quote, comment)


def _width(line: str, sep: str, quote: str) -> int:
    """Fields of a line."""
    try:
        return len(next(csv.reader([line], delimiter=sep, quotechar=quote), []))
    except csv.Error:
        return 0


def _sniffed(lines: list[str], duckdb: Any) -> tuple[str, str, str]:
    """Separator, quote and comment mark."""
    sep, quote, mark = _asked(lines, duckdb) or ("", '"', "")
    if len(sep) != 1:
        sep = _by_counting(lines)
    if 2 * sum(sep in line for line in lines) < len(lines):
        sep = max(SEPARATORS, key=lambda mark: sum(mark in line for line in lines))
    everywhere = [mark for mark in SEPARATORS if all(mark in line for line in lines)]
    if everywhere and sep not in everywhere:  # such as a comma in numbers alone
        sep = everywhere[0]
    if sep == ",":
        others = (mark for mark in everywhere if mark != ",")
        sep = next((mark for mark in others if _has_commas_in_numbers(lines, mark)), sep)
    if not any(sep in line for line in lines):
        blanks = [len(line.split()) for line in lines]
        sep = " " if blanks and min(blanks) == max(blanks) > 1 else sep
    return sep, quote, mark


def _asked(lines: list[str], duckdb: Any) -> tuple[str, str, str] | None:
    """What DuckDB finds, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "head.csv"
        copy.write_text("".join(lines), encoding="utf-8", newline="")
        try:
            found = duckdb.execute(
                f"from sniff_csv({literal(copy)}, all_varchar=true, sample_size=-1)"
            ).fetchone()
        except duckdb_module().OutOfMemoryException:
            raise
        except duckdb_module().Error:  # a quoted field that the last line does not end, perhaps
            return None
    sep, quote, _, _, mark = ("" if part == "(empty)" else part for part in found[:5])
    return sep, quote or '"', mark


def _by_counting(lines: list[str]) -> str:
    """The separator by which the most rows have as many fields, and several."""

    def agreement(sep: str) -> float:
        try:
            widths = Counter(map(len, csv.reader(lines, delimiter=sep)))
        except csv.Error:
            return 0.0
        width, rows = widths.most_common(1)[0] if widths else (0, 0)
        return rows / widths.total() if width > 1 else 0.0

    return max(SEPARATORS, key=agreement)


def _has_commas_in_numbers(lines: list[str], sep: str) -> bool:
    """Whether the lines have as many fields each, and commas in numbers alone."""
    rows = [line.rstrip("\r\n").split(sep) for line in lines]
    if len({len(row) for row in rows}) > 1:
        return False
    fields = [field.strip(' "') for row in rows for field in row if "," in field]
    return bool(fields) and all(map(may_be_number, fields))


def _preamble(head: Sequence[str], sep: str, comment: str) -> int:
    """Lines before the table: those without a separator, where all others have one."""
    plain = (k for k, line in enumerate(head) if not line.startswith(comment or "\0"))
    first = next((k for k in plain if sep in head[k]), 0)
    if first > MOST_PREAMBLE or not sep.strip():
        return 0
    # a quote that is open there belongs to a field of several lines
    return 0 if any(line.count('"') % 2 for line in head[:first]) else first


def _is_number_first(lines: list[str], sep: str, quote: str) -> bool:
    """Whether each line begins with a number, or with none: one that begins with a mark is no row
    then."""
    try:
        first = [row[0] for row in csv.reader(lines, delimiter=sep, quotechar=quote) if row]
    except csv.Error:
        return False
    given = [text for text in first if text.strip().lower() not in MISSING]
    return bool(given) and all(map(may_be_number, given))
