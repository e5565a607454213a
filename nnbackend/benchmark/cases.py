"""Benchmark cases, and how long each operation takes on each backend.

The command ``nnbackend bench``, the suite in ``benchmarks/`` and the comparison with other
systems there all measure these cases.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from typing import Any

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.errors import DataError, unknown_name
from nnbackend.layers import LAYERS, ActivationLayer, BatchNorm, Dense, Dropout
from nnbackend.layers.base import Layer
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import SGD, Adam, Optimizer

HostArray = np.ndarray[Any, Any]
Batches = list[tuple[HostArray, HostArray]]

#: Batches of an epoch.
EPOCH_BATCHES = 32
#: A case has as many different batches as fill this, within EPOCH_BATCHES ... MOST_BATCHES.
DATA_BYTES, MOST_BATCHES = 1 << 20, 256
#: Rows of the operation "predict".
PREDICT_ROWS = 10_000
#: Idle threads of a BLAS spin for tens of milliseconds, on a core that the next backend needs.
SETTLE_SECONDS = 0.05

ACTIVATION_BY_NAME = {
    kind.name: kind for kind in LAYERS.values() if issubclass(kind, ActivationLayer)
}
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "adam": lambda: Adam(lr=1e-3),
    "momentum": lambda: SGD(lr=0.01, momentum=0.9),
}


@dataclass(frozen=True)
class Case:
    """A network with its loss, its optimizer and the size of its batches.

    Attributes:
        batch: rows of a training step.
        widths: of the input and of each dense layer's output.
        activation: of the hidden layers.
        loss: softmax_cross_entropy, sigmoid_cross_entropy or mean_squared_error.
        optimizer: a key of ``OPTIMIZERS``.
        dropout: rate after each hidden layer.
        batch_norm: a BatchNorm before each hidden layer's activation.
    """

    name: str
    batch: int
    widths: tuple[int, ...]
    activation: str = "relu"
    loss: str = "softmax_cross_entropy"
    optimizer: str = "adam"
    dropout: float = 0.0
    batch_norm: bool = False

    @property
    def shape(self) -> str:
        """ "32 x (64-32-10)"; a width that repeats often is written once, "64 x (64[8]-10)"."""
        runs: list[list[int]] = []
        for width in self.widths:
            if runs and runs[-1][0] == width:
                runs[-1].append(width)
            else:
                runs.append([width])
        parts = [f"{run[0]}[{len(run)}]" if len(run) > 4 else "-".join(map(str, run))
                 for run in runs]  # fmt: skip
        return f"{self.batch} x ({'-'.join(parts)})"

    @property
    def n_batches(self) -> int:
        """Different batches to train on. There are many, since a network that knows its batch by
        heart makes subnormal numbers, and those are not what a case is about."""
        fitting = DATA_BYTES // (4 * self.batch * self.widths[0])
        return max(EPOCH_BATCHES, min(fitting, MOST_BATCHES))

    def layers(self, dropout: bool = True) -> list[Layer]:
        """New layers; ``dropout=False`` leaves those out, for comparisons of the loss."""
        layers: list[Layer] = []
        *hidden, last = pairwise(self.widths)
        for inputs, outputs in hidden:
            if self.batch_norm:
                activation = ACTIVATION_BY_NAME[self.activation]
                layers += [Dense(inputs, outputs), BatchNorm(outputs), activation()]
            else:
                layers.append(Dense(inputs, outputs, self.activation))
            if self.dropout and dropout:
                layers.append(Dropout(self.dropout))
        return [*layers, Dense(*last)]

    def model(
        self,
        backend: str | Backend | None = None,
        dtype: str = "float32",
        dropout: bool = True,
        precision: str = "fp32",
    ) -> Sequential:
        """A compiled model; always the same initial weights."""
        model = Sequential(
            self.layers(dropout), seed=0, dtype=dtype, backend=backend, precision=precision
        )
        model.compile(self.loss, OPTIMIZERS[self.optimizer]())
        return model

    def data(self, rows: int, seed: int = 0) -> tuple[HostArray, HostArray]:
        """Random rows: x (rows, widths[0]) float32, normal; y (rows,) int64 classes, or
        (rows, widths[-1]) float32: zeros and ones for sigmoid_cross_entropy, else normal."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((rows, self.widths[0]), np.float32)
        shape = (rows, self.widths[-1])
        if self.loss == "softmax_cross_entropy":
            return x, rng.integers(0, shape[1], rows)
        if self.loss == "sigmoid_cross_entropy":
            return x, rng.integers(0, 2, shape).astype(np.float32)
        return x, rng.standard_normal(shape, np.float32)

    def batches(self) -> Batches:
        """``n_batches`` different batches."""
        x, y = self.data(self.n_batches * self.batch)
        parts = [slice(k, k + self.batch) for k in range(0, len(x), self.batch)]
        return [(x[part], y[part]) for part in parts]

    def forward_flops(self, rows: int) -> int:
        """2 m n k for each matrix product."""
        return 2 * rows * sum(i * o for i, o in pairwise(self.widths))

    def backward_flops(self, rows: int, first_dx: bool = False) -> int:
        """The products of dw and dx; training does without the dx of the first layer."""
        first = 0 if first_dx else 2 * rows * self.widths[0] * self.widths[1]
        return 2 * self.forward_flops(rows) - first

    def step_flops(self) -> int:
        """The products of one training step."""
        return self.forward_flops(self.batch) + self.backward_flops(self.batch)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("tiny", 4, (2, 2, 2)),
        Case("spiral", 300, (2, 64, 3)),
        Case("digits", 32, (64, 32, 10)),
        Case("mnist-128", 128, (784, 128, 128, 10)),
        Case("mnist-512", 256, (784, 512, 512, 10)),
        Case("wide", 1024, (1024, 1024, 1024, 1024)),
        Case("deep", 64, (*[64] * 8, 10)),
        Case("tanh-mse", 128, (32, 64, 64, 1), "tanh", "mean_squared_error"),
        Case("binary", 256, (30, 64, 32, 1), loss="sigmoid_cross_entropy"),
        Case("dropout-bn", 128, (64, 128, 128, 10), dropout=0.2, batch_norm=True),
        Case("momentum", 64, (54, 128, 64, 7), optimizer="momentum"),
        Case("rows-2048", 2048, (28, 64, 64, 3)),
    )
}


