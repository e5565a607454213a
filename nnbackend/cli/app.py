"""The command line: train, evaluate, predict, summary, export, info, warmup, bench."""

from __future__ import annotations

import signal
import sys

# in the order of the help
from nnbackend.cli import models as models  # isort: skip
from nnbackend.cli import export as export  # isort: skip
from nnbackend.cli import machine as machine  # isort: skip
from nnbackend.cli import ranks
from nnbackend.cli.common import app, end_on_sigterm, outlive_outputs


def main() -> None:
    """Entry point; wrong options are a user error, exit code 1."""
    outlive_outputs()
    ranks.mute_others()
    terminated = end_on_sigterm()
    try:
        app(windows_expand_args=False)  # a separator such as ~ is no home folder
    except SystemExit as stop:
        code = 1 if stop.code == 2 else stop.code
        code = 128 + signal.SIGTERM if code == 130 and terminated else code
        if code and code != 130:
            ranks.end_all(int(code))
        sys.exit(code)
