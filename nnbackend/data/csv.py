"""Reader for tables in text files: numeric columns and a target column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from nnbackend.data.dataset import (
    MOST_CLASSES,
    Dataset,
    HostArray,
    PathLike,
    Task,
    as_targets,
    check_task,
)
from nnbackend.data.tables import Layout, Table, is_number
from nnbackend.errors import DataError, DTypeError, shown, unknown_name

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".data")
#: A number that other notations of it do not equal as text.
_PADDED = re.compile(r"[+-]?0\d.*")


class MissingTargetError(DataError):
    """A CSV has no column of the target's name."""


def is_table(name: str) -> bool:
    """Whether a file of this name, compressed or not, holds a table; "-" is standard input."""
    name = name.lower()
    for suffix in (".gz", ".bz2", ".xz", ".zip"):
        name = name.removesuffix(suffix)
    return name == "-" or name.endswith(CSV_SUFFIXES)


def read_csv(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
    *,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> Dataset:
    """Numeric columns and a target column of a table, as text or compressed (.gz, .bz2, .xz, .zip);
    "-" reads standard input. Needs DuckDB: ``pip install "nnbackend[tables]"``.

    How the file is written is found out, unless it is said. The first line is taken as a header if
    it has text above a column of numbers, or no number, or numbers in equal steps beside a name.
    Lines that begin with # before or between the rows are passed over.

    Args:
        target: name of the target column, or its number from 0 (also as text, if no column
            has that name); None takes the last column.
        task: "classification" makes classes of the target's distinct values, "regression"
            numbers; "auto" takes text, and whole numbers with at most 20 distinct values, as
            classes.
        features: names of the columns to read, in this order; without ``target`` there is then
            none, as for predictions.
        drop: names of columns to leave out.
        keep: names of columns to return as text, in ``Dataset.kept``.
        sep: what separates fields, such as ";" or a tab; " " for any number of blanks.
        decimal: "." or ",".
        encoding: "utf-8", "latin-1", "utf-16" or another one that Python knows.
        header: whether the first line names the columns.

    Raises:
        DataError: ragged rows, text or an empty field where a number belongs, an unknown column;
            the message names the line (from 1) and column.
    """
    check_task(task)
    with Table(path, Layout(sep, decimal, encoding, header)) as table:
        left_out = _columns_named(table, drop, "is to be left out")
        kept = _columns_named(table, keep, "is to be kept")
        if features is not None:
            columns = _columns_named(table, features, "the model was trained on")
            if target is None:
                values = table.read(text=kept)
                x = _numbers(table, values, columns)
                beside = _kept(values, kept, keep)
                return Dataset(x, None, feature_names=tuple(features), kind="csv", kept=beside)
        index = _target_column(table, target)
        if index in left_out:
            raise DataError(f"{table.names[index]!r} is the target, so it cannot be left out")
        if features is None:
            columns = [k for k in range(len(table.names)) if k != index and k not in left_out]
        if not columns:
            raise DataError(
                f"{table.shown} has one column only; a target needs columns to learn from"
            )
        as_text = [] if _is_quantity(table, index, task) else [index]
        values = table.read(text=[*as_text, *kept])
        x = _numbers(table, values, columns)
        y, names = _targets(table, values[index], index, task)
        return Dataset(
            x,
            y,
            class_names=names,
            feature_names=tuple(table.names[k] for k in columns),
            target_name=table.names[index],
            kind="csv",
            kept=_kept(values, kept, keep),
        )


def _kept(
    values: list[HostArray], columns: list[int], names: Sequence[str]
) -> dict[str, list[str]]:
    """Columns as text, "" where a value is missing."""
    texts = (["" if text is None else text for text in values[k]] for k in columns)
    return dict(zip(names, texts, strict=True))


def _target_column(table: Table, target: object) -> int:
    names = table.names
    if target is None:
        return len(names) - 1
    if isinstance(target, str):
        if target in names:
            return names.index(target)
        if target.isdecimal() and int(target) < len(names):
            return int(target)
        raise MissingTargetError(f"{table.shown}: {unknown_name('target column', target, names)}")
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise DTypeError(
            f"the target column must be a name or a number from 0; received {shown(target)}"
        )
    if not 0 <= target < len(names):
        raise DataError(
            f"{table.shown}: the target column must be in 0 ... {len(names) - 1}; received {target}"
        )
    return int(target)


def _columns_named(table: Table, names: Sequence[str], why: str) -> list[int]:
    for name in names:
        if name not in table.names:
            raise DataError(
                f"{table.shown} has no column {name!r}, which {why}; its columns are "
                f"{', '.join(table.names)}"
            )
    return [table.names.index(name) for name in names]


def _numbers(table: Table, values: list[HostArray], columns: list[int]) -> HostArray:
    """The columns as (N, len(columns)) float32."""
    for k in columns:
        column = values[k]
        if column.dtype.kind == "f":
            wrong = np.flatnonzero(~np.isfinite(column))
        else:
            texts = [None if text is None else table.plain_number(text) for text in column]
            wrong = np.flatnonzero([text is None for text in texts])
            values[k] = np.array([text or "nan" for text in texts])
        if len(wrong):
            raise _not_a_number(table, int(wrong[0]), k)
    with np.errstate(over="ignore"):
        x = np.stack([values[k].astype(np.float64) for k in columns], axis=1).astype(np.float32)
    beyond = np.argwhere(~np.isfinite(x))
    if len(beyond):
        raise _not_a_number(table, int(beyond[0][0]), columns[beyond[0][1]])
    return np.ascontiguousarray(x)


def _not_a_number(table: Table, row: int, column: int) -> DataError:
    line, fields = table.line(row)
    text = fields[column].strip()
    where = f"{table.shown}, line {line}, column {table.names[column]!r}"
    if is_number(text) or text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return DataError(f"{where}: numbers must be finite; found {text!r}")
    remedy = "Text columns must be turned into numbers or left out"
    if not text:
        remedy = "Fill the missing value or remove the row"
    return DataError(f"{where}: a number belongs here; found {text!r}. {remedy}")


def _is_quantity(table: Table, index: int, task: Task) -> bool:
    """Whether the target can be read as numbers at once, without a look at how they are written."""
    varied = task == "auto" and table.variety[index] > MOST_CLASSES
    return table.is_numeric(index) and (task == "regression" or varied)


def _targets(
    table: Table, values: HostArray, index: int, task: Task
) -> tuple[HostArray, tuple[str, ...] | None]:
    name = table.names[index]
    if values.dtype.kind == "f":
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            raise _no_target(table, int(missing[0]), index)
        return as_targets(values, task, table.shown)
    numbers: dict[str | None, str | None] = {}
    for text in dict.fromkeys(values):
        if text is None or not text.strip():
            raise _no_target(table, list(values).index(text), index)
        numbers[text] = table.plain_number(text)
    other = next((text for text, number in numbers.items() if number is None), None)
    if other is not None and task == "regression":
        line = table.line(list(values).index(other))[0]
        raise DataError(
            f"{table.shown}, line {line}, column {name!r}: regression needs numbers; found "
            f"{other!r}"
        )
    # 036 is a name: as a number it would lose its zero
    padded = task != "regression" and any(
        _PADDED.fullmatch(text or "") for text in numbers.values()
    )
    if other is not None or padded:
        return as_targets(np.array([text.strip() for text in values]), task, table.shown)
    return as_targets(_as_numbers(numbers, values), task, table.shown)


def _no_target(table: Table, row: int, index: int) -> DataError:
    line, fields = table.line(row)
    found = fields[index].strip()
    what = f"is missing; found {found!r}" if found else "is empty"
    return DataError(f"{table.shown}, line {line}: the target {table.names[index]!r} {what}")


def _as_numbers(numbers: Mapping[str | None, str | None], values: HostArray) -> HostArray:
    """In int64 if they are whole numbers, which do not all fit into float64."""
    texts = {given: text or "" for given, text in numbers.items()}
    if all(text.lstrip("+-").isdecimal() for text in texts.values()):
        whole = {given: int(text) for given, text in texts.items()}
        if max(map(abs, whole.values())) < 1 << 63:
            return np.array([whole[given] for given in values], np.int64)
    parsed = {given: float(text) for given, text in texts.items()}
    return np.array([parsed[given] for given in values])
