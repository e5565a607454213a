"""Files: writing them whole, and reading rows of arrays that are mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnbackend._checks import check_path
from nnbackend._memory import resident_bytes
from nnbackend._types import HostArray, PathLike
from nnbackend.errors import DataError

#: Seconds after which a temporary file that nobody holds is one that a killed process left.
_ABANDONED = 60.0
_ON_WINDOWS = os.name == "nt"


def write_atomically(path: PathLike, content: bytes) -> None:
    """Write a file so that it appears whole or not at all; the old one survives an error.

    An existing file keeps its mode and, where that is allowed, its owner. Of one with several
    hard links the content is replaced, once a whole copy is on the disk. Links are followed; pipes
    and devices, standard output too, are written to as they are.
    """
    if _is_in_place(path):
        _append(path, content)
        return
    target = Path(os.path.realpath(path))
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it")
    temporary = _temporary_name(target)
    try:
        _replace(target, content, temporary)
    except KeyboardInterrupt:
        _remove(temporary)  # again: a second Ctrl-C may have come before it was gone
        raise
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(target: Path, content: bytes, temporary: Path) -> None:
    """Write the temporary file, and put it in the place of ``target``."""
    try:
        _remove_abandoned(target)
        with _new_temporary(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            before = _keep_mode(target, file.fileno())
            if _ON_WINDOWS:
                file.close()  # what is open can be neither moved nor removed there
            if before is not None and before.st_nlink > 1:
                _overwrite(target, content, temporary)
                temporary.unlink()
            else:
                _move(temporary, target)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):  # name the file that was asked for
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise


def _move(temporary: Path, target: Path) -> None:
    """Put a file in the place of another one. On Windows, whatever looks through new files, for
    viruses say, holds them for a moment."""
    for wait in (0.02, 0.05, 0.1, 0.2, 0.5) if _ON_WINDOWS else ():
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(temporary, target)


def _is_in_place(path: PathLike) -> bool:
    """Whether this is a pipe or a device, or a link to a file that somebody has open already, as
    /dev/stdout is: such a thing is not replaced."""
    place = os.path.abspath(path)
    for _ in range(40):  # as many links as the system follows
        parent = os.path.realpath(os.path.dirname(place))
        if parent.startswith(("/proc/", "/dev/fd")):
            return True
        place = os.path.join(parent, os.path.basename(place))
        if not os.path.islink(place):
            break
        place = os.path.join(parent, os.readlink(place))
    try:
        mode = os.stat(place).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _append(path: PathLike, content: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]


def existing_file(path: PathLike, folders: bool = False) -> Path:
    """A file that is there, or a folder where ``folders`` says so, to be read.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is a device or a pipe, which may have no end.
    """
    found = Path(check_path("path", path))
    if not found.exists():
        raise FileNotFoundError(f"there is no file{' or folder' if folders else ''} {found}")
    if not found.is_file() and not (folders and found.is_dir()):
        what = "a folder" if found.is_dir() else "a device or a pipe"
        raise DataError(f"{found} must be a file; it is {what}")
    return found


def check_writable(path: PathLike) -> None:
    """Find out before a long job that a file could not be written.

    Raises:
        OSError: why not, with the file's name.
    """
    if _is_in_place(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it")
    temporary = _temporary_name(target)
    try:
        _new_temporary(temporary).close()
        temporary.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error


def _remove(temporary: Path) -> None:
    """Also where Ctrl-C comes once more."""
    for _ in range(5):
        try:
            os.unlink(temporary)
        except OSError:
            return
        except KeyboardInterrupt:  # the first one is on its way up already
            continue


def _temporary_name(target: Path) -> Path:
    name = f"{_temporary_prefix(target)}{os.getpid()}-{os.urandom(4).hex()}.tmp"
    return target.parent / name


def _new_temporary(temporary: Path) -> IO[bytes]:
    """A new file, locked as long as it is open."""
    # the mode that the process's umask leaves, which cannot be asked for without changing it
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(temporary, flags, 0o666), "wb")
    _lock(file.fileno())
    return file


def _temporary_prefix(target: Path) -> str:
    # names have at most 255 bytes, and those of other alphabets several for each character
    short = os.fsencode(target.name)[:180].decode("utf-8", "ignore")
    return f".{short}."


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left of earlier attempts to write ``target``."""
    prefix = _temporary_prefix(target)
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix) or not entry.name.endswith(".tmp"):
                continue
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime < _ABANDONED:
                    continue
                if _ON_WINDOWS:
                    os.unlink(entry.path)  # which fails where somebody has it open
                    continue
                handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    if _lock(handle):
                        os.unlink(entry.path)
                finally:
                    os.close(handle)


