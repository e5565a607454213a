"""Training steps of a network that the whole GPU works on: many of them in one launch.

``kernels/cuda/phases.cu`` does a step in phases, between which all blocks meet. Here is the table
of what is done in each phase: tasks, such as a product cut into tiles, which the blocks share.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.kernels import (
    LOSS_LANES,
    MOST_STEPS,
    PHASE_TABLES,
    TASK,
    TASKS,
    THREADS,
    bind,
    phase_definitions,
    tile_bytes,
)
from nnbackend.backends.cuda.known import formulas_of, is_dense, update_numbers
from nnbackend.backends.cuda.phase_plan import Cut, Layer, plan_of
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data
from nnbackend.executor.rows import activation_of
from nnbackend.program.table import ABSENT, Program, Row

#: Layers of a network: each adds up to six tasks.
MOST_LAYERS = 11
#: Multiplications of a step's forward pass: where there are more, products are nearly all of the
#: time, and those of cuBLASLt are faster.
MOST_PRODUCTS = 1 << 29
#: Words of an array of which 32 bits hold any place.
MOST_WORDS = 1 << 30
Task = dict[str, int]


def can_take_phases(program: Program, backend: CudaBackend, rows: int) -> bool:
    """Whether the kernel knows everything that the program asks for, and is worth a try."""
    products = sum(row.n_inputs * row.n_outputs for row in program.rows)
    return (
        is_dense(program, backend)
        and len(program.rows) <= MOST_LAYERS
        and rows * products <= MOST_PRODUCTS
        and _largest(program, rows) <= MOST_WORDS
        and tile_bytes(backend.gpu.shared_bytes) > 0
    )


def _largest(program: Program, rows: int) -> int:
    """Words of four bytes in the largest array that the kernel has."""
    widths = [program.n_inputs, *(row.n_outputs for row in program.rows)]
    numbers = max(2 * rows * stride(max(widths) + 1), program.storage.parameters.size)
    return int(numbers) * program.dtype.itemsize // 4


class Matrix(NamedTuple):
    """Numbers of a batch, or weights, rows on whole sixteens of bytes."""

    array: Array
    stride: int


def stride(width: int) -> int:
    """How far rows lie apart: whole sixteens of bytes, whatever the dtype."""
    return -(-width // 4) * 4


class PhasedSteps:
    """Steps with batches of up to so many rows; an epoch's last batch may have fewer."""

    def __init__(
        self,
        program: Program,
        backend: CudaBackend,
        rows: int,
        data: Data,
        record: Array,
        state: Array,
    ) -> None:
        self.program, self.backend, self.rows = program, backend, rows
        self._arrays: list[Array] = []  # that the table has addresses of
        table = _Table(self, data)
        phases = [*table.phases(), table.before]
        blocks = max(sum(task["units"] for task in phase) for phase in phases)
        tasks = [[task.get(name, 0) for name in TASK] for phase in phases for task in phase]
        starts = np.cumsum([0, *(len(phase) for phase in phases)])
        storage = program.storage
        slots = [*program.slots, None, None][:2]
        formula, rule = formulas_of(program)
        arguments = (
            0, 0, self.kept(np.array(tasks, np.int64)), self.kept(starts.astype(np.int64)),
            len(phases) - 1, formula.code, formula.parameter, program.n_sums, rule.code,
            *update_numbers(rule), storage.parameters, storage.gradients, *slots, storage.decayed,
            self.zeros(2, np.uint32), record, state,
        )  # fmt: skip
        blocks = min(backend.gpu.multiprocessors, blocks)
        launch = bind("train_in_phases", program.dtype, blocks, arguments)
        own = backend.gpu.shared_bytes
        shared, definitions = PHASE_TABLES + tile_bytes(own), phase_definitions(own)
        launch = launch._replace(shared=shared, together="grid", definitions=definitions)
        self._launch = backend.gpu.prepare(launch)
        self._turn = 0

    def advance(self, count: int) -> None:
        with self.backend.lock:
            for start in range(0, count, MOST_STEPS):
                self._launch(min(MOST_STEPS, count - start), self._turn)
                self._turn = 1 - self._turn

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = None) -> Array:
        self._arrays.append(self.backend.zeros(shape, np.dtype(dtype or self.program.dtype)))
        return self._arrays[-1]

    def kept(self, x: np.ndarray[Any, Any]) -> Array:
        self._arrays.append(self.backend.asarray(x, x.dtype))
        return self._arrays[-1]


