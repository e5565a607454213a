"""Lines for people on standard output."""

from __future__ import annotations

import sys


def write_line(text: str) -> None:
    """Print ``text``; characters that the output's encoding lacks are written as escapes, since a
    training must not end for them. Nothing where there is no output, as in a window's program."""
    out = sys.stdout
    if out is None:
        return
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = out.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
