"""Runs Python source in a process of its own."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence


def run_python(
    source: str, argv: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *argv],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
