"""DuckDB, which reads tables. A process has one database, without a name and without tables: making
one takes 15 ms, as long as reading a small file."""

from __future__ import annotations

import os
import threading
from typing import Any

INSTALL = 'pip install "nnbackend[tables]"'

_lock = threading.Lock()
_database: Any = None


def duckdb_module() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ImportError(
            f"reading tables needs DuckDB, which is not installed: {INSTALL}"
        ) from error
    return duckdb


def connection() -> Any:
    """A connection of the caller's own."""
    global _database
    module = duckdb_module()
    with _lock:
        if _database is None:
            _database = module.connect()
        return _database.cursor()


def _before_fork() -> None:
    """A child has none of its parent's threads, without which a database cannot even end. Readers
    that are at work keep the one they have."""
    global _database
    _lock.acquire()
    _database = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def literal(text: object) -> str:
    """In SQL."""
    return "'" + str(text).replace("'", "''") + "'"
