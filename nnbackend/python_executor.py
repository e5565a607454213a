"""The executor that interprets a program's table in Python, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend.activations import NAMES
from nnbackend.backends.base import Activation, Array, Backend
from nnbackend.errors import DataError, DTypeError, ShapeError
from nnbackend.executor import (
    LOSS_SUM,
    METRIC_SUMS,
    PENALTY,
    WEIGHT_SUM,
    Data,
    Executor,
    Trace,
    total_loss,
)
from nnbackend.kernels.codes import Op
from nnbackend.losses import Loss
from nnbackend.program import ABSENT, Program, Row

Forward = Callable[[Array, int], Array]
Backward = Callable[[Array, Array], Array]
Inference = Callable[[Array, Array], None]


class PythonExecutor(Executor):
    """Interprets the rows one by one with the backend's operations, into buffers made once.

    Runs every model on every backend, those with user-written layers and losses included.
    """

    #: rows that inference handles at a time; results do not depend on it
    inference_rows = 1024

    def __init__(self, program: Program, backend: Backend) -> None:
        self.program, self.backend = program, backend
        self._plans: dict[int, TrainingPlan] = {}
        self._capacity = 0
        self._workspace: Array = None
        # leased by the threads that predict: append and pop are atomic
        self._inference: dict[int, list[_InferencePlan]] = {}
        self._scratch = backend.zeros(
            backend.step_scratch_size(program.storage.trained), program.dtype
        )

    # -- training -----------------------------------------------------------------------------

    def run(
        self,
        data: Data,
        order: Array | None,
        batch_size: int,
        lr: np.ndarray[Any, np.dtype[np.float64]],
        first_step: int,
        keep_gradient: bool = True,
    ) -> Trace:
        rows = len(data.x) if order is None else order.shape[1]
        steps_per_epoch = -(-rows // batch_size)
        float64 = np.dtype(np.float64)
        trace = self.backend.zeros((len(lr), METRIC_SUMS + self.program.n_sums), float64)
        with np.errstate(all="ignore"):  # whoever reads the trace looks for NaN
            for index in range(len(lr)):
                epoch, batch = divmod(index, steps_per_epoch)
                start = batch * batch_size
                stop = min(start + batch_size, rows)
                plan = self.plan(stop - start, min(batch_size, rows))
                if order is None:
                    batch_data = data.rows(start, stop)
                else:
                    batch_data = plan.gather(data, order[epoch, start:stop])
                step = first_step + index
                plan.differentiate(batch_data, step, trace[index])
                self.update(float(lr[index]), step)
        return self.backend.to_numpy(trace)

    def gradient(self, data: Data, step: int = 0) -> float:
        float64 = np.dtype(np.float64)
        trace = self.backend.zeros(METRIC_SUMS + self.program.n_sums, float64)
        plan = self.plan(len(data.x), len(data.x))
        plan.workspace.moves_statistics = False
        try:
            with np.errstate(all="ignore"):
                plan.differentiate(data, step, trace)
        finally:
            plan.workspace.moves_statistics = True
        values = self.backend.to_numpy(trace)
        return total_loss(self.program, values)

    def update(self, lr: float, step: int) -> None:
        program, storage, backend = self.program, self.program.storage, self.backend
        optimizer = program.optimizer
        if optimizer is None or storage.trained == 0:
            return
        gradients = storage.gradients[: storage.trained]
        if optimizer.clip_norm is not None:
            backend.clip_by_global_norm(gradients, optimizer.clip_norm)
        decay = optimizer.decay
        ranges = [(0, storage.trained, 0.0)]
        if decay:
            ranges = [(0, storage.decayed, decay), (storage.decayed, storage.trained, 0.0)]
        for start, stop, weight_decay in ranges:
            if start < stop:
                part = slice(start, stop)
                optimizer.update(
                    backend, storage.parameters[part], gradients[part],
                    [slot[part] for slot in program.slots], lr, weight_decay, step, self._scratch,
                )  # fmt: skip

    def plan(self, rows: int, most_rows: int) -> TrainingPlan:
        """The plan for batches of ``rows``; all plans share one workspace."""
        plan = self._plans.get(rows)
        if plan is None:
            if most_rows > self._capacity:
                self._plans.clear()
                # a multiple of 16 keeps every buffer's start aligned
                self._capacity = -(-most_rows // 16) * 16
                self._workspace = Workspace(self.program, self.backend, self._capacity)
            if len(self._plans) >= 16:
                self._plans.pop(next(iter(self._plans)))
            plan = self._plans[rows] = TrainingPlan(self.program, self._workspace, rows)
        return plan

    # -- inference ----------------------------------------------------------------------------

    def evaluate(self, data: Data) -> Trace:
        program, backend = self.program, self.backend
        float64 = np.dtype(np.float64)
        total = backend.zeros(METRIC_SUMS + program.n_sums, float64)
        part = backend.zeros(METRIC_SUMS + program.n_sums, float64)
        value = backend.zeros((), float64)
        pred = backend.zeros(
            (min(len(data.x), self.inference_rows), program.n_outputs), program.dtype
        )
        for start in range(0, len(data.x), self.inference_rows):
            block = data.rows(start, start + self.inference_rows)
            out = pred[: len(block.x)]
            self.predict(block.x, out)
            with np.errstate(all="ignore"):
                _measure(program, block, out, None, part, value)
            total += part
        penalty = backend.zeros((), float64)
        add_penalties(program, False, penalty)
        total[PENALTY] = penalty
        return backend.to_numpy(total)

    def predict(self, x: Array, out: Array) -> None:
        for start in range(0, len(x), self.inference_rows):
            block, out_block = (
                x[start : start + self.inference_rows],
                out[start : start + self.inference_rows],
            )
            idle = self._inference.setdefault(len(block), [])
            try:
                plan = idle.pop()
            except IndexError:
                plan = _InferencePlan(self.program, self.backend, len(block))
            with np.errstate(all="ignore"):
                plan.run(block, out_block)
            if len(self._inference) > 16:
                self._inference.clear()
            idle.append(plan)


def _measure(
    program: Program, data: Data, pred: Array, dpred: Array | None, trace: Array, value: Array
) -> None:
    """Loss and metric sums of a batch into ``trace``, the gradient into ``dpred`` if wanted;
    ``value`` () float64 is overwritten."""
    backend, loss = program.backend, program.loss
    weight_sum: Any = len(pred) if data.weight is None else data.weight.sum(dtype=np.float64)
    if isinstance(loss, Loss):
        loss.apply(backend, pred, data.target, data.weight, dpred, value)
        scale = 1 if loss.summed else weight_sum
    else:
        value[...], answer = _call_loss(program, data, pred)
        if dpred is not None:
            dpred[...] = answer  # the backward pass writes into it
        scale = weight_sum
    trace[LOSS_SUM] = value * scale
    trace[WEIGHT_SUM] = weight_sum
    start = METRIC_SUMS
    for statistic in program.statistics:
        out = trace[start : start + statistic.size]
        statistic.collect(backend, pred, data.target, data.weight, out)
        start += statistic.size


def _call_loss(program: Program, data: Data, pred: Array) -> tuple[Any, Array]:
    """A user's loss function, its answer checked."""
    loss = program.loss
    if loss is None:
        raise DataError("the model has no loss yet; call model.compile(loss=..., optimizer=...)")
    answer = loss(data.target, pred)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise DTypeError(f"a loss function returns (loss, dpred); received {type(answer).__name__}")
    value, dpred = answer
    if np.ndim(value) != 0 or value is None:
        raise ShapeError(
            f"a loss function returns (loss, dpred), the loss a single number; received "
            f"{'None' if value is None else f'shape {np.shape(value)}'}"
        )
    if getattr(dpred, "shape", None) != pred.shape:
        raise ShapeError(
            f"a loss function returns dpred of the shape of y_pred, {tuple(pred.shape)}; "
            f"received {getattr(dpred, 'shape', type(dpred).__name__)}"
        )
    return value, program.backend.asarray(dpred, program.dtype)


