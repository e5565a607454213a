"""One call at a time on a model, whatever interrupts it.

Ctrl-C may come between any two instructions, so also when a lock has just been taken. A lock that
knows its thread is taken inside the ``try`` and given back only by the thread that has it.

Whoever only reads or writes arrays is soon done: everybody waits for that, and readers for single
steps, too. Nobody waits for a training, and no two threads train one model in turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from nnbackend.errors import ModelBusyError

BUSY = (
    "this model is being trained by another thread; wait for it, or work on a copy that was made "
    "before, copy.deepcopy(model)"
)
BUSY_HERE = (
    "this model is being trained by the call that this comes from, in a callback for example; do "
    "it after that, or with a copy, copy.deepcopy(model)"
)
#: Seconds that a call waits for one that is soon done, and after which it looks again.
PATIENCE, GLANCE = 60.0, 0.01
P = ParamSpec("P")
R = TypeVar("R")


class HasBusy(Protocol):
    """A model; ``_busy`` is held by the thread that works on it. ``_readers`` are the threads that
    read or write its arrays, or wait to; ``_fits`` is true as long as it is in ``fit``."""

    _busy: Any
    _readers: set[int]
    _fits: bool


S = TypeVar("S", bound=HasBusy)


def new_lock() -> Any:
    return threading.RLock()


def one_at_a_time(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that raises ModelBusyError while another call works on the model, also one further
    up in the same thread."""

    @wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        busy = self._busy
        if busy._is_owned():
            raise ModelBusyError(BUSY_HERE)
        try:
            if not busy.acquire(False):
                _wait(self)
            return method(self, *args, **kwargs)
        finally:
            # not with suppress(), whose call would be another moment for Ctrl-C
            try:  # noqa: SIM105
                busy.release()
            except RuntimeError:  # another thread has it
                pass

    return guarded


def _wait(model: HasBusy, reads: bool = False) -> None:
    """Take the lock as soon as it is free.

    Raises:
        ModelBusyError: that will not be soon.
    """
    end = time.monotonic() + PATIENCE
    while not model._busy.acquire(timeout=GLANCE):
        is_soon_free = (reads or model._readers) and not model._fits
        if not is_soon_free or time.monotonic() > end:
            raise ModelBusyError(BUSY)


@contextmanager
def held(model: HasBusy, reads: bool = False) -> Iterator[None]:
    """The same for a block, which may only ``read`` or write arrays."""
    busy, thread = model._busy, threading.get_ident()
    if busy._is_owned():
        raise ModelBusyError(BUSY_HERE)
    try:
        if reads:
            model._readers.add(thread)
        if not busy.acquire(False):
            _wait(model, reads)
        yield
    finally:
        try:  # noqa: SIM105
            busy.release()
        except RuntimeError:
            pass
        model._readers.discard(thread)  # not before: who waits for it would take it for a training
