"""The folders that keep compiled code, and who may have written it."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Settings of Numba that change the code it makes.
_SETTINGS = (
    "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "DISABLE_INTEL_SVML", "BOUNDSCHECK",
    "CPU_NAME", "CPU_FEATURES", "DEBUGINFO_DEFAULT", "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS",
    "LLVM_PASS_TIMINGS", "USE_LLVMLITE_MEMORY_MANAGER",
)  # fmt: skip


class CacheFolders(NamedTuple):
    """Folders to read compiled code from, and the one to write it to, if there is one."""

    read: tuple[Path, ...]
    write: Path | None


def cache_folders() -> CacheFolders:
    """Folders for compiled code, named by everything that decides what they contain.

    They lie below ``NUMBA_CACHE_DIR``, the user's cache folder, and a folder among the temporary
    files. Only those count to which nobody but this user and the system's administrator can
    write, nor to any folder above: code that is read is run. One that cannot be written to is
    read all the same, as in a container image. Without any, nothing is kept.
    """
    name = f"nnbackend-{_fingerprint()}"
    read: list[Path] = []
    for base in _cache_bases():
        folder = base / name
        try:
            _make(folder)
        except OSError:
            continue
        resolved = Path(os.path.realpath(folder))  # what was checked, whatever links say later
        if not resolved.is_dir() or not is_private(resolved):
            continue
        read.append(resolved)
        if os.access(resolved, os.W_OK | os.X_OK):
            return CacheFolders(tuple(read), resolved)
    return CacheFolders(tuple(read), None)


def _cache_bases() -> list[Path]:
    from numba.misc.appdirs import user_cache_dir

    bases = []
    if os.environ.get("NUMBA_CACHE_DIR"):
        bases.append(Path(os.environ["NUMBA_CACHE_DIR"]).absolute())
    own = Path(user_cache_dir("nnbackend", appauthor=False))
    if own.is_absolute():  # without a home it is a folder named ~
        bases.append(own)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    with suppress(FileNotFoundError):  # where nothing can be written anywhere
        bases.append(Path(tempfile.gettempdir()) / f"nnbackend-cache-{user}")
    return bases


def _make(folder: Path) -> None:
    """Make a folder and those above it that are missing, each for this user alone."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def is_private(folder: Path) -> bool:
    """Whether nobody but this user and the administrator can change what is in a folder, or put
    another one in its place: that is so if it holds for each folder on the way to it."""
    if not hasattr(os, "getuid"):
        return True
    for path in (folder, *folder.parents):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.getuid()):
            return False
        others = status.st_mode & stat.S_IWOTH or (
            status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
        )
        # in a folder like /tmp others may make entries, but not touch those of their betters
        if others and (path == folder or not status.st_mode & stat.S_ISVTX):
            return False
    return True


def _is_own_group(gid: int) -> bool:
    """Whether a group has no member but this user or the administrator."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and not group.gr_mem


def _fingerprint() -> str:
    """Hash of the kernels' sources, the versions and settings that compile them and the
    processor."""
    import llvmlite
    import numba
    import numpy
    from llvmlite import binding

    from nnbackend.kernels import codes

    digest = hashlib.sha256()
    folder = Path(codes.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    versions = (sys.version, numba.__version__, llvmlite.__version__, numpy.__version__)
    settings = [(name, getattr(numba.config, name, None)) for name in _SETTINGS]
    settings.append(("LLVM_ARGS", os.environ.get("LLVMLITE_LLVM_ARGS")))
    found = (versions, settings, platform.machine(), binding.get_host_cpu_name())
    digest.update(repr(found).encode())
    digest.update(repr(sorted(binding.get_host_cpu_features().items())).encode())
    return digest.hexdigest()[:16]
