"""Updates of a program's parameters from its flat gradient, with the backend's operations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, UpdateRule
from nnbackend.errors import DTypeError
from nnbackend.optimizers import Optimizer
from nnbackend.program.table import Program


class _Part(NamedTuple):
    """A part of the flat vectors with one update rule; no rule if the optimizer is written in
    Python."""

    rule: UpdateRule | None
    decay: float
    param: Array
    grad: Array
    slots: list[Array]


class Updates:
    """Makes one step of the program's optimizer at a time."""

    def __init__(self, program: Program, backend: Backend) -> None:
        self.program, self.backend = program, backend
        storage = program.storage
        self.gradients = storage.gradients[: storage.trained]
        self._parts: list[_Part] = []
        self._parts_for = -1  # of the optimizer, which the parts are made for
        self._scratch = backend.zeros(backend.step_scratch_size(storage.trained), program.dtype)

    def apply(self, rate: float, number: int) -> bool:
        """One update, unless the gradient is not finite: then False. On a GPU nobody looks."""
        if isinstance(self.gradients, np.ndarray) and not self.is_finite():
            return False
        with np.errstate(all="ignore"):
            self.update(rate, number)
        return True

    def update(self, lr: float, step: int) -> None:
        """Update the parameters with the flat gradient; ``step`` counts the updates before."""
        optimizer = self.program.optimizer
        if optimizer is None or self.program.storage.trained == 0:
            return
        if optimizer.changes != self._parts_for:
            self._parts, self._parts_for = self._divided(optimizer), optimizer.changes
        if optimizer.clip_norm is not None:
            self.backend.clip_by_global_norm(self.gradients, optimizer.clip_norm)
        for rule, decay, param, grad, slots in self._parts:
            if rule is None:
                answer: Any = optimizer.update(
                    self.backend, param, grad, slots, lr, decay, step, self._scratch
                )  # type: ignore[func-returns-value]
                if answer is not None and answer is not param:
                    raise DTypeError(
                        f"{type(optimizer).__name__}.update changes param in place, as in param -= "
                        f"lr * grad, and returns nothing; it returned {type(answer).__name__}"
                    )
            else:
                self.backend.update(rule, param, grad, slots, lr, step, self._scratch)

    def is_finite(self, loss: Any = 0.0) -> bool:
        """Whether a loss is finite, and the gradient with what the optimizer makes of it; running
        statistics, too, where looking costs no waiting."""
        gradients, watched = self.gradients, self.program.storage.watched
        if not isinstance(gradients, np.ndarray):
            finite = np.isfinite(self.backend.to_numpy(loss))
            return bool(finite) and self.backend.all_finite(gradients)
        if watched is not None and not np.isfinite(watched).all():
            return False
        # one pass by the BLAS; where the square overflows, a closer look
        with np.errstate(all="ignore"):
            if math.isfinite(loss + gradients.dot(gradients)):
                return True
        optimizer = self.program.optimizer
        limit = np.inf
        if optimizer is not None and optimizer.clip_norm is not None:
            with np.errstate(all="ignore"):  # the norm must be a number
                loss = loss + np.square(gradients, dtype=np.float64).sum()
        elif optimizer is not None and optimizer.rule is not None:
            limit = optimizer.rule.gradient_limit(self.program.dtype)
        return bool(abs(gradients).max(initial=0.0) < limit and np.isfinite(loss))

    def _divided(self, optimizer: Optimizer) -> list[_Part]:
        """The flat vectors in one part, or in two if only the first is decayed."""
        storage, slots = self.program.storage, self.program.slots
        rule = optimizer.rule if optimizer.is_built_in else None
        ranges = [(0, storage.trained, 0.0)]
        if optimizer.decay:
            ranges = [
                (0, storage.decayed, optimizer.decay), (storage.decayed, storage.trained, 0.0)
            ]  # fmt: skip
        return [
            _Part(
                None if rule is None else rule._replace(weight_decay=decay),
                decay,
                storage.parameters[start:stop],
                storage.gradients[start:stop],
                [slot[start:stop] for slot in slots],
            )
            for start, stop, decay in ranges
            if start < stop
        ]
