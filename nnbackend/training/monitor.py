"""Watching a curve for improvement."""

from __future__ import annotations

import math
from typing import Literal

from nnbackend._checks import check_name, check_number
from nnbackend.errors import DataError, DTypeError, shown, unknown_name
from nnbackend.training.callback import Figures

Mode = Literal["auto", "min", "max"]

#: Curves for which more is better, in mode "auto".
_MORE_IS_BETTER = ("accuracy", "top_k_accuracy", "precision", "recall", "f1", "r2")


class Monitor:
    """Watches one curve for improvement, for several callbacks."""

    def __init__(self, name: str, mode: Mode, min_delta: float = 0.0) -> None:
        if not isinstance(name, str):
            raise DTypeError(
                f"a callback's monitor must be the name of a curve, such as 'val_loss'; "
                f"received {shown(name)}"
            )
        check_name("mode", mode, ("auto", "min", "max"))
        self.name = name
        more = name.removeprefix("val_") in _MORE_IS_BETTER if mode == "auto" else mode == "max"
        self.sign = -1.0 if more else 1.0
        self.min_delta = check_number("min_delta", min_delta, 0.0)
        self.best = math.inf  # of sign * value: lower is better

    def state(self) -> float | None:
        """The best value so far, for a model file; None before the first."""
        return None if self.best == math.inf else self.best

    def set_state(self, best: float | None) -> None:
        self.best = math.inf if best is None else float(best)

    def improved(self, figures: Figures) -> bool:
        """Whether this epoch is the best so far, by more than ``min_delta``."""
        if self.name not in figures:
            validated = any(name.startswith("val_") for name in figures)
            hint = ""
            if self.name.startswith("val_") and not validated:
                hint = " Pass validation_data or validation_split to fit."
            raise DataError(
                f"a callback watches a curve that this training does not compute: "
                f"{unknown_name('the curve', self.name, figures)}{hint}"
            )
        value = self.sign * figures[self.name]
        if value < self.best - self.min_delta or (self.best == math.inf and value == value):
            self.best = value
            return True
        return False
