"""Files: writing them whole, and reading rows of arrays that are mapped into memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

HostArray = np.ndarray[Any, Any]
Path_ = str | os.PathLike[str]


def write_atomically(path: Path_, content: bytes) -> None:
    """Write a file so that it appears whole or not at all; the old one survives an error."""
    import tempfile

    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {target.absolute().parent} does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):  # name the file that was asked for
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


#: Scattered rows read from a file before its pages are given back: the system may map 2 MiB
#: around each.
_MAPPED_ROWS = 64


class RowSubset:
    """Some rows of a memory-mapped array, read when they are asked for."""

    def __init__(self, x: HostArray, index: HostArray) -> None:
        self.base, self.index = x, index
        self.dtype, self.shape, self.ndim = x.dtype, (len(index), x.shape[1]), 2

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | HostArray) -> HostArray:
        return np.asarray(self.base[self.index[rows]])


def read_rows(x: Any, rows: slice | HostArray) -> HostArray:
    """``x[rows]``; of a memory-mapped file with little of it mapped at any time."""
    if isinstance(rows, slice) and isinstance(x, RowSubset):
        rows = np.arange(rows.start, min(rows.stop, len(x)))
    if isinstance(rows, slice) or not isinstance(x, np.memmap | RowSubset):
        values = np.asarray(x[rows])
        release_pages(x)
        return values
    values = np.empty((len(rows), x.shape[1]), x.dtype)
    for start in range(0, len(rows), _MAPPED_ROWS):
        part = slice(start, start + _MAPPED_ROWS)
        values[part] = x[rows[part]]
        release_pages(x)
    return values


def release_pages(x: Any) -> None:
    """Give back the memory of the pages of a memory-mapped file that were read; they stay in
    the system's file cache."""
    file: Any = x.base if isinstance(x, RowSubset) else x
    mapped = getattr(file, "_mmap", None)
    # a copy-on-write mapping would lose what was written to it
    if mapped is not None and hasattr(mapped, "madvise") and file.mode != "c":
        import mmap

        mapped.madvise(mmap.MADV_DONTNEED)
