"""Ctrl-C during training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar


def interrupt_training() -> bool:
    """Stop the training of the main thread, if there is one, as Ctrl-C does; for a program that
    handles another signal."""
    for interrupt in Interrupt.watching:
        interrupt.request()
    return bool(Interrupt.watching)


class Interrupt:
    """Ctrl-C as a flag that is read between chunks, so that no step is cut in half.

    A second Ctrl-C interrupts at once; putting things in order afterwards cannot be interrupted.
    Outside the main thread, or if the program handles the signal itself, Ctrl-C works as usual.
    """

    #: those of the main thread's trainings
    watching: ClassVar[list[Interrupt]] = []

    def __init__(self) -> None:
        self.requested = False
        self._shielded = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)
        ours = previous is signal.default_int_handler
        if ours:
            signal.signal(signal.SIGINT, self._handle)
        self.watching.append(self)
        try:
            yield
        finally:
            self.watching.remove(self)
            if ours:
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
        self.request()

    def request(self) -> None:
        """What Ctrl-C does."""
        second, self.requested = self.requested, True
        if second and not self._shielded:
            self._shielded = True  # until whoever catches it has put things in order
            raise KeyboardInterrupt
