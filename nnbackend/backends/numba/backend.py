"""The Numba backend: the contract's operations in compiled code.

Arrays are NumPy's. An operation packs the addresses of its arguments into bytes and calls
``kernels/cpu/program/operations.py``; the executor beside this file runs whole programs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np

from nnbackend.backends.numba.calls import CallsOperations
from nnbackend.backends.numba.dense import BoundDense, reads_arrays
from nnbackend.backends.numba.runtime import (
    INSTALL,
    address_of,
    missing_modules,
    signed,
)
from nnbackend.backends.numpy.blocks import row_slices
from nnbackend.backends.types import (
    LINEAR,
    Activation,
    Array,
    Availability,
    LossFormula,
    UpdateRule,
)

#: Multiplications that one more thread must have to do to be worth its start (about 25 us).
GRAIN = 1 << 21
#: Elements that one more thread must have to pass over.
ELEMENT_GRAIN = 1 << 17


class NumbaBackend(CallsOperations):
    """Numba on the CPU: compiled kernels, matrix products and threads of its own."""

    name: ClassVar[str] = "numba"
    executor: ClassVar[str] = "nnbackend.backends.numba.executor:CompiledExecutor"

    @classmethod
    def is_available(cls) -> Availability:
        missing = missing_modules()
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return Availability(
                False,
                "the numba backend is compiled code, and NUMBA_DISABLE_JIT is set; unset it",
            )
        if missing:
            return Availability(
                False, f"the numba backend needs {' and '.join(missing)}; install with: {INSTALL}"
            )
        return Availability(True, devices=("numba",))

    def compile_ahead(self, dtypes: tuple[str, ...]) -> None:
        self.runtime.compile_files(("phase", "operation"), dtypes)

    def one_thread(self) -> AbstractContextManager[None]:
        return self.runtime.threads.one()

    def kept_in(self) -> str:
        return str(self.runtime.folders.write or "this process")

    def random_bits(self, out: Array, seed: int, stream: int, offset: int) -> None:
        arguments = (address_of(out), out.size, offset, signed(seed), signed(stream))
        self._run(self._operation.RANDOM_BITS, _FLOAT32, (*arguments, stream >> 64))

    # -- layers ---------------------------------------------------------------------------

    def bind_dense(
        self, w: Array, b: Array | None, act: Activation, dw: Array, db: Array | None
    ) -> BoundDense | None:
        if not reads_arrays(self.runtime.calls):
            return None
        most_rows, leases = int(2 * GRAIN / w.size), self._scratch
        return BoundDense(self.runtime, w, b, act, dw, db, most_rows, self._lease, leases)

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, act: Activation, out: Array, saved: Array | None
    ) -> None:
        (rows, n_inputs), n_outputs = x.shape, w.shape[1]
        if not rows:
            return
        arguments = (
            address_of(x), address_of(w), address_of(b), address_of(out), address_of(saved),
            rows, n_inputs, n_outputs, act.code,
        )  # fmt: skip
        work = rows * n_inputs * n_outputs / GRAIN
        self._multiply(self._operation.DENSE_FORWARD, out, arguments, (act.parameter,), work)

    def dense_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        act: Activation,
        saved: Array | None,
        dw: Array | None,
        db: Array | None,
        dx: Array | None,
        scratch: Array,
    ) -> None:
        (rows, n_inputs), n_outputs = x.shape, w.shape[1]
        sizes, work = (rows, n_inputs, n_outputs), rows * n_inputs * n_outputs / GRAIN
        if work < 2.0 and rows:
            dz = dy if act.name == "linear" else scratch
            arguments = (
                address_of(dy), address_of(x), address_of(w), address_of(saved), address_of(dw),
                address_of(db), address_of(dx), address_of(dz), *sizes, act.code,
            )  # fmt: skip
            self._multiply(self._operation.DENSE_BACKWARD, dy, arguments, (act.parameter,), work)
            return
        dz = dy
        if act.name != "linear":
            self.activation_backward(act, dy, saved, scratch)
            dz = scratch
        if dx is not None and rows:
            data = (address_of(dz), address_of(w), 0, address_of(dx), *sizes, LINEAR.code)
            self._multiply(self._operation.DENSE_DATA, dz, data, (0.0,), work)
        if dw is not None or db is not None:
            weights = (*map(address_of, (x, dz, dw, db)), *sizes)
            self._multiply(self._operation.DENSE_WEIGHTS, dz, weights, (), work)

    def activation_forward(self, act: Activation, x: Array, out: Array) -> None:
        arguments = (address_of(x), address_of(out), *rows_and_width(x), act.code)
        work = x.size / ELEMENT_GRAIN
        if x.size:
            self._run(self._operation.ACTIVATION_FORWARD, out, arguments, (act.parameter,), work)

    def activation_backward(self, act: Activation, dy: Array, saved: Array, out: Array) -> None:
        arguments = (
            address_of(dy), address_of(saved), address_of(out), *rows_and_width(dy), act.code
        )  # fmt: skip
        work = dy.size / ELEMENT_GRAIN
        if dy.size:
            self._run(self._operation.ACTIVATION_BACKWARD, out, arguments, (act.parameter,), work)

    def batch_norm_forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        momentum: float,
        eps: float,
        out: Array,
        saved: Array,
    ) -> None:
        scratch = np.zeros((2, x.shape[1]))
        arrays = (x, gamma, beta, running_mean, running_var, out, saved)
        arguments = (*map(address_of, arrays), *x.shape, address_of(scratch))
        self._run(self._operation.BATCH_NORM_FORWARD, x, arguments, (momentum, eps))

    def batch_norm_inference(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        eps: float,
        out: Array,
    ) -> None:
        scratch = np.zeros(x.shape[1])
        arrays = (x, gamma, beta, running_mean, running_var, out)
        arguments = (*map(address_of, arrays), *x.shape, address_of(scratch))
        self._run(self._operation.BATCH_NORM_INFERENCE, x, arguments, (eps,))

    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
    ) -> None:
        scratch = np.zeros((4, x.shape[1]))
        arrays = (dy, x, gamma, saved, dgamma, dbeta, dx)
        arguments = (*map(address_of, arrays), *x.shape, address_of(scratch))
        self._run(self._operation.BATCH_NORM_BACKWARD, x, arguments)

    def layer_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float, out: Array, saved: Array | None
    ) -> None:
        arguments = (*map(address_of, (x, gamma, beta, out, saved)), *x.shape)
        self._run(self._operation.LAYER_NORM_FORWARD, x, arguments, (eps,))

    def layer_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
    ) -> None:
        arrays = (dy, x, gamma, saved, dgamma, dbeta, dx)
        self._run(self._operation.LAYER_NORM_BACKWARD, x, (*map(address_of, arrays), *x.shape))

    def embedding_forward(self, x: Array, weight: Array, out: Array) -> None:
        arguments = (*map(address_of, (x, weight, out)), *x.shape, *weight.shape)
        self._run(self._operation.EMBEDDING_FORWARD, x, arguments)

    def embedding_backward(self, dy: Array, x: Array, dweight: Array, dx: Array | None) -> None:
        arguments = (*map(address_of, (dy, x, dweight, dx)), *x.shape, *dweight.shape)
        self._run(self._operation.EMBEDDING_BACKWARD, x, arguments)

    def dropout_forward(
        self,
        x: Array,
        rate: float,
        seed: int,
        stream: int,
        out: Array,
        saved: Array,
        first: int = 0,
    ) -> None:
        bits = (signed(seed), signed(stream), stream >> 64, first)
        arguments = (*map(address_of, (x, out, saved)), x.size, *bits)
        work = x.size / ELEMENT_GRAIN
        self._run(self._operation.DROPOUT_FORWARD, out, arguments, (rate,), work)

    def dropout_backward(self, dy: Array, saved: Array, out: Array) -> None:
        arguments = (*map(address_of, (dy, saved, out)), dy.size)
        self._run(self._operation.MULTIPLY, out, arguments, (), dy.size / ELEMENT_GRAIN)

    def standardize_forward(self, x: Array, mean: Array, scale: Array, out: Array) -> None:
        arguments = (*map(address_of, (x, mean, scale, out)), *x.shape)
        work = x.size / ELEMENT_GRAIN
        self._run(self._operation.STANDARDIZE_FORWARD, out, arguments, (), work)

    def standardize_backward(self, dy: Array, scale: Array, out: Array) -> None:
        arguments = (*map(address_of, (dy, scale, out)), *dy.shape)
        work = dy.size / ELEMENT_GRAIN
        self._run(self._operation.STANDARDIZE_BACKWARD, out, arguments, (), work)

    # -- losses and statistics ------------------------------------------------------------

    def _over_outputs(
        self,
        operation: int,
        pred: Array,
        target: Array,
        weight: Array | None,
        out: Array,
        last_arguments: tuple[int, ...] = (),
        numbers: tuple[float, ...] = (),
        rows: slice | None = None,
    ) -> None:
        labels = target.ndim == 1
        pointers = (
            address_of(pred),
            address_of(target) if labels else 0,
            0 if labels else address_of(target),
            address_of(weight),
            address_of(out),
        )
        first, last = (0, len(pred)) if rows is None else (rows.start, rows.stop)
        arguments = (*pointers, first, last, pred.shape[1], *last_arguments)
        self._run(operation, pred, arguments, numbers)

    def loss(
        self,
        formula: LossFormula,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        value: Array,
    ) -> None:
        code, scale = formula.code, 1.0
        if formula.averages:
            total = float(len(pred) if weight is None else weight.sum(dtype=np.float64))
            scale = 1.0 / total if total > 0 else 0.0
        value[...] = 0.0
        numbers = (formula.parameter, scale, 0.0, scale)
        if dpred is not None:
            self._over_outputs(
                self._operation.LOSS, pred, target, weight, value,
                (code, 0, address_of(dpred)), numbers,
            )  # fmt: skip
            return
        # the kernels always leave a derivative: here in a block that is thrown away
        blocks = list(row_slices(*pred.shape))
        scratch = np.empty((max((s.stop - s.start for s in blocks), default=0), pred.shape[1]),
                           pred.dtype)  # fmt: skip
        for rows in blocks:
            self._over_outputs(
                self._operation.LOSS, pred, target, weight, value,
                (code, 0, address_of(scratch)), numbers, rows,
            )  # fmt: skip

    def count_correct(
        self,
        pred: Array,
        target: Array,
        weight: Array | None,
        threshold: float | None,
        top: int,
        out: Array,
    ) -> None:
        out[...] = 0.0
        self._over_outputs(
            self._operation.COUNT_CORRECT, pred, target, weight, out,
            (top, int(threshold is not None)), (0.0, 0.0, threshold or 0.0),
        )  # fmt: skip

    def confusion_counts(
        self, pred: Array, target: Array, weight: Array | None, threshold: float | None, out: Array
    ) -> None:
        out[...] = 0.0
        self._over_outputs(
            self._operation.CONFUSION_COUNTS, pred, target, weight, out,
            (0, int(threshold is not None)), (0.0, 0.0, threshold or 0.0),
        )  # fmt: skip

    def regression_sums(self, pred: Array, target: Array, weight: Array | None, out: Array) -> None:
        out[...] = 0.0
        self._over_outputs(self._operation.REGRESSION_SUMS, pred, target, weight, out)

    # -- gradients and updates ------------------------------------------------------------

    def _over_parameters(
        self,
        operation: int,
        arrays: tuple[Array | None, ...],
        numbers: tuple[float, ...],
        code: int = 0,
        threads: bool = True,
        loss: Array | None = None,
    ) -> None:
        size = max(0 if array is None else array.size for array in arrays)
        like = next(array for array in arrays if array is not None)
        pointers = (*map(address_of, arrays), 0, 0, 0, 0)[:4]
        work = size / ELEMENT_GRAIN if threads else 0.0
        self._run(operation, like, (size, *pointers, address_of(loss), code), numbers, work)

    def penalty(self, param: Array, l1: float, l2: float, grad: Array | None, loss: Array) -> None:
        self._over_parameters(self._operation.PENALTY, (param, grad), (l1, l2), 0, False, loss)

    def clip_by_global_norm(self, grad: Array, limit: float) -> None:
        self._over_parameters(self._operation.CLIP, (None, grad), (limit,), threads=False)

    def step_scratch_size(self, size: int) -> int:
        return 0

    def update(
        self,
        rule: UpdateRule,
        param: Array,
        grad: Array,
        slots: Sequence[Array],
        lr: float,
        step: int,
        scratch: Array,
    ) -> None:
        corrected = rule.corrected(lr, step) if rule.name == "adam" else (0.0, 0.0)
        m, v = (*map(address_of, slots), 0, 0)[:2]
        pointers = (address_of(param), address_of(grad), m, v)
        arguments, work = (param.size, *pointers, 0, rule.code), param.size / ELEMENT_GRAIN
        numbers = (lr, *corrected, *rule.numbers)
        self._run(self._operation.UPDATE, param, arguments, numbers, work)


def rows_and_width(x: Array) -> tuple[int, int]:
    """Of x as a matrix."""
    shape = x.shape
    if len(shape) == 2:
        return shape  # type: ignore[no-any-return]
    return (shape[0], x.size // max(1, shape[0])) if shape else (1, 1)


_FLOAT32 = np.zeros(0, np.float32)