def choose(
    kind: str, text: str | None, choices: Iterable[str], open_end: bool = False
) -> list[str]:
    """Names written with commas between them; all of the choices where there is no text.

    Args:
        kind: what the names are, for the errors.
        open_end: other names than the choices are accepted.
    """
    if text is None:
        return list(choices)
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise DataError(f"name at least one {kind}: {', '.join(choices)}")
    for name in names:
        if name not in choices and not open_end:
            raise unknown_name(kind, name, choices)
    return names


# -- operations -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """An operation of a case on one backend, ready to be timed.

    Attributes:
        repeat: does the operation so many times.
        steps: what one repetition counts for; 1, or the batches of an epoch.
        rows, flops: of one step.
        reset: brings a trained model back to its beginning, so that however long it is
            measured it meets the same numbers.
    """

    repeat: Callable[[int], object]
    rows: int
    flops: int
    steps: int = 1
    reset: Callable[[], object] = lambda: None


def reset_function(model: Sequential) -> Callable[[], None]:
    """A function that brings ``model`` back to where it stands now, its optimizer untouched."""
    arrays, state = model.arrays(), model.optimizer_state()

    def reset() -> None:
        model.set_arrays(arrays)
        model.set_optimizer_state(state)
        model.training.step = 0

    return reset


def forward(case: Case, model: Sequential) -> Trial:
    """layer.forward through all layers, as in training"""
    inputs = cycle([model.backend.asarray(x, model.dtype) for x, _ in case.batches()])

    def repeat(count: int) -> None:
        for x in islice(inputs, count):
            for layer in model.layers:
                x = layer.forward(x, training=True)
        model.backend.synchronize()

    return Trial(repeat, case.batch, case.forward_flops(case.batch))


def backward(case: Case, model: Sequential) -> Trial:
    """layer.backward through all layers, down to the gradient of the input"""
    forward(case, model).repeat(1)
    rng = np.random.default_rng(1)
    gradient = rng.standard_normal((case.batch, case.widths[-1]), np.float32) / case.batch
    device_gradient = model.backend.asarray(gradient, model.dtype)

    def repeat(count: int) -> None:
        for _ in range(count):
            dy = device_gradient
            for layer in reversed(model.layers):
                dy = layer.backward(dy)
        model.backend.synchronize()

    return Trial(repeat, case.batch, case.backward_flops(case.batch, first_dx=True))


def step(case: Case, model: Sequential) -> Trial:
    """model.train_step on one batch after the other"""
    batches = cycle(case.batches())

    def repeat(count: int) -> None:
        for x, y in islice(batches, count):
            model.train_step(x, y)

    return Trial(repeat, case.batch, case.step_flops(), reset=reset_function(model))


def epoch(case: Case, model: Sequential) -> Trial:
    """model.fit over epochs of 32 batches, for each step"""
    x, y = case.data(EPOCH_BATCHES * case.batch)

    def repeat(count: int) -> None:
        model.fit(x, y, epochs=count, batch_size=case.batch, verbose=0)

    flops = case.step_flops()
    return Trial(repeat, case.batch, flops, EPOCH_BATCHES, reset_function(model))


def _call(case: Case, model: Sequential, rows: int) -> Trial:
    inputs = cycle([x[:rows].copy() for x, _ in case.batches()])

    def repeat(count: int) -> None:
        for x in islice(inputs, count):
            model(x)
        model.backend.synchronize()

    return Trial(repeat, rows, case.forward_flops(rows))


def row(case: Case, model: Sequential) -> Trial:
    """model(x) of one row"""
    return _call(case, model, 1)


def batch(case: Case, model: Sequential) -> Trial:
    """model(x) of one batch"""
    return _call(case, model, case.batch)


def predict(case: Case, model: Sequential, rows: int = PREDICT_ROWS) -> Trial:
    """model.predict of 10,000 rows"""
    x, _ = case.data(rows)

    def repeat(count: int) -> None:
        for _ in range(count):
            model.predict(x)

    return Trial(repeat, rows, case.forward_flops(rows))


#: Name -> what makes a Trial of it; the docstring is the operation's description.
OPERATIONS: dict[str, Callable[[Case, Sequential], Trial]] = {
    make.__name__: make for make in (forward, backward, step, epoch, row, batch, predict)
}


# -- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How long a step of an operation took.

    Attributes:
        seconds: the median of ``rounds``, the seconds of a step in each round.
    """

    case: str
    operation: str
    backend: str
    seconds: float
    samples_per_second: float
    gflop_per_second: float
    rounds: tuple[float, ...]

    @classmethod
    def of(
        cls, case: Case, operation: str, backend: str, trial: Trial, rounds: Sequence[float]
    ) -> Result:
        seconds = statistics.median(rounds)
        rates = (trial.rows / seconds, trial.flops / seconds / 1e9)
        return cls(case.name, operation, backend, seconds, *rates, tuple(rounds))


