"""The executor of the CUDA backend: steps and inference captured once, replayed as CUDA graphs.

A step is the same sequence of launches every time. What changes lies on the device: an array of
addresses and sizes says where this run's data are, and the step's first kernel moves on from one
batch, rate and random stream to the next. The host only starts graphs of many steps, and waits
once for the trace at the end of a run.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from nnbackend._output import warn
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.batches import batch_sizes, example_rows, padded
from nnbackend.backends.cuda.graphs import GraphInference, GraphPasses, GraphSteps, StepPlace
from nnbackend.backends.cuda.kernels import bind, phase_definitions, source_version
from nnbackend.backends.cuda.known import formulas_of
from nnbackend.backends.cuda.phased import PhasedSteps, can_take_phases
from nnbackend.backends.cuda.resident import ResidentSteps, can_stay, layout_of
from nnbackend.backends.cuda.sums import SharedBatch
from nnbackend.backends.types import Array
from nnbackend.errors import DataError, OutOfMemoryError
from nnbackend.executor.base import NO_FORWARD, Data, Run, Trace
from nnbackend.executor.python import PythonExecutor
from nnbackend.kernels.codes import TRACE_SUMS
from nnbackend.program.table import Program
from nnbackend.schedules import Schedule

#: Bytes of a layer's outputs that inference makes at a time: enough to keep a large GPU busy.
INFERENCE_BYTES = 1 << 26
#: Kinds of steps (batch sizes, forms of targets, optimizer settings) whose graphs are kept, those
#: for which it is known whether a kernel does many of them, and sizes of inference.
KEPT, KEPT_KERNELS, KEPT_SIZES = 4, 16, 8
#: Updates of a model that are launches and graphs in any case: what trains for a moment only need
#: not wait for a kernel of its own to be compiled. It is the number of the update that decides, so
#: that it does not matter how a training is cut into runs.
LAUNCHED_FIRST = 256
#: Steps that are made to find out which way to make them is faster.
TRIED_STEPS = 48
#: Losses of single steps whose memory is taken at a time.
LOSSES = 256

_FLOAT64, _INT64 = np.dtype(np.float64), np.dtype(np.int64)
_INT32, _WORD = np.dtype(np.int32), np.dtype(np.uint32)
Kept = TypeVar("Kept")
#: One kernel that does many steps.
KernelSteps = ResidentSteps | PhasedSteps


class GraphExecutor(PythonExecutor):
    """Trains and predicts by replaying graphs; single gradients are launched one by one."""

    backend: CudaBackend
    how = "by CUDA graphs"
    captures = True

    def __init__(self, program: Program, backend: CudaBackend) -> None:
        super().__init__(program, backend)
        self.place = StepPlace(program, backend)
        widest = max(row.n_outputs for row in program.rows)
        self.inference_rows = max(1024, INFERENCE_BYTES // (widest * program.dtype.itemsize))
        #: the launch that begins a run: a single step has no time to bind its arguments again
        self._begin_run: Callable[..., None] | None = None
        self._settings_seen: tuple[int, tuple[Any, ...]] = (-1, ())
        self._losses: Array = None
        self._losses_given = LOSSES
        self._steps: dict[Any, GraphSteps] = {}
        self._kernels: dict[Any, KernelSteps | None] = {}
        self._inferences: dict[int, GraphInference] = {}
        self._passes: dict[int, GraphPasses] = {}
        self._last_forward: tuple[GraphPasses, Array, int] | None = None
        self._lock = threading.Lock()

    def numbers_changed(self) -> None:
        with self._lock:
            super().numbers_changed()
            for plans in (self._steps, self._kernels, self._inferences, self._passes):
                plans.clear()

    # -- training ---------------------------------------------------------------------------------

    def prepare(self, batch_size: int, data: Data | None) -> None:
        if data is not None:
            with self._lock:
                self._round_parameters()  # ways to multiply are tried with them
                self._steps_of(min(batch_size, len(data.x)), data)

    def run(self, run: Run) -> Trace:
        backend, data, rates = self.backend, run.data, run.rates
        rows = run.n_rows
        batch = min(run.batch_size, rows)
        early = max(0, min(len(rates), LAUNCHED_FIRST - run.first_step))
        with self._lock:
            kernel = None
            if early < len(rates):
                # of whole batches, though there may be only the last rows of an epoch
                kernel = self._kernel_of(run.batch_size, data, TRIED_STEPS)
            if kernel is None:
                early = len(rates)
            trace = backend.zeros((len(rates), TRACE_SUMS + self.program.n_sums), _FLOAT64)
            device_rates = backend.asarray(rates, _FLOAT64)
            self._begin(
                data, run.order, device_rates, 0.0, trace, None, run.first_step, rows, batch
            )
            for size, count in batch_sizes(rows, batch, early):
                self._steps_of(size, data).advance(count)
            if kernel is not None:
                kernel.advance(len(rates) - early)
            # waits until the run is over: its arrays are not needed any more
            return backend.to_numpy(trace)

    def run_shared(
        self, parts: Sequence[tuple[Run, int]], add: Callable[[Array], None],
        counts: tuple[int, ...] = (),
    ) -> Array:  # fmt: skip
        trace = self.backend.zeros((len(parts), TRACE_SUMS + self.program.n_sums), _FLOAT64)
        with self._lock:
            for index, (part, batch_rows) in enumerate(parts):
                rows, rate = part.n_rows, float(part.rates[0])
                self._begin(
                    part.data, part.order, None, rate, trace[index], None, part.first_step, rows,
                    rows, part.first_row,
                )  # fmt: skip
                shared = SharedBatch(batch_rows, counts, add)
                self._steps_of(rows, part.data, shared).advance(1)
        return trace

    def train_on(self, data: Data, rate: float, number: int) -> Array:
        """Nobody waits: the loss is there when it is read."""
        rows = len(data.x)
        with self._lock:
            loss = self._new_loss()
            kernel = self._kernel_of(rows, data, 1) if number >= LAUNCHED_FIRST else None
            self._begin(data, None, None, rate, None, loss, number, rows, rows)
            (kernel or self._steps_of(rows, data)).advance(1)
            return loss

    def step(self, x: Any, y: Any, number: int, weight: Any = None) -> Array | None:
        """Arrays that lie on the device already are not looked through. A label that is no class,
        or x that is not finite, makes the loss NaN, and the update is left out; what is not finite
        does not reach running statistics."""
        program, optimizer = self.program, self.program.optimizer
        if optimizer is None or weight is not None or not (self._steps or self._kernels):
            return None  # the first step is one that is checked
        if not self._fits(x, program.dtype, 2) or x.shape[1] != program.n_inputs or not len(x):
            return None
        loss = program.built_in_loss
        labels = loss is not None and loss.takes_labels
        if not (self._fits(y, _INT32, 1) if labels else self._fits(y, program.dtype, 2)):
            return None
        if program.couples_rows and len(x) < 2:
            return None
        if len(y) != len(x) or (not labels and y.shape[1] != program.n_outputs):
            return None
        if len(optimizer.slots) != len(program.slots):
            return None
        rate = optimizer.lr
        if isinstance(rate, Schedule):
            rate = float(optimizer.rates(number, 1)[0])
        return self.train_on(Data(x, y, None), rate, number)

    # -- driven from outside ----------------------------------------------------------------------

    def forward(self, x: Array, number: int) -> Array:
        rows = len(x)
        with self._lock:
            make = partial(self._make_passes, rows)
            passes = self._kept(self._passes, rows, make, KEPT)
            self._begin(Data(x, x, None), None, None, 0.0, None, None, number, rows, rows)
            self._last_forward = passes, x, number
            return passes.forward()

    def _make_passes(self, rows: int) -> GraphPasses:
        gradients = self.program.storage.gradients
        before = gradients.copy()  # ways to multiply are tried, and leave results there
        passes = GraphPasses(self.program, self.backend, self.place, rows)
        gradients[...] = before
        return passes

    def backward(self, dy: Array, dx: Array | None, penalties: bool) -> None:
        if self._last_forward is None:
            raise DataError(NO_FORWARD)
        passes, x, number = self._last_forward
        if dx is None or passes.plan.gives_dx:
            with self._lock:
                passes.backward(dy, dx, penalties)
            return
        # no graph goes down so far: the same way again, launched one by one
        workspace = self.plan(len(x), len(x)).workspace
        workspace.mode.moves_statistics = False
        try:
            super().forward(x, number)
        finally:
            workspace.mode.moves_statistics = True
        super().backward(dy, dx, penalties)

    def _fits(self, x: Any, dtype: np.dtype[Any], axes: int) -> bool:
        return self.backend.owns(x) and x.dtype == dtype and x.ndim == axes and x.flags.c_contiguous

    def _begin(
        self,
        data: Data,
        order: Array | None,
        rates: Array | None,
        rate: float,
        trace: Array | None,
        loss: Array | None,
        first_step: int,
        rows: int,
        batch: int,
        first_row: int = 0,
    ) -> None:
        """Say on the device what the steps to come are to work on."""
        gpu = self.backend.gpu
        arrays = (data.x, data.target, data.weight, order, rates, trace, loss)
        numbers = [0 if array is None else gpu.address(array) for array in arrays]
        numbers += [first_step, rows, batch, first_row]
        with self.backend.lock:
            if self._begin_run is None:
                nothing = np.zeros(len(numbers), np.int64)
                arguments = (*nothing, 0.0, self.place.record, self.place.state)
                self._begin_run = gpu.prepare(bind("begin_run", self.program.dtype, 1, arguments))
            self._begin_run(*numbers, rate)
        self._round_parameters()

    def _new_loss(self) -> Array:
        """A place for a loss, which belongs to the caller from now on."""
        if self._losses_given == LOSSES:
            self._losses, self._losses_given = self.backend.zeros(LOSSES, _FLOAT64), 0
        self._losses_given += 1
        return self._losses[self._losses_given - 1, ...]

    def _round_parameters(self) -> None:
        """Parameters may have been set since they were used last."""
        if self.place.rounded is not None:
            self.backend.round_to_bf16(self.program.storage.parameters, self.place.rounded)

    def _steps_of(self, size: int, data: Data, shared: SharedBatch | None = None) -> GraphSteps:
        make = partial(
            GraphSteps, self.program, self.backend, self.place, self._updates.update, size, data,
            shared,
        )  # fmt: skip
        # a rank that forgot its graphs would capture operations that others replay
        forgets = shared is None
        return self._kept(self._steps, (*self._key(size, data), shared), make, KEPT, forgets)

    def _key(self, size: int, data: Data) -> tuple[Any, ...]:
        return size, data.target.shape[1:], data.weight is None, self._settings()

    def _kernel_of(self, size: int, data: Data, steps: int) -> KernelSteps | None:
        """A kernel that does many steps, where there is one that is faster than graphs for so many
        at a time; otherwise None."""
        make = partial(self._make_kernel, size, data, steps)
        return self._kept(self._kernels, (steps, *self._key(size, data)), make, KEPT_KERNELS)

    def _make_kernel(self, size: int, data: Data, steps: int) -> KernelSteps | None:
        makers = dict(self._makers(size, data))
        if not makers:
            return None
        tuning = self.backend.gpu.tuning
        key = f"{steps} steps {' '.join(makers)} {self._description(size, data)}"
        choice = tuning.get(key)
        if choice == "graphs":
            return None
        rows = example_rows(data, size, self.backend)
        if choice in makers:
            return self._tried(makers[choice], 1, rows)[0]
        tried = {name: self._tried(make, steps, rows) for name, make in makers.items()}
        graphs = self._steps_of(size, rows)
        taken = {name: time for name, (_, time) in tried.items()}
        taken["graphs"] = self._time_of(partial(graphs.advance, steps), rows)
        choice = min(taken, key=lambda name: taken[name])
        if math.inf not in taken.values():  # none was missing
            tuning.keep(key, choice)
        return tried[choice][0] if choice in tried else None

    def _makers(self, size: int, data: Data) -> Iterator[tuple[str, Callable[[], KernelSteps]]]:
        """What makes kernels that know all that the program asks for, by the version of each."""
        program, backend, place = self.program, self.backend, self.place
        layout = layout_of(program, backend, size, data) if can_stay(program, backend) else None
        if layout is not None:
            yield (
                f"resident {source_version(layout.network)}",
                partial(ResidentSteps, program, backend, layout, place.record, place.state),
            )
        if can_take_phases(program, backend, size):
            yield (
                f"phased {source_version(phase_definitions(backend.gpu.shared_bytes))}",
                partial(PhasedSteps, program, backend, size, data, place.record, place.state),
            )

    def _description(self, size: int, data: Data) -> str:
        """What the time of a step depends on."""
        program, (formula, rule) = self.program, formulas_of(self.program)
        layers = [
            (row.n_inputs, row.n_outputs, row.parameter_1 >= 0, row.activation, row.trainable)
            for row in program.rows
        ]
        form = (size, data.target.ndim, data.weight is None, program.n_sums)
        return f"{program.dtype} {layers} {formula.name} {rule.name} {form}"

    def _tried(
        self, make: Callable[[], KernelSteps], steps: int, rows: Data
    ) -> tuple[KernelSteps | None, float]:
        """A kernel, and how long it takes; None where there is none, or it does not start."""
        try:
            kernel = make()
            return kernel, self._time_of(partial(kernel.advance, steps), rows)
        except Exception as error:  # of a compiler, a driver that is older than its GPU, or memory
            warn(
                f"a kernel that trains this network in few launches cannot be used on "
                f"{self.backend.gpu.name} ({type(error).__name__}: {error}); "
                f"CUDA graphs train it, or another kernel",
            )
            return None, math.inf

    def _time_of(self, advance: Callable[[], None], data: Data) -> float:
        """How long some steps take, at a rate of 0; nothing remains of them."""
        program, rows = self.program, len(data.x)
        changed = program.changing_arrays()
        before = [array.copy() for array in changed]

        def work() -> None:
            self._begin(data, None, None, 0.0, None, None, 0, rows, rows)
            advance()

        try:
            return self.backend.gpu.time(work, captured=False)
        finally:
            for array, values in zip(changed, before, strict=True):
                array[...] = values

    def _settings(self) -> tuple[Any, ...]:
        """The optimizer's settings that a graph holds; the rate is none of them."""
        optimizer = self.program.optimizer
        if optimizer is None:
            return ()
        if optimizer.changes != self._settings_seen[0]:
            self._settings_seen = optimizer.changes, (optimizer.rule, optimizer.clip_norm)
        return self._settings_seen[1]

    def _kept(
        self, found: dict[Any, Kept], key: Any, make: Callable[[], Kept], most: int,
        forgets: bool = True,
    ) -> Kept:  # fmt: skip
        """What was made for ``key``, the one that was not used for longest making room; all of
        them if memory ends and it ``forgets``."""
        if key in found:
            value = found.pop(key)
        else:
            if len(found) >= most:
                del found[next(iter(found))]
            try:
                value = make()
            except OutOfMemoryError:
                if not forgets:
                    raise
                # graphs of other sizes hold memory of their own
                self._steps.clear()
                self._kernels.clear()
                self._inferences.clear()
                self._passes.clear()
                value = make()
        found[key] = value
        return value

    # -- inference --------------------------------------------------------------------------------

    def predict(self, x: Array, out: Array) -> None:
        with self._lock:
            self._round_parameters()
            for start in range(0, len(x), self.inference_rows):
                part = slice(start, start + self.inference_rows)
                rows = padded(len(x[part]))
                inference = self._kept(
                    self._inferences,
                    rows,
                    partial(GraphInference, self.program, self.backend, rows, self.place.rounded),
                    KEPT_SIZES,
                )
                inference.run(x[part], out[part])
