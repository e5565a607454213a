"""Writing files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

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
