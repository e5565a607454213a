"""A program's rows as launches over fixed arrays, for batches of one size: what a graph holds.

Around a dense layer's product there is a choice: a bias, a ReLU and their gradients can be kernels
of their own, or part of the product. What is possible here is timed, and the fastest is taken. With
precision bf16, matrices that only products read are bfloat16 from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nnbackend.backends.cuda.arrays import BF16
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.gemm import Epilogue, Product
from nnbackend.backends.cuda.row_groups import bind_group, groups_of
from nnbackend.backends.cuda.sums import SharedBatch
from nnbackend.backends.types import LINEAR, Activation, Array
from nnbackend.executor.rows import (
    activation_of,
    bind_inference,
    bind_row,
    gradients_of,
    saved_shape,
)
from nnbackend.kernels.codes import Op
from nnbackend.program.table import ABSENT, Program, Row, first_trained

Work = Callable[[], None]


class Matrix(NamedTuple):
    """A matrix between two rows: as numbers, as bfloat16 bits, or both."""

    real: Array | None
    bf16: Array | None

    @property
    def operand(self) -> Array:
        """What a product reads."""
        return self.real if self.bf16 is None else self.bf16


NOTHING = Matrix(None, None)


class GraphPlan:
    """Forward and, for training, backward.

    Attributes:
        x: (B, I) the batch, to be filled.
        pred: (B, O) the outputs.
        dpred: the gradient of the loss, to be filled; NOTHING where nothing is trained.
        forward: the launches, in order.
    """

    def __init__(
        self,
        program: Program,
        backend: CudaBackend,
        rows: int,
        training: bool,
        rounded: Array | None,
        batch: SharedBatch | None = None,
    ) -> None:
        """
        Args:
            rounded: the flat parameters as bfloat16; None for products of numbers as they are.
            batch: what the rows are a part of, if they are.
        """
        self._batch = batch
        self.program, self.backend, self.gpu = program, backend, backend.gpu
        self.rows, self.training, self.rounded = rows, training, rounded
        self.table = [row for row in program.rows if training or row.op != Op.DROPOUT]
        #: rows above this one take part in the backward pass
        self.lowest = first_trained(self.table) if training else len(self.table)
        #: the first and the last row of those that one kernel does together
        self.groups = groups_of(program, self.table) if training else {}
        followers = (range(first + 1, last + 1) for first, last in self.groups.items())
        self._followers = {i for group in followers for i in group}
        self._places: dict[tuple[int, bool], Array] = {}
        self.values = [self._value(i) for i in range(len(self.table) + 1)]
        self.dy = [self._gradient(i) for i in range(len(self.table))]
        self.dz = [self._before_activation(i) for i in range(len(self.table))]
        #: what goes into an activation whose slope is found from it
        self.kept = [self._kept_input(i) for i in range(len(self.table))]
        self._sums = self._scratch()
        self.x, self.dpred = self.values[0], self.dy[-1]
        self.pred: Array = self.values[-1].real
        self.forward: list[Work] = []
        self._down = [_nothing] * len(self.table)
        for i, row in enumerate(self.table):
            if i in self._followers:
                continue
            forward, down = self._bind_dense(i) if row.op == Op.DENSE else self._bind_other(i)
            self.forward.append(forward)
            self._down[i] = down
        self._weights = [self._bind_weights(i) for i in range(len(self.table))]

    def backward(self) -> None:
        """Gradients of all parameters from ``dpred``. Those of weights run beside what leads on to
        lower rows; the caller joins them."""
        for i in range(len(self.table) - 1, self.lowest - 1, -1):
            self._down[i]()
            product, sums = self._weights[i]
            if product is _nothing:
                continue
            if i == self.lowest and sums is _nothing:
                product()  # nothing is left to run beside
                continue
            with self.gpu.side_stream():
                product()
                if i > self.lowest:
                    sums()
            if i == self.lowest:
                sums()  # beside the last product

    @property
    def gives_dx(self) -> bool:
        """Whether the gradient by the batch is one product more."""
        return self.lowest == 0 and self._is_dense(0)

    def input_gradient(self, dx: Array) -> None:
        """dx (B, I), after ``backward``."""
        weight = self._weight(self.table[0])
        self.gpu.product(self._product(self.dz[0].operand, weight, dx, b_t=True))

    # -- arrays -----------------------------------------------------------------------------------

    def _zeros(self, columns: int, bf16: bool = False) -> Array:
        return self.backend.zeros((self.rows, columns), BF16 if bf16 else self.program.dtype)

    def _is_dense(self, i: int) -> bool:
        return 0 <= i < len(self.table) and self.table[i].op == Op.DENSE

    def _activation(self, i: int) -> Activation:
        return activation_of(self.program, self.table[i])

    def _value(self, i: int) -> Matrix:
        """What row ``i`` reads; behind the last row, the outputs."""
        if i in self._followers:
            return NOTHING
        columns = self.table[i].n_inputs if i < len(self.table) else self.table[-1].n_outputs
        bf16 = self.rounded is not None and self._is_dense(i)
        # kernels of other layers, and softmax, know real numbers only
        needs_real = i > 0 and (
            not self._is_dense(i - 1) or self._activation(i - 1).name == "softmax"
        )
        real = self._room(i, columns, False) if needs_real or not bf16 else None
        return Matrix(real, self._room(i, columns, True) if bf16 else None)

    def _room(self, i: int, columns: int, bf16: bool) -> Array:
        """Memory for what row ``i`` reads. Inference needs none of it any more once the next row
        has run: two places take turns."""
        if self.training:
            return self._zeros(columns, bf16)
        widest = max(max(row.n_inputs, row.n_outputs) for row in self.table)
        place = (i % 2, bf16)
        if place not in self._places:
            self._places[place] = self._zeros(widest, bf16).reshape(-1)
        return self._places[place][: self.rows * columns].reshape(self.rows, columns)

    def _gradient(self, i: int) -> Matrix:
        """The gradient of row ``i``'s outputs."""
        if i < self.lowest or i + 1 in self._followers:
            return NOTHING
        columns = self.table[i].n_outputs
        # a ReLU leaves numbers as they are, or none: to round them before it changes nothing
        rounds_first = self._is_dense(i) and self._activation(i).name in ("linear", "relu")
        bf16 = self.rounded is not None and rounds_first
        from_kernel = i + 1 < len(self.table) and not self._is_dense(i + 1)
        real = self._zeros(columns) if from_kernel or not bf16 else None
        return Matrix(real, self._zeros(columns, True) if bf16 else None)

    def _before_activation(self, i: int) -> Matrix:
        """The gradient before a dense row's activation, which its products read."""
        dy = self.dy[i]
        if dy is NOTHING or not self._is_dense(i) or dy.bf16 is not None or self.rounded is None:
            return dy
        return Matrix(dy.real, self._zeros(self.table[i].n_outputs, True))

    def _kept_input(self, i: int) -> Array | None:
        if i < self.lowest or not self._is_dense(i) or self._activation(i).saves != "input":
            return None
        return self._zeros(self.table[i].n_outputs)

    def _scratch(self) -> Array:
        """Room for sums that become bfloat16 when their bias is added."""
        widths = [
            row.n_outputs for i, row in enumerate(self.table)
            if row.op == Op.DENSE and self.values[i + 1].real is None
        ]  # fmt: skip
        size = self.rows * max(widths, default=0)
        return self.backend.zeros(size, self.program.dtype) if size else None

    def _weight(self, row: Row) -> Array:
        weight, _ = self.program.arrays[row.layer].parameters
        return self._twin(row.parameter_0, weight)

    def _twin(self, offset: int, real: Array) -> Array:
        """A parameter as products read it."""
        if self.rounded is None:
            return real
        return self.rounded[offset : offset + real.size].reshape(real.shape)

    def _product(
        self,
        a: Array,
        b: Array,
        out: Array,
        a_t: bool = False,
        b_t: bool = False,
        epilogue: Epilogue = Epilogue.PLAIN,
        vector: Array = None,
    ) -> Product:
        tf32 = self.backend.precision == "tf32"
        return Product(a, b, out, a_t, b_t, tf32, epilogue, vector)

    # -- dense rows -------------------------------------------------------------------------------

    def _bind_dense(self, i: int) -> tuple[Work, Work]:
        """The fastest of the ways forward, and the gradient that comes back."""
        separate, down = self._forward(i), self._gradient_from_above(i)
        ways = {"separate": separate}
        fused = self._fused(i)
        if fused is not None and self.gpu.supports(fused):
            ways["fused"] = self._multiply(fused)
        inputs, results = [self.values[i].operand], [self.values[i + 1].operand]
        return ways[self._fastest("dense", i, ways, inputs, results)], down

    def _leads_down(self, i: int) -> bool:
        """Whether a product of the dense row above makes the gradient of this one."""
        return i >= self.lowest and self._is_dense(i + 1)

    def _forward(self, i: int) -> Work:
        """A product, then a kernel for bias and activation."""
        row, gpu, backend, out = self.table[i], self.gpu, self.backend, self.values[i + 1]
        act, x, weight = self._activation(i), self.values[i].operand, self._weight(row)
        _, bias = self.program.arrays[row.layer].parameters
        kept = self.kept[i]
        if act == LINEAR and bias is None:
            return self._multiply(self._product(x, weight, out.operand))
        sums = out.real
        if sums is None:
            sums = self._sums[: self.rows * row.n_outputs].reshape(self.rows, row.n_outputs)
        product = self._product(x, weight, sums)

        def forward() -> None:
            gpu.product(product)
            if act.name == "softmax":
                backend.softmax(sums, bias, out.real)
                if out.bf16 is not None:
                    backend.round_to_bf16(out.real, out.bf16)
            else:
                backend.bias_and_activation(act, sums, bias, kept, out.real, out.bf16)

        return forward

    def _fused(self, i: int) -> Product | None:
        """Everything in a product, where there is an epilogue that does it."""
        row, out, act = self.table[i], self.values[i + 1], self._activation(i)
        _, bias = self.program.arrays[row.layer].parameters
        epilogue = {"linear": Epilogue.BIAS, "relu": Epilogue.RELU}.get(act.name)
        if bias is None or epilogue is None:
            return None
        vector = bias if out.bf16 is None else self._twin(row.parameter_1, bias)
        x, weight = self.values[i].operand, self._weight(row)
        return self._product(x, weight, out.operand, epilogue=epilogue, vector=vector)

    def _arrival(self, i: int) -> Work:
        """The product that makes dy of row ``i``, if there is a dense row above."""
        if not self._leads_down(i):
            return _nothing
        dy = self.dy[i]
        return self._multiply(self._from_above(i, dy.operand if dy.real is None else dy.real))

    def _from_above(self, i: int, out: Array) -> Product:
        """What the dense row above hands down to row ``i``."""
        above = self.dz[i + 1].operand
        return self._product(above, self._weight(self.table[i + 1]), out, b_t=True)

    def _gradient_from_above(self, i: int) -> Work:
        """Makes the gradient before row ``i``'s activation."""
        if i < self.lowest:
            return _nothing
        backend, act, dy, dz = self.backend, self._activation(i), self.dy[i], self.dz[i]
        arrive = self._arrival(i)
        # a kernel wrote dy in real numbers
        rounds = not self._leads_down(i) and i + 1 < len(self.table)
        saved = self.values[i + 1] if self.kept[i] is None else Matrix(self.kept[i], None)
        out = dz.real if dz.bf16 is None else None

        def down() -> None:
            arrive()
            if act.name == "softmax":
                backend.activation_backward(act, dy.real, saved.real, dy.real)
                if dz.bf16 is not None:
                    backend.round_to_bf16(dy.real, dz.bf16)
            elif act != LINEAR:
                arrived = dy.bf16 if dy.real is None else dy.real
                backend.slope_times(act, arrived, saved.operand, out, dz.bf16)
            elif rounds and dz.bf16 is not None:
                backend.round_to_bf16(dy.real, dz.bf16)

        return down

    def _bind_weights(self, i: int) -> tuple[Work, Work]:
        """The gradients of a dense row's weight, and of its bias where that is not part of it."""
        row = self.table[i]
        if i < self.lowest or row.op != Op.DENSE or not row.trainable:
            return _nothing, _nothing
        dw, db = gradients_of(self.program, row)
        dz = self.dz[i].operand
        product = self._product(self.values[i].operand, dz, dw, a_t=True)
        multiply = self._multiply(product)
        if db is None:
            return multiply, _nothing

        backend = self.backend

        def sums() -> None:
            backend.column_sums(dz, db)

        ways = {"separate": (multiply, sums)}
        fused = product._replace(epilogue=Epilogue.COLUMN_SUMS, vector=db)
        if self.gpu.supports(fused):
            ways["fused"] = (self._multiply(fused), _nothing)
        timed = {name: _both(*pair) for name, pair in ways.items()}
        inputs = [self.values[i].operand, dz]
        return ways[self._fastest("weights", i, timed, inputs, [dw, db])]

    def _multiply(self, product: Product) -> Work:
        gpu = self.gpu  # not the plan itself, which holds what is returned
        return lambda: gpu.product(product)

    def _fastest(
        self,
        what: str,
        i: int,
        ways: Mapping[str, Work],
        inputs: Sequence[Array],
        results: Sequence[Array],
    ) -> str:
        """The name of the way that takes the least time here."""
        widths = [self.table[i].n_inputs, self.table[i].n_outputs]
        numbers = f"{self.program.dtype} {self.backend.precision}"
        key = f"{what} {numbers} {self._activation(i).name} {self.rows} {widths} {[*ways]}"
        return self.backend.fastest(key, ways, inputs, results)

    # -- other rows -------------------------------------------------------------------------------

    def _bind_other(self, i: int) -> tuple[Work, Work]:
        """A row, with those that its kernel does as well."""
        program, row, backend = self.program, self.table[i], self.backend
        last = self.groups.get(i, i)
        x, out, dy = self.values[i].real, self.values[last + 1], self.dy[last].real
        if not self.training:
            infer = bind_inference(program, row)
            run: Work = lambda: infer(x, out.real)  # noqa: E731
            return self._then_round(run, out), _nothing
        # what a dense row below needs before its own kernel
        dx = self.dy[i - 1].real if i > self.lowest else None
        if last > i or row.op == Op.BATCH_NORM:
            slopes = None if last == i or last < self.lowest else self._zeros(row.n_outputs)
            group = (self.table[i : last + 1], x, out.real, slopes, dy, dx)
            run, down = bind_group(program, backend, *group, self._batch)
        else:
            saved = None
            if row.saved != ABSENT:
                saved = backend.zeros(saved_shape(row, self.rows), program.dtype)
            forward, backward = bind_row(program, row, out.real, saved, dx)
            run, down = (lambda: forward(x, 0)), (lambda: backward(x, dy))
        return self._then_round(run, out), _both(self._arrival(last), down)

    def _then_round(self, run: Callable[[], object], out: Matrix) -> Work:
        backend = self.backend

        def work() -> None:
            run()
            if out.bf16 is not None:
                backend.round_to_bf16(out.real, out.bf16)

        return work


def _both(forward: Work, down: Work) -> Work:
    def work() -> None:
        forward()
        down()

    return work


def _nothing() -> None:
    pass
