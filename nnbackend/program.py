"""Lowering: a model becomes a flat table of steps over flat vectors.

The table is all that an executor needs to know of a network. It holds numbers only, so that
compiled code can interpret it: the same code for every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnbackend.backends.base import Array, Backend, DType
from nnbackend.errors import DataError, ShapeError
from nnbackend.kernels.codes import Op

if TYPE_CHECKING:
    from nnbackend.layer import Layer
    from nnbackend.losses import Loss, LossFunction
    from nnbackend.metrics import Metric, Statistic
    from nnbackend.optimizers import Optimizer

ABSENT = -1
N_FLOATS = 5


class Row(NamedTuple):
    """One step. Offsets count elements; ABSENT where there is nothing.

    Attributes:
        op: an Op.
        activation: code of ``activations.CODES``, 0 is linear.
        n_inputs, n_outputs: widths.
        parameter_0, parameter_1: offsets in the flat parameters and gradients, in the layer's
            order: weight and bias, or gamma and beta.
        state_0, state_1: offsets in the flat state: running mean and variance, or mean and scale.
        output, saved: offsets in a workspace for one row of the batch; times the capacity they
            are the start of a (capacity, width) array.
        layer: number of the layer in the model; part of a dropout's random stream.
        trainable: 1 if the parameters are updated.
        needs_dx: 1 if a row before this one has parameters to train.
        phase: rows of one phase handle each row of the batch by itself; a row that needs the
            whole batch (BatchNorm) begins the next phase.
    """

    op: int
    activation: int
    n_inputs: int
    n_outputs: int
    parameter_0: int
    parameter_1: int
    state_0: int
    state_1: int
    output: int
    saved: int
    layer: int
    trainable: int
    needs_dx: int
    phase: int


class Segment(NamedTuple):
    """Where an array of a layer lies in a flat vector."""

    layer: int
    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


class Penalty(NamedTuple):
    """An L1 or L2 term of the loss, on a part of the flat parameters."""

    offset: int
    size: int
    l1: float
    l2: float
    trainable: bool


class Storage:
    """The flat vectors of a model, with the layers' arrays as views into them.

    Order of the parameters: trained weights, other trained values (biases, norms), frozen ones.
    Only the first two have optimizer state, only the first are decayed.

    Attributes:
        parameters, gradients: (P,).   state: (S,), not trained.
        decayed, trained: lengths of the leading parts of ``parameters``.
        segments: of the parameters.   state_segments: of the state.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        backend: Backend,
        dtype: DType,
        values: Sequence[dict[str, np.ndarray[Any, Any]]],
    ) -> None:
        self.backend, self.dtype = backend, dtype
        step = max(1, backend.alignment // dtype.itemsize)
        ends: list[int] = []
        self.segments: list[Segment] = []
        end = 0
        for group in ("weight", "bias", "frozen"):
            for number, layer in enumerate(layers):
                for name in layer.parameter_names:
                    spec = layer.specs[name]
                    if group == (spec.kind if layer.trainable else "frozen"):
                        self.segments.append(Segment(number, name, end, spec.shape))
                        end += -(-int(np.prod(spec.shape)) // step) * step
            ends.append(end)
        self.decayed, self.trained, total = ends
        self.state_segments: list[Segment] = []
        state_end = 0
        for number, layer in enumerate(layers):
            for name in layer.state_names:
                shape = layer.specs[name].shape
                self.state_segments.append(Segment(number, name, state_end, shape))
                state_end += -(-int(np.prod(shape)) // step) * step
        self.parameters = backend.zeros(total, dtype)
        self.gradients = backend.zeros(total, dtype)
        self.state = backend.zeros(state_end, dtype)
        self._bind(layers, values)

    def _bind(
        self, layers: Sequence[Layer], values: Sequence[dict[str, np.ndarray[Any, Any]]]
    ) -> None:
        arrays: list[dict[str, Array]] = [{} for _ in layers]
        gradients: list[dict[str, Array]] = [{} for _ in layers]
        for segment in self.segments:
            arrays[segment.layer][segment.name] = view(self.parameters, segment)
            gradients[segment.layer][segment.name] = view(self.gradients, segment)
        for segment in self.state_segments:
            arrays[segment.layer][segment.name] = view(self.state, segment)
        for layer, own, own_gradients, own_values in zip(
            layers, arrays, gradients, values, strict=True
        ):
            for name, array in own.items():
                array[...] = self.backend.asarray(own_values[name], self.dtype)
            layer.bind(self.backend, self.dtype, own, own_gradients)


def view(flat: Array, segment: Segment) -> Array:
    """The segment's part of ``flat``, in its shape."""
    return flat[segment.offset : segment.offset + segment.size].reshape(segment.shape)


class Program:
    """A lowered model: what an executor runs.

    Attributes:
        rows: the table, as ``Row``s; ``table`` (R, len(Row._fields)) int64 is the same.
        floats: (R, N_FLOATS) float64, the layers' ``numbers``.
        layers: for rows with ``Op.PYTHON``.
        storage: flat parameters, gradients and state.
        slots: flat optimizer state, ``optimizer.slots`` in order, each (trained,).
        loss, optimizer: as compiled, or None.
        metrics, statistics: of the training pass; each metric has the index of its statistic.
        n_sums: number of sums of all statistics.
        penalties: of dense layers, those with user-written methods included.
        dropout_key: seed of every dropout in the model.
        workspace_width: elements of a training workspace for one row of the batch.
        gradient_width: widest dx that is needed.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        n_inputs: int,
        storage: Storage,
        dropout_key: int,
        loss: Loss | LossFunction | None = None,
        optimizer: Optimizer | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        self.layers = list(layers)
        self.storage = storage
        self.backend, self.dtype = storage.backend, storage.dtype
        self.dropout_key = dropout_key
        self.loss, self.optimizer = loss, optimizer
        self.n_inputs = n_inputs
        self._lower(n_inputs)
        self.n_outputs = self.rows[-1].n_outputs
        self.slots: list[Array] = []
        if optimizer is not None:
            self.slots = [self.backend.zeros(storage.trained, self.dtype) for _ in optimizer.slots]
        self._collect_statistics(metrics)

    def _lower(self, n_inputs: int) -> None:
        from nnbackend.layers import BatchNorm, Dense

        #: a layer looks at the whole batch, so that one row is no batch
        self.couples_rows = any(isinstance(layer, BatchNorm) for layer in self.layers)
        offsets = {(s.layer, s.name): s.offset for s in self.storage.segments}
        states = {(s.layer, s.name): s.offset for s in self.storage.state_segments}
        self.rows: list[Row] = []
        self.penalties: list[Penalty] = []
        self.floats = np.zeros((len(self.layers), N_FLOATS))
        width, workspace, phase = n_inputs, 0, 0
        trained_before = False
        for number, layer in enumerate(self.layers):
            native = native_class(layer)
            outputs = width if layer.n_outputs is None else layer.n_outputs
            if native is None:
                op, code, numbers, saved = Op.PYTHON, 0, (), 0
            else:
                op, code = Op(layer.op), layer.activation_code  # type: ignore[attr-defined]
                numbers = layer.numbers  # type: ignore[attr-defined]
                saved = layer.saved_width(outputs)  # type: ignore[attr-defined]
            self.floats[number, : len(numbers)] = numbers
            phase += op in (Op.BATCH_NORM, Op.PYTHON)
            parameters = [offsets[number, name] for name in layer.parameter_names]
            state = [states[number, name] for name in layer.state_names]
            p0, p1, *_ = [*parameters, ABSENT, ABSENT]
            s0, s1, *_ = [*state, ABSENT, ABSENT]
            trains = bool(layer.parameter_names) and layer.trainable
            row = Row(
                op=op,
                activation=code,
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
            self.rows.append(row)
            if isinstance(layer, Dense):
                rates = zip(*[iter(layer.numbers[1:])] * 2, strict=True)
                sizes = (width * outputs, outputs)
                for offset, size, (l1, l2) in zip((p0, p1), sizes, rates, strict=True):
                    if offset != ABSENT and (l1 or l2):
                        self.penalties.append(Penalty(offset, size, l1, l2, layer.trainable))
            workspace += outputs + saved
            trained_before = trained_before or trains
            width = outputs
        self.workspace_width = workspace
        self.gradient_width = max(row.n_outputs for row in self.rows)
        self.table = np.array(self.rows, dtype=np.int64)

    def _collect_statistics(self, metrics: Sequence[Metric]) -> None:
        self.metrics = list(metrics)
        self.statistics: list[Statistic] = []
        self.statistic_of: list[int] = []
        for metric in self.metrics:
            statistic = metric.statistic(self.loss, self.n_outputs)
            if statistic not in self.statistics:
                self.statistics.append(statistic)
            self.statistic_of.append(self.statistics.index(statistic))
        self.n_sums = sum(s.size for s in self.statistics)

    @property
    def python_parts(self) -> list[str]:
        """Names of the user-written parts that only the Python executor can run."""
        names = [type(self.layers[r.layer]).__name__ for r in self.rows if r.op == Op.PYTHON]
        from nnbackend.losses import Loss, loss_name

        loss, optimizer = self.loss, self.optimizer
        if loss is not None and not (isinstance(loss, Loss) and loss.is_built_in):
            names.append(loss_name(loss))
        if optimizer is not None and not optimizer.is_built_in:
            names.append(type(optimizer).__name__)
        return names

    def metric_values(self, sums: np.ndarray[Any, Any], weight_sum: float) -> dict[str, float]:
        """The metrics of summed statistics (n_sums,)."""
        parts = []
        start = 0
        for statistic in self.statistics:
            parts.append(sums[start : start + statistic.size].reshape(statistic.shape))
            start += statistic.size
        return {
            metric.name: metric.value(parts[index], weight_sum)
            for metric, index in zip(self.metrics, self.statistic_of, strict=True)
        }


def native_class(layer: Layer) -> type | None:
    """The built-in class whose row can stand for ``layer``, or None.

    A subclass counts as long as it keeps the built-in ``forward`` and ``backward``.
    """
    from nnbackend.activations import ActivationLayer
    from nnbackend.layers import BatchNorm, Dense, Dropout, LayerNorm, Standardize

    kind = type(layer)
    for base in (Dense, Dropout, BatchNorm, LayerNorm, Standardize, ActivationLayer):
        if isinstance(layer, base):
            same = kind.forward is base.forward and kind.backward is base.backward
            return base if same else None
    return None


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
