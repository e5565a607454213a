"""Runs the command line as a user would."""

import io
import os
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

COMMAND = [sys.executable, "-m", "nnbackend.cli"]
TERMINAL = {"COLUMNS": "200", "NO_COLOR": "1"}

Done = subprocess.CompletedProcess[str]


def run(*arguments: str, cwd: Path, **environment: str) -> Done:
    """In this process, which takes a tenth of the time; in one of its own where the environment
    matters."""
    return (
        run_process(*arguments, cwd=cwd, **environment)
        if environment
        else run_here(*arguments, cwd=cwd)
    )


def run_process(*arguments: str, cwd: Path, **environment: str) -> Done:
    """In a process of its own."""
    settings = {**os.environ, **TERMINAL, **environment}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=settings, timeout=120
    )


def wait_for_an_epoch(process: subprocess.Popen[str]) -> None:
    """Until a training in a process of its own has printed the line of an epoch."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break


def run_here(*arguments: str, cwd: Path) -> Done:
    """In this process, whose streams, folder and signals are as before afterwards."""
    from nnbackend.cli.app import main

    out, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in "ab")
    content = out.buffer, error.buffer
    code: object = 0
    with _elsewhere(arguments, cwd, out, error):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
        sys.stderr.flush()
        texts = [stream.getvalue().decode() for stream in content]
        sys.stdout.detach()  # whoever wraps it now would close what is read above
    error.detach()
    return subprocess.CompletedProcess(arguments, int(code or 0), *texts)


@contextmanager
def _elsewhere(arguments, cwd, out, error):
    before, handler = os.getcwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(cwd)
    try:
        with (
            mock.patch.dict(os.environ, TERMINAL),
            mock.patch.multiple(sys, argv=["nnbackend", *arguments], stdout=out, stderr=error),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")
            warnings.showwarning = lambda message, kind, *place: print(
                warnings.formatwarning(message, kind, *place[:2]), file=sys.stderr
            )
            yield
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)


def figure(output: str, name: str, column: str) -> float:
    """A figure of the table that ``train`` prints at the end; shares in percent."""
    lines = output.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["training"])
    row = next(line for line in lines[header:] if line.startswith(name))
    values = row.removeprefix(name).replace("%", "").split()
    return float(values[lines[header].split().index(column)])
