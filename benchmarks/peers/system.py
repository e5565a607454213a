"""What every measured system has to offer, and what it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nnbackend.benchmark.cases import EPOCH_BATCHES, Batches, Case
from nnbackend.benchmark.operations import Trial, timed
from nnbackend.layers import Dense
from peers import PRECISION_VARIABLE

#: Steps of the check: the loss before the first update and after each of three.
CHECKED_STEPS = 4
#: How long each of several ways to do the same is tried.
TRIED_SECONDS = 0.05
#: Rows whose outputs are compared.
CHECKED_ROWS = 8
#: Rows of "predict", and of the blocks in which it may be done.
PREDICT_ROWS, PREDICT_BLOCK = 100_000, 5_000


class UnsupportedError(Exception):
    """The system has no way to do this kind of case; the message says why."""


@dataclass(frozen=True)
class Material:
    """What all systems start from, made by the host and the same for all of them.

    Attributes:
        weights: (w (I, O), b (O,)) float32 of each dense layer.
        x, y: rows to train on, or to predict; see ``Case.data``.
    """

    weights: list[tuple[np.ndarray, np.ndarray]]
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def make(cls, case: Case, kind: str) -> Material:
        """Initial weights as our own layers draw them, and enough rows for ``kind``."""
        dense = [layer for layer in case.model("numpy").layers if isinstance(layer, Dense)]
        rows = PREDICT_ROWS if kind == "predict" else case.n_batches * case.batch
        return cls([(layer.weight, layer.bias) for layer in dense], *case.data(rows))

    def save(self, path: Path) -> None:
        arrays = {f"w{k}": w for k, (w, _) in enumerate(self.weights)}
        arrays |= {f"b{k}": b for k, (_, b) in enumerate(self.weights)}
        np.savez(path, x=self.x, y=self.y, **arrays)

    @classmethod
    def load(cls, path: Path) -> Material:
        with np.load(path) as file:
            layers = sum(name.startswith("w") for name in file)
            weights = [(file[f"w{k}"], file[f"b{k}"]) for k in range(layers)]
            return cls(weights, file["x"], file["y"])

    def batches(self, case: Case) -> Batches:
        """Different batches, in order, as views."""
        parts = [slice(k, k + case.batch) for k in range(0, len(self.x), case.batch)]
        return [(self.x[part], self.y[part]) for part in parts]

    def epoch(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """The rows of an epoch."""
        rows = EPOCH_BATCHES * case.batch
        return self.x[:rows], self.y[:rows]

    def single_rows(self) -> list[np.ndarray]:
        """Different inputs of one row, C-contiguous."""
        return [self.x[k : k + 1].copy() for k in range(64)]


class System:
    """One system. A subclass writes what it can do; what it cannot is reported as such.

    ``step``, ``epoch``, ``inference`` and ``predict`` take a case and its material and return a
    Trial, whose ``rows`` and ``flops`` nobody reads here. ``note`` may say how it was done.
    """

    #: Distributions whose versions are written down.
    packages: ClassVar[tuple[str, ...]] = ()
    #: Calls after which a way is as fast as it gets.
    warm_calls: int = 1

    def __init__(self) -> None:
        self.note = ""
        #: of products on a GPU, see peers.PRECISION_VARIABLE
        self.precision = os.environ.get(PRECISION_VARIABLE, "fp32")

    def gpu(self) -> str:
        """The name of the GPU it runs on; empty on a CPU."""
        return ""

    def losses(self, case: Case, material: Material) -> list[float]:
        """The loss of each of the first CHECKED_STEPS training steps, dropout left out."""
        raise UnsupportedError("does not train")

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        """The network's outputs for the first CHECKED_ROWS rows."""
        raise UnsupportedError("no inference measured")

    def step(self, case: Case, material: Material) -> Trial:
        """A Python call for each training step."""
        raise UnsupportedError("does not train")

    def epoch(self, case: Case, material: Material) -> Trial:
        """Many epochs of EPOCH_BATCHES shuffled batches."""
        raise UnsupportedError("does not train")

    def inference(self, case: Case, material: Material) -> Trial:
        """One row."""
        raise UnsupportedError("no inference measured")

    def predict(self, case: Case, material: Material) -> Trial:
        """All rows."""
        raise UnsupportedError("no inference measured")

    # -- driven from outside, with a loss of one's own, the gradient alone ------------------------

    def driven_values(self, case: Case, material: Material) -> list[float]:
        """sum(dy y) of each of the first CHECKED_STEPS driven steps, dropout left out."""
        raise UnsupportedError("cannot be driven by a gradient from outside")

    def driven(self, case: Case, material: Material) -> Trial:
        """Forward, back from a gradient that the caller has, and an update; the outputs are there
        before the way back begins."""
        raise UnsupportedError("cannot be driven by a gradient from outside")

    def own_loss_values(self, case: Case, material: Material) -> list[float]:
        """Losses of the first CHECKED_STEPS steps."""
        raise UnsupportedError("takes no loss function")

    def own_loss(self, case: Case, material: Material) -> Trial:
        """Training steps with the mean squared error written by the caller."""
        raise UnsupportedError("takes no loss function")

    def gradient_values(self, case: Case, material: Material) -> list[float]:
        """Loss, and norm of its gradient, of two batches."""
        raise UnsupportedError("gives no gradient")

    def gradient(self, case: Case, material: Material) -> Trial:
        """Loss and gradient of a batch."""
        raise UnsupportedError("gives no gradient")

    def fastest(self, candidates: Mapping[str, Trial]) -> Trial:
        """The quickest of several ways to do the same, whose name goes into the note."""
        if len(candidates) == 1:
            return next(iter(candidates.values()))
        times = dict.fromkeys(candidates, float("inf"))
        for name, trial in candidates.items():
            for _ in range(self.warm_calls):
                timed(trial, 1)
            single = timed(trial, 1)
            count = max(1, round(TRIED_SECONDS / max(single, 1e-7)))
            # what takes long is measured well by a single call
            seconds = [single] if count == 1 else [timed(trial, count) / count for _ in range(3)]
            times[name] = min(seconds) / trial.steps
        best = min(times, key=lambda name: times[name])
        self.note = best
        return candidates[best]


def trial(
    call: Callable[..., Any],
    arguments: list[tuple[Any, ...]],
    reset: Callable[[], object] = lambda: None,
    finish: Callable[[], object] = lambda: None,
) -> Trial:
    """A Trial that calls with each of the arguments in turn, then waits by ``finish``."""
    turns = cycle(arguments)

    def repeat(count: int) -> None:
        for each in islice(turns, count):
            call(*each)
        finish()

    return Trial(repeat, 0, 0, reset=reset)
