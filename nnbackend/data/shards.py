"""Data in many files, larger than memory: read one after another, the next one ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnbackend._checks import check_flag, check_seed, check_size
from nnbackend._files import existing_file
from nnbackend._types import HostArray, PathLike
from nnbackend.data.csv import is_table
from nnbackend.data.dataset import Task, align_classes
from nnbackend.data.readers import read
from nnbackend.errors import DataError, NNBackendError

Batch = tuple[HostArray, HostArray]


class HasRank(Protocol):
    """A communicator, or what knows as much."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...


class Shards:
    """Batches from the files of a folder: ``.npz``, tables (.csv ..., also compressed) or Parquet.

    >>> shards = nn.datasets.Shards("measurements/", batch_size=256)  # doctest: +SKIP
    >>> model.fit(shards, epochs=3)  # doctest: +SKIP

    One file is in memory, and the next one is being read. The first one, in the order of their
    names, says which columns and classes there are: it is ``example``, from which a model's layers
    can be made, ``shards.example.input_layers()``, whose ``Standardize`` then learns from it with
    ``layer.adapt(shards.example.x)``.

    Args:
        folder: its files of these kinds are used; others are passed over.
        batch_size: rows of a batch, on all ranks together. The last one may be smaller.
        target, task, features: see ``read_csv``.
        class_names: all classes, if the first file has not each of them.
        shuffle: draw a new order of the files, and of the rows in each, for every epoch.
        seed: of these orders.
        comm: ranks that share the files, for ``fit(shards, comm=comm, sharded=True)``: each reads
            some; if there are fewer files than ranks, each takes some rows of every file.
        layout: of tables, see ``read_csv``.

    Attributes:
        paths: the files that this rank reads.
        first, example: the first of all files, and its ``Dataset``.
        epoch: number of the next pass, by which its order is drawn; a training with metrics that
            are functions makes two for each epoch.
        size: number of ranks that share the files.

    Raises:
        DataError: the folder has no such file; a file has other columns or classes.
    """

    def __init__(
        self,
        folder: PathLike,
        batch_size: int = 32,
        target: str | int | None = None,
        task: Task = "auto",
        features: Sequence[str] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        comm: HasRank | None = None,
        **layout: Any,
    ) -> None:
        rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
        batch_size = check_size("batch_size", batch_size)
        self.size = size
        self.batch_size = batch_size * (rank + 1) // size - batch_size * rank // size
        if batch_size < size:
            raise DataError(f"batch_size must be at least the {size} ranks; received {batch_size}")
        self.shuffle, self.seed, self.epoch = check_flag("shuffle", shuffle), check_seed(seed), 0
        paths = _files_of(existing_file(folder, folders=True))
        self.first = paths[0]
        self.example = read(paths[0], target, task, features, **layout)
        if self.example.y is None:
            raise DataError(f"{paths[0]} has no targets to learn")
        names = self.example.class_names
        if class_names is not None and names is None:
            raise DataError(
                f"class_names are for classes; the targets of {paths[0]} are numbers to be "
                f"predicted. task='classification' makes classes of them"
            )
        if class_names is not None:
            names = tuple(map(str, class_names))
            self.example = align_classes(self.example, names)
        self._layout = layout
        self._task: Task = "regression" if names is None else "classification"
        divides_rows = len(paths) < size
        self.paths = paths if divides_rows else paths[rank::size]
        #: of each file, every ``_every``-th row from ``_first`` on
        self._first, self._every = (rank, size) if divides_rows else (0, 1)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of an epoch."""
        rng = np.random.default_rng((self.seed or 0, self.epoch))
        self.epoch += 1
        first, *others = self.paths
        if self.shuffle:
            first, *others = (self.paths[i] for i in rng.permutation(len(self.paths)))
        left: Batch | None = None
        with ThreadPoolExecutor(1, "nnbackend-shards") as pool:
            ahead: Future[Batch] = pool.submit(self._read, first)
            for path in (*others, None):
                x, y = ahead.result()
                if path is not None:
                    ahead = pool.submit(self._read, path)
                if self.shuffle:
                    order = rng.permutation(len(x))
                    x, y = x[order], y[order]
                if left is not None:
                    x, y = np.concatenate([left[0], x]), np.concatenate([left[1], y])
                whole = len(x) // self.batch_size * self.batch_size
                for start in range(0, whole, self.batch_size):
                    stop = start + self.batch_size
                    yield x[start:stop], y[start:stop]
                left = x[whole:], y[whole:]
        if left is not None and len(left[0]):
            yield left

    def _read(self, path: Path) -> Batch:
        """This rank's rows of a file, with the columns and classes of the first one."""
        example, more = self.example, dict(self._layout)
        try:
            if is_table(path.name):
                more["preparation"] = example.preparation
                data = read(path, example.target_name, self._task, **more)
            else:
                data = read(path, None, self._task)
            if example.class_names is not None:
                data = align_classes(data, example.class_names)
        except NNBackendError as error:
            raise DataError(
                f"{path}, after the columns and classes of {self.first}: {error}"
            ) from error
        if data.y is None or data.x.shape[1] != example.x.shape[1]:
            raise DataError(
                f"{path} has rows of {data.x.shape[1]} numbers; the first file has rows of "
                f"{example.x.shape[1]}"
            )
        some = slice(self._first, None, self._every)
        return data.x[some], data.y[some]


def _files_of(folder: Path) -> list[Path]:
    """The files with rows, by name."""
    if not folder.is_dir():
        raise DataError(f"Shards reads the files of a folder; {folder} is none")
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and (is_table(path.name) or path.suffix.lower() == ".npz")
    ]
    found = [path for path in found if not path.name.startswith((".", "_"))]
    if not found:
        raise DataError(f"{folder} has no .npz file and no table (.csv, .parquet ...)")
    return found
