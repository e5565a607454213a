"""What compiled code knows of a program, or of some consecutive rows of one.

It stands in one int64 array, the context, whose places have their names in
``kernels/cpu/program/context.py``; the array's address is all that a call hands over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.backends.numba.backend import NumbaBackend
from nnbackend.backends.numba.runtime import address_of
from nnbackend.backends.types import Array
from nnbackend.kernels.codes import STATISTICS, TRACE_SUMS, Op
from nnbackend.optimizers import Optimizer
from nnbackend.program.table import Program, first_trained

#: Work of a step, in multiplications of float32, that one more thread must have to do: some 30 us
#: (measured: docs/threads.md). An output that is passed over counts as ELEMENT_WORK.
STEP_GRAIN = 5 << 19
ELEMENT_WORK = 64
#: The same for inference.
INFERENCE_GRAIN = 1 << 19
#: Rows go through a network of small layers in blocks: bytes of a block's outputs, and of the
#: largest weight matrix that stays in the first-level cache beside them.
BLOCK_BYTES, SMALL_WEIGHTS = 1 << 16, 1 << 15
#: Rows that inference takes through all layers at a time: few enough for products to read weights
#: in place, or, if these exceed LARGE_WEIGHTS bytes, enough to pay for a copy of them.
INFERENCE_ROWS, MANY_ROWS, LARGE_WEIGHTS = 144, 504, 1 << 20
#: Bytes of the largest weight gradient of which each part computes its rows' own: they stay in the
#: second-level cache.
PARTIAL_BYTES = 1 << 19


class CompiledTable:
    """The rows ``first`` to ``last`` of a program in arrays that live as long as this does.

    Attributes:
        table, floats, statistics: as kernels/cpu/program/context.py has them.
        deltas_width: elements of the gradients by the rows' outputs, per row of the batch.
        norms_width: elements of the batch norms' statistics, per part.
        n_inputs, n_outputs: widths of the first row's input and the last row's output.
        step_work: multiplications of float32 per row of the batch, of which one of float64 is two.
        inference_rows: that go through all layers at a time.
    """

    def __init__(
        self, program: Program, backend: NumbaBackend, first: int = 0, last: int | None = None
    ) -> None:
        self.program, self.runtime = program, backend.runtime
        self.c: Any = self.runtime.cpu.c
        self.dtype = program.dtype
        #: threads that may be used, if it is not all
        self.most_parts: int | None = None
        self.rows = rows = program.rows[first:last]
        self.n_inputs, self.n_outputs = rows[0].n_inputs, rows[-1].n_outputs
        products = [row.n_inputs * row.n_outputs for row in rows if row.op == Op.DENSE]
        elements = ELEMENT_WORK * sum(row.n_outputs for row in rows)
        numbers = self.dtype.itemsize // 4
        self.inference_work = numbers * (sum(products) + elements // 2)
        self.step_work = numbers * (3 * sum(products) + elements)
        largest = max(products, default=0) * self.dtype.itemsize
        self.inference_rows = MANY_ROWS if largest > LARGE_WEIGHTS else INFERENCE_ROWS
        self._small_layers = largest <= SMALL_WEIGHTS
        deltas = np.concatenate([[0], np.cumsum([row.n_outputs for row in rows])])
        norms = np.concatenate(
            [[0], np.cumsum([8 * row.n_outputs * (row.op == Op.BATCH_NORM) for row in rows])]
        )
        self.deltas_width, self.norms_width = int(deltas[-1]), int(norms[-1])
        # a batch norm begins a phase, for which the phase before takes the statistics
        before = rows[0].phase - (rows[0].op == Op.BATCH_NORM)
        own: dict[str, Any] = {
            "delta": deltas,
            "norm": norms,
            "phase": [row.phase - before for row in rows],
        }
        self.table = np.array(
            [
                [own[n][i] if n in own else getattr(row, n) for n in self.c.COLUMNS]
                for i, row in enumerate(rows)
            ],
            dtype=np.int64,
        )
        self.last_forward = rows[-1].phase - before
        self.first_trained = first_trained(rows)
        self.floats = program.floats[first:last]  # a view
        #: the same without penalties
        self.plain_floats = np.empty_like(self.floats)
        self.take_numbers()
        self.statistics, self.trace_width = self._described_statistics()

    def take_numbers(self) -> None:
        """Numbers of the program may have changed."""
        self.plain_floats[...] = self.floats
        self.plain_floats[[row.op == Op.DENSE for row in self.rows], 1:5] = 0.0

    def _described_statistics(self) -> tuple[Any, int]:
        program = self.program
        starts = np.concatenate([[0], np.cumsum([s.size for s in program.statistics])])
        entries = [
            [STATISTICS.index(s.kind), s.threshold is not None, s.threshold or 0.0, s.top, start]
            for s, start in zip(program.statistics, starts, strict=False)
        ]
        return np.array(entries).reshape(-1), TRACE_SUMS + program.n_sums

    def new_context(self, parts: int) -> tuple[Any, Any, Any]:
        """A context with everything that does not change, its numbers, and the parts' memory."""
        c, program, storage = self.c, self.program, self.program.storage
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
        f[c.N_INPUTS], f[c.N_OUTPUTS] = self.n_inputs, self.n_outputs
        f[c.NUMBERS] = address_of(numbers)
        f[c.STATISTICS], f[c.N_STATISTICS] = address_of(self.statistics), len(program.statistics)
        key = program.dropout_key
        f[c.DROPOUT_KEY] = key - (1 << 64) if key >> 63 else key
        f[c.N_PARTS] = parts
        f[c.FIRST_TRAINED], f[c.LAST_FORWARD] = self.first_trained, self.last_forward
        f[c.PENALTIES_PER_ROW] = program.penalties_per_row
        loss = program.built_in_loss
        if loss is not None:
            f[c.LOSS] = loss.formula.code
            numbers[c.LOSS_PARAMETER] = loss.formula.parameter
            numbers[c.TARGET_LOW], numbers[c.TARGET_HIGH] = loss.low, loss.high
        sums = np.zeros((parts, self.trace_width + 1))
        f[c.SUMS], f[c.SUMS_WIDTH] = address_of(sums), self.trace_width + 1
        scratch = np.empty(parts * self.runtime.cpu.SCRATCH_BYTES, np.uint8)
        f[c.SCRATCH] = address_of(scratch)
        return f, numbers, (sums, scratch)

    def step_parts(self, batch: int) -> int:
        """Parts of a step over a batch of so many rows."""
        return self._parts(batch * self.step_work // STEP_GRAIN)

    def partial_starts(self, batch: int, parts: int) -> tuple[Array, int]:
        """Where in a part's area each row has the gradient from the part's own rows of the batch,
        -1 where it has none, and how large that area is.

        A part reads what others have written: of all rows of the batch, a share of the inputs and
        all gradients by outputs; or of all parts' own gradients, a share.
        """
        starts, width = np.full(len(self.rows), -1, np.int64), 0
        for i, row in enumerate(self.rows):
            weights = row.n_inputs * row.n_outputs
            read = batch * (row.n_inputs // parts + row.n_outputs)
            most = min(read, PARTIAL_BYTES // self.dtype.itemsize)
            if parts > 1 and row.op == Op.DENSE and row.trainable and weights <= most:
                starts[i] = width
                width += -(-(weights + row.n_outputs) // 16) * 16  # whole lines of the cache
        return starts, width

    def inference_parts(self, rows: int) -> int:
        """Parts of the inference of so many rows."""
        return self._parts(rows * self.inference_work // INFERENCE_GRAIN)

    def _parts(self, work: int) -> int:
        """Threads for ``work`` grains of work."""
        return self.runtime.threads.parts(min(work, self.most_parts or work))

    def block_rows(self, batch: int) -> int:
        """Rows of the batch that go forward and back at a time."""
        if not self._small_layers:
            return batch
        row_bytes = (self.n_inputs + 2 * self.deltas_width) * self.dtype.itemsize
        return max(32, BLOCK_BYTES // row_bytes // 4 * 4)


class StepContext:
    """A context for steps with batches of up to ``batch`` rows, and the buffers it points to.

    Attributes:
        f, numbers: the context and its numbers.
        address: of the context.
        function: that runs phases.
    """

    def __init__(self, table: CompiledTable, batch: int, parts: int) -> None:
        self.table, self.batch, self.parts = table, batch, parts
        self.program, self.c, self.dtype = table.program, table.c, table.dtype
        self.f, self.numbers, self._memory = table.new_context(parts)
        # a multiple of 16 keeps every buffer's start aligned
        self.capacity = -(-batch // 16) * 16
        self.norms = np.zeros((parts, table.norms_width))
        f, c = self.f, self.c
        f[c.NORMS], f[c.NORMS_WIDTH] = address_of(self.norms), table.norms_width
        f[c.BLOCK_ROWS] = table.block_rows(batch)
        self._team = np.zeros((parts + 2) * c.TEAM_STRIDE, np.int64)
        f[c.TEAM] = address_of(self._team)
        self.address = address_of(f)
        self._partial_starts, width = table.partial_starts(batch, parts)
        self._partials = np.zeros(parts * width, self.dtype)
        f[c.PARTIALS], f[c.PARTIALS_WIDTH] = address_of(self._partials), width
        f[c.PARTIAL_STARTS] = address_of(self._partial_starts)
        self.function = table.runtime.entry("phase", str(self.dtype))
        self.unit, self.calls = table.runtime.unit, table.runtime.calls
        #: ``changes`` of the optimizer whose settings the context has
        self.settings_seen = -1
        self.fixed_rate: float | None = None

    def set_buffers(self, buffers: dict[int, Any], capacity: int) -> None:
        """Use these buffers, by the fields of their addresses, for up to ``capacity`` rows."""
        f, c = self.f, self.c
        self.buffers, self.capacity = buffers, capacity
        for field, buffer in buffers.items():
            f[field] = address_of(buffer)
        f[c.WORKSPACE_SIZE], f[c.DELTAS_SIZE] = buffers[c.WORKSPACE].size, buffers[c.DELTAS].size
        f[c.CAPACITY] = capacity

    def call(self) -> None:
        """Run the steps that the context describes."""
        self._team[:] = 0
        phase = self.calls.STEPS if self.parts > 1 else self.calls.SERIAL
        self.unit.run(self.function, self.address, phase, self.parts)

    def set_optimizer(self, optimizer: Optimizer | None, trains: bool) -> None:
        """Settings may be changed between steps, so they are read anew."""
        f, c, numbers = self.f, self.c, self.numbers
        trained = self.program.storage.trained > 0
        clip = None if optimizer is None else optimizer.clip_norm
        f[c.TRAINS] = int(trains and optimizer is not None)
        f[c.CLIPS] = int(trains and trained and clip is not None)
        f[c.N_PHASES] = 2 * f[c.LAST_FORWARD] + 2 + f[c.CLIPS]
        if optimizer is None or optimizer.changes == self.settings_seen:
            return
        rule = optimizer.rule
        if rule is None:
            return
        f[c.UPDATE] = rule.code
        numbers[c.MOMENTUM : c.EPS_HAT + 1] = rule.numbers
        numbers[c.CLIP_NORM] = np.inf if clip is None else clip
        numbers[c.GRADIENT_LIMIT] = rule.gradient_limit(self.dtype)
        self.settings_seen = optimizer.changes
        self.fixed_rate = optimizer.lr if isinstance(optimizer.lr, float) else None