def _lock(handle: int) -> bool:
    """Whether a file could be locked: nobody else has it open for writing it here."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _keep_mode(target: Path, handle: int) -> os.stat_result | None:
    """Give a new file the mode and owner of the one that it replaces, whose status is returned."""
    try:
        before = os.stat(target)
    except FileNotFoundError:
        return None
    if hasattr(os, "fchown"):
        now = os.fstat(handle)
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            with contextlib.suppress(OSError):
                os.fchown(handle, before.st_uid, before.st_gid)
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(handle, stat.S_IMODE(before.st_mode))
    return before


def _overwrite(target: Path, content: bytes, whole: Path) -> None:
    """Replace what is in a file, for which there is room: it is reserved before."""
    with open(target, "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if len(content) > size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, len(content))
            except OSError as error:
                file.truncate(size)
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # it may not be able to
                    raise
        try:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            file.truncate(len(content))
            os.fsync(file.fileno())
        except BaseException as error:  # Ctrl-C, too, leaves a part of each content
            kept = whole.with_suffix(".whole")
            os.replace(whole, kept)
            if not isinstance(error, OSError):
                raise
            raise OSError(
                error.errno, f"{error.strerror}; the new content is whole in {kept}", str(target)
            ) from error


#: Bytes of a file that are mapped before they are given back.
_MAPPED_BYTES = 1 << 26


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
    """``x[rows]``; of a file that is larger than memory, little is mapped at any time."""
    if isinstance(rows, slice) and isinstance(x, RowSubset):
        rows = np.arange(rows.start, min(rows.stop, len(x)))
    if isinstance(rows, slice) or not _is_large_file(x):
        whole = np.asarray(x[rows])
        release_pages(x)
        return whole
    numbers = rows
    if isinstance(x, RowSubset):
        x, numbers = x.base, x.index[rows]
    # in the order in which they lie in the file: it is then read forwards, and once
    order = np.argsort(numbers, kind="stable")
    sorted_rows = numbers[order]
    span = sorted_rows * abs(x.strides[0]) // _MAPPED_BYTES
    ends = [*(np.flatnonzero(np.diff(span)) + 1), len(order)]
    values: HostArray = np.empty((len(order), x.shape[1]), x.dtype)
    start = 0
    for end in ends:
        values[order[start:end]] = x[sorted_rows[start:end]]
        _release(x)
        start = end
    return values


def _mapped(x: Any) -> Any:
    """The memory-mapped array behind ``x``, if there is one."""
    file = x.base if isinstance(x, RowSubset) else x
    return file if isinstance(file, np.memmap) else None


def _is_large_file(x: Any) -> bool:
    """Whether these are rows of a file that memory does not hold."""
    file = _mapped(x)
    return file is not None and file.nbytes > resident_bytes()


def release_pages(x: Any) -> None:
    """Give back the memory of the pages that were read of a memory-mapped file, if it is larger
    than memory; they stay in the system's file cache."""
    if _is_large_file(x):
        _release(x)


def _release(x: Any) -> None:
    file = _mapped(x)
    mapped = getattr(file, "_mmap", None)
    # a copy-on-write mapping would lose what was written to it
    if mapped is not None and hasattr(mapped, "madvise") and file.mode != "c":
        import mmap

        mapped.madvise(mmap.MADV_DONTNEED)
