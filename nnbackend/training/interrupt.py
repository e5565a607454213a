"""Ctrl-C during training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Ctrl-C as a flag that is read between chunks, so that no step is cut in half.

    A second Ctrl-C interrupts at once; putting things in order afterwards cannot be interrupted.
    Outside the main thread, or if the program handles the signal itself, Ctrl-C works as usual.
    """

    def __init__(self) -> None:
        self.requested = False
        self._shielded = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        previous = None
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
        if previous is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Inside, Ctrl-C is only remembered: for changes that belong together."""
        before, self._shielded = self._shielded, True
        try:
            yield
        finally:
            self._shielded = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self.requested = self.requested, True
        if second and not self._shielded:
            self._shielded = True  # until whoever catches it has put things in order
            raise KeyboardInterrupt
