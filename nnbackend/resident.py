"""Training steps of a small network that stays in the GPU's shared memory: many in one launch.

A network of dense layers whose weights, and some rows' outputs, fit into the shared memory of a few
blocks needs no launch for each layer: ``kernels/cuda_resident.cu`` does whole steps, one after
another. Here is which networks those are, and what lies where in a block's memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nnbackend.activations import NAMES
from nnbackend.backends._cuda_kernels import DENSE, PLAN, RUN, UPDATES, WARPS, bind
from nnbackend.backends.base import Activation, Array
from nnbackend.backends.cuda_backend import CudaBackend
from nnbackend.executor import Data
from nnbackend.kernels.codes import LOSSES, Op
from nnbackend.losses import Loss
from nnbackend.metrics import Statistic
from nnbackend.optimizers import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSprop
from nnbackend.program import ABSENT, Program, Row

#: Steps of a launch: their rates lie in shared memory.
MOST_STEPS = 256
#: Rows that a block should have at least: products take four at a time.
FEWEST_ROWS = 4
#: The optimizers whose formulas the kernel has.
_UPDATES = {AdaGrad: "adagrad", RMSprop: "rmsprop", Adam: "adam", AdamW: "adam"}
#: The one statistic that is counted where the loss is computed.
HITS = ("correct", None, 1)


def counts_hits(statistic: Statistic) -> bool:
    return (statistic.kind, statistic.threshold, statistic.top) == HITS


def update_of(optimizer: Optimizer | None) -> str | None:
    """The kernel's name for an optimizer's formula; None where it has none, as for a class that
    somebody else wrote."""
    if type(optimizer) is SGD:
        return "momentum" if optimizer.slots else "sgd"
    return None if optimizer is None else _UPDATES.get(type(optimizer))


def can_stay(program: Program, backend: CudaBackend) -> bool:
    """Whether the kernel knows everything that the program asks for."""
    loss, optimizer = program.loss, program.optimizer
    known = update_of(optimizer) is not None and optimizer is not None
    return (
        known
        and optimizer.clip_norm is None  # type: ignore[union-attr]
        and isinstance(loss, Loss)
        and loss.name in LOSSES
        and type(loss).apply is Loss.apply
        and backend.precision == "fp32"
        and not program.penalties
        and all(counts_hits(s) for s in program.statistics)
        and all(row.op == Op.DENSE and NAMES[row.activation] != "softmax" for row in program.rows)
        and any(row.trainable for row in program.rows)
    )


class Layout(NamedTuple):
    """What lies where.

    Attributes:
        table: int64, for the kernel: PLAN, then DENSE for each layer.
        blocks: of the cluster.
        shared: bytes of each block's memory.
        question: all that its speed depends on.
    """

    table: np.ndarray[Any, np.dtype[np.int64]]
    blocks: int
    shared: int
    question: str


def layout_of(program: Program, backend: CudaBackend, rows: int, data: Data) -> Layout | None:
    """The layout for batches of up to ``rows`` rows in the form of ``data``; None where the network
    does not fit."""
    gpu = backend.gpu
    blocks = 1
    while 2 * blocks <= gpu.cluster_blocks and 2 * blocks * FEWEST_ROWS <= rows + FEWEST_ROWS - 1:
        blocks *= 2
    layout = _Writer(program, backend, -(-rows // blocks), blocks, data).layout()
    return layout if layout.shared <= gpu.shared_bytes else None


class _Writer:
    """Gives out a block's memory, bytes first (numbers of eight bytes), then matrices."""

    def __init__(
        self, program: Program, backend: CudaBackend, own_rows: int, blocks: int, data: Data
    ) -> None:
        self.program, self.backend, self.data = program, backend, data
        self.own_rows, self.blocks = own_rows, blocks
        self.item = program.dtype.itemsize
        self.bytes = 0
        self.plan: dict[str, int] = {}
        self.layers: list[dict[str, int]] = [{} for _ in program.rows]

    def layout(self) -> Layout:
        program, plan, own_rows = self.program, self.plan, self.own_rows
        words = len(PLAN) + len(DENSE) * len(program.rows)
        self._take(8 * (words + len(RUN)))
        labels = self.data.target.ndim == 1
        trained = [k for k, row in enumerate(program.rows) if row.trainable]
        plan |= {
            "words": words,
            "depth": len(program.rows),
            "lowest": trained[0],
            "rows": own_rows,
            "inputs": program.n_inputs,
            "x_stride": stride(program.n_inputs),
            "target_width": 0 if labels else program.n_outputs,
            "counts_hits": len(program.statistics),
            "rates": self._take(8 * 3 * MOST_STEPS),
            "totals": self._take(8 * 2),
            "sums": self._take(8 * WARPS),
            "losses": self._take(8 * 2 * own_rows),
            "indices": self._take(8 * 2 * own_rows),
            "labels": self._take(8 * own_rows if labels else 0),
            "one": self._matrix(1, 1),
        }
        self._parameters()
        self._rows()
        table = np.empty(words, np.int64)
        table[: len(PLAN)] = [plan[name] for name in PLAN]
        for k, (row, layer) in enumerate(zip(program.rows, self.layers, strict=True)):
            place = table[len(PLAN) + k * len(DENSE) :][: len(DENSE)]
            place[:] = [layer[name] for name in DENSE]
            parameter = float(program.floats[row.layer][0])
            place[DENSE.index("parameter")] = np.float64(parameter).view(np.int64)
        widths = [program.n_inputs, *(row.n_outputs for row in program.rows)]
        acts = [row.activation for row in program.rows]
        trained = [k for k, row in enumerate(program.rows) if row.trainable]
        question = f"{widths} {acts} {trained} {len(program.slots)} {self.blocks} {labels}"
        return Layout(table, self.blocks, self.bytes, question)

    def _take(self, size: int) -> int:
        """Bytes; where they begin."""
        start = self.bytes
        self.bytes += -(-size // 16) * 16
        return start

    def _matrix(self, rows: int, row_size: int) -> int:
        """Numbers; where they begin, in numbers."""
        return self._take(rows * row_size * self.item) // self.item

    def _parameters(self) -> None:
        """Weights and biases that are trained, those that are not, and what belongs to the former:
        gradients, and a share of what the optimizer keeps. The order is that of the flat vectors,
        so that those that decay come first."""
        rows, plan = self.program.rows, self.plan
        begin = self.bytes // self.item
        for trainable in (1, 0):
            chosen = [(k, row) for k, row in enumerate(rows) if row.trainable == trainable]
            for k, row in chosen:
                width = stride(row.n_outputs)
                self.layers[k] |= {
                    "weight": self._matrix(row.n_inputs, width),
                    "w_stride": width,
                    "weight_at": row.parameter_0,
                }
            if trainable:
                plan["decayed"] = self.bytes // self.item
            for k, row in chosen:
                has_bias = row.parameter_1 != ABSENT
                place = self._matrix(1, row.n_outputs) if has_bias else ABSENT
                self.layers[k] |= {"bias": place, "bias_at": row.parameter_1}
            if trainable:
                plan["trained"] = self.bytes // self.item
        size = plan["trained"] - begin
        plan["begin"], plan["share"] = begin, -(-size // self.blocks)
        plan["gradients"] = self._matrix(1, size) - begin  # from each parameter to its gradient
        slots = len(self.program.slots)
        for number, name in enumerate(("m", "v")):
            plan[name] = self._matrix(1, plan["share"]) if number < slots else 0

    def _rows(self) -> None:
        """The block's rows of two batches, and what each layer makes of one."""
        program, plan, own_rows = self.program, self.plan, self.own_rows
        weighted = self.data.weight is not None
        plan["x"] = self._matrix(2 * own_rows, plan["x_stride"])
        plan["targets"] = self._matrix(2 * own_rows, plan["target_width"])
        plan["row_weights"] = self._matrix(2 * own_rows, int(weighted))
        place, width = 0, plan["x_stride"]
        for layer, row in zip(self.layers, program.rows, strict=True):
            own = stride(row.n_outputs)
            output = self._matrix(own_rows, own)
            kept = self._matrix(own_rows, own) if self._keeps_input(row) else ABSENT
            layer |= {
                "inputs": row.n_inputs,
                "outputs": row.n_outputs,
                "activation": row.activation,
                "parameter": 0,
                "input": place,
                "in_stride": width,
                "output": output,
                "stride": own,
                "kept": kept,
                "saved": output if kept == ABSENT else kept,
                "gradient": output,  # an output has been read when its gradient is written
                "trains": row.trainable,
            }
            place, width = output, own
        # the loss's gradient is written while outputs are being read
        self.layers[-1]["gradient"] = self._matrix(own_rows, width)

    def _keeps_input(self, row: Row) -> bool:
        act = Activation(NAMES[row.activation], float(self.program.floats[row.layer][0]))
        return self.backend.activation_saves(act) == "input"


def stride(width: int) -> int:
    """How far the rows of a matrix lie apart: an odd number of fours, so that the places that
    threads read when they go down a column are delivered at once."""
    fours = -(-width // 4)
    return 4 * (fours + 1 - fours % 2)


class ResidentSteps:
    """Steps with batches of up to so many rows; an epoch's last batch may have fewer."""

    takes_any_rows = True

    def __init__(
        self, program: Program, backend: CudaBackend, layout: Layout, record: Array, state: Array
    ) -> None:
        self.backend = backend
        self.table = backend.asarray(layout.table, layout.table.dtype)
        loss, optimizer = program.loss, program.optimizer
        update = update_of(optimizer)
        if update is None or not isinstance(loss, Loss):
            raise TypeError("the kernel knows no such loss or optimizer")  # see can_stay
        numbers = [
            float(getattr(optimizer, name, 0.0))
            for name in ("momentum", "beta1", "beta2", "rho", "eps", "decay")
        ]
        storage, (m, v, *_) = program.storage, (*program.slots, None, None)
        arguments = (
            0, self.table, LOSSES.index(loss.name), not loss.summed, (*loss.parameters, 0.0)[0],
            program.n_sums, UPDATES.index(update), getattr(optimizer, "nesterov", False), *numbers,
            storage.parameters, storage.gradients, m, v, record, state,
        )  # fmt: skip
        launch = bind("train_resident", program.dtype, layout.blocks, arguments)
        self._launch = backend.gpu.prepare(launch._replace(shared=layout.shared))

    def advance(self, count: int) -> None:
        with self.backend.lock:
            for start in range(0, count, MOST_STEPS):
                self._launch(min(MOST_STEPS, count - start))
