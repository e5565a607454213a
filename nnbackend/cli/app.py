"""The command line: train, evaluate, predict, summary, info, warmup, bench."""

from __future__ import annotations

import signal
import sys

# in the order of the help
from nnbackend.cli import models as models  # isort: skip
from nnbackend.cli import machine as machine  # isort: skip
from nnbackend.cli.common import app, end_on_sigterm, outlive_outputs


def main() -> None:
    """Entry point; wrong options are a user error, exit code 1."""
    outlive_outputs()
    terminated = end_on_sigterm()
    try:
        app()
    except SystemExit as stop:
        code = 1 if stop.code == 2 else stop.code
        sys.exit(128 + signal.SIGTERM if code == 130 and terminated else code)
