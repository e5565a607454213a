"""Runs the command line as a user would."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "nnbackend.cli"]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=settings, timeout=120
    )


def figure(output: str, name: str, column: str) -> float:
    """A figure of the table that ``train`` prints at the end; shares in percent."""
    lines = output.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["training"])
    row = next(line for line in lines[header:] if line.startswith(name))
    values = row.removeprefix(name).replace("%", "").split()
    return float(values[lines[header].split().index(column)])
