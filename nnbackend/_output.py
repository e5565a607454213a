"""Lines for people, on standard output and standard error, and warnings."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from types import FrameType
from typing import TextIO


def write_line(text: str) -> None:
    """Print ``text``; characters that the output's encoding lacks are written as escapes, since a
    training must not end for them, nor for an output that is closed or a disk that is full.
    Nothing where there is no output, as in a window's program."""
    _write(sys.stdout, text + "\n")


def write_note(text: str) -> None:
    """The same for standard error, without an end of line."""
    _write(sys.stderr, text)


def _write(out: TextIO | None, text: str) -> None:
    if out is None:
        return
    with suppress(OSError, ValueError):  # ValueError: it is closed
        try:
            out.write(text)
        except UnicodeEncodeError:
            encoding = out.encoding or "ascii"
            out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()


#: Packages whose frames stand between a user's line and a warning about it.
_BETWEEN = ("nnbackend", "sklearn", "joblib", "contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of the line that called into the library, however deep inside it this is called."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _package(frame) in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
