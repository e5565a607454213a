"""Inference in compiled code."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from nnbackend.backends.numba.executor.table import CompiledTable
from nnbackend.backends.numba.runtime import address_of
from nnbackend.backends.numpy.backend import NumpyBackend
from nnbackend.backends.types import Array
from nnbackend.executor.base import Data, Trace
from nnbackend.executor.python import InferencePlan
from nnbackend.executor.rows import Inference, activation_of, bind_inference
from nnbackend.kernels.codes import Op
from nnbackend.program.table import Program, Row

#: The most rows for which inference has a path of its own.
FEW_ROWS = 16
#: Weights of more bytes are read from memory for each row, which NumPy's BLAS, whose threads are
#: awake by then, does twice as fast as one thread, or as threads that have to be started.
WIDE_WEIGHTS = 1 << 21


class Inferences:
    """Contexts for inference, each leased by the thread that predicts."""

    def __init__(self, table: CompiledTable) -> None:
        self.table = table
        # append and pop are atomic
        self._idle: list[_InferenceContext] = []
        self._few: list[_InferenceContext] = []
        sizes = [row.n_inputs * row.n_outputs for row in table.rows if row.op == Op.DENSE]
        self._is_wide = max(sizes, default=0) * table.dtype.itemsize > WIDE_WEIGHTS
        self._rows: list[_SingleRow] = []

    def predict(self, x: Array, out: Array) -> None:
        """out (N, O) = outputs for x (N, I)."""
        if self._is_wide and len(x) == 1:
            self._predict_row(x, out)
            return
        lease = self._lease()
        try:
            lease.predict(x, out, self.table.inference_parts(len(x)))
        finally:
            self._idle.append(lease)

    def evaluate(self, data: Data) -> Trace:
        """One row of a trace."""
        lease = self._lease()
        try:
            return lease.evaluate(data, self.table.inference_parts(len(data.x)))
        finally:
            self._idle.append(lease)

    def call(self, x: Any) -> Array | None:
        """Outputs for a few rows straight from a caller's array; None if that is not possible."""
        if type(x) is not np.ndarray or x.dtype is not self.table.dtype:
            return None
        if not 0 < len(x) <= FEW_ROWS:
            return None
        if self._is_wide and x.shape == (1, self.table.n_inputs):
            row: Array = np.empty((1, self.table.n_outputs), x.dtype)
            self._predict_row(x, row)
            return row
        try:
            lease = self._few.pop()
        except IndexError:
            lease = _InferenceContext(self.table, FEW_ROWS, 1)
        out = lease.call(x)
        self._few.append(lease)
        return out

    def _predict_row(self, x: Array, out: Array) -> None:
        try:
            lease = self._rows.pop()
        except IndexError:
            lease = _SingleRow(self.table)
        with np.errstate(all="ignore"):
            lease.run(x, out)
        self._rows.append(lease)

    def forget(self) -> None:
        """Plan anew: the number of threads has changed."""
        self._idle, self._few = [], []

    def _lease(self) -> _InferenceContext:
        try:
            return self._idle.pop()
        except IndexError:
            threads = self.table.runtime.threads.count
            return _InferenceContext(self.table, self.table.inference_rows, threads)


class _SingleRow(InferencePlan):
    """One row through rows of a program, products by NumPy."""

    def __init__(self, table: CompiledTable) -> None:
        program, rows = table.program, [row for row in table.rows if row.op != Op.DROPOUT]
        self.functions = [self._bound(program, row) for row in rows]
        self.outputs = [np.empty((1, row.n_outputs), table.dtype) for row in rows[:-1]]

    @staticmethod
    def _bound(program: Program, row: Row) -> Inference:
        if row.op != Op.DENSE:
            return bind_inference(program, row)
        (w, b), act = program.arrays[row.layer].parameters, activation_of(program, row)
        backend, forward = cast(NumpyBackend, program.backend), NumpyBackend.dense_forward
        return lambda x, out: forward(backend, x, w, b, act, out, None)


class _InferenceContext:
    """A context for inference of one caller at a time, and the buffers it points to."""

    def __init__(self, table: CompiledTable, rows: int, parts: int) -> None:
        self.table, self.rows, self.most_parts = table, rows, parts
        self.c = c = table.c
        run, dtype = table.runtime, table.dtype
        self.f, self.numbers, self._parts = table.new_context(parts)
        f = self.f
        widest = max(max(row.n_outputs for row in table.rows), table.n_inputs)
        self.workspace = table.program.backend.zeros(parts * 4 * rows * widest, dtype)
        self.norms = np.zeros((parts, table.norms_width))
        self.trace = np.zeros(table.trace_width)
        f[c.WORKSPACE], f[c.WORKSPACE_SIZE] = address_of(self.workspace), self.workspace.size
        f[c.NORMS], f[c.NORMS_WIDTH] = address_of(self.norms), table.norms_width
        f[c.CAPACITY], f[c.WIDEST] = rows, widest
        f[c.TRACE] = address_of(self.trace)
        self.address = address_of(f)
        self.function = run.entry("phase", str(dtype))
        self._run, self._calls = run, run.calls
        self._infer = run.unit.driver(run.calls.infer)
        self._shape = (1, table.n_outputs)
        self._dtype = dtype

    def _start(self, phase: int, parts: int) -> None:
        parts = min(parts, self.most_parts)
        self.f[self.c.N_PARTS] = parts
        self._run.unit.run(self.function, self.address, phase, parts)

    def predict(self, x: Array, out: Array, parts: int) -> None:
        f, c = self.f, self.c
        f[c.X], f[c.OUT], f[c.N_DATA] = address_of(x), address_of(out), len(x)
        f[c.NEXT_ROW] = 0
        self._start(self._calls.PREDICT, parts)

    def evaluate(self, data: Data, parts: int) -> Trace:
        f, c = self.f, self.c
        labels = data.target.ndim == 1
        f[c.X], f[c.N_DATA], f[c.ORDER] = address_of(data.x), len(data.x), 0
        f[c.LABELS] = f[c.LABELS_BATCH] = address_of(data.target) if labels else 0
        f[c.TARGET] = f[c.TARGET_BATCH] = 0 if labels else address_of(data.target)
        f[c.WEIGHT] = f[c.WEIGHT_BATCH] = address_of(data.weight)
        self._start(self._calls.EVALUATE, parts)
        self._run.unit.run(self.function, self.address, self._calls.END_EVALUATE, 1)
        return self.trace.copy()

    def call(self, x: Any) -> Array | None:
        """Outputs of a few rows, or None if they have not the expected shape."""
        out = np.empty((len(x), self._shape[1]), self._dtype)
        return out if self._infer(self.function, self.address, x, out) else None
