"""Runs programs as ranks, as ``mpiexec`` does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "nnbackend.cli"]
Done = subprocess.CompletedProcess[str]


def mpiexec() -> str:
    """The program that starts ranks, of this environment or of the machine."""
    own = Path(sys.executable).with_name("mpiexec")
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec")
    return found


def run_ranks(
    size: int, command: list[str], folder: Path, timeout: float = 120, **environment: str
) -> Done:
    """A command on so many ranks."""
    pytest.importorskip("mpi4py")
    settings = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [mpiexec(), "-n", str(size), *command],
        capture_output=True, text=True, cwd=folder, env=settings, timeout=timeout,
    )  # fmt: skip


def run_script(size: int, text: str, folder: Path, **environment: str) -> Done:
    """A script on so many ranks."""
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    return run_ranks(size, [sys.executable, str(path)], folder, **environment)
