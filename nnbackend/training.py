"""The training loop: epochs cut into chunks of steps that an executor runs in one go."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnbackend.backends.base import Array
from nnbackend.callbacks import Callback
from nnbackend.errors import DataError, NonFiniteLossError
from nnbackend.executor import (
    METRIC_SUMS,
    PENALTY,
    Executor,
    Trace,
    data_loss,
)
from nnbackend.history import History
from nnbackend.metrics import metric_name
from nnbackend.orders import Orders
from nnbackend.prefetch import BlocksAhead
from nnbackend.program import Program
from nnbackend.progress import Progress
from nnbackend.sources import ArraySource, BatchSource, Source

if TYPE_CHECKING:
    from nnbackend.model import Sequential

RESERVED_CURVES = ("loss", "data_loss", "lr")
#: A chunk is about this long, so that Ctrl-C, progress and callbacks stay live.
CHUNK_SECONDS = 0.05
#: Largest trace of a chunk, in bytes.
TRACE_BYTES = 1 << 24
#: Without anything that looks on between epochs, the state is kept for a non-finite loss this
#: often; what came after is then trained again, exactly, up to the last good epoch.
SNAPSHOT_SECONDS = 1.0


class Snapshot(NamedTuple):
    """Copies of everything that training changes, at the boundary of an epoch."""

    arrays: list[Array]
    step: int
    epoch: int

    @classmethod
    def take(
        cls, model: Sequential, step: int, epoch: int, before: Snapshot | None = None
    ) -> Snapshot:
        """``before`` is not needed any more: its memory is used again."""
        if before is None:
            return cls([array.copy() for array in _changing(model.program)], step, epoch)
        for kept, array in zip(before.arrays, _changing(model.program), strict=True):
            kept[...] = array
        return cls(before.arrays, step, epoch)

    def restore(self, model: Sequential) -> None:
        for array, copy in zip(_changing(model.program), self.arrays, strict=True):
            array[...] = copy
        model.step, model.epoch = self.step, self.epoch


def _changing(program: Program) -> list[Array]:
    return [program.storage.parameters, program.storage.state, *program.slots]


@dataclass(slots=True)
class _Epoch:
    """An epoch under way or done: what is needed to train it again, and its trace so far.

    ``generator`` is a state of the model's shuffle generator, from which ``drawn`` orders were
    drawn before that of the epoch.
    """

    number: int
    order: np.ndarray[Any, np.dtype[np.int64]] | None
    generator: dict[str, Any]
    drawn: int
    first_step: int
    rates: list[np.ndarray[Any, Any]] = field(default_factory=list)
    trace: list[Trace] = field(default_factory=list)
    steps_done: int = 0
    start: float = field(default_factory=time.perf_counter)


class Interrupt:
    """Ctrl-C as a flag that is read between chunks, so that no step is cut in half.

    A second Ctrl-C interrupts at once. Outside the main thread, or where the program handles
    the signal itself, Python's own behaviour stays.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        previous = None
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
        if previous is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Trainer:
    """One call of ``fit``: trains ``model`` on ``source`` until epoch ``epochs``."""

    def __init__(
        self,
        model: Sequential,
        source: Source,
        *,
        epochs: int,
        batch_size: int,
        shuffle: bool,
        callbacks: Sequence[Callback],
        validate: Callable[[], dict[str, float]] | None,
        python_metrics: Callable[[], dict[str, float]] | None,
        progress: Progress,
        history: History,
    ) -> None:
        self.model, self.source = model, source
        self.program: Program = model.program
        self.executor: Executor = model.executor
        if isinstance(source, ArraySource):
            batch_size = min(batch_size, source.n_rows)
        self.epochs, self.batch_size, self.shuffle = epochs, batch_size, shuffle
        # those that save the model come last, when the others have their new state
        self.callbacks = sorted(callbacks, key=lambda callback: callback.runs_last)
        self.validate = validate
        self.python_metrics = python_metrics
        self.progress, self.history = progress, history
        self.first_epoch = model.epoch
        self.earlier_epochs = model.history.epochs
        self.interrupt = Interrupt()
        self.looks_on = bool(callbacks) or validate is not None or python_metrics is not None
        # epochs since the snapshot, to train again after a non-finite loss
        self.snapshot: Snapshot | None = None
        self.snapshot_time = 0.0
        self.since_snapshot: list[_Epoch] = []
        self.chunk_steps = 1

    def run(self) -> History:
        for callback in self.callbacks:
            callback.on_fit_begin(self.model)
        source, generator = self.source, self.model.shuffle_generator
        n_rows = source.n_rows if isinstance(source, ArraySource) else 0
        ahead = self.program.backend.works_by_itself
        try:
            with (
                self.interrupt.watch(),
                self.progress,
                Orders.of(generator, n_rows, ahead) as self.orders,
            ):
                while self.model.epoch < self.epochs and self.history.stopped is None:
                    if isinstance(self.source, ArraySource):
                        self._train_arrays(self.source)
                    else:
                        self._train_batches(self.source)
                    if self.interrupt.requested:
                        self.history.stopped = "interrupted"
        except KeyboardInterrupt:
            self.history.stopped = "interrupted"
            unfinished = [e for e in self.since_snapshot if e.number == self.model.epoch]
            if unfinished and isinstance(self.source, ArraySource):
                self._forget(self.source, unfinished[0])
        if self.history.stopped is not None:
            self.progress.stopped(self.model.epoch, self.history.stopped)
        for callback in self.callbacks:
            callback.on_fit_end(self.model, self.history)
        return self.history

    # -- arrays -------------------------------------------------------------------------------

    def _train_arrays(self, source: ArraySource) -> None:
        """Train one epoch, or several whole ones where they are short and nobody looks on."""
        steps_per_epoch = -(-source.n_rows // self.batch_size)
        self._keep_snapshot()
        count = 1
        if not self.looks_on and source.data is not None:
            most = min(self.chunk_steps, self._most_trace_steps())
            count = max(1, min(most // steps_per_epoch, self.epochs - self.model.epoch))
        if count > 1:
            self._train_epochs(source, count, steps_per_epoch)
            return
        (epoch,), _ = self._begin_epochs(source, 1, steps_per_epoch)
        self._draw_ahead(1)
        with BlocksAhead.of(source) as blocks:
            steps = self._next_steps(source, steps_per_epoch)
            while epoch.steps_done < steps_per_epoch:
                # decided now, so that its block can be fetched meanwhile
                left = steps_per_epoch - epoch.steps_done - steps
                then = self._next_steps(source, left)
                rates = self.model.rates(steps)
                epoch.rates.append(rates)
                start = time.perf_counter()
                trace = self._execute(blocks, epoch, epoch.steps_done, rates, then)
                self._adapt_chunk(steps, time.perf_counter() - start)
                self._finish_steps(epoch, trace, source)
                if self.interrupt.requested and epoch.steps_done < steps_per_epoch:
                    self.history.stopped = "interrupted"
                    self._forget(source, epoch)
                    return
                steps = then if blocks.fetches else self._next_steps(source, left)
        self._end_epoch(epoch, self.epoch_figures(np.concatenate(epoch.trace)))

    def _next_steps(self, source: ArraySource, left: int) -> int:
        """Steps of the next chunk, of those that are left in an epoch."""
        fitting = -(-source.block_rows // self.batch_size)
        return min(self.chunk_steps, self._most_trace_steps(), fitting, left)

    def _train_epochs(self, source: ArraySource, count: int, steps_per_epoch: int) -> None:
        """Several whole epochs in one run of the executor."""
        begun, orders = self._begin_epochs(source, count, steps_per_epoch)
        order = None
        if orders is not None:
            order = self.program.backend.asarray(orders, np.dtype(np.int64))
        rates = self.model.rates(count * steps_per_epoch)
        start = time.perf_counter()
        self._draw_ahead(count)
        whole = source.block(slice(0, source.n_rows))
        trace = self.executor.run(whole, order, self.batch_size, rates, self.model.step)
        seconds = time.perf_counter() - start
        self._adapt_chunk(len(rates), seconds)
        shaped = trace.reshape(count, steps_per_epoch, -1)
        for k, epoch in enumerate(begun):
            epoch.rates.append(rates[k * steps_per_epoch : (k + 1) * steps_per_epoch])
        if not np.isfinite(trace[:, :METRIC_SUMS]).all():
            for epoch, own in zip(begun, shaped, strict=True):
                self._finish_steps(epoch, own, source, check_parameters=False)
                self._end_epoch(epoch, self.epoch_figures(own), seconds / count)
        if not self._parameters_finite():
            self._fail(source, begun[-1])
        self.model.step += len(trace)
        self.progress.advance(count * source.n_rows)
        figures = self._figures(shaped)
        last_rates = rates[steps_per_epoch - 1 :: steps_per_epoch].tolist()
        for named, rate in zip(figures, last_rates, strict=True):
            named["lr"] = rate
        self._end_epochs(figures, seconds / count)

    def _begin_epochs(
        self, source: ArraySource, count: int, steps_per_epoch: int
    ) -> tuple[list[_Epoch], np.ndarray[Any, np.dtype[np.int64]] | None]:
        """The next epochs, and the orders of their rows (count, n_rows), if they are drawn."""
        state, step = dict(self.orders.generator.bit_generator.state), self.model.step
        orders = self.orders.take(count) if self.shuffle else None
        first = self.since_snapshot[-1].number + 1 if self.since_snapshot else self.model.epoch
        epochs = []
        for k in range(count):
            order = None if orders is None else orders[k]
            epochs.append(_Epoch(first + k, order, state, k, step + k * steps_per_epoch))
        self.since_snapshot += epochs
        return epochs, orders

    def _draw_ahead(self, count: int) -> None:
        """The epochs after the next ``count`` ones are likely to be as many, if any are left."""
        if self.shuffle:
            self.orders.draw_ahead(min(count, self.epochs - self.model.epoch - count))

    def _execute(
        self,
        blocks: BlocksAhead,
        epoch: _Epoch,
        first: int,
        rates: np.ndarray[Any, Any],
        then: int = 0,
    ) -> Trace:
        """Steps of an epoch from number ``first`` on, one for each rate; ``then`` more follow."""
        source = blocks.source
        start = first * self.batch_size
        stop = min(start + len(rates) * self.batch_size, source.n_rows)
        end = min(stop + then * self.batch_size, source.n_rows)
        order, rows, following = None, slice(start, stop), slice(stop, end)
        if epoch.order is None:
            data = blocks.get(rows, following if then else None)
        elif source.data is None:
            data = blocks.get(epoch.order[rows], epoch.order[following] if then else None)
        else:
            data = source.data
            order = self.program.backend.asarray(epoch.order[None, rows], np.dtype(np.int64))
        # a gradient that nobody can look at need not be written to memory
        ends = stop == source.n_rows
        first_step = epoch.first_step + first
        return self.executor.run(data, order, self.batch_size, rates, first_step, ends)

    def _finish_steps(
        self, epoch: _Epoch, trace: Trace, source: ArraySource, check_parameters: bool = True
    ) -> None:
        """Count the steps of a chunk; raise if the loss, or at an epoch's end a parameter, left
        the numbers."""
        self.model.step += len(trace)
        rows = len(trace) * self.batch_size
        ends = epoch.steps_done + len(trace) == -(-source.n_rows // self.batch_size)
        if ends:
            rows -= -source.n_rows % self.batch_size
        self.progress.advance(rows)
        epoch.trace.append(trace)
        good = bool(np.isfinite(trace[:, :METRIC_SUMS]).all())
        if good and check_parameters and ends:
            good = self._parameters_finite()
        if not good:
            self._fail(source, epoch)
        epoch.steps_done += len(trace)

    def _parameters_finite(self) -> bool:
        storage, all_finite = self.program.storage, self.program.backend.all_finite
        return all_finite(storage.parameters) and all_finite(storage.state)

    def _adapt_chunk(self, steps: int, seconds: float) -> None:
        """Aim at CHUNK_SECONDS, growing at most twofold at a time."""
        wanted = int(steps * CHUNK_SECONDS / max(seconds, 1e-9))
        self.chunk_steps = max(1, min(wanted, 2 * self.chunk_steps))

    def _most_trace_steps(self) -> int:
        return max(1, TRACE_BYTES // (8 * (METRIC_SUMS + self.program.n_sums)))

    # -- iterables ----------------------------------------------------------------------------

    def _train_batches(self, source: BatchSource) -> None:
        """One epoch over an iterable: a step for each batch, whatever its size."""
        snapshot = Snapshot.take(self.model, self.model.step, self.model.epoch)
        epoch = _Epoch(self.model.epoch, None, {}, 0, self.model.step)
        try:
            for data in source.blocks():
                self.model.check_batch(len(data.x))
                rates = self.model.rates(1)
                trace = self.executor.run(data, None, len(data.x), rates, self.model.step)
                epoch.rates.append(rates)
                self.model.step += 1
                epoch.steps_done += 1
                epoch.trace.append(trace)
                self.progress.advance(len(data.x))
                if not np.isfinite(trace[:, :METRIC_SUMS]).all() or not self._parameters_finite():
                    self._raise(epoch, epoch.steps_done, snapshot)
                if self.interrupt.requested:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            snapshot.restore(self.model)
            raise
        self._end_epoch(epoch, self.epoch_figures(np.concatenate(epoch.trace)))

    # -- after an epoch -------------------------------------------------------------------------

    def _end_epoch(
        self, epoch: _Epoch, figures: dict[str, float], seconds: float | None = None
    ) -> None:
        epoch.trace = []
        if self.python_metrics is not None:
            figures |= self.python_metrics()
        if self.validate is not None:
            figures |= {f"val_{name}": value for name, value in self.validate().items()}
        figures["lr"] = float(epoch.rates[-1][-1])
        if seconds is None:
            seconds = time.perf_counter() - epoch.start
        self._end_epochs([figures], seconds)
        for callback in self.callbacks:
            reason = callback.on_epoch_end(self.model, self.model.epoch, figures, self.history)
            if reason:
                self.history.stopped = str(reason)

    def _end_epochs(self, figures: list[dict[str, float]], seconds: float) -> None:
        """Epochs are complete, each after so many seconds."""
        for history in (self.history, self.model.history):
            history.extend(figures, seconds)
        first = self.model.epoch + 1
        self.model.epoch += len(figures)
        for number, own in enumerate(figures, first):
            self.progress.epoch_end(number, own)

    def epoch_figures(self, trace: Trace) -> dict[str, float]:
        """Loss and metrics over all steps of an epoch."""
        return self._figures(trace[None])[0]

    def _figures(self, traces: Trace) -> list[dict[str, float]]:
        """Loss and metrics of each epoch, for traces (epochs, steps, 3 + n_sums)."""
        totals, penalties = traces.sum(axis=1), traces[:, :, PENALTY].mean(axis=1).tolist()
        loss_sums, _, weight_sums = totals[:, :METRIC_SUMS].T.tolist()
        return [
            figures_of(self.program, *sums)
            for sums in zip(loss_sums, penalties, weight_sums, totals[:, METRIC_SUMS:], strict=True)
        ]

    # -- going back to the end of an epoch ----------------------------------------------------

    def _keep_snapshot(self) -> None:
        """At the start of an epoch: remember the state, if the last one remembered is old."""
        now = time.perf_counter()
        old = now - self.snapshot_time > SNAPSHOT_SECONDS
        if self.snapshot is None or self.looks_on or old:
            model = self.model
            self.snapshot = Snapshot.take(model, model.step, model.epoch, self.snapshot)
            self.snapshot_time = now
            self.since_snapshot = []

    def _restore_snapshot(self) -> None:
        if self.snapshot is None:
            raise AssertionError("a snapshot is taken before the first step")
        self.snapshot.restore(self.model)

    def _forget(self, source: ArraySource, unfinished: _Epoch) -> None:
        """Undo an epoch that was interrupted, so that the model stands where its history ends
        and can be trained on as if nothing had happened."""
        self._restore_snapshot()
        blocks = BlocksAhead(source)
        for epoch in self.since_snapshot:
            if epoch is unfinished:
                break
            rates = np.concatenate(epoch.rates)
            for first in range(0, len(rates), self.chunk_steps):
                self._execute(blocks, epoch, first, rates[first : first + self.chunk_steps])
        self.model.step, self.model.epoch = unfinished.first_step, unfinished.number
        self._restore_generator(unfinished)

    def _restore_generator(self, epoch: _Epoch) -> None:
        """The shuffle generator as it was before ``epoch``."""
        if epoch.generator:
            self.model.shuffle_generator.bit_generator.state = epoch.generator
        if epoch.order is not None:
            for _ in range(epoch.drawn):
                self.model.shuffle_generator.permutation(len(epoch.order))

    def _fail(self, source: ArraySource, failing: _Epoch) -> None:
        """Train the epochs since the snapshot again to find where it broke, and raise."""
        self._restore_snapshot()
        before = self.snapshot
        for epoch in self.since_snapshot:
            before = Snapshot.take(self.model, epoch.first_step, epoch.number)
            bad_step = self._train_again(source, epoch)
            if bad_step is not None:
                self._raise(epoch, bad_step, before)
            if epoch is failing:
                break
        # not repeatable: a user-written layer with a random generator of its own, for example
        if before is not None:
            self._raise(failing, failing.steps_done + 1, before)

    def _train_again(self, source: ArraySource, epoch: _Epoch) -> int | None:
        """Repeat an epoch step by step; the first bad step, counted from 1, or None."""
        rates, blocks = np.concatenate(epoch.rates), BlocksAhead(source)
        for step in range(len(rates)):
            trace = self._execute(blocks, epoch, step, rates[step : step + 1])
            if not np.isfinite(trace[:, :METRIC_SUMS]).all() or not self._parameters_finite():
                return step + 1
        return None

    def _raise(self, epoch: _Epoch, step: int, good: Snapshot) -> None:
        """Return to ``good``, the state before ``epoch``, and raise the error."""
        good.restore(self.model)
        self._restore_generator(epoch)
        done = epoch.number - self.first_epoch
        self.history.truncate(done)
        self.model.history.truncate(self.earlier_epochs + done)
        raise NonFiniteLossError(
            f"the loss or a parameter became NaN or infinite in epoch {epoch.number + 1}, step "
            f"{step}. The model is back at the end of epoch {epoch.number}. Try a smaller "
            f"learning rate, clip_norm=1.0 in the optimizer, or nn.Standardize as the first layer",
            self.history,
            epoch.number + 1,
            step,
        )


def figures_of(
    program: Program,
    loss_sum: float,
    penalty: float,
    weight_sum: float,
    sums: np.ndarray[Any, Any],
) -> dict[str, float]:
    """Named figures from summed trace columns; "data_loss" only where there are penalties."""
    value = data_loss(program, loss_sum, weight_sum)
    figures = {"loss": value + penalty}
    if program.penalties:
        figures["data_loss"] = value
    if program.metrics:
        figures |= program.metric_values(sums, weight_sum)
    return figures


def check_metric_names(metrics: Sequence[Any]) -> None:
    """Two metrics of one name would share a curve."""
    names = [metric_name(metric) for metric in metrics]
    taken = {name for name in names if names.count(name) > 1} | {*names} & {*RESERVED_CURVES}
    if taken:
        raise DataError(
            f"metrics need names of their own, other than {', '.join(RESERVED_CURVES)}; received "
            f"{', '.join(sorted(taken))} more than once or in their place"
        )
