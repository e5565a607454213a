"""The callback of ``nnbackend train`` that keeps the best epoch's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnbackend._types import HostArrays
from nnbackend.metrics import METRICS
from nnbackend.model.sequential import Sequential
from nnbackend.training.callback import Callback, Figures
from nnbackend.training.history import History


class KeepBest(Callback):
    """Leaves the weights of the best epoch in the model, and keeps those of the last one to
    continue with, so that a training that is resumed goes on as if nothing had happened.

    An epoch is better if its metric is, on the validation rows; if it is the same there, which
    happens with few rows, if the loss is lower.

    Args:
        metric: the name of a built-in one, or "loss".
        patience: number of epochs that are not better before the training stops; None never stops
            it.
    """

    def __init__(self, metric: str, patience: int | None = None) -> None:
        self.metric, self.patience = metric, patience
        higher = metric != "loss" and METRICS[metric].better == "higher"
        self.sign = 1.0 if higher else -1.0
        self.score = (-math.inf, -math.inf)
        self.waited, self.best_epoch = 0, 0
        self.best: HostArrays = {}
        self.last: HostArrays = {}

    @property
    def kept_epoch(self) -> int | None:
        """The epoch that the model's weights are from, if that is not the last one."""
        return self.best_epoch if self.last else None

    def on_fit_begin(self, model: Sequential) -> None:
        if self.last:
            self.best = model.arrays()
            model.set_arrays(self.last)
            self.last = {}

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        value = self.sign * figures[f"val_{self.metric}"]
        score = (-math.inf if math.isnan(value) else value, -figures["val_loss"])
        if score > self.score:
            self.score, self.waited, self.best_epoch = score, 0, epoch
            self.best = model.arrays()
            return None
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            return f"no epoch was better for {self.patience} epochs"
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        if self.best and self.best_epoch != model.epoch:
            self.last = model.arrays()
            model.set_arrays(self.best)

    def state(self) -> dict[str, Any]:
        metric, loss = (None if math.isinf(value) else value for value in self.score)
        # where the last arrays are kept, the best ones are the model's own
        name, kept = ("last", self.last) if self.last else ("best", self.best)
        arrays = {f"{name}.{key}": values for key, values in kept.items()}
        counts = {"waited": self.waited, "best_epoch": self.best_epoch}
        return {"metric": metric, "loss": loss, **counts, **arrays}

    def set_state(self, state: Mapping[str, Any]) -> None:
        scores = (state["metric"], state["loss"])
        metric, loss = (-math.inf if value is None else float(value) for value in scores)
        self.score = (metric, loss)
        self.waited, self.best_epoch = int(state["waited"]), int(state["best_epoch"])
        self.best, self.last = (
            {key[5:]: values for key, values in state.items() if key[:5] == prefix}
            for prefix in ("best.", "last.")
        )
