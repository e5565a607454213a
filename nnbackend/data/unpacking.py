"""Text files that another library can read: unpacked, or copied from standard input."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from nnbackend.data.dataset import existing
from nnbackend.errors import DataError

#: What opens a compressed file; gzip is also known to DuckDB.
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def plain_file(path: Path, stack: ExitStack) -> Path:
    """A file that DuckDB can read: standard input, and what it cannot unpack, are copied."""
    if str(path) == "-":
        return _copied(sys.stdin.buffer, stack)
    path = existing(path)
    if set("*?[") & set(str(path)):  # DuckDB would look for files of such names
        link = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"table{path.suffix}"
        link.symlink_to(path.resolve())
        path = link
    suffix = path.suffix.lower()
    if suffix == ".zip":
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
        inside = [name for name in archive.namelist() if not name.endswith("/")]
        if len(inside) != 1:
            raise DataError(f"{path} must hold one file; it holds {len(inside)}")
        return _copied(stack.enter_context(archive.open(inside[0])), stack)
    if suffix in (".bz2", ".xz"):
        try:
            return _copied(stack.enter_context(OPENERS[suffix](path, "rb")), stack)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
    return path


def _copied(source: IO[bytes], stack: ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    copy = Path(folder) / "table.csv"
    with copy.open("wb") as file:
        while block := source.read(1 << 20):
            file.write(block)
    return copy


def copied_text(lines: Iterator[str], stack: ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    copy = Path(folder) / "table.csv"
    with copy.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
    return copy
