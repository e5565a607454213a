"""One call at a time on a model, whatever interrupts it.

Ctrl-C may come between any two instructions, so also when a lock has just been taken. A lock that
knows its thread is taken inside the ``try`` and given back only by the thread that has it.
"""

from __future__ import annotations

import threading
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
P = ParamSpec("P")
R = TypeVar("R")


class HasBusy(Protocol):
    """A model; ``_busy`` is held by the thread that works on it."""

    _busy: Any


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
                raise ModelBusyError(BUSY)
            return method(self, *args, **kwargs)
        finally:
            # not with suppress(), whose call would be another moment for Ctrl-C
            try:  # noqa: SIM105
                busy.release()
            except RuntimeError:  # another thread has it
                pass

    return guarded


@contextmanager
def held(busy: Any) -> Iterator[None]:
    """The same for a block."""
    if busy._is_owned():
        raise ModelBusyError(BUSY_HERE)
    try:
        if not busy.acquire(False):
            raise ModelBusyError(BUSY)
        yield
    finally:
        try:  # noqa: SIM105
            busy.release()
        except RuntimeError:
            pass
