"""Lines for people, on standard output and standard error."""

from __future__ import annotations

import sys
from contextlib import suppress
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
