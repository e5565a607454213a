"""Callbacks, which run between epochs: early stopping, learning rates, a time limit.

model.fit(x, y, epochs=200, validation_split=0.2,
          callbacks=[nn.EarlyStopping(patience=10), nn.ModelCheckpoint("best.safetensors")])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import (
    check_flag,
    check_number,
    check_size,
)
from nnbackend._names import check_call
from nnbackend.errors import DataError, DTypeError, shown
from nnbackend.schedules import Schedule
from nnbackend.training.callback import Callback, Figures
from nnbackend.training.history import History
from nnbackend.training.monitor import Mode, Monitor

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential


class EarlyStopping(Callback):
    """Stop when a curve has not improved for a while.

    Args:
        monitor: the curve, "val_loss" for example.
        patience: epochs without improvement before it stops.
        min_delta: an improvement must be larger than this.
        mode: "min", "max", or "auto", which knows losses and the metrics of ``nnbackend.metrics``;
            a metric of your own needs one of the others.
        restore_best: put the best epoch's parameters back at the end of ``fit``.

    Used for another model, or with a file's state of another curve, it starts afresh. A model that
    is trained further continues with the patience that was left, also from a file; to start afresh
    there, set ``model.callback_states = []`` after ``nn.load``.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        restore_best: bool = True,
    ) -> None:
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = check_size("EarlyStopping.patience", patience)
        self.restore_best = check_flag("EarlyStopping.restore_best", restore_best)
        self.waited = 0
        self.best_epoch = 0
        self.best: dict[str, np.ndarray[Any, Any]] = {}

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        if self.monitor.improved(figures):
            self.waited, self.best_epoch = 0, epoch
            if self.restore_best:
                self.best = model.arrays()
            return None
        self.waited += 1
        if self.waited >= self.patience:
            return f"{self.monitor.name} has not improved for {self.patience} epochs"
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        # after Ctrl-C the training may be resumed, so it stays where it was
        if self.best and history.stopped != "interrupted":
            model.set_arrays(self.best)

    def state(self) -> dict[str, Any]:
        arrays = {f"best.{name}": values for name, values in self.best.items()}
        return {
            "waited": self.waited,
            "best_epoch": self.best_epoch,
            **self.monitor.state(),
            **arrays,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if not self.monitor.follows(state):
            return
        self.waited, self.best_epoch = int(state["waited"]), int(state["best_epoch"])
        self.monitor.set_state(state)
        self.best = {k.removeprefix("best."): v for k, v in state.items() if k[:5] == "best."}


class LearningRateScheduler(Callback):
    """Set the learning rate of each epoch with your own function.

    Args:
        function: ``(epoch, lr) -> lr``; epoch is the next one, counted from 1, and lr the
            current rate.
    """

    def __init__(self, function: Callable[[int, float], float]) -> None:
        if not callable(function):
            raise DTypeError(
                f"LearningRateScheduler.function must be a function (epoch, lr) -> lr; "
                f"received {shown(function)}"
            )
        check_call("LearningRateScheduler.function", function, "epoch", "lr")
        self.function = function
        self.set_for = 0  # the epoch whose rate is set
        self.left: float | None = None  # the rate at the end of the last fit

    def on_fit_begin(self, model: Sequential) -> None:
        rate, left = plain_rate(model, "LearningRateScheduler"), self.left
        self.left = None
        # a rate that has been set since then, or another optimizer's, is a new beginning
        if self.set_for != model.epoch + 1 or left not in (None, rate):
            self._set(model, model.epoch + 1)

    def on_fit_end(self, model: Sequential, history: History) -> None:
        self.left = plain_rate(model, "LearningRateScheduler")

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        self._set(model, epoch + 1)
        return None

    def _set(self, model: Sequential, epoch: int) -> None:
        model.optimizer.lr = float(self.function(epoch, plain_rate(model, "LearningRateScheduler")))
        self.set_for = epoch

    def state(self) -> dict[str, Any]:
        return {"set_for": self.set_for}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.set_for = int(state["set_for"])


class ReduceLROnPlateau(Callback):
    """Lower the learning rate when a curve has not improved for a while.

    Args:
        monitor, mode, min_delta: see ``EarlyStopping``.
        factor: what the rate is multiplied by.
        patience: epochs without improvement before that.
        min_lr: the rate never goes below it.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.5,
        patience: int = 5,
        min_lr: float = 0.0,
        min_delta: float = 0.0,
        mode: Mode = "auto",
    ) -> None:
        self.monitor = Monitor(monitor, mode, min_delta)
        self.factor = check_number(
            "ReduceLROnPlateau.factor", factor, 0.0, 1.0, low_open=True, high_open=True
        )
        self.patience = check_size("ReduceLROnPlateau.patience", patience)
        self.min_lr = check_number("ReduceLROnPlateau.min_lr", min_lr, 0.0)
        self.waited = 0

    def on_fit_begin(self, model: Sequential) -> None:
        plain_rate(model, "ReduceLROnPlateau")

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        if self.monitor.improved(figures):
            self.waited = 0
            return None
        self.waited += 1
        if self.waited >= self.patience:
            self.waited = 0
            rate = plain_rate(model, "ReduceLROnPlateau")
            # a rate that is lower already is not raised
            model.optimizer.lr = min(rate, max(self.min_lr, rate * self.factor))
        return None

    def state(self) -> dict[str, Any]:
        return {"waited": self.waited, **self.monitor.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        if self.monitor.follows(state):
            self.waited = int(state["waited"])
            self.monitor.set_state(state)


class TimeLimit(Callback):
    """Stop at the end of the first epoch after ``seconds`` of training.

    Args:
        seconds: in all calls of ``fit`` together, including those before a resume.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_number("TimeLimit.seconds", seconds, 0.0, low_open=True)
        self.spent = 0.0
        self._last = time.perf_counter()

    def on_fit_begin(self, model: Sequential) -> None:
        self._last = time.perf_counter()

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        now = time.perf_counter()
        self.spent, self._last = self.spent + now - self._last, now
        if self.spent >= self.seconds:
            return f"the time limit of {self.seconds:g} s"
        return None

    def state(self) -> dict[str, Any]:
        return {"spent": self.spent}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.spent = float(state["spent"])


def plain_rate(model: Sequential, who: str) -> float:
    """The model's learning rate, if it is a number."""
    lr = model.optimizer.lr
    if isinstance(lr, Schedule):
        raise DataError(
            f"{who} changes the learning rate, but the optimizer has a schedule, "
            f"{type(lr).__name__}; give it a number, such as lr=1e-3"
        )
    return lr
