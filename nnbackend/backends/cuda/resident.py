"""Training steps of a small network that stays in the GPU's shared memory: many in one launch.

A network of dense layers whose weights, and some rows' outputs, fit into the shared memory of a few
blocks needs no launch for each layer: ``kernels/cuda/resident.cu`` does whole steps, one after
another. Here is which networks those are, and what lies where in a block's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.batches import padded
from nnbackend.backends.cuda.kernels import (
    JOBS,
    LAYER,
    MOST_STEPS,
    PLAN,
    RUN,
    THREADS,
    WARPS,
    bind,
)  # fmt: skip
from nnbackend.backends.cuda.known import formulas_of, is_dense, update_numbers
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data
from nnbackend.executor.rows import activation_of
from nnbackend.program.table import ABSENT, Program, Row, first_trained

#: Layers of a network: each takes the compiler some 0.2 s.
MOST_LAYERS = 8
#: Rows that a block has at least: products take four at a time.
FEWEST_ROWS = 4
#: The fields of a Job of the kernel, in their order; zeros where a job does not say.
_JOB = (
    "kind", "rows", "columns", "inner", "a", "a_row", "a_column", "a_turn", "b", "b_row",
    "b_column", "large", "out", "out_row", "kept", "saved", "activation", "shift", "across",
    "meets", "per_across", "unused", "parameter",
)  # fmt: skip


def can_stay(program: Program, backend: CudaBackend) -> bool:
    """Whether the kernel knows everything that the program asks for."""
    return is_dense(program, backend) and len(program.rows) <= MOST_LAYERS


class Layout(NamedTuple):
    """What lies where.

    Attributes:
        network: definitions for the kernel.
        blocks: of the cluster.
        shared: bytes of each block's memory.
    """

    network: str
    blocks: int
    shared: int


def layout_of(program: Program, backend: CudaBackend, rows: int, data: Data) -> Layout | None:
    """The layout for batches of up to ``rows`` rows in the form of ``data``; None where the network
    does not fit."""
    gpu = backend.gpu
    blocks = 1
    while 2 * blocks <= gpu.cluster_blocks and blocks * FEWEST_ROWS < rows:
        blocks *= 2
    layout = _Writer(program, backend, -(-rows // blocks), blocks, data).layout()
    return layout if layout.shared <= gpu.shared_bytes else None


class _Writer:
    """Gives out a block's memory, and writes the jobs of a step.

    Places are counted in numbers of the network's dtype, those of double and integer things in
    bytes.
    """

    def __init__(
        self, program: Program, backend: CudaBackend, own_rows: int, blocks: int, data: Data
    ) -> None:
        self.program, self.backend, self.data = program, backend, data
        # few numbers of rows serve batches of any size
        self.own_rows, self.blocks = padded(-(-own_rows // 4) * 4), blocks
        self.item = program.dtype.itemsize
        self.bytes = 0
        self.plan = dict.fromkeys(PLAN, 0)
        self.lowest = first_trained(program.rows)
        self.layers = [_Layer(row) for row in program.rows]
        self.jobs: list[str] = []

    def layout(self) -> Layout:
        program, plan, rows = self.program, self.plan, self.own_rows
        labels, depth = self.data.target.ndim == 1, len(self.layers)
        loss, rule = formulas_of(program)
        self._take(8 * len(RUN))  # a copy of the run's record comes first
        plan |= {
            "depth": depth,
            "blocks": self.blocks,
            "forwards": depth,
            "rows": rows,
            "inputs": program.n_inputs,
            "outputs": program.n_outputs,
            "target_width": 0 if labels else program.n_outputs,
            "counts_hits": len(program.statistics),
            "loss": loss.code,
            "averages": loss.averages,
            "update": rule.code,
            "rates": self._take(8 * 3 * MOST_STEPS),
            "traced": self._take(8 * 3 * MOST_STEPS),
            "totals": self._take(8 * 2),
            "sums": self._take(8 * WARPS),
            "losses": self._take(8 * 2 * rows),
            "indices": self._take(8 * 2 * rows),
            "labels": self._take(4 * 2 * rows if labels else 0),
        }
        self._parameters()
        self._matrices()
        self._write_jobs()
        plan["jobs"] = len(self.jobs)
        words = [int(plan[name]) for name in PLAN]
        layers = [word for layer in self.layers for word in layer.words()]
        lists: dict[str, Sequence[object]] = {
            "PLAN_WORDS": words, "JOBS": self.jobs, "LAYERS": layers,
        }  # fmt: skip
        network = [f"#define {name} {', '.join(map(str, lists[name]))}" for name in lists]
        return Layout("\n".join(network), self.blocks, self.bytes)

    def _take(self, size: int) -> int:
        """Bytes; where they begin."""
        start = self.bytes
        self.bytes += -(-size // 16) * 16
        return start

    def _matrix(self, rows: int, row_size: int) -> int:
        """Numbers; where they begin."""
        return self._take(rows * row_size * self.item) // self.item

    def _parameters(self) -> None:
        """Parameters that are trained, those that are not, and what belongs to the former:
        gradients, and a share of what the optimizer keeps."""
        plan, begin = self.plan, self.bytes // self.item
        for trainable in (1, 0):
            for layer in self.layers:
                if layer.row.trainable == trainable:
                    layer.weight = self._matrix(layer.inner, layer.weight_stride)
            if trainable:
                plan["trained"] = self.bytes // self.item
        size = plan["trained"] - begin
        plan["begin"], plan["share"] = begin, -(-size // self.blocks)
        plan["gradients"] = self._matrix(1, size) - begin  # from each parameter to its gradient
        for name, _ in zip(("m", "v"), self.program.slots, strict=False):
            plan[name] = self._matrix(1, plan["share"])

    def _matrices(self) -> None:
        """The block's rows of two batches, and what each layer makes of one."""
        program, plan, rows = self.program, self.plan, self.own_rows
        weighted = self.data.weight is not None
        width = stride(plan["inputs"] + 1)
        place = self._matrix(2 * rows, width)
        plan["x"], plan["x_stride"] = place, width
        plan["targets"] = self._matrix(2 * rows, plan["target_width"])
        plan["row_weights"] = self._matrix(2 * rows, int(weighted))
        for layer in self.layers:
            layer.x, layer.x_stride = place, width
            width = stride(layer.row.n_outputs + 1)
            place = layer.out = layer.gradient = layer.saved = self._matrix(rows, width)
            layer.stride = width
            if activation_of(program, layer.row).saves == "input":
                layer.kept = layer.saved = self._matrix(rows, width)
        # the loss's gradient is written while outputs are being read
        last = self.layers[-1]
        last.gradient = self._matrix(rows, width)
        plan["output"], plan["output_stride"] = last.out, width
        plan["output_gradient"] = last.gradient

    def _parameter(self, layer: _Layer) -> float:
        return activation_of(self.program, layer.row).parameter

    def _write_jobs(self) -> None:
        rows = self.own_rows
        turn = rows * self.plan["x_stride"]  # from one batch's rows of x to the other's
        for k, layer in enumerate(self.layers):
            self._product(
                "forward", rows, layer.row.n_outputs, layer.inner,
                a=layer.x, a_row=layer.x_stride, a_column=1, a_turn=0 if k else turn,
                b=layer.weight, b_row=layer.weight_stride, b_column=1,
                out=layer.out, out_row=layer.stride, kept=layer.kept, saved=layer.saved,
                activation=layer.row.activation, parameter=self._parameter(layer), meets=1,
            )  # fmt: skip
        last = self.layers[-1]
        if last.row.activation:
            self._job(
                "slope", rows=rows, columns=last.row.n_outputs, across=last.row.n_outputs,
                out=last.gradient,
                out_row=last.stride, saved=last.saved, activation=last.row.activation,
                parameter=self._parameter(last), meets=1,
            )  # fmt: skip
        for k in range(len(self.layers) - 1, self.lowest - 1, -1):
            layer = self.layers[k]
            if layer.row.trainable:
                # the inputs have to be read before their gradient comes in their place
                self._product(
                    "weights", layer.inner, layer.row.n_outputs, rows,
                    a=layer.x, a_row=1, a_column=layer.x_stride, a_turn=0 if k else turn,
                    b=layer.gradient, b_row=layer.stride, b_column=1,
                    out=layer.weight + self.plan["gradients"], out_row=layer.weight_stride,
                    meets=int(k > self.lowest),
                )  # fmt: skip
            if k > self.lowest:
                below = self.layers[k - 1]
                self._product(
                    "below", rows, layer.row.n_inputs, layer.row.n_outputs,
                    a=layer.gradient, a_row=layer.stride, a_column=1,
                    b=layer.weight, b_row=1, b_column=layer.weight_stride,
                    out=below.gradient, out_row=below.stride, saved=below.saved,
                    activation=below.row.activation, parameter=self._parameter(below), meets=1,
                )  # fmt: skip

    def _product(self, kind: str, rows: int, columns: int, inner: int, **fields: float) -> None:
        large, shift = tiling(rows, columns, inner)
        across = -(-columns // 4) if large else columns
        self._job(
            kind, rows=rows, columns=columns, inner=inner, large=int(large), shift=shift,
            across=across, **fields,
        )  # fmt: skip

    def _job(self, kind: str, **fields: float) -> None:
        known: dict[str, float] = dict.fromkeys(_JOB, 0)
        known |= {"kind": JOBS.index(kind), "kept": ABSENT, "per_across": 1 / fields["across"]}
        known |= fields
        numbers = [f"(float){known[k]!r}" if k == "per_across" else repr(known[k]) for k in _JOB]
        self.jobs.append(f"{{{', '.join(numbers)}}}")


class _Layer:
    """Where a dense layer's things lie: see _Writer."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.weight_stride = stride(row.n_outputs)
        #: rows of the weights, the bias being the last one
        self.inner = row.n_inputs + (row.parameter_1 != ABSENT)
        self.weight = self.x = self.x_stride = self.out = self.stride = 0
        self.gradient = self.saved = 0
        self.kept = ABSENT

    def words(self) -> list[int]:
        row = self.row
        fields = {
            "inputs": row.n_inputs, "outputs": row.n_outputs, "place": self.weight,
            "stride": self.weight_stride, "weight": row.parameter_0, "bias": row.parameter_1,
            "x": self.x, "x_stride": self.x_stride,
        }  # fmt: skip
        return [fields[name] for name in LAYER]


def tiling(rows: int, columns: int, inner: int) -> tuple[bool, int]:
    """Whether a thread should take 4 x 4 elements of a product, or 4 x 1, and the logarithm of the
    number of lanes that should share their sums: what takes the fewest instructions."""
    ways = {}
    for large in (True, False):
        wide = 4 if large else 1
        tiles = -(-rows // 4) * -(-columns // wide)
        for shift in range(6):
            sharing = 1 << shift
            rounds = -(-tiles * sharing // THREADS)
            sums = -(-inner // sharing) * (4 + wide + 4 * wide + 4)
            exchange = shift * 4 * wide * 2
            results = -(-4 * wide // sharing) * 12
            ways[large, shift] = rounds * (sums + exchange + results + 40)
    return min(ways, key=lambda way: ways[way])


def stride(width: int) -> int:
    """How far the rows of a matrix lie apart: an odd number of fours, so that the places that
    threads read when they go down a column are delivered at once."""
    fours = -(-width // 4)
    return 4 * (fours + 1 - fours % 2)


class ResidentSteps:
    """Steps with batches of up to so many rows; an epoch's last batch may have fewer."""

    def __init__(
        self, program: Program, backend: CudaBackend, layout: Layout, record: Array, state: Array
    ) -> None:
        self.backend = backend
        loss, rule = formulas_of(program)
        storage, (m, v, *_) = program.storage, (*program.slots, None, None)
        arguments = (
            0, loss.parameter, program.n_sums, *update_numbers(rule),
            storage.parameters, storage.gradients, m, v, record, state,
        )  # fmt: skip
        launch = bind("train_resident", program.dtype, layout.blocks, arguments)
        launch = launch._replace(shared=layout.shared, definitions=layout.network)
        self._launch = backend.gpu.prepare(launch)

    def advance(self, count: int) -> None:
        with self.backend.lock:
            for start in range(0, count, MOST_STEPS):
                self._launch(min(MOST_STEPS, count - start))