def add_penalties(program: Program, into_gradients: bool, penalty: Array) -> None:
    """L1 and L2 terms, added to ``penalty`` () and, if wanted, to the gradients."""
    storage = program.storage
    for term in program.penalties:
        part = slice(term.offset, term.offset + term.size)
        gradients = storage.gradients[part] if into_gradients and term.trainable else None
        program.backend.penalty(storage.parameters[part], term.l1, term.l2, gradients, penalty)


class Workspace:
    """Buffers of a training step for up to ``capacity`` rows."""

    def __init__(self, program: Program, backend: Backend, capacity: int) -> None:
        dtype = program.dtype
        self.capacity = capacity
        self.flat = backend.zeros(capacity * program.workspace_width, dtype)
        self.x = backend.zeros((capacity, program.n_inputs), dtype)
        # dy of a row and dx for the row before it: two buffers take turns
        self.gradients = [backend.zeros(capacity * program.gradient_width, dtype) for _ in "ab"]
        self.weight = backend.zeros(capacity, dtype)
        self.targets: Array = None
        #: False while a gradient is taken: running statistics stay as they are
        self.moves_statistics = True

    def part(self, offset: int, rows: int, width: int) -> Array:
        """(rows, width) at ``offset`` elements per row of the batch."""
        start = offset * self.capacity
        return self.flat[start : start + rows * width].reshape(rows, width)


