"""Learning rates that change with the number of updates made.

A schedule is called with t = 0, 1, 2, ..., the number of updates before this one, and returns
the rate of the update. ``nn.Adam(lr=nn.CosineDecay(1e-3, steps=2000, warmup=100))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from nnbackend._checks import check_name, check_number, check_size, keep
from nnbackend._names import AnswersNames

Steps = np.ndarray[Any, np.dtype[np.int64]]
Rates = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Schedule(AnswersNames, ABC):
    """Base of all schedules; ``lr`` is the rate they start from (or warm up to)."""

    lr: float

    def __post_init__(self) -> None:
        keep(self, lr=check_number(f"{type(self).__name__}.lr", self.lr, 0.0, low_open=True))

    def __call__(self, step: int) -> float:
        """The rate of update number ``step``, counted from 0."""
        return float(self.rates(np.array([step], np.int64))[0])

    @abstractmethod
    def rates(self, steps: Steps) -> Rates:
        """The rates of several updates; ``steps`` (S,) int64, returns (S,) float64."""

    def config(self) -> dict[str, Any]:
        """Name and settings, for a model file."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class InverseTimeDecay(Schedule):
    """lr / (1 + decay t), t updates after the first."""

    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, decay=check_number("InverseTimeDecay.decay", self.decay, 0.0))

    def rates(self, steps: Steps) -> Rates:
        return np.asarray(self.lr * (1.0 / (1.0 + self.decay * steps)), np.float64)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """lr factor^floor(t / every), t updates after the first."""

    every: int = 1000
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(
            self,
            every=check_size("StepDecay.every", self.every),
            factor=check_number("StepDecay.factor", self.factor, 0.0, 1.0, low_open=True),
        )

    def rates(self, steps: Steps) -> Rates:
        return self.lr * self.factor ** (steps // self.every).astype(np.float64)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """lr factor^(t / every), t updates after the first."""

    factor: float = 0.96
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(
            self,
            factor=check_number("ExponentialDecay.factor", self.factor, 0.0, 1.0, low_open=True),
            every=check_size("ExponentialDecay.every", self.every),
        )

    def rates(self, steps: Steps) -> Rates:
        return self.lr * self.factor ** (steps / self.every)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Linear warm-up, then half a cosine from lr to ``final``, then ``final``.

    t < warmup: lr (t + 1) / warmup. Later, with s = (t - warmup) / (steps - warmup) up to 1:
    final + (lr - final) (1 + cos(pi s)) / 2   (Loshchilov and Hutter, 2017).

    Args:
        lr: the highest rate.
        steps: number of updates after which ``final`` is reached, warm-up included.
        warmup: number of updates of the warm-up.
        final: the last rate.
    """

    steps: int = 1000
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = check_size("CosineDecay.steps", self.steps)
        warmup = check_number("CosineDecay.warmup", self.warmup, 0.0, steps, high_open=True)
        keep(
            self,
            steps=steps,
            warmup=int(warmup) if warmup.is_integer() else warmup,
            final=check_number("CosineDecay.final", self.final, 0.0, self.lr),
        )

    def rates(self, steps: Steps) -> Rates:
        share = np.clip((steps - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        decayed = self.final + (self.lr - self.final) * 0.5 * (1.0 + np.cos(np.pi * share))
        rising = self.lr * (steps + 1) / max(self.warmup, 1)
        return np.where(steps < self.warmup, rising, decayed)


SCHEDULES: dict[str, type[Schedule]] = {
    cls.__name__: cls for cls in (InverseTimeDecay, StepDecay, ExponentialDecay, CosineDecay)
}


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that ``config()`` described."""
    settings = dict(config)
    name = check_name("schedule", settings.pop("name", None), SCHEDULES)
    known = {f.name for f in fields(SCHEDULES[name])}
    return SCHEDULES[name](**{k: v for k, v in settings.items() if k in known})
