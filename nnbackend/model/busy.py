"""One call at a time on a model, whatever interrupts it.

Ctrl-C may come between any two instructions, so also when a lock has just been taken. A lock that
knows its thread is taken inside the ``try`` and given back only by the thread that has it.

Whoever only reads or writes arrays is soon done: everybody waits for that, and readers for single
steps, too. Nobody waits for a ``fit``, and no two threads train one model in turn. Readers pass a
gate before they take the lock: whoever has passed it knows that no reader has the lock.
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
    """A model; ``_busy`` is held by the thread that works on it, and ``_gate`` too if that reads or
    writes arrays only. ``_fits`` is true as long as it is in ``fit``."""

    _busy: Any
    _gate: Any
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
                _take_after_readers(self)
            return method(self, *args, **kwargs)
        finally:
            # not with suppress(), nor a function of ours: a call is another moment for Ctrl-C
            try:  # noqa: SIM105
                busy.release()
            except RuntimeError:  # another thread has it
                pass

    return guarded


def _take_after_readers(model: HasBusy) -> None:
    """Take the lock when no reader has it.

    Raises:
        ModelBusyError: somebody trains.
    """
    try:
        if not (model._gate.acquire(timeout=PATIENCE) and model._busy.acquire(False)):
            raise ModelBusyError(BUSY)
    finally:
        try:  # noqa: SIM105
            model._gate.release()
        except RuntimeError:
            pass


def _take_after_steps(model: HasBusy) -> None:
    """Take the lock when other readers are done, and a step.

    Raises:
        ModelBusyError: the model is in ``fit``, or what it is in does not end.
    """
    end = time.monotonic() + PATIENCE
    if not model._gate.acquire(timeout=PATIENCE):
        raise ModelBusyError(BUSY)
    while not model._busy.acquire(timeout=GLANCE):
        if model._fits or time.monotonic() > end:
            raise ModelBusyError(BUSY)


@contextmanager
def held(model: HasBusy, reads: bool = False) -> Iterator[None]:
    """The same for a block, which may only ``read`` or write arrays."""
    if model._busy._is_owned():
        raise ModelBusyError(BUSY_HERE)
    try:
        if reads:
            _take_after_steps(model)
        elif not model._busy.acquire(False):
            _take_after_readers(model)
        yield
    finally:
        try:
            try:  # noqa: SIM105
                model._busy.release()
            except RuntimeError:
                pass
        finally:
            try:  # noqa: SIM105 # which only readers have
                model._gate.release()
            except RuntimeError:
                pass
