"""Shared by the commands: errors as messages, and checks before a long job."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

import nnbackend as nn
from nnbackend._files import check_writable, write_atomically
from nnbackend._version import __version__
from nnbackend.cli import ranks
from nnbackend.errors import DataError, NNBackendError
from nnbackend.training.interrupt import interrupt_training

app = typer.Typer(
    name="nnbackend",
    help="Train dense neural networks and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
PICTURES = (".png", ".pdf", ".svg")


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"nnbackend {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Train dense neural networks and use them."""


@contextmanager
def user_errors() -> Iterator[None]:
    """One clear message and exit code 1 for a user error, 130 for Ctrl-C."""
    try:
        yield
    except (NNBackendError, OSError, ImportError, UnicodeError, MemoryError) as error:
        typer.echo(f"{ranks.prefix()}error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None


def end_on_sigterm() -> list[int]:
    """From now on, ``kill`` ends a training as Ctrl-C does, and its model is saved. The signal is
    appended to the list when it comes."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not interrupt_training():
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)
    return received


def write_bytes(content: bytes) -> None:
    """Write data to standard output as they are, whatever its encoding."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(content.decode())
        return
    sys.stdout.flush()
    try:
        buffer.write(content)
        buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), buffer.fileno())


def check_picture(path: Path | None) -> None:
    """Fail before a long job, not after it, if its plot cannot be made."""
    if path is None:
        return
    nn.plot.require_matplotlib()
    if path.suffix not in PICTURES:
        raise DataError(f"--plot takes a file ending in {', '.join(PICTURES)}; received {path}")


def save_picture(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=path.suffix[1:])
    write_atomically(path, content.getvalue())


def check_targets(*targets: Path | None, inputs: Iterable[str | Path | None] = ()) -> None:
    """Fail before a long job, not after it, if its results cannot be written, or would replace what
    it reads."""
    for target in targets:
        if target is None:
            continue
        if any(_is_same_file(target, other) for other in inputs if other is not None):
            raise DataError(f"{target} is read; choose another file to write")
        folder = target.absolute().parent
        if not folder.is_dir():
            raise DataError(
                f"the folder {folder} does not exist; make it first, or choose another file"
            )
        try:
            check_writable(target)
        except IsADirectoryError as error:
            raise DataError(str(error)) from error
        except OSError as error:
            raise DataError(
                f"{target} cannot be written ({error.strerror}); choose another file"
            ) from error


def _is_same_file(path: Path, other: str | Path) -> bool:
    try:
        return path.is_file() and path.samefile(other)
    except (OSError, ValueError):  # the other one is none, or not there
        return False


class _Output(io.TextIOWrapper):
    """Standard output that may be closed at its other end, as by ``head``, or be on a disk that is
    full: a training goes on, and its model is saved."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._to_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._to_nowhere()

    def _to_nowhere(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def outlive_outputs() -> None:
    """From now on, writing to a pipe that nobody reads is no error, and neither is a name that the
    output's encoding lacks."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and not isinstance(out, _Output):
        buffering, encoding = out.line_buffering, out.encoding
        sys.stdout = _Output(out.detach(), encoding, "backslashreplace", line_buffering=buffering)
