"""Reading a file or a folder by what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnbackend._files import existing_file
from nnbackend._types import PathLike
from nnbackend.data.csv import is_table, read_csv
from nnbackend.data.dataset import Dataset, Task
from nnbackend.data.idx import holds_idx, read_idx
from nnbackend.data.images import read_images
from nnbackend.data.npz import read_npz
from nnbackend.errors import DataError


def read(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
    *,
    with_targets: bool = True,
    **layout: Any,
) -> Dataset:
    """Read a file or folder according to its kind: a table (.csv, .tsv, .txt, .data, also
    compressed), .npz, IDX, or images.

    Args:
        target, task, features: see ``read_csv``.
        with_targets: False for predictions: targets of other files than CSV are not read.
        layout: ``learn_from``, ``drop``, ``keep``, ``sep``, ``decimal``, ``encoding`` and
            ``header`` of a table, see ``read_csv``.
    """
    path = Path("-") if isinstance(path, str) and path == "-" else existing_file(path, folders=True)
    if is_table(str(path)) and not path.is_dir():
        return read_csv(path, target, task, features, **layout)
    if path.is_dir():
        if holds_idx(path):
            return read_idx(path, with_targets=with_targets)
        return read_images(path, with_targets=with_targets)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return read_npz(path, task, with_targets=with_targets)
    if "idx" in path.name.lower() or suffix == ".gz":
        return read_idx(path, with_targets=with_targets)
    raise DataError(
        f"{path} is of no known kind: a table (.csv, .tsv, .txt, .data, .parquet), .npz, IDX (idx "
        f"in its name), or a folder of IDX files or images. Save another kind of table as .csv"
    )
