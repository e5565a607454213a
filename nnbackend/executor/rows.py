"""A row of a program as functions over fixed buffers, built from the backend's operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np

from nnbackend._output import warn
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Activation, Array, DType
from nnbackend.errors import ShapeError
from nnbackend.kernels.codes import ACTIVATIONS, Op
from nnbackend.program.table import OwnLayer, Program, Row, RowArrays

#: (x, number of the update) -> outputs
Forward = Callable[[Array, int], Array]
#: (x, dy) -> dx
Backward = Callable[[Array, Array], Array]
#: (x, outputs to be filled)
Inference = Callable[[Array, Array], None]

_NAMES = tuple(ACTIVATIONS)
#: Layers written in Python whose first backward pass was looked at.
_LOOKED_AT: WeakSet[OwnLayer] = WeakSet()


def saved_shape(row: Row, rows: int) -> tuple[int, int]:
    """Shape of what a row keeps for its backward pass, for ``rows`` rows of the batch."""
    if row.op == Op.BATCH_NORM:
        return 2, row.n_outputs
    return (2, rows) if row.op == Op.LAYER_NORM else (rows, row.n_outputs)


def activation_of(program: Program, row: Row) -> Activation:
    """The row's activation, whose parameter is the first of the row's floats."""
    return Activation(_NAMES[row.activation], float(program.floats[row.layer][0]))


def gradients_of(program: Program, row: Row) -> tuple[Array | None, Array | None]:
    """Views of the flat gradient; None for a frozen dense layer, which needs none."""
    if not row.trainable and row.op == Op.DENSE:
        return None, None
    return program.arrays[row.layer].gradients


@dataclass(slots=True)
class Mode:
    """How forward passes go from now on.

    Attributes:
        moves_statistics: whether running statistics move; they stay while a gradient is taken.
        first_row: place of the first row in the batch, a multiple of 4; see ``Run``.
    """

    moves_statistics: bool = True
    first_row: int = 0


class Bound(NamedTuple):
    """A row with all arguments of its operations.

    Attributes:
        out: (rows, n_outputs).
        saved: of ``saved_shape``; None if the row keeps nothing.
        dx: (rows, n_inputs); None if it is not needed.
        mode: of its forward passes.
    """

    program: Program
    row: Row
    out: Array
    saved: Array | None
    dx: Array | None
    mode: Mode

    @property
    def backend(self) -> Backend:
        return self.program.backend

    @property
    def arrays(self) -> RowArrays:
        return self.program.arrays[self.row.layer]

    @property
    def gradients(self) -> tuple[Array | None, Array | None]:
        return gradients_of(self.program, self.row)

    @property
    def activation(self) -> Activation:
        return activation_of(self.program, self.row)

    @property
    def floats(self) -> list[float]:
        return [float(f) for f in self.program.floats[self.row.layer]]


def _dense(b: Bound) -> tuple[Forward, Backward]:
    backend, act, out, dx = b.backend, b.activation, b.out, b.dx
    (weight, bias), (dw, db) = b.arrays.parameters, b.gradients
    z = b.saved if act.saves == "input" else None
    kept = out if z is None else z

    def forward(x: Array, step: int) -> Array:
        backend.dense_forward(x, weight, bias, act, out, z)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.dense_backward(dy, x, weight, act, kept, dw, db, dx, dy)
        return dx

    return forward, backward


def _activation(b: Bound) -> tuple[Forward, Backward]:
    backend, act, out, dx = b.backend, b.activation, b.out, b.dx
    keeps_input = act.saves == "input"

    def forward(x: Array, step: int) -> Array:
        backend.activation_forward(act, x, out)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.activation_backward(act, dy, x if keeps_input else out, dx)
        return dx

    return forward, backward


def _dropout(b: Bound) -> tuple[Forward, Backward]:
    backend, out, saved, dx = b.backend, b.out, b.saved, b.dx
    key, layer, rate, width = b.program.dropout_key, b.row.layer, b.floats[0], b.row.n_outputs
    mode = b.mode

    def forward(x: Array, step: int) -> Array:
        first = mode.first_row * width
        backend.dropout_forward(x, rate, key, step | layer << 64, out, saved, first)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.dropout_backward(dy, saved, dx)
        return dx

    return forward, backward


def _batch_norm(b: Bound) -> tuple[Forward, Backward]:
    backend, out, saved, dx = b.backend, b.out, b.saved, b.dx
    (gamma, beta), (dgamma, dbeta) = b.arrays.parameters, b.gradients
    momentum, eps = b.floats[:2]
    running = b.arrays.state
    # what a gradient moves instead of the model's running statistics
    unmoved = backend.zeros((2, b.row.n_outputs), b.program.dtype)

    def forward(x: Array, step: int) -> Array:
        moved = running if b.mode.moves_statistics else (unmoved[0], unmoved[1])
        backend.batch_norm_forward(x, gamma, beta, *moved, momentum, eps, out, saved)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.batch_norm_backward(dy, x, gamma, saved, dgamma, dbeta, dx)
        return dx

    return forward, backward


def _layer_norm(b: Bound) -> tuple[Forward, Backward]:
    backend, out, saved, dx = b.backend, b.out, b.saved, b.dx
    (gamma, beta), (dgamma, dbeta) = b.arrays.parameters, b.gradients
    eps = b.floats[0]

    def forward(x: Array, step: int) -> Array:
        backend.layer_norm_forward(x, gamma, beta, eps, out, saved)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.layer_norm_backward(dy, x, gamma, saved, dgamma, dbeta, dx)
        return dx

    return forward, backward


def _embedding(b: Bound) -> tuple[Forward, Backward]:
    backend, out, dx = b.backend, b.out, b.dx
    (weight, _), (dweight, _) = b.arrays.parameters, b.gradients

    def forward(x: Array, step: int) -> Array:
        backend.embedding_forward(x, weight, out)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.embedding_backward(dy, x, dweight, dx)
        return dx

    return forward, backward


def _standardize(b: Bound) -> tuple[Forward, Backward]:
    backend, out, dx = b.backend, b.out, b.dx
    mean, scale = b.arrays.state

    def forward(x: Array, step: int) -> Array:
        backend.standardize_forward(x, mean, scale, out)
        return out

    def backward(x: Array, dy: Array) -> Array:
        backend.standardize_backward(dy, scale, dx)
        return dx

    return forward, backward


def _own_layer(b: Bound) -> tuple[Forward, Backward]:
    """A layer written in Python: its own methods, with their results checked."""
    row, dx = b.row, b.dx
    layer, backend, dtype = b.program.own_layers[row.layer], b.backend, b.program.dtype
    goes_back = _first_backward if row.trainable else _backward

    def forward(x: Array, step: int) -> Array:
        y = layer.forward(x, training=True)
        return _answer(backend, dtype, layer, "forward", y, (len(x), row.n_outputs))

    def backward(x: Array, dy: Array) -> Array:
        nonlocal goes_back
        answer = goes_back(layer, backend, dy)
        goes_back = _backward
        answer = _answer(backend, dtype, layer, "backward", answer, tuple(x.shape))
        if dx is not None:
            dx[...] = answer  # the rows before write into it, and the answer is the layer's
        return dx

    return forward, backward


def _backward(layer: OwnLayer, backend: Backend, dy: Array) -> Any:
    return layer.backward(dy)


def _first_backward(layer: OwnLayer, backend: Backend, dy: Array) -> Any:
    """The same, and a look at what it asks for: a layer that leaves a gradient out never learns."""
    if layer in _LOOKED_AT:  # by another plan
        return layer.backward(dy)
    _LOOKED_AT.add(layer)
    specs = layer.specs.items()
    names = [name for name, spec in specs if spec.kind != "state" and math.prod(spec.shape)]
    before = {name: np.array(backend.to_numpy(layer.gradient(name))) for name in names}
    own, asked = layer.gradient, set()

    def noted(name: str) -> Array:
        asked.add(name)
        return own(name)

    vars(layer)["gradient"] = noted
    try:
        answer = layer.backward(dy)
    finally:
        del vars(layer)["gradient"]
    for name in names:
        found = backend.to_numpy(own(name))
        if name not in asked and np.array_equal(found, before[name], equal_nan=True):
            kind = type(layer).__name__
            warn(
                f"{kind}.backward did not set self.{name}_grad, so that {name} is not trained. "
                f"What is no parameter is declared with add_parameter(..., kind='state')"
            )
    return answer


def _answer(
    backend: Backend, dtype: DType, layer: OwnLayer, what: str, array: Any, shape: tuple[int, ...]
) -> Array:
    """What a layer written in Python returned, on the device and of the right shape."""
    array = backend.asarray(array, dtype)
    if tuple(array.shape) != shape:
        raise ShapeError(
            f"{type(layer).__name__}.{what} must return shape {shape}; received {array.shape}"
        )
    return array


_TRAINING: dict[Op, Callable[[Bound], tuple[Forward, Backward]]] = {
    Op.PYTHON: _own_layer,
    Op.DENSE: _dense,
    Op.ACTIVATION: _activation,
    Op.DROPOUT: _dropout,
    Op.BATCH_NORM: _batch_norm,
    Op.LAYER_NORM: _layer_norm,
    Op.STANDARDIZE: _standardize,
    Op.EMBEDDING: _embedding,
}


def bind_row(
    program: Program,
    row: Row,
    out: Array,
    saved: Array | None,
    dx: Array | None,
    mode: Mode | None = None,
) -> tuple[Forward, Backward]:
    """A row's forward and backward; the arguments are those of ``Bound``."""
    return _TRAINING[Op(row.op)](Bound(program, row, out, saved, dx, mode or Mode()))


