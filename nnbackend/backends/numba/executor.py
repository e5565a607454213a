"""The executor of the Numba backend: whole runs of steps in one call of compiled code.

It writes what compiled code must know into one int64 array, the context, whose places have their
names in ``kernels/cpu/program/context.py``; the array's address is all that a call hands over.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.numba.backend import NumbaBackend
from nnbackend.backends.numba.runtime import address_of
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data, Executor, Run, Trace, not_finite_step, total_loss
from nnbackend.kernels.codes import STATISTICS, TRACE_SUMS, Op
from nnbackend.optimizers import Optimizer
from nnbackend.program.table import Program

#: Work of a step, in multiplications, that one more thread must have to do: some 40 us
#: (measured: docs/threads.md). An output that is passed over counts as ELEMENT_WORK.
STEP_GRAIN = 3 << 20
ELEMENT_WORK = 64
#: The same for inference.
INFERENCE_GRAIN = 1 << 19
#: Rows go through a network of small layers in blocks: bytes of a block's outputs, and of the
#: largest weight matrix that stays in the first-level cache beside them.
BLOCK_BYTES, SMALL_WEIGHTS = 1 << 16, 1 << 15
#: Rows that inference takes through all layers at a time: few enough for products to read weights
#: in place, or, if these exceed LARGE_WEIGHTS bytes, enough to pay for a copy of them.
INFERENCE_ROWS, MANY_ROWS, LARGE_WEIGHTS = 144, 504, 1 << 20
#: The most rows for which inference has a path of its own.
FEW_ROWS = 16

_INT64, _INT32 = np.dtype(np.int64), np.dtype(np.int32)


class CompiledExecutor(Executor):
    """Runs programs of built-in layers and losses in compiled code, without the GIL."""

    #: those that kernels/cpu/program/layers.py has
    ops: ClassVar[frozenset[Op]] = frozenset(
        (Op.DENSE, Op.ACTIVATION, Op.DROPOUT, Op.BATCH_NORM, Op.LAYER_NORM, Op.STANDARDIZE)
    )

    def __init__(self, program: Program, backend: NumbaBackend) -> None:
        self.program, self._runtime = program, backend.runtime
        runtime = backend.runtime
        self._c: Any = runtime.cpu.c
        self._dtype = program.dtype
        products = [row.n_inputs * row.n_outputs for row in program.rows if row.op == Op.DENSE]
        elements = ELEMENT_WORK * sum(row.n_outputs for row in program.rows)
        self._inference_work = sum(products) + elements // 2
        self._step_work = 3 * sum(products) + elements
        largest = max(products, default=0) * self._dtype.itemsize
        self._inference_rows = MANY_ROWS if largest > LARGE_WEIGHTS else INFERENCE_ROWS
        self._small_layers = largest <= SMALL_WEIGHTS
        self._describe()
        self._training: _Training | None = None
        # leased by the threads that predict: append and pop are atomic
        self._inference: list[_Inference] = []
        self._few: list[_Inference] = []
        runtime.threads.watch(self)

    def _describe(self) -> None:
        """What compiled code knows of the program, in arrays that live as long as we do."""
        c, program = self._c, self.program
        rows = program.rows
        deltas = np.concatenate([[0], np.cumsum([row.n_outputs for row in rows])])
        norms = np.concatenate(
            [[0], np.cumsum([8 * row.n_outputs * (row.op == Op.BATCH_NORM) for row in rows])]
        )
        own = {"delta": deltas, "norm": norms}
        self.table = np.array(
            [
                [own[name][i] if name in own else getattr(row, name) for name in c.COLUMNS]
                for i, row in enumerate(rows)
            ],
            dtype=np.int64,
        )
        self.floats = np.ascontiguousarray(program.floats, dtype=np.float64)
        self.deltas_width, self.norms_width = int(deltas[-1]), int(norms[-1])
        starts = np.concatenate([[0], np.cumsum([s.size for s in program.statistics])])
        self.statistics = np.array(
            [
                [
                    STATISTICS.index(s.kind),
                    s.threshold is not None,
                    s.threshold or 0.0,
                    s.top,
                    start,
                ]
                for s, start in zip(program.statistics, starts, strict=False)
            ]
        ).reshape(-1)
        self.trace_width = TRACE_SUMS + program.n_sums

    def new_context(self, parts: int) -> tuple[Any, Any, Any]:
        """A context with everything that does not change, its numbers, and the parts' memory."""
        c, program, storage = self._c, self.program, self.program.storage
        f, numbers = np.zeros(c.N_FIELDS, np.int64), np.zeros(c.N_NUMBERS)
        f[c.TABLE], f[c.N_ROWS] = address_of(self.table), len(self.table)
        f[c.FLOATS] = address_of(self.floats)
        f[c.PARAMETERS], f[c.N_PARAMETERS] = address_of(storage.parameters), storage.parameters.size
        f[c.GRADIENTS] = address_of(storage.gradients)
        f[c.N_DECAYED], f[c.N_TRAINED] = storage.decayed, storage.trained
        f[c.STATE], f[c.N_STATE] = address_of(storage.state), storage.state.size
        f[c.N_SLOTS] = len(program.slots)
        for field, slot in zip((c.SLOT_0, c.SLOT_1), program.slots, strict=False):
            f[field] = address_of(slot)
        f[c.N_INPUTS], f[c.N_OUTPUTS] = program.n_inputs, program.n_outputs
        f[c.NUMBERS] = address_of(numbers)
        f[c.STATISTICS], f[c.N_STATISTICS] = address_of(self.statistics), len(program.statistics)
        key = program.dropout_key
        f[c.DROPOUT_KEY] = key - (1 << 64) if key >> 63 else key
        f[c.N_PARTS] = parts
        loss = program.built_in_loss
        if loss is not None:
            f[c.LOSS] = loss.formula.code
            numbers[c.LOSS_PARAMETER] = loss.formula.parameter
            numbers[c.TARGET_LOW], numbers[c.TARGET_HIGH] = loss.low, loss.high
        sums = np.zeros((parts, self.trace_width + 1))
        f[c.SUMS], f[c.SUMS_WIDTH] = address_of(sums), self.trace_width + 1
        scratch = np.empty(parts * self._runtime.cpu.SCRATCH_BYTES, np.uint8)
        f[c.SCRATCH] = address_of(scratch)
        return f, numbers, (sums, scratch)

    def threads_changed(self) -> None:
        """Plan anew: ``set_num_threads`` was called, or this is a forked child."""
        self._training = None
        self._inference, self._few = [], []

    # -- training -------------------------------------------------------------------------

    def prepare(self, batch_size: int, data: Data | None) -> None:
        self._plan(batch_size)

    def run(self, run: Run) -> Trace:
        # of whole batches, though there may be only the last rows of an epoch: the number of parts
        # decides about bits
        return self._plan(run.batch_size).run(run)

    def step(self, x: Any, y: Any, number: int) -> Array | None:
        plan = self._training
        return None if plan is None else plan.step(x, y, number)

    def gradient(self, data: Data, step: int = 0) -> float:
        rows = len(data.x)
        trace = self._plan(rows).run(Run(data, None, rows, np.zeros(1), step), trains=False)
        return total_loss(self.program, trace[0])

    def _plan(self, batch: int) -> _Training:
        if self._training is None or self._training.batch != batch:
            parts = self._parts(batch * self._step_work, STEP_GRAIN)
            self._training = _Training(self, batch, parts, self._training)
        return self._training

    def _parts(self, work: int, grain: int) -> int:
        return self._runtime.threads.parts(work // grain)

    def block_rows(self, batch: int) -> int:
        """Rows of the batch that go there and back at a time."""
        if not self._small_layers:
            return batch
        row_bytes = (self.program.n_inputs + 2 * self.deltas_width) * self._dtype.itemsize
        return max(32, BLOCK_BYTES // row_bytes // 4 * 4)

    # -- inference ------------------------------------------------------------------------

    def evaluate(self, data: Data) -> Trace:
        lease = self._lease(len(data.x))
        try:
            return lease.evaluate(
                data, self._parts(len(data.x) * self._inference_work, INFERENCE_GRAIN)
            )
        finally:
            self._inference.append(lease)

    def predict(self, x: Array, out: Array) -> None:
        lease = self._lease(len(x))
        try:
            lease.predict(x, out, self._parts(len(x) * self._inference_work, INFERENCE_GRAIN))
        finally:
            self._inference.append(lease)

    def _lease(self, rows: int) -> _Inference:
        try:
            return self._inference.pop()
        except IndexError:
            return _Inference(self, self._inference_rows, self._runtime.threads.count)

    def call(self, x: Any) -> Array | None:
        if type(x) is not np.ndarray or x.dtype is not self._dtype or len(x) > FEW_ROWS:
            return None
        try:
            lease = self._few.pop()
        except IndexError:
            lease = _Inference(self, FEW_ROWS, 1)
        out = lease.call(x)
        self._few.append(lease)
        return out


class _Training:
    """A context for training with batches of ``batch`` rows, and the buffers it points to."""

    def __init__(
        self, executor: CompiledExecutor, batch: int, parts: int, before: _Training | None
    ) -> None:
        self.executor, self.batch, self.parts = executor, batch, parts
        self.program, self.c, run = executor.program, executor._c, executor._runtime
        c, program, dtype = self.c, self.program, executor._dtype
        self.f, self.numbers, self._parts = executor.new_context(parts)
        zeros = program.backend.zeros
        self.capacity: int
        self.buffers: dict[int, Array]
        if before is not None and before.capacity >= batch:
            self.capacity, self.buffers = before.capacity, before.buffers
        else:
            # a multiple of 16 keeps every buffer's start aligned
            self.capacity = -(-batch // 16) * 16
            self.buffers = {
                c.WORKSPACE: zeros(self.capacity * program.workspace_width, dtype),
                c.DELTAS: zeros(self.capacity * executor.deltas_width, dtype),
                c.X_GATHERED: zeros(self.capacity * program.n_inputs, dtype),
                c.TARGET_GATHERED: zeros(self.capacity * program.n_outputs, dtype),
                c.LABELS_GATHERED: zeros(self.capacity, _INT32),
                c.WEIGHT_GATHERED: zeros(self.capacity, dtype),
            }
        for field, buffer in self.buffers.items():
            self.f[field] = address_of(buffer)
        self.norms = np.zeros((parts, executor.norms_width))
        f = self.f
        f[c.WORKSPACE_SIZE] = self.buffers[c.WORKSPACE].size
        f[c.DELTAS_SIZE] = self.buffers[c.DELTAS].size
        f[c.CAPACITY], f[c.BLOCK_ROWS] = self.capacity, executor.block_rows(batch)
        f[c.NORMS], f[c.NORMS_WIDTH] = address_of(self.norms), executor.norms_width
        trained = [row.layer for row in program.rows if row.trainable]
        f[c.FIRST_TRAINED] = trained[0] if trained else len(program.rows)
        f[c.LAST_FORWARD] = program.rows[-1].phase
        self.address = address_of(f)
        self.function = run.entry("phase", str(dtype))
        self.one_rate, self.one_trace = np.zeros(1), np.zeros((1, executor.trace_width))
        unit, cpu = run.unit, run.cpu
        self._unit, self._cpu = unit, cpu
        self._team = np.zeros((parts + 2) * c.TEAM_STRIDE, np.int64)
        f[c.TEAM] = address_of(self._team)
        self._once = unit.driver(cpu.fork_step if parts > 1 else cpu.step)
        #: how a caller's own targets may look: their dtype and the field of their address
        self._own_target: tuple[Any, int] = (None, 0)
        self._settings = -1
        self._fixed_rate: float | None = None

    def run(self, run: Run, trains: bool = True) -> Trace:
        """Train, or only take the gradient of one batch."""
        f, c, program = self.f, self.c, self.program
        data, order, rows, steps = run.data, run.order, run.n_rows, len(run.rates)
        rates = np.ascontiguousarray(run.rates, dtype=np.float64)
        trace = np.zeros((steps, self.executor.trace_width))
        self._set_optimizer(program.optimizer, trains)
        labels = data.target.ndim == 1
        f[c.X], f[c.N_DATA] = address_of(data.x), len(data.x)
        f[c.LABELS] = address_of(data.target) if labels else 0
        f[c.TARGET] = 0 if labels else address_of(data.target)
        f[c.LABELS_64], f[c.WEIGHT] = 0, address_of(data.weight)
        f[c.ORDER], f[c.ORDER_ROWS] = address_of(order), rows
        f[c.BATCH_SIZE], f[c.N_STEPS] = min(run.batch_size, rows), steps
        f[c.FIRST_STEP] = run.first_step
        f[c.RATES], f[c.TRACE] = address_of(rates), address_of(trace)
        f[c.CHECKS], f[c.KEEPS], f[c.STATUS] = 0, int(run.keep_gradient), 0
        self._team[:] = 0
        phase = self._cpu.STEPS if self.parts > 1 else self._cpu.SERIAL
        self._unit.run(self.function, self.address, phase, self.parts)
        if f[c.STATUS] == c.NOT_FINITE:
            trace[f[c.STEP] - run.first_step :] = np.nan
        single = trains and order is None and steps == 1 and data.weight is None
        self._own_target = (None, 0)
        if single:
            self._expect_own(rows, labels)
        return trace

    def _set_optimizer(self, optimizer: Optimizer | None, trains: bool) -> None:
        """Settings may be changed between steps, so they are read anew."""
        f, c, numbers = self.f, self.c, self.numbers
        trained = self.program.storage.trained > 0
        clip = None if optimizer is None else optimizer.clip_norm
        f[c.TRAINS] = int(trains and optimizer is not None)
        f[c.CLIPS] = int(trains and trained and clip is not None)
        f[c.N_PHASES] = 2 * f[c.LAST_FORWARD] + 2 + f[c.CLIPS]
        if optimizer is None or optimizer.changes == self._settings:
            return
        rule = optimizer.rule
        if rule is None:
            return
        f[c.UPDATE] = rule.code
        numbers[c.MOMENTUM : c.DECAY + 1] = rule.numbers
        numbers[c.CLIP_NORM] = 0.0 if clip is None else clip
        numbers[c.GRADIENT_LIMIT] = rule.gradient_limit(self.executor._dtype)
        self._settings = optimizer.changes
        self._fixed_rate = optimizer.lr if isinstance(optimizer.lr, float) else None

    # -- a caller's own batch, straight from its arrays ------------------------------------------

    def _expect_own(self, rows: int, labels: bool) -> None:
        """After a checked step: take the next batch of the same kind as it comes."""
        f, c = self.f, self.c
        f[c.BATCH_SIZE] = f[c.ORDER_ROWS] = f[c.N_DATA] = rows
        f[c.LABELS] = f[c.TARGET] = f[c.LABELS_64] = f[c.WEIGHT] = f[c.ORDER] = 0
        f[c.N_STEPS], f[c.CHECKS], f[c.KEEPS] = 1, 1, 1
        f[c.RATES], f[c.TRACE] = address_of(self.one_rate), address_of(self.one_trace)
        if labels:
            self._own_target = (_INT64, c.LABELS_64)
        else:
            self._own_target = (self.executor._dtype, c.TARGET)

    def step(self, x: Any, y: Any, number: int) -> Array | None:
        """One update on arrays that need no conversion, checked in compiled code; else None."""
        dtype, field = self._own_target
        if dtype is None or type(x) is not np.ndarray or type(y) is not np.ndarray:
            return None
        if y.dtype is not dtype or x.dtype is not self.executor._dtype:
            return None
        optimizer = self.program.optimizer
        if optimizer is None or optimizer.changes != self._settings:
            return None
        rate = self._fixed_rate
        if rate is None:
            rate = float(optimizer.rates(number, 1)[0])
        loss = self._once(self.function, self.address, x, y, field, number, rate)
        if loss == loss:
            return np.array(loss)
        if self.f[self.c.STATUS] == self.c.NOT_FINITE:
            raise not_finite_step(number)
        return None


class _Inference:
    """A context for inference of one caller at a time, and the buffers it points to."""

    def __init__(self, executor: CompiledExecutor, rows: int, parts: int) -> None:
        self.executor, self.rows, self.most_parts = executor, rows, parts
        self.c = c = executor._c
        program, run, dtype = executor.program, executor._runtime, executor._dtype
        self.f, self.numbers, self._parts = executor.new_context(parts)
        f = self.f
        widest = max(max(row.n_outputs for row in program.rows), program.n_inputs)
        self.workspace = program.backend.zeros(parts * 4 * rows * widest, dtype)
        self.norms = np.zeros((parts, executor.norms_width))
        self.trace = np.zeros(executor.trace_width)
        f[c.WORKSPACE], f[c.WORKSPACE_SIZE] = address_of(self.workspace), self.workspace.size
        f[c.NORMS], f[c.NORMS_WIDTH] = address_of(self.norms), executor.norms_width
        f[c.CAPACITY], f[c.WIDEST] = rows, widest
        f[c.TRACE] = address_of(self.trace)
        self.address = address_of(f)
        self.function = run.entry("phase", str(dtype))
        self._run, self._cpu = run, run.cpu
        self._infer = run.unit.driver(run.cpu.infer)
        self._shape = (1, program.n_outputs)
        self._dtype = dtype

    def _start(self, phase: int, parts: int) -> None:
        parts = min(parts, self.most_parts)
        self.f[self.c.N_PARTS] = parts
        self._run.unit.run(self.function, self.address, phase, parts)

    def predict(self, x: Array, out: Array, parts: int) -> None:
        f, c = self.f, self.c
        f[c.X], f[c.OUT], f[c.N_DATA] = address_of(x), address_of(out), len(x)
        f[c.NEXT_ROW] = 0
        self._start(self._cpu.PREDICT, parts)

    def evaluate(self, data: Data, parts: int) -> Trace:
        f, c = self.f, self.c
        labels = data.target.ndim == 1
        f[c.X], f[c.N_DATA], f[c.ORDER] = address_of(data.x), len(data.x), 0
        f[c.LABELS] = f[c.LABELS_BATCH] = address_of(data.target) if labels else 0
        f[c.TARGET] = f[c.TARGET_BATCH] = 0 if labels else address_of(data.target)
        f[c.WEIGHT] = f[c.WEIGHT_BATCH] = address_of(data.weight)
        self._start(self._cpu.EVALUATE, parts)
        self._run.unit.run(self.function, self.address, self._cpu.END_EVALUATE, 1)
        return self.trace.copy()

    def call(self, x: Any) -> Array | None:
        """Outputs of a few rows, or None if they have not the expected shape."""
        out = np.empty((len(x), self._shape[1]), self._dtype)
        return out if self._infer(self.function, self.address, x, out) else None
