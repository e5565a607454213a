"""The executor of the CUDA backend: training steps captured once, replayed as CUDA graphs.

A step is the same sequence of launches every time. What changes lies on the device: an array of
addresses and sizes says where this run's data are, and the step's first kernel moves on from one
batch, rate and random stream to the next. The host only starts graphs of many steps, and waits
once for the trace at the end of a run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from nnbackend.backends._cuda_kernels import RUN, STATE_BYTES
from nnbackend.backends.base import Array
from nnbackend.backends.cuda_backend import CudaBackend
from nnbackend.executor import METRIC_SUMS, Data, Trace
from nnbackend.losses import Loss
from nnbackend.optimizers import Adam
from nnbackend.program import Program
from nnbackend.python_executor import PythonExecutor, TrainingPlan, add_penalties

#: Steps of the longer graph. Each graph costs one call, some 5 us; its launch hides behind the one
#: before, so that more steps gain nothing.
STEPS = 16
#: Bytes of a layer's outputs that inference makes at a time: enough to keep a large GPU busy.
INFERENCE_BYTES = 1 << 26
#: Kinds of steps (batch sizes, forms of targets, optimizer settings) whose graphs are kept.
KEPT = 4

_FLOAT64, _INT64 = np.dtype(np.float64), np.dtype(np.int64)
_WORD = np.dtype(np.uint32)


class GraphExecutor(PythonExecutor):
    """Trains by replaying graphs; single gradients and inference are launched one by one."""

    backend: CudaBackend

    def __init__(self, program: Program, backend: CudaBackend) -> None:
        super().__init__(program, backend)
        zeros = backend.zeros
        self.record = zeros(len(RUN), _INT64)
        self.state = zeros(STATE_BYTES, np.dtype(np.uint8))
        self.penalty = zeros(1, _FLOAT64)
        self.statistics = zeros(max(1, program.n_sums), _FLOAT64)
        widest = max(row.n_outputs for row in program.rows)
        self.inference_rows = max(1024, INFERENCE_BYTES // (widest * program.dtype.itemsize))
        self._steps: dict[Any, _Steps] = {}
        self._lock = threading.Lock()

    def run(
        self,
        data: Data,
        order: Array | None,
        batch_size: int,
        lr: np.ndarray[Any, np.dtype[np.float64]],
        first_step: int,
        keep_gradient: bool = True,
    ) -> Trace:
        backend, gpu = self.backend, self.backend.gpu
        rows = len(data.x) if order is None else order.shape[1]
        batch = min(batch_size, rows)
        with self._lock:
            trace = backend.zeros((len(lr), METRIC_SUMS + self.program.n_sums), _FLOAT64)
            rates = backend.asarray(lr, _FLOAT64)
            arrays = (data.x, data.target, data.weight, order, rates, trace)
            values = [0 if a is None else gpu.address(a) for a in arrays]
            numbers = np.array([*values, first_step, 0, rows, batch], dtype=np.int64)
            self.record[...] = backend.asarray(numbers, _INT64)
            for size, count in self._sequence(rows, batch, len(lr)):
                self._steps_of(size, batch, data).advance(count)
            # waits until the run is over: its arrays are not needed any more
            return backend.to_numpy(trace)

    def _sequence(self, rows: int, batch: int, steps: int) -> Iterator[tuple[int, int]]:
        """Sizes of the batches to come, each with how many follow each other."""
        full, rest = divmod(rows, batch)
        if not rest:
            yield batch, steps
            return
        while steps > 0:
            yield batch, min(full, steps)
            if steps > full:
                yield rest, 1
            steps -= full + 1

    def _steps_of(self, size: int, batch: int, data: Data) -> _Steps:
        optimizer = self.program.optimizer
        settings = () if optimizer is None else tuple(
            (name, value) for name, value in sorted(vars(optimizer).items()) if name != "lr"
        )  # fmt: skip
        key = (size, data.target.shape[1:], data.weight is None, settings)
        plan = self.plan(size, batch)
        steps = self._steps.pop(key, None)
        if steps is None or steps.plan.workspace is not plan.workspace:
            steps = _Steps(self, plan, data)
        self._steps[key] = steps
        if len(self._steps) > KEPT:
            del self._steps[next(iter(self._steps))]
        return steps


class _Steps:
    """A training step with batches of one size and form, as launches and as graphs of them."""

    def __init__(self, executor: GraphExecutor, plan: TrainingPlan, data: Data) -> None:
        self.executor, self.plan = executor, plan
        self.program, self.backend = executor.program, executor.backend
        rows, zeros, dtype = plan.rows, self.backend.zeros, executor.program.dtype
        self.batch = Data(
            plan.workspace.x[:rows],
            zeros((rows, *data.target.shape[1:]), data.target.dtype),
            None if data.weight is None else zeros(rows, dtype),
        )
        self._graphs: dict[int, Callable[[], None]] = {}
        self._is_warm = False

    def advance(self, count: int) -> None:
        """The next ``count`` steps of the run. The first ones ever are launched one by one, which
        compiles and allocates what they need."""
        if count and not self._is_warm:
            self._launch()
            self._is_warm = True
            count -= 1
        for steps in (STEPS, 1):
            while count >= steps:
                replay = self._graph(steps)
                with self.backend.lock:  # not between the launches of another thread's operation
                    replay()
                count -= steps

    def _graph(self, steps: int) -> Callable[[], None]:
        if steps not in self._graphs:

            def work() -> None:
                for _ in range(steps):
                    self._launch()

            self._graphs[steps] = self.backend.gpu.capture(work)
        return self._graphs[steps]

    def _launch(self) -> None:
        """All launches of a step."""
        executor, plan, program = self.executor, self.plan, self.program
        with self.backend.lock, self.backend.from_state(executor.state):
            self._begin()
            x, inputs = self.batch.x, []
            for forward in plan.forward:
                inputs.append(x)
                x = forward(x, 0)
            dy = plan.dpred
            self._measure(x, dy)
            for index in range(len(inputs) - 1, plan.first_trained - 1, -1):
                dy = plan.backward[index](inputs[index], dy)
            if program.penalties:
                add_penalties(program, True, executor.penalty)
                self.backend.run(
                    "finish_penalty_of_step", None, 1, executor.record, executor.state,
                    executor.penalty, program.n_sums,
                )  # fmt: skip
            executor.update(0.0, 0)

    def _begin(self) -> None:
        executor, backend, batch = self.executor, self.backend, self.batch
        optimizer = self.program.optimizer
        is_adam = isinstance(optimizer, Adam)
        beta1, beta2 = (optimizer.beta1, optimizer.beta2) if isinstance(optimizer, Adam) else (0, 0)
        eps, decay = getattr(optimizer, "eps", 0.0), getattr(optimizer, "decay", 0.0)
        backend.run(
            "begin_step", None, 1, executor.record, is_adam, beta1, beta2, eps, decay,
            executor.penalty, executor.state,
        )  # fmt: skip
        arrays = [None if a is None else a.reshape(-1).view(_WORD) for a in batch]
        rows = len(batch.x)
        words = [0 if a is None else a.size // rows for a in arrays]
        blocks = backend.blocks(rows * sum(words))
        backend.run(
            "gather_batch", None, blocks, executor.record, executor.state, rows, *words, *arrays
        )

    def _measure(self, pred: Array, dpred: Array) -> None:
        """Statistics, then the loss and its gradient, whose parts stay for the step's end."""
        backend, executor, batch = self.backend, self.executor, self.batch
        start = 0
        for statistic in self.program.statistics:
            out = executor.statistics[start : start + statistic.size]
            statistic.collect(backend, pred, batch.target, batch.weight, out)
            start += statistic.size
        loss = cast(Loss, self.program.loss)
        parameter = (*loss.parameters, 0.0)[0]
        partial = backend.sum_loss(loss.name, pred, batch.target, batch.weight, dpred, parameter)
        backend.run(
            "finish_loss_of_step", None, 1, executor.record, executor.state, *partial, len(pred),
            executor.statistics, self.program.n_sums,
        )  # fmt: skip
