"""Text files that another library can read: unpacked, or copied from standard input."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import select
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nnbackend._files import existing_file
from nnbackend.errors import DataError, NNBackendError, OutOfMemoryError

#: What opens a compressed file; gzip is also known to DuckDB.
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


#: Bytes that a compressed table may become: so many times its own, and these in any case.
MOST_RATIO, LEAST_BYTES = 1000, 1 << 26


@contextmanager
def readable(shown: str) -> Iterator[None]:
    """Inside, whatever the libraries that read a file raise says that the file cannot be read."""
    try:
        yield
    except (NNBackendError, ImportError, FileNotFoundError):
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"there is not the memory to read {shown}") from error
    except Exception as error:  # of damaged files they raise nearly anything
        if type(error).__name__ == "OutOfMemoryException":  # DuckDB's
            raise OutOfMemoryError(f"there is not the memory to read {shown}") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{shown} cannot be read as a table: {reason}") from error


def plain_file(path: Path, stack: ExitStack) -> Path:
    """A file that DuckDB can read: standard input, and what it cannot unpack, are copied."""
    if str(path) == "-":
        return _copied(sys.stdin.buffer, stack)
    path = existing_file(path)
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
        return _copied(stack.enter_context(archive.open(inside[0])), stack, path)
    if suffix in (".bz2", ".xz"):
        try:
            return _copied(stack.enter_context(OPENERS[suffix](path, "rb")), stack, path)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
    return path


def _copied(source: IO[bytes], stack: ExitStack, packed: Path | None = None) -> Path:
    """``source`` in a file of its own; of a packed one, no more than tables become."""
    left = math.inf
    if packed is not None:
        left = MOST_RATIO * packed.stat().st_size + LEAST_BYTES
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    copy = Path(folder) / "table.csv"
    # one piece of a pipe at a time: between them signals are seen
    read = getattr(source, "read1", source.read)
    with copy.open("wb") as file:
        while _waited_for(source) and (block := read(1 << 20)):
            left -= len(block)
            if left < 0:
                raise DataError(
                    f"{packed} is more than {MOST_RATIO} times as large when it is unpacked, which "
                    f"no table is; unpack it yourself if it is one"
                )
            file.write(block)
    return copy


def _waited_for(source: IO[bytes]) -> bool:
    """True when there is something to read, or nothing to come. A signal just before a read would
    be seen only after it, which a pipe may never end: here it is seen within a second."""
    with suppress(OSError, ValueError, AttributeError):  # what cannot be waited for is read
        while not select.select([source], [], [], 1.0)[0]:
            pass
    return True


def copied_text(lines: Iterator[str], stack: ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    copy = Path(folder) / "table.csv"
    with copy.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
    return copy
