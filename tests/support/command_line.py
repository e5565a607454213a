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
