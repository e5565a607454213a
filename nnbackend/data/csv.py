"""Readers for tables: columns to learn from, and a target column."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nnbackend._checks import check_flag, check_names, check_path, is_whole
from nnbackend._types import HostArray, PathLike
from nnbackend.data.dataset import Dataset, Task, as_targets, check_task
from nnbackend.data.frames import FrameTable
from nnbackend.data.layout import Layout
from nnbackend.data.number_text import is_number, is_padded
from nnbackend.data.parquet import ParquetTable
from nnbackend.data.preparation import MOSTLY_NUMBERS, Preparation, offset_of
from nnbackend.data.table_target import (
    AnyTable,
    is_quantity,
    target_column,
    target_values,
)
from nnbackend.data.tables import Table
from nnbackend.errors import DataError, DTypeError, shown

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".data")
LearnFrom = Callable[..., HostArray]
_INFINITE = re.compile(r"\s*[+-]?inf(inity)?\s*", re.IGNORECASE)


def is_table(name: str) -> bool:
    """Whether a file of this name, compressed or not, holds a table; "-" is standard input."""
    name = name.lower()
    for suffix in (".gz", ".bz2", ".xz", ".zip"):
        name = name.removesuffix(suffix)
    return name == "-" or name.endswith((*CSV_SUFFIXES, ".parquet"))


def _opened(path: PathLike, layout: Layout, decimal: str | None) -> AnyTable:
    """``decimal``: the mark that another file of the kind showed, which a few rows may not."""
    if not str(path).lower().endswith(".parquet"):
        return Table(path, layout, decimal)
    given = [name for name, value in layout._asdict().items() if value is not None]
    if given:
        raise DataError(f"{given[0]} is for text; {path} is a Parquet file, which says it itself")
    return ParquetTable(path)


def read_csv(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
    *,
    preparation: Preparation | None = None,
    learn_from: LearnFrom | None = None,
    embed: bool = False,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> Dataset:
    """Inputs and targets from a table: text, also compressed (.gz, .bz2, .xz, .zip), or Parquet;
    "-" reads standard input. Needs DuckDB: ``pip install "nnbackend[tables]"``.

    Text becomes categories, an input for each of up to 64; dates and times become numbers and their
    place in the year, week and day; a missing value becomes the column's median, and is marked by
    an input of its own. Columns that are the same, or text that differs, in every row are left
    out. ``Dataset.preparation`` says what was done, and does the same with another file.

    The file's format is detected unless you state it. The first line is taken as a header if
    it has text above a column of numbers, or no number, or numbers in equal steps beside a name.
    Lines that begin with # are passed over before the table, and between rows that begin with
    numbers.

    Args:
        target: name of the target column, or its number from 0 (also as text, if no column
            has that name); None takes the last column, or none where ``features`` or
            ``preparation`` say which columns are read.
        task: "classification" makes classes of the target's distinct values, "regression"
            numbers; "auto" takes text, and whole numbers with at most 20 distinct values, as
            classes.
        features: names of the columns to read, in this order. Without ``target`` there is then
            none, as for predictions, and the columns must be numbers.
        preparation: what to do with the columns, as another call found it out
            (``Dataset.preparation``); which also says which these are.
        learn_from: function of the number of rows, and of their classes as ``labels``, that returns
            the numbers of those to find it out from, such as the rows that are trained on.
        embed: whether text of more than 8 categories becomes numbers, for a model that begins with
            ``Dataset.input_layers()``, which has vectors to learn for them.
        drop: names of columns to leave out.
        keep: names of columns to return as text, in ``Dataset.kept``.
        sep: what separates fields, such as ";" or a tab; " " for any number of blanks.
        decimal: "." or ",".
        encoding: "utf-8", "latin-1", "utf-16" or another one that Python knows.
        header: whether the first line names the columns.

    Raises:
        DataError: ragged rows, a word in a column of numbers, a target that is missing, an unknown
            column, none to learn from; the message names the line (from 1) and column.
    """
    check_task(task)
    found = preparation.decimal if isinstance(preparation, Preparation) else None
    layout = Layout(sep, decimal, encoding, header)
    with _opened(check_path("path", path), layout, found) as table:
        return _dataset(table, target, task, features, preparation, learn_from, embed, drop, keep)


def read_frame(
    frame: object,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
    *,
    preparation: Preparation | None = None,
    learn_from: LearnFrom | None = None,
    embed: bool = False,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Dataset:
    """The same as ``read_csv`` from a DataFrame of pandas, polars or another library. Columns have
    types there: text, true and false, and categories become categories, whatever they look like.
    Needs narwhals: ``pip install "nnbackend[tables]"``.

    Args:
        frame: with a row of names, and at least one row.
        target, task, features, preparation, learn_from, embed, drop, keep: see ``read_csv``.

    Raises:
        DTypeError: ``frame`` is no DataFrame.
        DataError: as for ``read_csv``; rows are counted from 1.

    Example:
        >>> data = nn.datasets.read_frame(frame, target="price", embed=True)
        >>> first = data.input_layers()
        >>> model = nn.Sequential([*first, nn.Dense(first[-1].n_outputs, 1)])
        >>> model.fit(data.x, data.y)
        >>> model.predict(nn.datasets.read_frame(others, preparation=data.preparation).x)
    """
    check_task(task)
    with FrameTable(frame) as table:
        if is_whole(target) and target in table.numbered:  # its name, not its place
            target = table.numbered[int(target)]
        # of a DataFrame, columns may have numbers for names
        features, drop, keep = _as_text(features), _as_text(drop), _as_text(keep)
        return _dataset(table, target, task, features, preparation, learn_from, embed, drop, keep)


def _as_text(names: Any) -> Any:
    """Names of columns as text; what is no list of any is refused where all are checked."""
    is_list = isinstance(names, Iterable) and not isinstance(names, str)
    return list(map(str, names)) if is_list else names


def _dataset(
    table: AnyTable,
    target: str | int | None,
    task: Task,
    features: Sequence[str] | None,
    preparation: Preparation | None,
    learn_from: LearnFrom | None,
    embed: bool,
    drop: Sequence[str],
    keep: Sequence[str],
) -> Dataset:
    drop, keep = check_names("drop", drop), check_names("keep", keep)
    features = None if features is None else check_names("features", features)
    embed = check_flag("embed", embed)
    if preparation is not None and not isinstance(preparation, Preparation):
        raise DTypeError(
            f"preparation must be a Dataset's preparation; received {shown(preparation)}"
        )
    if learn_from is not None and not callable(learn_from):
        raise DTypeError(f"learn_from must be a function; received {shown(learn_from)}")
    if preparation is not None and (features is not None or drop):
        given = "drop" if features is None else "features"
        raise DataError(f"preparation says which columns are read: pass it without {given}")
    left_out = set(_columns_named(table, drop, "is to be left out"))
    kept = _columns_named(table, keep, "is to be kept")
    index = None
    if target is not None or (features is None and preparation is None):
        index = target_column(table, target)
    if index in left_out:
        raise DataError(f"{table.names[index]!r} is the target, so it cannot be left out")
    if preparation is None and features is not None and target is None:
        preparation = Preparation.of_numbers(features)
    if preparation is not None:
        features = [column.name for column in preparation.used]
    columns = [k for k in range(len(table.names)) if k != index and k not in left_out]
    if features is not None:
        columns = _columns_named(table, features, "the model was trained on")
    if index is not None and index in columns:
        raise DataError(
            f"{table.names[index]!r} is the target; a model that sees it learns nothing else"
        )
    if not columns:
        raise DataError(f"{table.shown} has one column only; a target needs columns to learn from")
    asked = [*kept, *([] if features is None else columns), *([] if index is None else [index])]
    for k in asked:
        if k in table.unusable:
            raise DataError(
                f"{table.shown}: column {table.names[k]!r} cannot be read: {table.unusable[k]}"
            )
    as_text = kept if index is None or is_quantity(table, index, task) else [index, *kept]
    if preparation is not None:
        kinds = zip(columns, preparation.used, strict=True)
        as_text = [*as_text, *(k for k, plan in kinds if plan.kind in ("category", "time"))]
    values = table.read(text=as_text)
    y, names, found, rows = None, None, None, None
    if index is not None:
        found = target_values(table, values[index], index, task)
        y, names = as_targets(found, task, table.shown)
        if learn_from is not None:
            rows = learn_from(len(y), labels=None if names is None else y)
    learns = preparation is None
    x, preparation = _inputs(table, values, columns, preparation, rows, embed)
    if found is not None and names is None:
        numbers = found.astype(np.float64)
        if learns:
            offset = offset_of(numbers if rows is None else numbers[rows])
            preparation = replace(preparation, target_offset=offset)
        y = (numbers - preparation.target_offset).astype(np.float32)[:, None]
    return Dataset(
        x,
        y,
        class_names=names,
        feature_names=tuple(column.name for column in preparation.used),
        target_name=None if index is None else table.names[index],
        kind="csv",
        kept=_kept(values, kept, keep),
        preparation=preparation,
    )


def _inputs(
    table: AnyTable,
    values: list[HostArray],
    columns: list[int],
    preparation: Preparation | None,
    rows: HostArray | None,
    embeds: bool,
) -> tuple[HostArray, Preparation]:
    """The columns as (N, width) float32, prepared as is said or, first, learnt from some rows."""
    if preparation is None:
        wrong = [partial(_wrong_value, table, k) for k in columns]
        found = [_numbers_or_text(table, values, k) for k in columns]
        names = [table.names[k] for k in columns]
        given = [table.unusable.get(k, column) for k, column in zip(columns, found, strict=True)]
        preparation = Preparation.learnt(names, given, wrong, rows, embeds)
        preparation = replace(preparation, decimal=table.decimal)
        used = [k for k, plan in enumerate(preparation.columns) if plan.kind != "left out"]
        x = preparation.encoded([found[k] for k in used], [wrong[k] for k in used])
    else:
        wrong = [partial(_wrong_value, table, k) for k in columns]
        found = [_numbers(table, values, k) if plan.kind == "number" else values[k]
                 for k, plan in zip(columns, preparation.used, strict=True)]  # fmt: skip
        x = preparation.encoded(found, wrong)
    beyond = np.argwhere(~np.isfinite(x))
    if len(beyond):
        raise DataError(
            f"{table.shown}: numbers must be finite, and fit into float32; row "
            f"{beyond[0][0] + 1} has one that does not"
        )
    return x, preparation


def _numbers_or_text(table: AnyTable, values: list[HostArray], k: int) -> HostArray:
    """A column whose text is meant as text: a word among numbers is not."""
    column = values[k]
    if column.dtype.kind == "f" or table.is_text(k):
        return column
    present = [text for text in dict.fromkeys(column) if text is not None]
    words = [text for text in present if table.plain_number(text) is None]
    infinite = next((text for text in words if _INFINITE.fullmatch(text)), None)
    if infinite is not None and len(words) < len(present):
        raise _wrong_value(table, k, "number", list(column).index(infinite))
    if not words and not any(map(is_padded, present)):
        return _numbers(table, values, k)
    if words and len(words) <= (1.0 - MOSTLY_NUMBERS) * len(present):
        raise _wrong_value(table, k, "number", list(column).index(words[0]))
    return column


def _numbers(table: AnyTable, values: list[HostArray], k: int) -> HostArray:
    """A column in float64, NaN where a value is missing."""
    column = values[k]
    if column.dtype.kind == "f":
        return column
    texts = [None if text is None else table.plain_number(text) for text in column]
    for row, (text, number) in enumerate(zip(column, texts, strict=True)):
        if text is not None and number is None:
            raise _wrong_value(table, k, "number", row)
    return np.array([float(text or "nan") for text in texts])


def _kept(
    values: list[HostArray], columns: list[int], names: Sequence[str]
) -> dict[str, list[str]]:
    """Columns as text, "" where a value is missing."""
    texts = (["" if text is None else text for text in values[k]] for k in columns)
    return dict(zip(names, texts, strict=True))


def _columns_named(table: AnyTable, names: Sequence[str], why: str) -> list[int]:
    places = {name: k for k, name in enumerate(table.names)}
    for name in names:
        if name not in places:
            raise DataError(
                f"{table.shown} has no column {name!r}, which {why}; its columns are "
                f"{', '.join(table.names)}"
            )
    return [places[name] for name in names]


def _wrong_value(table: AnyTable, column: int, what: str, row: int) -> DataError:
    """The error for a value that is not what its column holds."""
    line, fields = table.line(row)
    text = fields[column].strip()
    where = f"{table.shown}, {table.unit} {line}, column {table.names[column]!r}"
    if is_number(text) and table.plain_number(text) is None:
        return DataError(f"{where}: decimals have a comma in this file; found {text!r}")
    if is_number(text) or text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return DataError(f"{where}: numbers must be finite; found {text!r}")
    remedy = "Correct it, or leave the column out"
    if not text:
        remedy = "Fill the missing value or remove the row"
    return DataError(f"{where}: a {what} belongs here; found {text!r}. {remedy}")
