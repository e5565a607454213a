"""Reader for CSV files: numeric columns and a target column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnbackend.data.dataset import (
    Dataset,
    HostArray,
    PathLike,
    Task,
    as_targets,
    check_task,
    existing,
)
from nnbackend.errors import DataError, DTypeError, shown, unknown_name

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".data")


class MissingTargetError(DataError):
    """A CSV has no column of the target's name."""


def read_csv(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
) -> Dataset:
    """Numeric columns and a target column, with or without a header line.

    The first line is taken as a header if it has text above a column of numbers, or no number.
    The separator is whichever of ``,`` ``;`` and tab is most frequent in the first line.

    Args:
        target: name of the target column, or its number from 0 (also as text, if no column
            has that name); None takes the last column.
        task: "classification" makes classes of the target's distinct values, "regression"
            numbers; "auto" takes text, and whole numbers with at most 20 distinct values, as
            classes.
        features: names of the columns to read, in this order, without a target: for
            predictions with a model trained on those columns.

    Raises:
        DataError: ragged rows, text or an empty field where a number belongs, an unknown column;
            the message names the line (from 1) and column.
    """
    path = existing(path)
    check_task(task)
    header, lines = _csv_lines(path)
    if features is not None:
        columns = _feature_columns(path, header, features)
        x = _numbers(path, lines, columns, header)
        return Dataset(x, None, feature_names=tuple(features), kind="csv")
    index = _target_column(path, header, target)
    columns = [k for k in range(len(header)) if k != index]
    if not columns:
        raise DataError(f"{path} has one column only; a target needs columns to learn from")
    x = _numbers(path, lines, columns, header)
    texts = [fields[index].strip() for _, fields in lines]
    y, names = _csv_target(path, lines, texts, index, header, task)
    return Dataset(
        x,
        y,
        class_names=names,
        feature_names=tuple(header[k] for k in columns),
        target_name=header[index],
        kind="csv",
    )


CsvLines = list[tuple[int, list[str]]]


def _csv_lines(path: Path) -> tuple[list[str], CsvLines]:
    """Column names, and the rows with their line numbers; every row is as long as the first."""
    import csv

    lines: CsvLines = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            for fields in reader:
                if any(field.strip() for field in fields):
                    lines.append((reader.line_num, fields))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not text in UTF-8: {error}") from error
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if not lines:
        raise DataError(f"{path} is empty; it must hold at least one row")
    header = [field.strip() for field in lines[0][1]]
    if not _is_header(header, [fields for _, fields in lines[1:]]):
        header = [str(k) for k in range(len(header))]
    else:
        lines = lines[1:]
    if not lines:
        raise DataError(f"{path} has a header and no rows")
    if len(set(header)) < len(header):
        twice = Counter(header).most_common(1)[0][0]
        raise DataError(f"{path} has two columns named {twice!r}; names must differ")
    for number, fields in lines:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields; every row must have "
                f"{len(header)}, like the first line"
            )
    return header, lines


def _is_header(first: list[str], others: list[list[str]]) -> bool:
    """Whether the first line names columns: text stands above numbers somewhere, or there is no
    number in it at all."""
    for column, text in enumerate(first):
        below = [_is_number(fields[column]) for fields in others if column < len(fields)]
        if not _is_number(text) and 2 * sum(below) > len(below):
            return True
    return not any(_is_number(text) for text in first)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _target_column(path: Path, header: list[str], target: object) -> int:
    if target is None:
        return len(header) - 1
    if isinstance(target, str):
        if target in header:
            return header.index(target)
        if target.isdecimal() and int(target) < len(header):
            return int(target)
        raise MissingTargetError(f"{path}: {unknown_name('target column', target, header)}")
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise DTypeError(
            f"the target column must be a name or a number from 0; received {shown(target)}"
        )
    if not 0 <= target < len(header):
        raise DataError(
            f"{path}: the target column must be in 0 ... {len(header) - 1}; received {target}"
        )
    return int(target)


def _feature_columns(path: Path, header: list[str], features: Sequence[str]) -> list[int]:
    for name in features:
        if name not in header:
            raise DataError(
                f"{path} has no column {name!r}, which the model was trained on; its columns "
                f"are {', '.join(header)}"
            )
    return [header.index(name) for name in features]


def _numbers(path: Path, lines: CsvLines, columns: list[int], header: list[str]) -> HostArray:
    """The columns as (N, len(columns)) float32."""
    rows = np.empty((len(lines), len(columns)), np.float32)
    for k, (number, fields) in enumerate(lines):
        try:
            rows[k] = [float(fields[c]) for c in columns]
        except ValueError:
            bad = next(c for c in columns if not _is_number(fields[c]))
            remedy = "Text columns must be turned into numbers or left out"
            if not fields[bad].strip():
                remedy = "Fill the missing value or remove the row"
            raise DataError(
                f"{path}, line {number}, column {header[bad]!r}: a number belongs here; found "
                f"{fields[bad]!r}. {remedy}"
            ) from None
    wrong = np.argwhere(~np.isfinite(rows))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}, line {lines[row][0]}, column {header[columns[column]]!r}: numbers must be "
            f"finite; found {lines[row][1][columns[column]]!r}"
        )
    return rows


def _csv_target(
    path: Path, lines: CsvLines, texts: list[str], index: int, header: list[str], task: Task
) -> tuple[HostArray, tuple[str, ...] | None]:
    for (number, _), text in zip(lines, texts, strict=True):
        if not text:
            raise DataError(f"{path}, line {number}: the target {header[index]!r} is empty")
    if all(_is_number(text) for text in texts):
        return as_targets(np.array([float(text) for text in texts]), task, str(path))
    if task == "regression":
        number, text = next(
            (n, t) for (n, _), t in zip(lines, texts, strict=True) if not _is_number(t)
        )
        raise DataError(
            f"{path}, line {number}, column {header[index]!r}: regression needs numbers; found "
            f"{text!r}"
        )
    return as_targets(np.array(texts), task, str(path))
