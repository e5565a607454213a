"""How numbers are written in text: their marks of decimals and of thousands."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\s*[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")
_COMMA_DECIMAL = re.compile(r"[+-]?([1-9]\d{0,2}(\.\d{3})+|\d+)?(,\d+)?([eE][+-]?\d+)?")
_COMMA_THOUSANDS = re.compile(r"[+-]?([1-9]\d{0,2}(,\d{3})+|\d+)(\.\d+)?")
_PADDED = re.compile(r"[+-]?0\d.*")
#: What stands for a missing value, in small letters.
MISSING = ("", "?", "-", "na", "n/a", "nan", "null", "none")


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def is_padded(text: str) -> bool:
    """Whether it is a name, as 036 is, though it looks like a number, which would lose its zero."""
    return _PADDED.fullmatch(text.strip()) is not None


def number_in_sql(column: str, decimal: str, thousands: str) -> str:
    """What ``plain_number`` does, in DuckDB's SQL, as a DOUBLE; NULL if it is none."""
    marked = _COMMA_DECIMAL if decimal == "," else _COMMA_THOUSANDS
    text = f"trim({column})"
    plain = f"replace({text}, '{thousands}', '')"
    if decimal == ",":
        plain = f"replace({plain}, ',', '.')"
    number = _NUMBER.pattern.replace(r"\s*", "")
    fits = f"(not contains({text}, '{thousands}') or regexp_full_match({text}, '{marked.pattern}'))"
    return f"case when {fits} and regexp_full_match({plain}, '{number}') then {plain}::double end"


def plain_number(text: str, decimal: str, thousands: str | None) -> str | None:
    """A number as Python writes it, without marks of thousands; None if it is none."""
    text = text.strip()
    if thousands and thousands in text:
        marked = _COMMA_DECIMAL if decimal == "," else _COMMA_THOUSANDS
        if not marked.fullmatch(text):
            return None
        text = text.replace(thousands, "")
    if decimal == ",":
        text = text.replace(",", ".")
    return text if is_number(text) else None


def may_be_number(text: str) -> bool:
    """Whether it is a number, whatever its marks mean."""
    return (plain_number(text, ".", ",") or plain_number(text, ",", ".")) is not None


def number_marks(
    columns: Sequence[Sequence[str]], sep: str, decimal: str | None, remembered: str | None = None
) -> tuple[str, str | None, str | None]:
    """The mark of decimals, that of thousands if there is one, and the mark of decimals again if
    numbers are written with marks.

    Args:
        decimal: as it was said, or None.
        remembered: of another file; it decides where the numbers leave it open.
    """
    decimals = thousands = sure_comma = sure_dot = False
    for column in columns:
        values = [v for v in (text.strip() for text in column) if v.lower() not in MISSING]
        with_comma = [v for v in values if "," in v]
        in_comma = [bool(_COMMA_DECIMAL.fullmatch(v)) for v in values]
        in_dot = [bool(_COMMA_THOUSANDS.fullmatch(v)) or is_number(v) for v in values]
        if with_comma and all(in_dot):
            thousands = True
            # 1,200 beside 950; all of 1,200 and 0,950 have a comma
            decimals |= all(in_comma) and len(with_comma) == len(values)
        two_marks = any(v.count(".") > 1 for v in values)
        sure_comma |= (bool(with_comma) or two_marks) and all(in_comma) and not all(in_dot)
        marked = any("." in v for v in values)
        sure_dot |= all(in_dot) and not all(in_comma) and (marked or bool(with_comma))
    if decimal is None and not (sure_comma or sure_dot):
        decimal = remembered
    if decimal is None and sep != "," and (sure_comma or (decimals and not sure_dot)):
        decimal = ","
    if decimal == ",":
        return ",", ".", ","
    # between commas there are no others
    shown = thousands or (sure_dot and sep != ",")
    return ".", "," if thousands else None, "." if shown else None
