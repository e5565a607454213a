"""Launches captured once and replayed: a training step, and inference, for batches of one size."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakMethod

import numpy as np

from nnbackend.backends.cuda.arrays import BF16
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.graph_plan import GraphPlan
from nnbackend.backends.cuda.kernels import RUN, STATE_BYTES, WARPS
from nnbackend.backends.cuda.known import counts_hits, formulas_of
from nnbackend.backends.cuda.sums import SharedBatch
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data
from nnbackend.executor.loss import add_penalties
from nnbackend.program.table import Program

#: Steps of the longer graph. Each graph costs one call, some 5 us; its launch hides behind the one
#: before, so that more steps gain nothing.
STEPS = 16

_FLOAT64, _INT64, _WORD = np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.uint32)


class StepPlace:
    """Where steps find on the device what they are to work on, and leave what they found.

    Attributes:
        record: of the run, see kernels.RUN.
        state: a StepState: the step's number, rate and batch.
        penalty: (1,) of a step.   statistics: (n_sums,).
        rounded: the parameters as products of precision bf16 read them, else None.
    """

    def __init__(self, program: Program, backend: CudaBackend) -> None:
        zeros = backend.zeros
        self.record = zeros(len(RUN), _INT64)
        self.state = zeros(STATE_BYTES, np.dtype(np.uint8))
        self.penalty = zeros(1, _FLOAT64)
        self.statistics = zeros(max(1, program.n_sums), _FLOAT64)
        self.rounded: Array | None = None
        if backend.precision == "bf16":
            self.rounded = zeros(program.storage.parameters.size, BF16)


class Graphs:
    """The same launches again and again: the first time one by one, then as graphs of them.

    Args:
        launch: a method of what holds the graphs, which is therefore known weakly; called with
            ``arguments``.
    """

    def __init__(
        self, backend: CudaBackend, launch: Callable[..., None], *arguments: object
    ) -> None:
        self.backend = backend
        self._method, self._arguments = WeakMethod(launch), arguments
        self._graphs: dict[int, Callable[[], None]] = {}
        self._is_warm = False

    def run(self, count: int) -> None:
        """Launch everything ``count`` times. The first time ever compiles and allocates what is
        needed, which cannot be captured."""
        with self.backend.lock:  # not between the launches of another thread's operation
            if count and not self._is_warm:
                self._launch()
                self._is_warm = True
                count -= 1
            for times in (STEPS, 1):
                while count >= times:
                    self._graph(times)()
                    count -= times

    def _launch(self) -> None:
        method = self._method()
        if method is not None:  # who calls run() holds it
            method(*self._arguments)

    def _graph(self, times: int) -> Callable[[], None]:
        if times not in self._graphs:

            def work() -> None:
                for _ in range(times):
                    self._launch()

            self._graphs[times] = self.backend.gpu.capture(work)
        return self._graphs[times]


class GraphInference:
    """Outputs for up to so many rows, copied into arrays of the graph's own and out of them. What
    stands in the rows that are not used does not matter: inference takes each row by itself."""

    def __init__(
        self, program: Program, backend: CudaBackend, rows: int, rounded: Array | None
    ) -> None:
        self.backend = backend
        self.plan = GraphPlan(program, backend, rows, False, rounded)
        self._graphs = Graphs(self.backend, self._launch)

    def run(self, x: Array, out: Array) -> None:
        own, rows = self.plan.x, len(x)
        with self.backend.lock:
            if own.real is not None:
                own.real[:rows] = x
            if own.bf16 is not None:
                self.backend.round_to_bf16(x, own.bf16[:rows])
            self._graphs.run(1)
            out[...] = self.plan.pred[:rows]

    def _launch(self) -> None:
        for forward in self.plan.forward:
            forward()


class GraphPasses:
    """The forward and the backward pass of a step, each by itself, for batches of one size: whoever
    calls them has the loss."""

    def __init__(self, program: Program, backend: CudaBackend, place: StepPlace, rows: int) -> None:
        self.program, self.backend, self.place = program, backend, place
        self.plan = GraphPlan(program, backend, rows, True, place.rounded)
        self._forward = Graphs(backend, self._go_forward)
        self._back = {
            penalties: Graphs(backend, self._go_back, penalties) for penalties in (False, True)
        }

    def forward(self) -> Array:
        """Outputs for the rows that the run's record names; a place that is used again."""
        self._forward.run(1)
        return self.plan.pred

    def backward(self, dy: Array, dx: Array | None, penalties: bool) -> None:
        """The flat gradient from the one by the outputs, and ``dx`` if ``gives_dx``."""
        real, bf16 = self.plan.dpred
        if real is not None:
            real[...] = dy
        if bf16 is not None:
            self.backend.round_to_bf16(dy, bf16)
        self._back[penalties].run(1)
        if dx is not None:
            self.plan.input_gradient(dx)

    def _go_forward(self) -> None:
        place, plan, program = self.place, self.plan, self.program
        with self.backend.from_state(place.state, program.storage.parameters, place.rounded):
            real, bf16 = (None if a is None else a.reshape(-1) for a in plan.x)
            columns = program.n_inputs * program.dtype.itemsize // _WORD.itemsize
            self.backend.run(
                "begin_step", program.dtype, self.backend.blocks(plan.rows, WARPS), place.record,
                place.penalty, plan.rows, columns, 0, 0,
                None if real is None else real.view(_WORD), bf16, None, None, place.state,
            )  # fmt: skip
            for forward in plan.forward:
                forward()

    def _go_back(self, penalties: bool) -> None:
        self.plan.backward()
        self.backend.gpu.join()
        if penalties and self.program.penalties:
            add_penalties(self.program, self.plan.rows, True, self.place.penalty)


