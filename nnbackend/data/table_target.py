"""The target of a table: which column it is, and whether it is classes or quantities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnbackend._types import HostArray
from nnbackend.data.dataset import MOST_CLASSES, Task
from nnbackend.data.frames import FrameTable
from nnbackend.data.number_text import is_padded
from nnbackend.data.parquet import ParquetTable
from nnbackend.data.tables import Table
from nnbackend.errors import DataError, DTypeError, shown, unknown_name

AnyTable = Table | ParquetTable | FrameTable


class MissingTargetError(DataError):
    """A CSV has no column of the target's name."""


def target_column(table: AnyTable, target: object) -> int:
    names = table.names
    if target is None:
        return len(names) - 1
    if isinstance(target, str):
        if target in names:
            return names.index(target)
        if target.isdecimal() and len(target) < 10 and int(target) < len(names):
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


def is_quantity(table: AnyTable, index: int, task: Task) -> bool:
    """Whether the target can be read as numbers at once, without a look at how they are written."""
    varied = task == "auto" and table.variety[index] > MOST_CLASSES
    return table.is_numeric(index) and (task == "regression" or varied)


def target_values(table: AnyTable, values: HostArray, index: int, task: Task) -> HostArray:
    """Text, or numbers where they are meant as such."""
    name = table.names[index]
    if values.dtype.kind == "f":
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            raise _no_target(table, int(missing[0]), index)
        return values
    numbers: dict[str | None, str | None] = {}
    for text in dict.fromkeys(values):
        if text is None or not text.strip():
            raise _no_target(table, list(values).index(text), index)
        numbers[text] = table.plain_number(text)
    other = next((text for text, number in numbers.items() if number is None), None)
    if other is not None and task == "regression":
        line = table.line(list(values).index(other))[0]
        raise DataError(
            f"{table.shown}, {table.unit} {line}, column {name!r}: regression needs numbers; found "
            f"{other!r}. Signs such as $ and % have to be taken out of the file"
        )
    # 036 is a name: as a number it would lose its zero
    padded = task != "regression" and any(is_padded(text or "") for text in numbers.values())
    if other is not None or padded:
        return np.array([text.strip() for text in values])
    return _as_numbers(numbers, values)


def _no_target(table: AnyTable, row: int, index: int) -> DataError:
    line, fields = table.line(row)
    found = fields[index].strip()
    what = f"is missing; found {found!r}" if found else "is empty"
    return DataError(
        f"{table.shown}, {table.unit} {line}: the target {table.names[index]!r} {what}"
    )


def _as_numbers(numbers: Mapping[str | None, str | None], values: HostArray) -> HostArray:
    """In int64 if they are whole numbers, which do not all fit into float64."""
    texts = {given: text or "" for given, text in numbers.items()}
    if all(text.lstrip("+-").isdecimal() and len(text) < 40 for text in texts.values()):
        whole = {given: int(text) for given, text in texts.items()}
        if max(map(abs, whole.values())) < 1 << 63:
            return np.array([whole[given] for given in values], np.int64)
    parsed = {given: float(text) for given, text in texts.items()}
    return np.array([parsed[given] for given in values])