class TrainingPlan:
    """The table bound to buffers, for one batch size."""

    def __init__(self, program: Program, workspace: Workspace, rows: int) -> None:
        self.program, self.workspace, self.rows = program, workspace, rows
        self.forward: list[Forward] = []
        self.backward: list[Backward] = []
        self.dpred = workspace.gradients[0][: rows * program.n_outputs].reshape(rows, -1)
        self.penalty, self.loss = (
            program.backend.zeros((), np.dtype(np.float64)) for _ in range(2)
        )
        for row in program.rows:
            dx = None
            if row.needs_dx:
                buffer = workspace.gradients[(len(program.rows) - row.layer) % 2]
                dx = buffer[: rows * row.n_inputs].reshape(rows, row.n_inputs)
            out = workspace.part(row.output, rows, row.n_outputs)
            saved = None
            if row.saved != ABSENT:
                start, shape = row.saved * workspace.capacity, saved_shape(row, rows)
                saved = workspace.flat[start : start + shape[0] * shape[1]].reshape(shape)
            forward, backward = bind_row(
                program, row, out, saved, dx, lambda: workspace.moves_statistics
            )
            self.forward.append(forward)
            self.backward.append(backward)
        trained = [row.layer for row in program.rows if row.trainable]
        self.first_trained = trained[0] if trained else len(program.rows)

    def gather(self, data: Data, idx: Array) -> Data:
        """The rows ``idx`` of ``data``, copied into the workspace."""
        backend, work = self.program.backend, self.workspace
        x = work.x[: self.rows]
        backend.take_rows(data.x, idx, x)
        kind = (data.target.shape[1:], data.target.dtype)
        if work.targets is None or (work.targets.shape[1:], work.targets.dtype) != kind:
            work.targets = backend.zeros((work.capacity, *kind[0]), kind[1])
        target = work.targets[: self.rows]
        backend.take_rows(data.target, idx, target)
        if data.weight is None:
            return Data(x, target, None)
        weight = work.weight[: self.rows]
        backend.take_rows(data.weight, idx, weight)
        return Data(x, target, weight)

    def differentiate(self, data: Data, step: int, trace: Array) -> None:
        """Forward, loss and backward: fills the flat gradient and one row of a trace."""
        program = self.program
        x, inputs = data.x, []
        for forward in self.forward:
            inputs.append(x)
            x = forward(x, step)
        dy = self.dpred
        _measure(program, data, x, dy, trace, self.loss)
        self.penalty[...] = 0
        for index in range(len(inputs) - 1, self.first_trained - 1, -1):
            dy = self.backward[index](inputs[index], dy)
        add_penalties(program, True, self.penalty)
        trace[PENALTY] = self.penalty