def bind_inference(program: Program, row: Row) -> Inference:
    """A row's inference; dropout has none."""
    return _INFERENCE[Op(row.op)](program, row)


def _dense_inference(program: Program, row: Row) -> Inference:
    backend, act = program.backend, activation_of(program, row)
    weight, bias = program.arrays[row.layer].parameters
    return lambda x, out: backend.dense_forward(x, weight, bias, act, out, None)


def _activation_inference(program: Program, row: Row) -> Inference:
    backend, act = program.backend, activation_of(program, row)
    return lambda x, out: backend.activation_forward(act, x, out)


def _batch_norm_inference(program: Program, row: Row) -> Inference:
    backend, eps = program.backend, float(program.floats[row.layer][1])
    (gamma, beta), _, running = program.arrays[row.layer]
    return lambda x, out: backend.batch_norm_inference(x, gamma, beta, *running, eps, out)


def _layer_norm_inference(program: Program, row: Row) -> Inference:
    backend, eps = program.backend, float(program.floats[row.layer][0])
    gamma, beta = program.arrays[row.layer].parameters
    return lambda x, out: backend.layer_norm_forward(x, gamma, beta, eps, out, None)


def _standardize_inference(program: Program, row: Row) -> Inference:
    backend, (mean, scale) = program.backend, program.arrays[row.layer].state
    return lambda x, out: backend.standardize_forward(x, mean, scale, out)


def _embedding_inference(program: Program, row: Row) -> Inference:
    backend, weight = program.backend, program.arrays[row.layer].parameters[0]
    return lambda x, out: backend.embedding_forward(x, weight, out)


def _own_inference(program: Program, row: Row) -> Inference:
    backend, dtype, layer = program.backend, program.dtype, program.own_layers[row.layer]

    def call(x: Array, out: Array) -> None:
        y = layer.forward(x, training=False)
        out[...] = _answer(backend, dtype, layer, "forward", y, (len(x), row.n_outputs))

    return call


_INFERENCE: dict[Op, Callable[[Program, Row], Inference]] = {
    Op.PYTHON: _own_inference,
    Op.DENSE: _dense_inference,
    Op.ACTIVATION: _activation_inference,
    Op.BATCH_NORM: _batch_norm_inference,
    Op.LAYER_NORM: _layer_norm_inference,
    Op.STANDARDIZE: _standardize_inference,
    Op.EMBEDDING: _embedding_inference,
}
