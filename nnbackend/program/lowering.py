"""Lowering: a stack of layers becomes a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, DType
from nnbackend.errors import DataError, ShapeError
from nnbackend.kernels.codes import N_FLOATS, Op
from nnbackend.layers.base import Layer
from nnbackend.layers.parameters import ParameterKind
from nnbackend.losses import Loss, LossFunction, loss_name
from nnbackend.metrics import Metric
from nnbackend.optimizers import Optimizer
from nnbackend.program.storage import ArraySpec, Group, Storage
from nnbackend.program.table import ABSENT, OwnLayer, Penalty, Program, Row, RowArrays


def lay_out(
    layers: Sequence[Layer],
    backend: Backend,
    dtype: DType,
    values: Sequence[Mapping[str, np.ndarray[Any, Any]]],
) -> Storage:
    """Flat vectors for these layers, whose arrays become views of them and hold ``values``."""
    backend.check_dtype(dtype)
    specs = [
        ArraySpec(number, name, spec.shape, _group(layer, spec.kind))
        for number, layer in enumerate(layers)
        for name, spec in layer.specs.items()
    ]
    storage = Storage(specs, backend, dtype)
    arrays: list[dict[str, Array]] = [{} for _ in layers]
    gradients: list[dict[str, Array]] = [{} for _ in layers]
    for segment in storage.segments:
        arrays[segment.layer][segment.name] = segment.of(storage.parameters)
        gradients[segment.layer][segment.name] = segment.of(storage.gradients)
    for segment in storage.state_segments:
        arrays[segment.layer][segment.name] = segment.of(storage.state)
    for own, own_values in zip(arrays, values, strict=True):
        for name, array in own.items():
            array[...] = backend.asarray(own_values[name], dtype)
    for layer, own, own_gradients in zip(layers, arrays, gradients, strict=True):
        layer.bind(backend, dtype, own, own_gradients)
    return storage


def _group(layer: Layer, kind: ParameterKind) -> Group:
    return kind if layer.trainable or kind == "state" else "frozen"


def lower(
    layers: Sequence[Layer],
    n_inputs: int,
    storage: Storage,
    dropout_key: int,
    loss: Loss | LossFunction | None = None,
    optimizer: Optimizer | None = None,
    metrics: Sequence[Metric] = (),
    penalties_per_row: bool = False,
) -> Program:
    """The program of these layers, whose arrays lie in ``storage``."""
    offsets = {(s.layer, s.name): s.offset for s in (*storage.segments, *storage.state_segments)}
    rows: list[Row] = []
    own_layers: dict[int, OwnLayer] = {}
    width, workspace, phase = n_inputs, 0, 0
    trained_before = couples_rows = False
    for number, layer in enumerate(layers):
        outputs = width if layer.n_outputs is None else layer.n_outputs
        op, activation, saved, coupled = Op.PYTHON, 0, 0, True
        declared = layer.declaration
        if declared is not None and max(len(layer.parameter_names), len(layer.state_names)) > 2:
            raise ShapeError(
                f"a row of a program has places for two parameters and two arrays of state; "
                f"{layer!r} has more: leave out its op, so that it runs layer by layer"
            )
        if declared is None:
            own_layers[number] = layer
        else:
            op, activation, coupled = declared.op, declared.activation.code, layer.couples_rows
            saved = declared.saved_width(outputs)
        couples_rows = couples_rows or layer.couples_rows
        phase += coupled
        places = [offsets[number, name] for name in layer.parameter_names]
        state = [offsets[number, name] for name in layer.state_names]
        p0, p1, *_ = [*places, ABSENT, ABSENT]
        s0, s1, *_ = [*state, ABSENT, ABSENT]
        trains = bool(places) and layer.trainable
        row = Row(
            op=op,
            activation=activation,
            n_inputs=width,
            n_outputs=outputs,
            parameter_0=p0,
            parameter_1=p1,
            state_0=s0,
            state_1=s1,
            output=workspace,
            saved=workspace + outputs if saved else ABSENT,
            layer=number,
            trainable=int(trains),
            needs_dx=int(trained_before),
            phase=phase,
        )
        rows.append(row)
        workspace += outputs + saved
        trained_before = trained_before or trains
        width = outputs
    return Program(
        rows=rows,
        floats=_floats(layers),
        arrays=[_arrays(layer) for layer in layers],
        own_layers=own_layers,
        storage=storage,
        penalties=_penalties(layers, storage),
        couples_rows=couples_rows,
        n_inputs=n_inputs,
        workspace_width=workspace,
        dropout_key=dropout_key,
        python_parts=_python_parts(list(own_layers.values()), loss, optimizer),
        loss=loss,
        optimizer=optimizer,
        metrics=metrics,
        penalties_per_row=penalties_per_row,
    )


def take_numbers(program: Program, layers: Sequence[Layer]) -> None:
    """Take over numbers of the layers' formulas and rates of their penalties, which have changed.
    Whoever runs the program has to make new plans."""
    program.floats[...] = _floats(layers)
    program.penalties[:] = _penalties(layers, program.storage)
    program.has_penalties = program.has_penalties or bool(program.penalties)
    program.changes += 1


def _floats(layers: Sequence[Layer]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(R, N_FLOATS), zeros where a row has no number or is Python."""
    floats = np.zeros((len(layers), N_FLOATS))
    for number, layer in enumerate(layers):
        declared = layer.declaration
        if declared is not None:
            floats[number, : len(declared.row_floats)] = declared.row_floats
    return floats