class _Table:
    """The tasks of each phase.

    Attributes:
        before: tasks before the first step.
    """

    def __init__(self, steps: PhasedSteps, data: Data) -> None:
        self.steps, self.program, self.rows = steps, steps.program, steps.rows
        program, backend = steps.program, steps.backend
        rows = program.rows
        layers = [
            Layer(row.n_inputs, row.n_outputs, row.parameter_1 != ABSENT, bool(row.trainable))
            for row in rows
        ]
        blocks = backend.gpu.multiprocessors
        # about four words for a thread, and units for most blocks: others are making outputs
        words = program.n_inputs * program.dtype.itemsize // 4
        self.fetched = max(4 * THREADS // words, -(-self.rows // (blocks - blocks // 4)), 1)
        self.plan = plan_of(layers, self.rows, blocks, -(-self.rows // self.fetched))
        #: what each layer reads, with a column of ones behind the last one; batches take turns
        self.values = [self._matrix(2 * self.rows, rows[0].n_inputs + 1)]
        self.values += [self._matrix(self.rows, row.n_inputs + 1) for row in rows[1:]]
        for row, value in zip(rows, self.values, strict=True):
            value.array[:, row.n_inputs] = 1
        self.dz = [self._matrix(self.rows, row.n_outputs) for row in rows]
        #: what goes into an activation whose slope is found from it
        self.inputs = [
            self._matrix(self.rows, row.n_outputs + 1)
            if activation_of(program, row).saves == "input" else None for row in rows
        ]  # fmt: skip
        self.twins = [self._twin(row) for row in rows]
        self.more: Array = None
        if self.plan.parts > 1:
            self.more = steps.zeros((self.plan.parts - 1, program.storage.gradients.size))
        self.batch = self._batch(data)
        odd = ((i, row) for i, row in enumerate(rows) if self._is_odd(row))
        self.before = [self._fetch(), *(self._align(i, row) for i, row in odd)]

    def phases(self) -> list[list[Task]]:
        """In their order."""
        plan = self.plan
        found = [[self._product(cut) for cut in phase] for phase in plan.forward]
        place, last = next(
            (k, cut) for k, cut in enumerate(plan.forward[-1]) if cut.product.kind != "fetch"
        )
        units = last.product.units(last.tile)
        sums = {"sums": self._address(self.steps.zeros(2 * max(units, self.rows), np.float64))}
        loss = self._loss()
        if last.product.kind == "outputs":
            found[-1][place] |= loss | sums
        else:
            units = -(-self.rows // (THREADS // LOSS_LANES))
            found.append([self._task("loss", units, **loss, **sums)])
        behind = [[self._product(cut) for cut in phase] for phase in plan.backward]
        finish = self._task("finish", 1, inner=units, rows=self.rows, **self.batch, **sums)
        behind[0].append(finish)
        if plan.parts > 1:
            rows = enumerate(self.program.rows)
            behind.append([self._update(i, row) for i, row in rows if row.trainable])
        return found + behind

    # -- arrays -----------------------------------------------------------------------------------

    def _matrix(self, rows: int, width: int) -> Matrix:
        return Matrix(self.steps.zeros((rows, stride(width))), stride(width))

    def _is_odd(self, row: Row) -> bool:
        """Whether rows of its weights do not lie on whole sixteens of bytes."""
        return row.n_outputs * self.program.dtype.itemsize % 16 != 0

    def _twin(self, row: Row) -> Matrix:
        """The weights as products read them: they themselves, or a copy."""
        if self._is_odd(row):
            return self._matrix(row.n_inputs, row.n_outputs)
        return Matrix(self.program.arrays[row.layer].parameters[0], row.n_outputs)

    def _address(self, array: Array | None) -> int:
        return 0 if array is None else self.steps.backend.gpu.address(array)

    def _at(self, name: str, matrix: Matrix | None) -> Task:
        if matrix is None:
            return {}
        return {name: self._address(matrix.array), f"{name}_stride": matrix.stride}

    # -- tasks ------------------------------------------------------------------------------------

    def _task(self, kind: str, units: int, **fields: int) -> Task:
        return {"kind": TASKS.index(kind), "units": units, **fields}

    def _product(self, cut: Cut) -> Task:
        product, tile = cut
        if product.kind == "fetch":
            return self._fetch()
        row = self.program.rows[product.layer]
        make = {"forward": self._forward, "outputs": self._outputs, "below": self._below,
                "weights": self._weights}[product.kind]  # fmt: skip
        return self._task(
            product.kind, product.units(tile), tile=tile, rows=product.rows,
            columns=product.columns, inner=product.inner, **make(product.layer, row),
        )  # fmt: skip

    def _activation(self, row: Row) -> Task:
        parameter = activation_of(self.program, row).parameter
        (bits,) = struct.unpack("q", struct.pack("d", parameter))
        return {"activation": row.activation, "parameter": bits}

    def _read(self, i: int) -> Task:
        """What layer ``i`` reads, as the left operand."""
        turn = self.rows * self.values[0].stride if i == 0 else 0
        return {"a_turn": turn, **self._at("a", self.values[i])}

    def _multiplied(self, i: int, row: Row) -> Task:
        _, bias = self.program.arrays[row.layer].parameters
        return {
            "bias": self._address(bias), **self._read(i), **self._at("b", self.twins[i]),
            **self._activation(row),
        }  # fmt: skip

    def _forward(self, i: int, row: Row) -> Task:
        if i == len(self.values) - 1:  # the loss is a task of its own
            self.values.append(self._matrix(self.rows, row.n_outputs + 1))
        kept = self.inputs[i]
        out = self._at("out", self.values[i + 1])
        return {**self._multiplied(i, row), **out, "kept": self._address(kept and kept.array)}

    def _outputs(self, i: int, row: Row) -> Task:
        return {**self._multiplied(i, row), "kept": self.inputs[i] is not None}

    def _below(self, i: int, row: Row) -> Task:
        """The gradient before the activation of the row below."""
        return {
            **self._at("a", self.dz[i]), **self._at("b", self.twins[i]),
            **self._at("out", self.dz[i - 1]),
            **self._at("saved", self.inputs[i - 1] or self.values[i]),
            **self._activation(self.program.rows[i - 1]),
        }  # fmt: skip

    def _weights(self, i: int, row: Row) -> Task:
        return {**self._read(i), **self._at("b", self.dz[i]), **self._parameters(i, row)}

    def _parameters(self, i: int, row: Row) -> Task:
        """Where a layer's parameters are, and the parts of their gradients."""
        twin = self.twins[i] if self._is_odd(row) else None
        return {
            "weight_at": row.parameter_0, "bias_at": row.parameter_1, "parts": self.plan.parts,
            "more": self._address(self.more), "part_size": self.program.storage.gradients.size,
            **self._at("twin", twin),
        }  # fmt: skip

    def _update(self, i: int, row: Row) -> Task:
        size = (row.n_inputs + (row.parameter_1 != ABSENT)) * row.n_outputs
        return self._task(
            "update", -(-size // THREADS), rows=row.n_inputs, columns=row.n_outputs,
            **self._parameters(i, row),
        )  # fmt: skip

    def _align(self, i: int, row: Row) -> Task:
        weight, _ = self.program.arrays[row.layer].parameters
        size = row.n_inputs * row.n_outputs
        return self._task(
            "align", -(-size // THREADS), rows=row.n_inputs, columns=row.n_outputs,
            a=self._address(weight), **self._at("out", self.twins[i]),
        )  # fmt: skip

    def _batch(self, data: Data) -> Task:
        """Where a batch's targets and weights are."""
        zeros, rows = self.steps.zeros, 2 * self.rows
        targets = zeros((rows, *data.target.shape[1:]), data.target.dtype)
        formula, _ = formulas_of(self.program)
        return {
            "targets": self._address(targets), "target_words": targets.nbytes // rows // 4,
            "row_weights": self._address(None if data.weight is None else zeros(rows)),
            "by_label": data.target.ndim == 1, "averages": formula.averages,
        }  # fmt: skip

    def _fetch(self) -> Task:
        each = self.fetched
        return self._task(
            "fetch", -(-self.rows // each), rows=self.rows, inner=each,
            columns=self.program.n_inputs, **self._at("out", self.values[0]), **self.batch,
        )  # fmt: skip

    def _loss(self) -> Task:
        """Of the outputs, which lie in shared memory or where ``a`` says."""
        last, depth = self.program.rows[-1], len(self.program.rows)
        fields = {
            "rows": self.rows, "columns": last.n_outputs, "hits": self.program.n_sums > 0,
            **self.batch, **self._activation(last), **self._at("dz", self.dz[-1]),
        }  # fmt: skip
        if len(self.values) > depth:
            outputs = self.values[depth]
            fields |= self._at("a", outputs) | self._at("saved", self.inputs[-1] or outputs)
        return fields
