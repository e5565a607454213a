"""Operations of a benchmark case, and how long each takes on each backend."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.benchmark.cases import EPOCH_BATCHES, OPTIMIZERS, Batches, Case
from nnbackend.model.sequential import Sequential

#: Rows of the operation "predict".
PREDICT_ROWS = 10_000
#: Idle threads of a BLAS spin on a core that the next backend needs: OpenBLAS for 2^28 cycles,
#: which are 80 ms.
SETTLE_SECONDS = 0.12


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


def driven_batches(case: Case) -> Batches:
    """Inputs, each twice, with a gradient by the outputs and with its opposite: following a fixed
    one, which is that of no loss with a minimum, a network would lose its scale."""
    rng, shape = np.random.default_rng(1), (case.batch, case.widths[-1])
    found: Batches = []
    for x, _ in case.batches()[::2]:
        dy = rng.standard_normal(shape, np.float32) / np.float32(case.batch)
        found += [(x, dy), (x, -dy)]
    return found


def drive(model: Sequential, x: Any, dy: Any) -> Any:
    """There, back from a gradient of one's own, and a step of the optimizer; the outputs."""
    y = model.forward(x)
    model.backward(dy, input_gradient=False)
    model.apply_gradients()
    return y


def driven(case: Case, model: Sequential) -> Trial:
    """model.forward, model.backward(dy) and model.apply_gradients"""
    asarray = model.backend.asarray
    pairs = cycle([(x, asarray(dy, dy.dtype)) for x, dy in driven_batches(case)])

    def repeat(count: int) -> None:
        for x, dy in islice(pairs, count):
            drive(model, x, dy)
        model.backend.synchronize()

    return Trial(repeat, case.batch, case.step_flops(), reset=reset_function(model))


def own_squared_error(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """The mean squared error as one writes it in NumPy, and its gradient."""
    error = y_pred - y_true
    return (error * error).mean(), (2.0 / error.size) * error


def own_loss(case: Case, model: Sequential) -> Trial:
    """model.train_step with a loss of three NumPy operations"""
    model.compile(own_squared_error, OPTIMIZERS[case.optimizer]())
    rng = np.random.default_rng(2)
    shape = (case.batch, case.widths[-1])
    batches = cycle([(x, rng.standard_normal(shape, np.float32)) for x, _ in case.batches()])

    def repeat(count: int) -> None:
        for x, y in islice(batches, count):
            model.train_step(x, y)
        model.backend.synchronize()

    return Trial(repeat, case.batch, case.step_flops(), reset=reset_function(model))


def gradient(case: Case, model: Sequential) -> Trial:
    """model.gradient: the loss of one batch and its gradient"""
    batches = cycle(case.batches())

    def repeat(count: int) -> None:
        for x, y in islice(batches, count):
            model.gradient(x, y)

    return Trial(repeat, case.batch, case.step_flops())


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
    make.__name__: make
    for make in (forward, backward, driven, own_loss, gradient, step, epoch, row, batch, predict)
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
        # what happens for the first time only after some steps, such as compiling, does not count
        elapsed = min(timed(trial, count), timed(trial, count))
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