def timed(trial: Trial, count: int) -> float:
    """Seconds of ``count`` repetitions from the trial's beginning."""
    trial.reset()
    start = time.perf_counter()
    trial.repeat(count)
    return time.perf_counter() - start


def repetitions(trial: Trial, seconds: float) -> int:
    """How many repetitions last about ``seconds``; finding out warms everything up."""
    timed(trial, 1)
    count = 1
    while True:
        elapsed = timed(trial, count)
        fitting = max(1, round(count * seconds / elapsed))
        if elapsed > seconds / 2 or fitting <= count:
            return fitting
        # what is short is not measured well: grow in steps
        count = min(fitting, 10 * count)


def measure(
    case: Case,
    operation: str,
    backends: Sequence[Backend],
    rounds: int = 5,
    seconds: float = 0.05,
) -> list[Result]:
    """Time one operation on each backend; rounds alternate between the backends.

    Args:
        operation: a key of ``OPERATIONS``.
        seconds: length of a round; at least one repetition is made.
    """
    trials = [OPERATIONS[operation](case, case.model(backend)) for backend in backends]
    counts = [repetitions(trial, seconds) for trial in trials]
    times: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):
        for trial, count, found in zip(trials, counts, times, strict=True):
            if len(trials) > 1:
                time.sleep(SETTLE_SECONDS)
            if count > 1:
                timed(trial, 1)
            found.append(timed(trial, count) / (count * trial.steps))
    return [
        Result.of(case, operation, backend.device, trial, found)
        for backend, trial, found in zip(backends, trials, times, strict=True)
    ]