def _penalties(layers: Sequence[Layer], storage: Storage) -> list[Penalty]:
    """Terms of the loss whose rates are not 0."""
    offsets = {(s.layer, s.name): s.offset for s in storage.segments}
    return [
        Penalty(offsets[number, name], int(np.prod(layer.specs[name].shape)), l1, l2,
                layer.trainable)
        for number, layer in enumerate(layers)
        for name, (l1, l2) in layer.penalties.items()
        if (l1 or l2) and name in layer.specs
    ]  # fmt: skip


def _arrays(layer: Layer) -> RowArrays:
    """The layer's arrays, which are views of the flat vectors by now."""
    parameters = [layer.array(name) for name in layer.parameter_names]
    gradients = [layer.gradient(name) for name in layer.parameter_names]
    state = [layer.array(name) for name in layer.state_names]
    return RowArrays(_two(parameters), _two(gradients), _two(state))


def _two(arrays: list[Array]) -> tuple[Array | None, Array | None]:
    first, second, *_ = [*arrays, None, None]
    return first, second


def _python_parts(
    layers: Sequence[OwnLayer], loss: Loss | LossFunction | None, optimizer: Optimizer | None
) -> list[str]:
    names = [type(layer).__name__ for layer in layers]
    if loss is not None and not (isinstance(loss, Loss) and loss.is_built_in):
        names.append(loss_name(loss))
    if optimizer is not None and not optimizer.is_built_in:
        names.append(type(optimizer).__name__)
    return names


def check_widths(layers: Sequence[Layer]) -> int:
    """Check that each layer's width fits the one before; returns the model's input width."""
    if not layers:
        raise ShapeError("a model needs at least one layer; received none")
    n_inputs: int | None = None
    width: int | None = None
    previous = "the input"
    for number, layer in enumerate(layers):
        if layer.n_inputs is not None:
            if width is None:
                n_inputs = layer.n_inputs
            elif width != layer.n_inputs:
                raise ShapeError(
                    f"layer {number}, {layer!r}, takes {layer.n_inputs} inputs, but {previous} "
                    f"gives {width}; make the two numbers equal"
                )
            width, previous = layer.n_outputs, f"layer {number}, {layer!r},"
    if n_inputs is None:
        raise DataError(
            "a model needs a layer that fixes its width, such as nn.Dense(64, 10); received only "
            "layers that keep any width"
        )
    return n_inputs
