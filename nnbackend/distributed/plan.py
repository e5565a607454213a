"""A training step over this rank's blocks of a batch, layer by layer: for batch norms, which need
all rows of the batch before the next layer, and for sums in the order of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.distributed.norms import SharedBatchNorm
from nnbackend.distributed.ranks import Block, Ranks
from nnbackend.executor.base import Data, Run, Trace
from nnbackend.executor.loss import divide_by_batch, measure
from nnbackend.executor.rows import Backward, Forward, Mode, bind_row, saved_shape
from nnbackend.executor.workspace import Workspace
from nnbackend.kernels.codes import TRACE_SUMS, Op
from nnbackend.program.storage import Segment
from nnbackend.program.table import ABSENT, Program, Row, first_trained

_FLOAT64 = np.dtype(np.float64)
#: Rows whose numbers fill whole lines of the cache, whatever their width and dtype.
PLACE = 16


def placed(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks one after another, each from a multiple of PLACE on."""
    found, start = [], 0
    for first, last in blocks:
        found.append((start, start + last - first))
        start += -(-(last - first) // PLACE) * PLACE
    return found


class _Layer(NamedTuple):
    """A row of the program, bound for each block; or a batch norm for all of them.

    Attributes:
        dx: (rows, n_inputs), None where it is not needed.
        segments: of the flat gradient, which the backward pass fills.
    """

    row: Row
    out: Array
    dx: Array | None
    passes: list[tuple[Forward, Backward]]
    norm: SharedBatchNorm | None
    segments: list[Segment]


class BlockedPlan:
    """The program bound to buffers for fixed blocks of rows."""

    def __init__(
        self, program: Program, ranks: Ranks, workspace: Workspace, blocks: Sequence[Block]
    ) -> None:
        """``blocks`` count from this rank's first row."""
        self.program, self.ranks = program, ranks
        self.workspace, self.given = workspace, list(blocks)
        #: where they lie in the workspace: kernels add in an order that may depend on addresses
        self.blocks = placed(blocks)
        self.rows = self.blocks[-1][1] if blocks else 0
        #: of each block
        self._modes = [Mode() for _ in blocks]
        backend, storage = program.backend, program.storage
        self._layers = [self._bound(row) for row in program.rows]
        self._dpred = workspace.gradients[0][: self.rows * program.n_outputs]
        self._dpred = self._dpred.reshape(self.rows, program.n_outputs)
        self._value = backend.zeros((), _FLOAT64)
        self._lowest = first_trained(program.rows)
        #: the flat gradient of each block; a single one has the model's own
        self.gradients = [storage.gradients[: storage.trained]]
        if len(blocks) > 1 or ranks.exact:
            self.gradients = [backend.zeros(storage.trained, program.dtype) for _ in blocks]

    def _bound(self, row: Row) -> _Layer:
        program, work, rows = self.program, self.workspace, self.rows
        out, dx = work.part(row.output, rows, row.n_outputs), None
        if row.needs_dx:
            buffer = work.gradients[(len(program.rows) - row.layer) % 2]
            dx = buffer[: rows * row.n_inputs].reshape(rows, row.n_inputs)
        trained = program.storage.trained_segments()
        segments = [segment for segment in trained if segment.layer == row.layer]
        if row.op == Op.BATCH_NORM:
            norm = SharedBatchNorm(program, row, self.ranks, out, work.capacity)
            return _Layer(row, out, dx, [], norm, segments)
        passes = []
        for (first, last), mode in zip(self.blocks, self._modes, strict=True):
            saved = None
            if row.saved != ABSENT:
                shape = saved_shape(row, last - first)
                # as many numbers for each row as the shape has
                start = row.saved * work.capacity + first * (shape[0] * shape[1] // (last - first))
                saved = work.flat[start : start + shape[0] * shape[1]].reshape(shape)
            part = None if dx is None else dx[first:last]
            passes.append(bind_row(program, row, out[first:last], saved, part, mode))
        return _Layer(row, out, dx, passes, None, segments)

    def differentiate(
        self,
        part: Run,
        batch_rows: int,
    ) -> Trace:
        """Fill ``gradients`` with each block's part of the batch's gradient, without penalties.

        Args:
            part: this rank's rows of the batch.
            batch_rows: rows of the batch.

        Returns:
            (k, TRACE_SUMS + n_sums), the trace of each block.
        """
        program, data = self.program, self._taken(part)
        for (first, _), mode in zip(self.given, self._modes, strict=True):
            mode.first_row = part.first_row + first
        with np.errstate(all="ignore"):
            inputs = self._go_forward(data.x, part.first_step, batch_rows)
            trace = program.backend.zeros((len(self.blocks), TRACE_SUMS + program.n_sums), _FLOAT64)
            pred = inputs.pop()
            for k, (first, last) in enumerate(self.blocks):
                measure(
                    program, data.rows(first, last), pred[first:last], self._dpred[first:last],
                    trace[k], self._value,
                )  # fmt: skip
                divide_by_batch(program, self._dpred[first:last], trace[k], part.batch_weight)
            self._go_back(inputs)
        return program.backend.to_numpy(trace)

    def _taken(self, part: Run) -> Data:
        """The rows, each block in its place."""
        work, backend, data = self.workspace, self.program.backend, part.data
        for (first, last), (place, _) in zip(self.given, self.blocks, strict=True):
            if part.order is None:
                work.take(backend, data.rows(first, last), place)
            else:
                work.gather(backend, data, part.order[0, first:last], place)
        if not self.given:
            return data
        return work.data(self.rows, data.weight is not None)

    def _go_forward(self, x: Array, step: int, batch_rows: int) -> list[Array]:
        inputs = [x]
        for layer in self._layers:
            x = inputs[-1]
            if layer.norm is not None:
                inputs.append(layer.norm.forward(x, self.blocks, batch_rows))
                continue
            out = layer.out
            for (first, last), (forward, _) in zip(self.blocks, layer.passes, strict=True):
                y = forward(x[first:last], step)
                if layer.row.op == Op.PYTHON:  # a layer's own array
                    out[first:last] = y
            inputs.append(out)
        return inputs

    def _go_back(self, inputs: list[Array]) -> None:
        dy = self._dpred
        for index in range(len(inputs) - 1, self._lowest - 1, -1):
            layer, x = self._layers[index], inputs[index]
            if layer.norm is not None:
                both = layer.norm.backward(x, dy, layer.dx, self.blocks)
                for k, values in enumerate(both):
                    self._keep_norm(layer, k, values)
            else:
                for k, (first, last) in enumerate(self.blocks):
                    layer.passes[k][1](x[first:last], dy[first:last])
                    self._keep(layer, k)
            if layer.dx is not None:
                dy = layer.dx

    def _keep(self, layer: _Layer, block: int) -> None:
        """The layer's gradient belongs to this block."""
        flat, own = self.program.storage.gradients, self.gradients[block]
        if len(self.gradients) == 1 and not self.ranks.exact:
            return  # it is there already
        for segment in layer.segments:
            part = slice(segment.offset, segment.offset + segment.size)
            own[part] = flat[part]

    def _keep_norm(self, layer: _Layer, block: int, values: tuple[Any, Any]) -> None:
        backend, dtype = self.program.backend, self.program.dtype
        # the layer's gamma and beta, in this order
        for gradient, value in zip(
            self.program.arrays[layer.row.layer].gradients, values, strict=True
        ):
            if gradient is not None:
                gradient[...] = backend.asarray(value, dtype)
        self._keep(layer, block)
