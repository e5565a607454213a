"""Watching a curve for improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from nnbackend._checks import check_name, check_number
from nnbackend.errors import DataError, DTypeError, closest, shown, unknown_name
from nnbackend.metrics import METRICS
from nnbackend.training.callback import Figures

Mode = Literal["auto", "min", "max"]

#: Curves for which less is better and for which more is, as far as they are known.
_LESS = ("loss", "data_loss", *(n for n, metric in METRICS.items() if metric.better == "lower"))
_MORE = tuple(n for n, metric in METRICS.items() if metric.better == "higher")


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
        self.sign = -1.0 if mode == "max" or (mode == "auto" and _more_is_better(name)) else 1.0
        self.min_delta = check_number("min_delta", min_delta, 0.0)
        #: of sign * value: lower is better; None before the first
        self.best: float | None = None

    def __repr__(self) -> str:
        return repr(self.name)

    def state(self) -> dict[str, Any]:
        """The best value so far, and of what, for a model file."""
        return {"best": self.best, "curve": self.name, "sign": self.sign}

    def follows(self, state: Mapping[str, Any]) -> bool:
        """Whether this is the state of the same curve, watched for the same."""
        return bool(
            state.get("curve", self.name) == self.name and state.get("sign", self.sign) == self.sign
        )

    def set_state(self, state: Mapping[str, Any]) -> None:
        best = state["best"]
        self.best = None if best is None else float(best)

    def value(self, figures: Figures) -> float:
        """The watched curve's value, if there is such a curve."""
        if self.name not in figures:
            validated = any(name.startswith("val_") for name in figures)
            hint = ""
            if self.name.startswith("val_") and not validated:
                hint = " Pass validation_data or validation_split to fit."
            raise DataError(
                f"a callback watches a curve that this training does not compute: "
                f"{unknown_name('the curve', self.name, figures)}{hint}"
            )
        return figures[self.name]

    def improved(self, figures: Figures) -> bool:
        """Whether this epoch is the best so far, by more than ``min_delta``."""
        value = self.sign * self.value(figures)
        if math.isnan(value) or not (self.best is None or value < self.best - self.min_delta):
            return False
        self.best = value
        return True


def _more_is_better(name: str) -> bool:
    plain = name.removeprefix("val_")
    if plain not in (*_LESS, *_MORE):
        close = closest(plain, (*_LESS, *_MORE))
        hint = f" Did you mean {name.removesuffix(plain) + close!r}?" if close else ""
        raise DataError(
            f"whether more or less of {name!r} is better is not known: pass mode='max' or "
            f"mode='min'.{hint}"
        )
    return plain in _MORE
