"""Drivers: compiled functions that take a caller's arrays, kept in files with a digest.

Numba's own files of this kind have none: an empty or damaged one raises in every process, or
crashes it.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import serialize
from numba.core.caching import CompileResultCacheImpl, _Cache
from numba.core.compiler import CompileResult

from nnbackend._memory import check_limits
from nnbackend.kernels.cpu.codegen.objects import BEFOREHAND, DRIVER_BYTES
from nnbackend.kernels.cpu.codegen.store import Store


class DriverCache(_Cache):  # type: ignore[misc]
    """What Numba asks for code that was compiled before, by its signature."""

    cache_path = ""

    def __init__(self, name: str, store: Store) -> None:
        self._name, self._store = name, store

    def _file(self, signature: Any) -> str:
        return f"{self._name}-{hashlib.sha256(repr(signature).encode()).hexdigest()[:16]}.driver"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        content = self._store.read(self._file(sig))
        if content is None:
            check_limits("compiling an entry to the kernels", DRIVER_BYTES, BEFOREHAND)
            return None
        target_context.refresh()
        # the digest and the folder say that this process's user wrote it
        return CompileResult._rebuild(target_context, *pickle.loads(content))  # noqa: S301

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function."""
        if CompileResultCacheImpl.check_cachable(self, data):
            self._store.write(self._file(sig), serialize.dumps(data._reduce()))

    def enable(self) -> None:
        return

    def disable(self) -> None:
        return

    def flush(self) -> None:
        return


def driver(function: Callable[..., Any], store: Store) -> Any:
    """``function`` compiled for whatever it is called with, without the GIL, and kept."""
    made = njit(nogil=True)(function)
    made._cache = DriverCache(function.__name__, store)
    return made


def driver_of_numbers(
    function: Callable[..., Any], count: int, releases: bool, store: Store
) -> Callable[..., Any]:
    """``function`` of so many integers: without a look at what it is called with, and, if it does
    not release the GIL, without that either; both take as long as a small product."""
    made = njit(nogil=releases)(function)
    suffix = "" if releases else "-holding"
    made._cache = DriverCache(function.__name__ + suffix, store)
    entry: Callable[..., Any] = made.compile((types.int64,) * count)
    return entry
