"""Output of a notebook's cell that is replaced while the cell runs."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython is not imported for that."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Area:
    """A place in the cell's output."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, what: object) -> None:
        """In place of what was shown before."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(what, display_id=True)
        else:
            self._handle.update(what)


class Html:
    """Text that a notebook shows as HTML, and anything else as text."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text