def saved_shape(row: Row, rows: int) -> tuple[int, int]:
    """Of what a row keeps for its backward pass, for so many rows of the batch."""
    if row.op == Op.BATCH_NORM:
        return 2, row.n_outputs
    return (2, rows) if row.op == Op.LAYER_NORM else (rows, row.n_outputs)


def bind_row(
    program: Program,
    row: Row,
    out: Array,
    saved: Array | None,
    dx: Array | None,
    moves_statistics: Callable[[], bool] = lambda: True,
) -> tuple[Forward, Backward]:
    """A row's forward and backward as functions over fixed buffers.

    Args:
        out: (rows, n_outputs).
        saved: of ``saved_shape``; None where the row keeps nothing.
        dx: (rows, n_inputs); None where it is not needed.
        moves_statistics: whether a forward pass moves running statistics.
    """
    backend = program.backend
    if row.op == Op.PYTHON:
        return _bind_python(program, row, dx)
    numbers = [float(f) for f in program.floats[row.layer]]
    act = Activation(NAMES[row.activation], numbers[0])
    (p0, p1), (s0, s1) = row_arrays(program, row)
    d0, d1 = row_gradients(program, row)

    if row.op == Op.DENSE:
        z = saved if backend.activation_saves(act) == "input" else None
        kept = out if z is None else z

        def forward(x: Array, step: int) -> Array:
            backend.dense_forward(x, p0, p1, act, out, z)
            return out

        def backward(x: Array, dy: Array) -> Array:
            backend.dense_backward(dy, x, p0, act, kept, d0, d1, dx, dy)
            return dx

    elif row.op == Op.ACTIVATION:
        keeps_input = backend.activation_saves(act) == "input"

        def forward(x: Array, step: int) -> Array:
            backend.activation_forward(act, x, out)
            return out

        def backward(x: Array, dy: Array) -> Array:
            backend.activation_backward(act, dy, x if keeps_input else out, dx)
            return dx

    elif row.op == Op.DROPOUT:

        def forward(x: Array, step: int) -> Array:
            stream = step | row.layer << 64
            backend.dropout_forward(x, numbers[0], program.dropout_key, stream, out, saved)
            return out

        def backward(x: Array, dy: Array) -> Array:
            backend.dropout_backward(dy, saved, dx)
            return dx

    elif row.op == Op.BATCH_NORM:
        momentum, eps = numbers[:2]
        # what a gradient moves instead of the model's running statistics
        unmoved = backend.zeros((2, row.n_outputs), program.dtype)

        def forward(x: Array, step: int) -> Array:
            moved = (s0, s1) if moves_statistics() else (unmoved[0], unmoved[1])
            backend.batch_norm_forward(x, p0, p1, *moved, momentum, eps, out, saved)
            return out

        def backward(x: Array, dy: Array) -> Array:
            backend.batch_norm_backward(dy, x, p0, saved, d0, d1, dx)
            return dx

    elif row.op == Op.LAYER_NORM:

        def forward(x: Array, step: int) -> Array:
            backend.layer_norm_forward(x, p0, p1, numbers[0], out, saved)
            return out

        def backward(x: Array, dy: Array) -> Array:
            backend.layer_norm_backward(dy, x, p0, saved, d0, d1, dx)
            return dx

    else:  # Op.STANDARDIZE

        def forward(x: Array, step: int) -> Array:
            backend.standardize_forward(x, s0, s1, out)
            return out

        def backward(x: Array, dy: Array) -> Array:
            backend.standardize_backward(dy, s1, dx)
            return dx

    return forward, backward


