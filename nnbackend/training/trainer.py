"""The training loop: epochs cut into chunks of steps that an executor runs in one go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import numpy as np

from nnbackend.backends.orders import blocks_of
from nnbackend.backends.types import Array
from nnbackend.data.prefetch import BlocksAhead
from nnbackend.data.sources import ArraySource, BatchSource, Source
from nnbackend.distributed.executor import SharedTraining
from nnbackend.distributed.ranks import Ranks
from nnbackend.errors import NonFiniteLossError
from nnbackend.executor.base import AGAINST_NAN, Data, Rates, Run, Trace, Trains
from nnbackend.kernels.codes import TRACE_SUMS
from nnbackend.program.table import Program
from nnbackend.training.callback import CallbackList
from nnbackend.training.epoch import ChunkRunner, Epoch
from nnbackend.training.evaluation import epoch_figures
from nnbackend.training.history import History
from nnbackend.training.interrupt import Interrupt
from nnbackend.training.progress import Progress
from nnbackend.training.recovery import (
    Fault,
    Recovery,
    is_finite,
    parameters_finite,
)
from nnbackend.training.state import TrainingState

#: A chunk is about this long, so that Ctrl-C, progress and callbacks stay live.
CHUNK_SECONDS = 0.05
#: Largest trace of a chunk, in bytes.
TRACE_BYTES = 1 << 24


class Trainer:
    """One call of ``fit``: trains on ``source`` until epoch ``epochs``.

    Args:
        program: of the model.
        executor: the model's, or ranks that share its work.
        state: of the training run, updated.
        epochs: number of the last epoch.
        rows_per_epoch: fewer than the rows there are if the last ones of an order are left out.
        validate: returns the figures over the validation data.
        python_metrics: returns those of metrics that are functions.
        history: curves of this call.
        ranks: that train together; None for one process.
    """

    def __init__(
        self,
        program: Program,
        executor: Trains,
        state: TrainingState,
        source: Source,
        *,
        epochs: int,
        batch_size: int,
        shuffle: bool,
        rows_per_epoch: int | None,
        callbacks: CallbackList,
        validate: Callable[[], dict[str, float]] | None,
        python_metrics: Callable[[], dict[str, float]] | None,
        progress: Progress,
        history: History,
        ranks: Ranks | None = None,
    ) -> None:
        self.program, self.executor, self.state = program, executor, state
        self.source, self.ranks = source, ranks
        if isinstance(source, ArraySource):
            batch_size = min(batch_size, source.n_rows)
            self.n_rows = rows_per_epoch or source.n_rows
            self.runner = ChunkRunner(program, executor, source, batch_size, self.n_rows, ranks)
        self.epochs, self.batch_size, self.shuffle = epochs, batch_size, shuffle
        self.callbacks = callbacks
        self.validate = validate
        self.python_metrics = python_metrics
        self.progress, self.history = progress, history
        self.first_epoch = state.epoch
        self.earlier_epochs = state.history.epochs
        self.interrupt = Interrupt()
        self.looks_on = bool(callbacks) or validate is not None or python_metrics is not None
        # a snapshot now and then, by the clock, would be at different epochs
        self.looks_on |= ranks is not None
        self.block_rows = 0
        #: whether any rank was interrupted, as all know since the last chunk
        self._all_stop = False
        self.recovery = Recovery(program, state)
        self.unfinished: Epoch | None = None
        self.chunk_steps = 1
        if executor.pace is not None and executor.pace[0] == batch_size:
            # what runs at the same time may have changed: carefully
            self.chunk_steps = max(1, int(CHUNK_SECONDS / executor.pace[1] / 2))

    def run(self) -> History:
        self.callbacks.fit_begins()
        source = self.source
        with self.interrupt.watch():
            try:
                data = source.data if isinstance(source, ArraySource) else None
                self.executor.prepare(self.batch_size, data)
                if isinstance(source, ArraySource):
                    self.block_rows = source.block_rows
                    if self.ranks is not None:
                        self.block_rows = min(self.ranks.gather_objects(self.block_rows))
                with self.progress:
                    while self.state.epoch < self.epochs and self.history.stopped is None:
                        if isinstance(source, ArraySource):
                            self._train_arrays(source)
                        else:
                            self._train_batches(source)
                        if self.interrupt.requested:
                            self.history.stopped = "interrupted"
                        self._agree_on_end()
            except BaseException as error:
                with self.interrupt.shield():
                    self._undo()
                    if self.ranks is not None and isinstance(error, KeyboardInterrupt):
                        self._leave_ranks(self.ranks)
                if not isinstance(error, KeyboardInterrupt):
                    self.callbacks.fit_failed(error)
                    raise
                self.history.stopped = "interrupted"
            if self.history.stopped is not None:
                self.progress.stopped(self.state.epoch, self.history.stopped)
            self.callbacks.fit_ends(self.history)
        return self.history

    def _leave_ranks(self, ranks: Ranks) -> None:
        """After a KeyboardInterrupt, which the others know of only if it was agreed on."""
        if not self._all_stop:
            ranks.comm.lose_step("a training with this communicator was broken off by Ctrl-C")

    def _undo(self) -> None:
        """Go back from within an epoch to the end of the one before."""
        unfinished, self.unfinished = self.unfinished, None
        if unfinished is None:
            return
        if not isinstance(self.source, ArraySource):
            self.recovery.restore()
            return
        try:
            self.recovery.forget(self.runner, unfinished, self.chunk_steps)
        except Exception:  # what failed before may fail again: further back then
            self._truncate(self.recovery.restore().epoch)

    def _truncate(self, epoch: int) -> None:
        """Curves end with ``epoch``."""
        done = epoch - self.first_epoch
        self.history.truncate(done)
        self.state.history.truncate(self.earlier_epochs + done)

    # -- arrays -------------------------------------------------------------------------------

    def _train_arrays(self, source: ArraySource) -> None:
        """Train one epoch, or several whole ones if they are short and nothing runs in between."""
        steps_per_epoch = -(-self.n_rows // self.batch_size)
        self.recovery.keep(self.looks_on)
        count = 1
        if not self.looks_on and source.data is not None:
            most = min(self.chunk_steps, self._most_trace_steps())
            count = max(1, min(most // steps_per_epoch, self.epochs - self.state.epoch))
        if count > 1:
            self._train_epochs(source, count, steps_per_epoch)
            return
        (epoch,), _ = self._begin_epochs(source, 1, steps_per_epoch)
        with BlocksAhead.of(source) as blocks:
            steps = self._next_steps(steps_per_epoch)
            while epoch.steps_done < steps_per_epoch:
                # decided now, so that its block can be fetched meanwhile
                left = steps_per_epoch - epoch.steps_done - steps
                then = self._next_steps(left)
                rates = self._rates(steps)
                epoch.rates.append(rates)
                start = time.perf_counter()
                trace = self.runner.run(blocks, epoch, epoch.steps_done, rates, then)
                self._adapt_chunk(steps, time.perf_counter() - start)
                self._finish_steps(epoch, trace)
                stops = self.interrupt.requested if self.ranks is None else self._all_stop
                if stops and epoch.steps_done < steps_per_epoch:
                    self.history.stopped = "interrupted"
                    with self.interrupt.shield():
                        self._undo()
                    return
                known = blocks.fetches or self.ranks is not None
                steps = then if known else self._next_steps(left)
        self._end_epoch(epoch, np.concatenate(epoch.trace))

    def _next_steps(self, left: int) -> int:
        """Number of steps in the next chunk, of those left in an epoch."""
        fitting = -(-self.block_rows // self.batch_size)
        return min(self.chunk_steps, self._most_trace_steps(), fitting, left)

    def _rates(self, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.program.rates(self.state.step, count)

    def _train_epochs(self, source: ArraySource, count: int, steps_per_epoch: int) -> None:
        """Several whole epochs in one run of the executor."""
        begun, orders = self._begin_epochs(source, count, steps_per_epoch)
        rates = self._rates(count * steps_per_epoch)
        start = time.perf_counter()
        whole = source.block(slice(0, source.n_rows if orders is not None else self.n_rows))
        trace = self.executor.run(Run(whole, orders, self.batch_size, rates, self.state.step))
        seconds = time.perf_counter() - start
        self._adapt_chunk(len(rates), seconds)
        shaped = trace.reshape(count, steps_per_epoch, -1)
        for k, epoch in enumerate(begun):
            epoch.rates.append(rates[k * steps_per_epoch : (k + 1) * steps_per_epoch])
        if not is_finite(trace):
            for epoch, own in zip(begun, shaped, strict=True):
                self._finish_steps(epoch, own, check_parameters=False)
                self._end_epoch(epoch, own, seconds / count)
        if not parameters_finite(self.program):
            self._find_fault(begun[-1])
        self.state.step += len(trace)
        self.progress.advance(count * self.n_rows)
        figures = epoch_figures(self.program, shaped)
        last_rates = rates[steps_per_epoch - 1 :: steps_per_epoch].tolist()
        for named, rate in zip(figures, last_rates, strict=True):
            named["lr"] = rate
        self._end_epochs(figures, seconds / count)

    def _begin_epochs(
        self, source: ArraySource, count: int, steps_per_epoch: int
    ) -> tuple[list[Epoch], Array | None]:
        """The next epochs, and the orders of their rows (count, n_rows), if rows are shuffled."""
        orders, backend, step = None, self.program.backend, self.state.step
        block, blocks = self.state.orders.block, 0
        if self.shuffle:
            orders = self.state.orders.take(backend, count, source.n_rows)
            blocks = blocks_of(source.n_rows)
            if self.n_rows < source.n_rows:
                orders = orders[:, : self.n_rows].copy()
            if source.data is None:  # rows are gathered where they lie
                orders = backend.to_numpy(orders)
        since = self.recovery.epochs
        first = since[-1].number + 1 if since else self.state.epoch
        epochs = []
        for k in range(count):
            order = None if orders is None else orders[k]
            first_step = step + k * steps_per_epoch
            epochs.append(Epoch(first + k, order, block + k * blocks, first_step))
        since += epochs
        self.unfinished = epochs[0]
        return epochs, orders

    def _finish_steps(self, epoch: Epoch, trace: Trace, check_parameters: bool = True) -> None:
        """Count the steps of a chunk; raise if the loss, or at an epoch's end a parameter, is
        not finite."""
        self.state.step += len(trace)
        rows = len(trace) * self.batch_size
        ends = epoch.steps_done + len(trace) == -(-self.n_rows // self.batch_size)
        if ends:
            rows -= -self.n_rows % self.batch_size
        self.progress.advance(rows)
        epoch.trace.append(trace)
        good = is_finite(trace)
        if good and check_parameters and ends:
            good = parameters_finite(self.program)
        if not good:
            self._find_fault(epoch)
        epoch.steps_done += len(trace)

    def _adapt_chunk(self, steps: int, seconds: float) -> None:
        """Aim at CHUNK_SECONDS, growing at most twofold at a time."""
        self.executor.pace = self.batch_size, max(seconds, 1e-9) / steps
        wanted = int(CHUNK_SECONDS / self.executor.pace[1])
        self.chunk_steps = max(1, min(wanted, 2 * self.chunk_steps))
        if self.ranks is not None:
            # clocks and signals differ between ranks, and chunks must not
            self.chunk_steps, interrupted = self.ranks.agree_on_chunk(
                self.chunk_steps, self.interrupt.requested
            )
            # not what is asked for meanwhile: that is agreed on after the next chunk
            self._all_stop = interrupted

    def _is_interrupted(self) -> bool:
        if self.ranks is None:
            return self.interrupt.requested
        self._all_stop = self.ranks.agree_on_chunk(1, self.interrupt.requested)[1]
        return self._all_stop

    def _agree_on_end(self) -> None:
        """After an epoch: what stops one rank stops all."""
        if self.ranks is not None:
            self.history.stopped = self.ranks.agree_on_end(self.history.stopped, self.program)

    def _most_trace_steps(self) -> int:
        return max(1, TRACE_BYTES // (8 * (int(TRACE_SUMS) + self.program.n_sums)))

    # -- iterables ----------------------------------------------------------------------------

    def _train_batches(self, source: BatchSource) -> None:
        """One epoch over an iterable: a step for each batch, whatever its size."""
        program, state = self.program, self.state
        snapshot = self.recovery.keep(looked_on=True)
        self.unfinished = epoch = Epoch(state.epoch, None, state.orders.block, state.step)
        for rows, step in self._steps(source):
            program.check_batch(rows)
            rates = self._rates(1)
            trace = step(rates, state.step)
            epoch.rates.append(rates)
            state.step += 1
            epoch.steps_done += 1
            epoch.trace.append(trace)
            self.progress.advance(rows)
            if not is_finite(trace) or not parameters_finite(program):
                self._fail(Fault(epoch, epoch.steps_done, snapshot))
            if self._is_interrupted():
                raise KeyboardInterrupt
        self._end_epoch(epoch, np.concatenate(epoch.trace))

    def _steps(self, source: BatchSource) -> Iterator[tuple[int, Callable[[Rates, int], Trace]]]:
        """For each batch of an epoch its rows, and what makes a step of (rate, number)."""
        ranks, executor = self.ranks, self.executor
        if ranks is not None and ranks.sharded and isinstance(executor, SharedTraining):
            for batch in ranks.batches(self.program, source.blocks()):
                yield batch.rows, partial(executor.run_own, batch)
            return
        for data in source.blocks():
            yield len(data.x), partial(self._run_batch, data)

    def _run_batch(self, data: Data, rates: Rates, number: int) -> Trace:
        return self.executor.run(Run(data, None, len(data.x), rates, number))

    # -- after an epoch -------------------------------------------------------------------------

    def _end_epoch(self, epoch: Epoch, trace: Trace, seconds: float | None = None) -> None:
        epoch.trace = []
        figures = epoch_figures(self.program, trace[None])[0]
        if self.python_metrics is not None:
            figures |= self.python_metrics()
        if self.validate is not None:
            figures |= {f"val_{name}": value for name, value in self.validate().items()}
        figures["lr"] = float(epoch.rates[-1][-1])
        if seconds is None:
            seconds = time.perf_counter() - epoch.start
        self._end_epochs([figures], seconds)
        self.callbacks.epoch_ends(self.state.epoch, figures, self.history)

    def _end_epochs(self, figures: list[dict[str, float]], seconds: float) -> None:
        """Record completed epochs, each of ``seconds``."""
        first = self.state.epoch + 1
        with self.interrupt.shield():
            for history in (self.history, self.state.history):
                history.extend(figures, seconds)
            self.state.epoch += len(figures)
            self.unfinished = None
        for number, own in enumerate(figures, first):
            self.progress.epoch_end(number, own)

    def _find_fault(self, failing: Epoch) -> NoReturn:
        """Find where the training first met NaN or infinity, and raise the error."""
        with self.interrupt.shield():
            fault = self.recovery.find_fault(self.runner, failing)
        self._fail(fault)

    def _fail(self, fault: Fault) -> NoReturn:
        """Return to the state before the epoch that failed, and raise the error."""
        epoch = fault.epoch
        with self.interrupt.shield():
            self.unfinished = None
            fault.good.restore(self.program, self.state)
            self._truncate(epoch.number)
        raise NonFiniteLossError(
            f"the loss or a parameter became NaN or infinite in epoch {epoch.number + 1}, step "
            f"{fault.step}. The model is back at the end of epoch {epoch.number}. {AGAINST_NAN}",
            self.history,
            epoch.number + 1,
            fault.step,
        )
