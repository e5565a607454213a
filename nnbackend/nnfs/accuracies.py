"""The book's accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.nnfs.arrays import Array, as_wide, labels_of


class Accuracy:
    """The share of predictions that a subclass's ``compare`` says are right."""

    accumulated_sum: Any = 0
    accumulated_count: int = 0

    def init(self, y: Any, reinit: bool = False) -> None:
        """Learn from the targets what is needed."""

    def compare(self, predictions: Array, y: Any) -> Array:
        """Which ones are right."""
        raise NotImplementedError

    def calculate(self, predictions: Array, y: Any) -> Any:
        comparisons = np.asarray(self.compare(predictions, y))
        self.accumulated_sum += comparisons.sum()
        self.accumulated_count += len(comparisons)
        return comparisons.mean()

    def calculate_accumulated(self) -> Any:
        """The share over all samples since ``new_pass``."""
        return self.accumulated_sum / self.accumulated_count

    def new_pass(self) -> None:
        self.accumulated_sum, self.accumulated_count = 0, 0


class Accuracy_Categorical(Accuracy):
    """Equal classes; with ``binary`` the targets are compared as they are."""

    def __init__(self, *, binary: bool = False) -> None:
        self.binary = binary

    def compare(self, predictions: Array, y: Any) -> Array:
        wanted = np.asarray(y) if self.binary else labels_of(y)
        return np.asarray(predictions == as_wide(wanted, np.asarray(predictions)))


class Accuracy_Regression(Accuracy):
    """Within ``precision`` of the target: its standard deviation / 250."""

    precision: float | None = None

    def init(self, y: Any, reinit: bool = False) -> None:
        if self.precision is None or reinit:
            self.precision = np.std(y) / 250

    def compare(self, predictions: Array, y: Any) -> Array:
        distance = np.absolute(predictions - as_wide(y, np.asarray(predictions)))
        return np.asarray(distance < self.precision)
