"""The folder that keeps compiled code."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Folder for compiled code, named by everything that decides what it contains.

    Below ``NUMBA_CACHE_DIR``, or the user's cache folder, or, where neither can be written, a
    folder of our own among the temporary files.
    """
    name = f"nnbackend-{_fingerprint()}"
    for base in _cache_bases():
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK) and _is_own(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


def _cache_bases() -> list[Path]:
    from numba.misc.appdirs import user_cache_dir

    bases = []
    if os.environ.get("NUMBA_CACHE_DIR"):
        bases.append(Path(os.environ["NUMBA_CACHE_DIR"]))
    bases.append(Path(user_cache_dir("nnbackend", appauthor=False)))
    user = os.getuid() if hasattr(os, "getuid") else "user"
    bases.append(Path(tempfile.gettempdir()) / f"nnbackend-cache-{user}")
    return bases


def _is_own(folder: Path) -> bool:
    """Compiled code is run: nobody else may have written it."""
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others


def _fingerprint() -> str:
    """Hash of the kernels' sources, the versions that compile them and the processor."""
    import llvmlite
    import numba
    import numpy

    from nnbackend.kernels import codes

    digest = hashlib.sha256()
    folder = Path(codes.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    from llvmlite import binding

    versions = (sys.version, numba.__version__, llvmlite.__version__, numpy.__version__)
    digest.update(repr((versions, platform.machine(), binding.get_host_cpu_name())).encode())
    digest.update(repr(sorted(binding.get_host_cpu_features().items())).encode())
    checked = "checked-" if numba.config.BOUNDSCHECK else ""
    return checked + digest.hexdigest()[:16]
