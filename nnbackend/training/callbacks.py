"""Callbacks, which run between epochs: early stopping, checkpoints, logs, learning rates.

model.fit(x, y, epochs=200, validation_split=0.2,
          callbacks=[nn.EarlyStopping(patience=10), nn.ModelCheckpoint("best.safetensors")])
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import (
    check_flag,
    check_number,
    check_path,
    check_size,
)
from nnbackend._files import check_writable
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
        mode: "min", "max", or "auto": more is better for accuracies, f1, r2 and the like.
        restore_best: put the best epoch's parameters back at the end of ``fit``.

    Training resumed from a file continues with the patience that was left; to start afresh, set
    ``model.callback_states = []`` after ``nn.load``.
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
            "best": self.monitor.state(),
            **arrays,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.waited, self.best_epoch = int(state["waited"]), int(state["best_epoch"])
        self.monitor.set_state(state["best"])
        self.best = {k.removeprefix("best."): v for k, v in state.items() if k[:5] == "best."}


class ModelCheckpoint(Callback):
    """Save the model after epochs, to resume training or to keep the best model.

    Args:
        path: the file; ``{epoch}`` in it is replaced by the epoch's number.
        monitor: a curve's name, to save only when it improves; None always saves.
        every: number of epochs from one save to the next.
        mode: see ``EarlyStopping``.
    """

    runs_last = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str | None = None,
        every: int = 1,
        mode: Mode = "auto",
    ) -> None:
        self.path = check_path("ModelCheckpoint.path", path)
        self.monitor = None if monitor is None else Monitor(monitor, mode)
        self.every = check_size("ModelCheckpoint.every", every)

    def on_fit_begin(self, model: Sequential) -> None:
        folder = Path(self.path).absolute().parent
        if not folder.is_dir():
            raise DataError(f"the folder {folder} for checkpoints does not exist; make it first")
        try:
            check_writable(self._path(model.epoch + 1))
        except OSError as error:
            raise DataError(f"checkpoints cannot be written: {error}") from error

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        better = self.monitor is None or self.monitor.improved(figures)
        if better and epoch % self.every == 0:
            model.save(self._path(epoch))
        return None

    def _path(self, epoch: int) -> str:
        return self.path.replace("{epoch}", str(epoch))

    def state(self) -> dict[str, Any]:
        return {} if self.monitor is None else {"best": self.monitor.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        if self.monitor is not None and "best" in state:
            self.monitor.set_state(state["best"])


class CSVLogger(Callback):
    """Write a line of figures after each epoch; the first epoch fixes the columns.

    Args:
        path: the file. Resumed training appends to it; new training overwrites it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(check_path("CSVLogger.path", path))

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        import csv

        new = epoch == 1 or not self.path.exists()
        with self.path.open("w" if new else "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["epoch", *figures])
            writer.writerow([epoch, *figures.values()])
        return None


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
        self.function = function
        self.set_for = 0  # the epoch whose rate is set

    def on_fit_begin(self, model: Sequential) -> None:
        if self.set_for != model.epoch + 1:
            self._set(model, model.epoch + 1)

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
            model.optimizer.lr = max(self.min_lr, rate * self.factor)
        return None

    def state(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self.monitor.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.waited = int(state["waited"])
        self.monitor.set_state(state["best"])


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
