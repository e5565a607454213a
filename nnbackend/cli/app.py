"""The command line: train, evaluate, predict, summary, info, warmup, bench."""

from __future__ import annotations

import sys

# in the order of the help
from nnbackend.cli import models as models  # isort: skip
from nnbackend.cli import machine as machine  # isort: skip
from nnbackend.cli.common import app, outlive_outputs


def main() -> None:
    """Entry point; wrong options are a user error, exit code 1."""
    outlive_outputs()
    try:
        app()
    except SystemExit as stop:
        sys.exit(1 if stop.code == 2 else stop.code)
