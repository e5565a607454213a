"""Training steps of a network that the whole GPU works on: many of them in one launch.

``kernels/cuda/phases.cu`` does a step in phases, between which all blocks meet. Here is what is
done in each phase: tasks, such as a product cut into tiles, which the blocks share.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.kernels import (
    MOST_PHASES,
    MOST_STEPS,
    MOST_TASKS,
    RUN,
    TASK,
    TASKS,
    THREADS,
    TILES,
    UPDATED,
    WARPS,
    bind,
)
from nnbackend.backends.cuda.known import formulas_of, is_dense, update_numbers
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data
from nnbackend.executor.rows import activation_of
from nnbackend.program.table import ABSENT, Program, Row

#: Layers of a network: a step has three tasks for each.
MOST_LAYERS = 16
#: Multiplications of a step: where there are more, products are nearly all of the time, and those
#: of cuBLASLt are faster.
MOST_PRODUCTS = 1 << 31
#: Bytes of shared memory beside those of tiles, and those that tiles take at least.
TABLES = 8 * (len(RUN) + MOST_TASKS * len(TASK) + MOST_PHASES + 3 * MOST_STEPS + WARPS)
LEAST_TILES = 73 << 10
#: Nanoseconds that a tile takes on an H100, and for each inner place, by the tile's size.
TILE_TIME = 1500.0
INNER_TIME: Mapping[tuple[int, int], float] = {
    (16, 8): 4.75, (16, 16): 7.0, (32, 32): 15.6, (32, 64): 20.0, (64, 64): 33.0,
}  # fmt: skip
#: Into how many parts the rows of a batch may be cut for the gradients of weights, how many rows
#: such a part has at least, and numbers of a part that an update reads in a nanosecond.
PARTS, FEWEST_ROWS, READ = (1, 2, 4, 8, 16, 32), 64, 1000
#: Rows of so few outputs are one lane's each where their loss is computed, if there are many.
NARROW = 16


def can_take_phases(program: Program, backend: CudaBackend, rows: int) -> bool:
    """Whether the kernel knows everything that the program asks for, and is worth a try."""
    products = sum(row.n_inputs * row.n_outputs for row in program.rows)
    return (
        is_dense(program, backend)
        and len(program.rows) <= MOST_LAYERS
        and rows * products <= MOST_PRODUCTS
        and backend.gpu.shared_bytes >= TABLES + LEAST_TILES
    )


def definitions_of(backend: CudaBackend) -> str:
    """What the kernel is compiled with."""
    return f"#define TILE_BYTES {(backend.gpu.shared_bytes - TABLES) // 256 * 256}"


class Matrix(NamedTuple):
    """Numbers of a batch, rows on whole sixteens of bytes."""

    array: Array
    stride: int


class Tiling(NamedTuple):
    """A product cut into tiles: their number in TILES, how many they are, and how long it takes."""

    tile: int
    units: int
    time: float


def cut_into_tiles(rows: int, columns: int, inner: int, blocks: int, parts: int = 1) -> Tiling:
    """The quickest way to cut a product whose inner places are cut into ``parts``."""
    found = []
    for number, (tall, wide) in enumerate(TILES):
        units = -(-rows // tall) * -(-columns // wide) * parts
        time = -(-units // blocks) * (TILE_TIME + inner / parts * INNER_TIME[tall, wide])
        found.append(Tiling(number, units, time))
    return min(found, key=lambda way: way.time)


def parts_of(program: Program, rows: int, blocks: int) -> int:
    """Into how many parts to cut the rows of a batch for the gradients of weights. Narrow layers
    have too few tiles for a GPU; but an update has to read all parts."""

    def time(parts: int) -> float:
        products = sum(
            cut_into_tiles(_with_bias(row), row.n_outputs, rows, blocks, parts).time
            for row in program.rows if row.trainable
        )  # fmt: skip
        return products + program.storage.trained * parts / READ

    return min((parts for parts in PARTS if parts == 1 or rows // parts >= FEWEST_ROWS), key=time)


def _with_bias(row: Row) -> int:
    """The rows of the weights' gradient, that of the bias being the last one."""
    return row.n_inputs + (row.parameter_1 != ABSENT)


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
        self.program, self.backend, self.gpu, self.rows = program, backend, backend.gpu, rows
        self._arrays: list[Array] = []  # that the table has addresses of
        most = self.gpu.multiprocessors
        self.parts = parts_of(program, rows, most)
        phases = [list(phase) for phase in self._phases(data, most)]
        tasks = [task for phase in phases for task in phase]
        starts = np.cumsum([0, *(len(phase) for phase in phases)])
        blocks = min(most, max(sum(task["units"] for task in phase) for phase in phases))
        formula, rule = formulas_of(program)
        self._turn = 0
        words = np.array([[task.get(name, 0) for name in TASK] for task in tasks], np.int64)
        arguments = (
            0, 0, backend.asarray(words, words.dtype), backend.asarray(starts, words.dtype),
            len(phases), formula.code, formula.parameter, program.n_sums, rule.code,
            *update_numbers(rule), self._zeros(2, np.uint32), record, state,
        )  # fmt: skip
        launch = bind("train_in_phases", program.dtype, blocks, arguments)
        definitions = definitions_of(backend)
        shared = TABLES + int(definitions.split()[-1])
        launch = launch._replace(shared=shared, together="grid", definitions=definitions)
        self._launch = self.gpu.prepare(launch)

    def advance(self, count: int) -> None:
        with self.backend.lock:
            for start in range(0, count, MOST_STEPS):
                self._launch(min(MOST_STEPS, count - start), self._turn)
                self._turn = 1 - self._turn

    # -- arrays -----------------------------------------------------------------------------------

    def _zeros(self, shape: int | tuple[int, ...], dtype: type | np.dtype | None = None) -> Array:
        self._arrays.append(self.backend.zeros(shape, np.dtype(dtype or self.program.dtype)))
        return self._arrays[-1]

    def _matrix(self, width: int, ones: bool) -> Matrix:
        """For a batch; ``ones``: with a column of ones behind the last one."""
        stride = -(-(width + ones) // 4) * 4
        array = self._zeros((self.rows, stride))
        if ones:
            array[:, width] = 1
        return Matrix(array, stride)

    def _address(self, array: Array | None, offset: int = 0) -> int:
        if array is None:
            return 0
        return self.gpu.address(array) + offset * self.program.dtype.itemsize

    # -- tasks ------------------------------------------------------------------------------------

    def _phases(self, data: Data, blocks: int) -> Iterator[list[dict[str, int]]]:
        """The tasks of each phase. Two products that need the same are in one."""
        program, rows = self.program, self.program.rows
        self.blocks = blocks
        lowest = min(i for i, row in enumerate(rows) if row.trainable)
        values = [self._matrix(row.n_inputs, True) for row in rows]
        values.append(self._matrix(program.n_outputs, True))
        kept = [
            self._matrix(row.n_outputs, True)
            if activation_of(program, row).saves == "input" else None for row in rows
        ]  # fmt: skip
        gradients = [self._matrix(row.n_outputs, False) for row in rows]
        more = None
        if self.parts > 1:
            more = self._zeros((self.parts - 1, program.storage.gradients.size))
        for i in range(len(rows)):
            yield [self._forward(i, values[i], values[i + 1], kept[i])]
        fetch, loss, finish = self._batch(data, values, kept[-1], gradients[-1])
        yield [loss]
        for i in range(len(rows) - 1, lowest - 1, -1):
            tasks = []
            if i > lowest:
                saved = kept[i - 1] or values[i]
                tasks.append(self._below(i, gradients[i], saved, gradients[i - 1]))
            if rows[i].trainable:
                tasks.append(self._weights(i, values[i], gradients[i], more))
            if i == len(rows) - 1:
                tasks.append(finish)
            yield tasks
        yield [self._update(more), fetch]

    def _task(self, kind: str, units: int, **fields: int) -> dict[str, int]:
        return {"kind": TASKS.index(kind), "units": units, **fields}

    def _activation(self, row: Row) -> dict[str, int]:
        parameter = activation_of(self.program, row).parameter
        (bits,) = struct.unpack("q", struct.pack("d", parameter))
        return {"activation": row.activation, "parameter": bits}

    def _weight(self, row: Row) -> dict[str, int]:
        """The right operand."""
        weight, _ = self.program.arrays[row.layer].parameters
        quad = 16 // self.program.dtype.itemsize
        address = self._address(weight)
        in_quads = row.n_outputs % quad == 0 and address % 16 == 0
        return {"b": address, "b_stride": row.n_outputs, "in_quads": in_quads}

    def _forward(self, i: int, x: Matrix, out: Matrix, kept: Matrix | None) -> dict[str, int]:
        row = self.program.rows[i]
        tile, units, _ = cut_into_tiles(self.rows, row.n_outputs, row.n_inputs, self.blocks)
        _, bias = self.program.arrays[row.layer].parameters
        return self._task(
            "forward", units, tile=tile, rows=self.rows, columns=row.n_outputs,
            inner=row.n_inputs, a=self._address(x.array), a_stride=x.stride,
            out=self._address(out.array), out_stride=out.stride, bias=self._address(bias),
            kept=self._address(kept and kept.array), **self._weight(row), **self._activation(row),
        )  # fmt: skip

    def _below(self, i: int, dz: Matrix, saved: Matrix, out: Matrix) -> dict[str, int]:
        """The gradient before the activation of the row below."""
        row = self.program.rows[i]
        tile, units, _ = cut_into_tiles(self.rows, row.n_inputs, row.n_outputs, self.blocks)
        return self._task(
            "below", units, tile=tile, rows=self.rows, columns=row.n_inputs,
            inner=row.n_outputs, a=self._address(dz.array), a_stride=dz.stride,
            out=self._address(out.array), out_stride=out.stride,
            saved=self._address(saved.array), saved_stride=saved.stride,
            **self._weight(row), **self._activation(self.program.rows[i - 1]),
        )  # fmt: skip

    def _weights(self, i: int, x: Matrix, dz: Matrix, more: Array | None) -> dict[str, int]:
        row = self.program.rows[i]
        tall = _with_bias(row)
        tile, units, _ = cut_into_tiles(tall, row.n_outputs, self.rows, self.blocks, self.parts)
        weight, bias = self.program.arrays[row.layer].gradients
        return self._task(
            "weights", units, tile=tile, rows=tall, columns=row.n_outputs, inner=self.rows,
            a=self._address(x.array), a_stride=x.stride, b=self._address(dz.array),
            b_stride=dz.stride, in_quads=1, out=self._address(weight), out_stride=row.n_outputs,
            bias=self._address(bias), ones=ABSENT if bias is None else row.n_inputs,
            weight_at=row.parameter_0, bias_at=row.parameter_1, **self._in_parts(more),
        )  # fmt: skip

    def _in_parts(self, more: Array | None) -> dict[str, int]:
        size = self.program.storage.gradients.size
        return {"parts": self.parts, "more": self._address(more), "part_size": size}

    def _batch(
        self, data: Data, values: list[Matrix], kept: Matrix | None, dz: Matrix
    ) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """What brings a batch, what makes its loss of the outputs, and what adds that up."""
        program, rows, (formula, _) = self.program, self.rows, formulas_of(self.program)
        by_label = data.target.ndim == 1
        targets = self._zeros((rows, *data.target.shape[1:]), data.target.dtype)
        weights = None if data.weight is None else self._zeros(rows)
        x, pred, last = values[0], values[-1], program.rows[-1]
        kind, units = "loss", -(-rows // WARPS)
        if program.n_outputs <= NARROW and units > self.blocks:
            kind, units = "loss_by_lane", -(-rows // THREADS)
        shared = {
            "targets": self._address(targets), "row_weights": self._address(weights),
            "target_words": targets.nbytes // rows // 4, "averages": formula.averages,
            "sums": self._address(self._zeros(2 * units, np.float64)),
        }  # fmt: skip
        fetch = self._task(
            "fetch", -(-rows // WARPS), columns=program.n_inputs,
            out=self._address(x.array), out_stride=x.stride, **shared,
        )  # fmt: skip
        saved = kept or pred
        loss = self._task(
            kind, units, columns=program.n_outputs, by_label=by_label,
            hits=program.n_sums > 0, a=self._address(pred.array), a_stride=pred.stride,
            out=self._address(dz.array), out_stride=dz.stride, saved=self._address(saved.array),
            saved_stride=saved.stride, **self._activation(last), **shared,
        )  # fmt: skip
        return fetch, loss, self._task("finish", 1, rows=units, **shared)

    def _update(self, more: Array | None) -> dict[str, int]:
        storage, (m, v, *_) = self.program.storage, (*self.program.slots, None, None)
        return self._task(
            "update", -(-storage.trained // UPDATED), columns=storage.trained,
            inner=storage.decayed, out=self._address(storage.parameters),
            a=self._address(storage.gradients), kept=self._address(m), saved=self._address(v),
            **self._in_parts(more),
        )  # fmt: skip