def _bind_python(program: Program, row: Row, dx: Array | None) -> tuple[Forward, Backward]:
    """A user-written layer: its own methods, their answers checked."""
    layer = program.layers[row.layer]

    def forward(x: Array, step: int) -> Array:
        y = layer.forward(x, training=True)
        return _answer(program, row, "forward", y, (len(x), row.n_outputs))

    def backward(x: Array, dy: Array) -> Array:
        answer = _answer(program, row, "backward", layer.backward(dy), tuple(x.shape))
        if dx is not None:
            dx[...] = answer  # the rows before write into it, and the answer is the layer's
        return dx

    return forward, backward


def _answer(program: Program, row: Row, what: str, array: Any, shape: tuple[int, ...]) -> Array:
    """What a user-written layer returned, on the device and of the right shape."""
    array = program.backend.asarray(array, program.dtype)
    if tuple(array.shape) != shape:
        name = type(program.layers[row.layer]).__name__
        raise ShapeError(f"{name}.{what} must return shape {shape}; received {array.shape}")
    return array


def row_arrays(
    program: Program, row: Row
) -> tuple[tuple[Array | None, Array | None], tuple[Array | None, Array | None]]:
    """The row's parameters and its state, as views of the flat vectors."""
    layer = program.layers[row.layer]
    parameters = [*(layer.array(name) for name in layer.parameter_names), None, None]
    state = [*(layer.array(name) for name in layer.state_names), None, None]
    return (parameters[0], parameters[1]), (state[0], state[1])


def row_gradients(program: Program, row: Row) -> tuple[Array | None, Array | None]:
    """Views of the flat gradient; None for a frozen dense layer, which can do without."""
    if not row.trainable and row.op == Op.DENSE:
        return None, None
    layer = program.layers[row.layer]
    gradients = [*(layer.gradient(name) for name in layer.parameter_names), None, None]
    return gradients[0], gradients[1]


class _InferencePlan:
    """Forward only, with buffers of its own, for one number of rows."""

    def __init__(self, program: Program, backend: Backend, rows: int) -> None:
        used = [row for row in program.rows if row.op != Op.DROPOUT]
        self.functions = [bind_inference(program, row) for row in used]
        widest = max(row.n_outputs for row in used)
        buffers = [backend.zeros(rows * widest, program.dtype) for _ in "ab"[: len(used) - 1]]
        self.outputs = [
            buffers[i % 2][: rows * row.n_outputs].reshape(rows, row.n_outputs)
            for i, row in enumerate(used[:-1])
        ]

    def run(self, x: Array, out: Array) -> None:
        for function, buffer in zip(self.functions, [*self.outputs, out], strict=True):
            function(x, buffer)
            x = buffer


def bind_inference(program: Program, row: Row) -> Inference:
    """A row's inference as a function (x, out)."""
    backend = program.backend
    numbers = [float(f) for f in program.floats[row.layer]]
    act = Activation(NAMES[row.activation], numbers[0])
    (p0, p1), (s0, s1) = row_arrays(program, row)
    if row.op == Op.DENSE:
        return lambda x, out: backend.dense_forward(x, p0, p1, act, out, None)
    if row.op == Op.ACTIVATION:
        return lambda x, out: backend.activation_forward(act, x, out)
    if row.op == Op.BATCH_NORM:
        return lambda x, out: backend.batch_norm_inference(x, p0, p1, s0, s1, numbers[1], out)
    if row.op == Op.LAYER_NORM:
        return lambda x, out: backend.layer_norm_forward(x, p0, p1, numbers[0], out, None)
    if row.op == Op.STANDARDIZE:
        return lambda x, out: backend.standardize_forward(x, s0, s1, out)
    layer = program.layers[row.layer]

    def call(x: Array, out: Array) -> None:
        y = layer.forward(x, training=False)
        out[...] = _answer(program, row, "forward", y, (len(x), row.n_outputs))

    return call