class GraphSteps:
    """A training step with batches of one size and form."""

    def __init__(
        self,
        program: Program,
        backend: CudaBackend,
        place: StepPlace,
        update: Callable[[float, int], None],
        rows: int,
        data: Data,
        shared: SharedBatch | None = None,
    ) -> None:
        """
        Args:
            update: changes the parameters by the flat gradient; see PythonExecutor.
            shared: what the rows are a part of.
        """
        self.program, self.backend, self.place = program, backend, place
        self._update, self._shared = update, shared
        zeros, dtype = backend.zeros, program.dtype
        self.plan = GraphPlan(program, backend, rows, True, place.rounded, shared)
        self.target = zeros((rows, *data.target.shape[1:]), data.target.dtype)
        self.weight = None if data.weight is None else zeros(rows, dtype)
        self.advance = Graphs(self.backend, self._launch).run

    def _launch(self) -> None:
        """All launches of a step."""
        place, plan, program = self.place, self.plan, self.program
        with self.backend.from_state(place.state, program.storage.parameters, place.rounded):
            self._begin()
            for forward in plan.forward:
                forward()
            self._measure()
            plan.backward()
            self.backend.gpu.join()
            rows = plan.rows
            if self._shared is not None:
                storage, rows = program.storage, self._shared.rows
                self._shared.add(storage.gradients[: storage.trained])
            if program.penalties:
                add_penalties(program, rows, True, place.penalty)
                self.backend.run(
                    "finish_penalty_of_step", None, 1, place.record, place.state,
                    place.penalty, program.n_sums,
                )  # fmt: skip
            self._update(0.0, 0)

    def _begin(self) -> None:
        """The step's number and rate, and its rows."""
        place, backend, plan = self.place, self.backend, self.plan
        x, bf16, *rest = (
            None if a is None else a.reshape(-1) for a in (*plan.x, self.target, self.weight)
        )
        x, target, weight = (None if a is None else a.view(_WORD) for a in (x, *rest))
        columns = self.program.n_inputs * self.program.dtype.itemsize // _WORD.itemsize
        sizes = (columns, *(0 if a is None else a.size // plan.rows for a in (target, weight)))
        backend.run(
            "begin_step", self.program.dtype, backend.blocks(plan.rows, WARPS), place.record,
            place.penalty, plan.rows, *sizes, x, bf16, target, weight, place.state,
        )  # fmt: skip

    def _measure(self) -> None:
        """Statistics, then the loss and its gradient; what is added up over the batch for the
        trace runs beside the backward pass."""
        backend, place, plan = self.backend, self.place, self.plan
        start, hits_place = 0, -1
        for statistic in self.program.statistics:
            if hits_place < 0 and counts_hits(statistic):
                hits_place = start
            else:
                out = place.statistics[start : start + statistic.size]
                statistic.collect(backend, plan.pred, self.target, self.weight, out)
            start += statistic.size
        formula, rule = formulas_of(self.program)
        dpred, rounded = plan.dpred
        sums = backend.sum_loss(
            formula, plan.pred, self.target, self.weight, dpred, rounded, hits_place >= 0,
            self._shared,
        )  # fmt: skip
        with backend.gpu.side_stream():
            backend.run(
                "finish_loss_of_step", self.program.dtype, 1, place.record,
                formula.averages, sums.loss, sums.hits, sums.blocks, sums.weight, plan.rows,
                max(hits_place, 0), place.statistics, self.program.n_sums, rule.name == "adam",
                rule.beta1, rule.beta2, rule.eps, rule.weight_decay, rule.eps_hat, place.state,
            )  # fmt: skip
