"""A program: a model as a flat table of steps over flat vectors, which an executor runs.

The table holds only numbers, so that the same compiled code can interpret it for every network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from nnbackend._checks import check_coupled_rows, check_mapping, check_values
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, DType, LossFormula
from nnbackend.errors import DataError, NotCompiledError, shown
from nnbackend.kernels.codes import Op
from nnbackend.losses import Loss, LossFunction
from nnbackend.metrics import Metric, Statistic
from nnbackend.optimizers import Optimizer
from nnbackend.program.storage import Storage

ABSENT = -1


class Row(NamedTuple):
    """One step. Offsets count elements; ABSENT if there is nothing.

    Attributes:
        op: an Op.
        activation: its code, 0 is linear.
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


def first_trained(rows: Sequence[Row]) -> int:
    """Number of the first row that has something to train, with which the backward pass ends; the
    number of rows if none has."""
    return next((i for i, row in enumerate(rows) if row.trainable), len(rows))


class Penalty(NamedTuple):
    """An L1 or L2 term of the loss, on a part of the flat parameters."""

    offset: int
    size: int
    l1: float
    l2: float
    trainable: bool


class OwnLayer(Protocol):
    """What a row with ``Op.PYTHON`` calls."""

    @property
    def specs(self) -> Mapping[str, Any]: ...

    def gradient(self, name: str) -> Array: ...

    def forward(self, x: Any, training: bool = False) -> Array: ...

    def backward(self, dy: Any) -> Array: ...


class RowArrays(NamedTuple):
    """A row's arrays as views of the flat vectors, each in the layer's order; None if it has
    fewer than two."""

    parameters: tuple[Array | None, Array | None]
    gradients: tuple[Array | None, Array | None]
    state: tuple[Array | None, Array | None]


@dataclass(eq=False)
class Program:
    """A lowered model.

    Attributes:
        rows: the table, as ``Row``s; ``table`` (R, len(Row._fields)) int64 is the same.
        floats: (R, N_FLOATS) float64, the rows' numbers. They and the penalties may change;
            ``changes`` counts how often they have.
        has_penalties: whether there are penalties, or were.
        arrays: of each row.
        own_layers: for rows with ``Op.PYTHON``, by their number.
        storage: flat parameters, gradients and state.
        penalties: L1 and L2 terms of the loss; ``penalties_per_row``: a step's are divided by the
            number of its rows.
        couples_rows: whether a layer uses the whole batch, which then needs at least two rows.
        n_inputs, n_outputs: widths.
        workspace_width: elements of a training workspace for one row of the batch.
        gradient_width: widest dx.
        dropout_key: seed of every dropout in the model.
        python_parts: names of the parts that are written in Python, layers, loss and optimizer,
            which only the Python executor can run.
        loss, optimizer: as compiled, or None.
        averages: whether the loss is a mean over the rows' weights, not a sum.
        built_in_loss, formula: the loss, and what a backend is told of it; None where it is
            written in Python.
        slots: flat optimizer state, ``optimizer.slots`` in order, each (trained,).
        metrics, statistics: of the training pass; each metric with the index of its statistic.
        n_sums: number of sums of all statistics.
    """

    rows: list[Row]
    floats: np.ndarray[Any, np.dtype[np.float64]]
    arrays: list[RowArrays]
    own_layers: Mapping[int, OwnLayer]
    storage: Storage
    penalties: list[Penalty]
    couples_rows: bool
    n_inputs: int
    workspace_width: int
    dropout_key: int
    python_parts: list[str]
    loss: Loss | LossFunction | None = None
    optimizer: Optimizer | None = None
    metrics: Sequence[Metric] = ()
    penalties_per_row: bool = False
    changes: int = field(init=False, default=0)
    has_penalties: bool = field(init=False)
    averages: bool = field(init=False)
    built_in_loss: Loss | None = field(init=False)
    formula: LossFormula | None = field(init=False)
    slots: list[Array] = field(init=False)
    statistics: list[Statistic] = field(init=False)

    def __post_init__(self) -> None:
        self.has_penalties = bool(self.penalties)
        self.backend: Backend = self.storage.backend
        self.dtype: DType = self.storage.dtype
        self.table = np.array(self.rows, dtype=np.int64)
        self.n_outputs = self.rows[-1].n_outputs
        self.gradient_width = max(self.n_inputs, *(row.n_outputs for row in self.rows))
        loss = self.loss if isinstance(self.loss, Loss) else None
        self.averages = loss is None or loss.formula.averages
        self.built_in_loss = loss if loss is not None and loss.is_built_in else None
        self.formula = None if self.built_in_loss is None else self.built_in_loss.formula
        names = () if self.optimizer is None else self.optimizer.slots
        self.slots = [self.backend.zeros(self.storage.trained, self.dtype) for _ in names]
        wanted = [metric.statistic(self.loss, self.n_outputs) for metric in self.metrics]
        self.statistics = list(dict.fromkeys(wanted))
        self.statistic_of = [self.statistics.index(statistic) for statistic in wanted]
        self.n_sums = sum(s.size for s in self.statistics)
        #: numbers of categories in the first columns of the input
        self.categories = self._categories()
        #: the optimizer's number of changes, since which its rate has been one number
        self._rate_is_fixed = -1

    def _categories(self) -> list[int]:
        found = []
        for row in self.rows:
            if row.op == Op.EMBEDDING:
                found.append(int(self.floats[row.layer][0]))
            elif row.op != Op.STANDARDIZE:
                break
        return found

    def changing_arrays(self) -> list[Array]:
        """All that a training step changes."""
        return [self.storage.parameters, self.storage.state, *self.slots]

    def check_batch(self, rows: int) -> None:
        """Refuse a training batch that is too small."""
        if self.couples_rows:
            check_coupled_rows(rows)

    def rate(self, step: int) -> float:
        """Learning rate of the update number ``step``."""
        optimizer = self.optimizer
        if optimizer is not None and optimizer.changes == self._rate_is_fixed:
            return optimizer.lr  # type: ignore[return-value]
        rate = float(self.rates(step, 1)[0])
        if optimizer is not None and optimizer.is_built_in and type(optimizer.lr) is float:
            self._rate_is_fixed = optimizer.changes
        return rate

    def rates(self, first_step: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Learning rates of ``count`` updates from number ``first_step`` on."""
        if self.optimizer is None:
            raise NotCompiledError(NO_LOSS)
        if len(self.optimizer.slots) != len(self.slots):
            raise DataError(
                "the optimizer's momentum was switched on or off after compile; call "
                "model.compile again, which resets the optimizer's state"
            )
        return self.optimizer.rates(first_step, count)

    def metric_values(self, sums: np.ndarray[Any, Any], weight_sum: float) -> dict[str, float]:
        """The metrics of summed statistics (n_sums,)."""
        parts = []
        start = 0
        for statistic in self.statistics:
            parts.append(statistic.read(sums[start : start + statistic.size]))
            start += statistic.size
        return {
            metric.name: metric.value(parts[index], weight_sum)
            for metric, index in zip(self.metrics, self.statistic_of, strict=True)
        }

    # -- the optimizer's state --------------------------------------------------------------------

    def slot_views(self) -> dict[str, Array]:
        """Parts of the optimizer's vectors by key, ``{slot}.layers.{i}.{name}``."""
        names = () if self.optimizer is None else self.optimizer.slots
        return {
            f"{name}.{segment.key}": segment.of(slot)
            for name, slot in zip(names, self.slots, strict=True)
            for segment in self.storage.trained_segments()
        }

    def resting_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes, by such keys, of what frozen parameters would have."""
        storage, names = self.storage, () if self.optimizer is None else self.optimizer.slots
        frozen = [segment for segment in storage.segments if segment.offset >= storage.trained]
        return {f"{name}.{segment.key}": segment.shape for name in names for segment in frozen}

    def set_slots(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copy values into ``slot_views``; missing keys stay as they are.

        Raises:
            DataError, DTypeError, ShapeError: an unknown key, another shape, values that are not
                finite numbers; then nothing changes.
        """
        views, checked = self.slot_views(), {}
        for key, value in check_mapping("an optimizer's state", values).items():
            if key not in views:
                raise DataError(
                    f"the optimizer has no state {shown(key)}; it has {', '.join(views)}"
                )
            value = self.backend.to_numpy(value) if self.backend.owns(value) else value
            checked[key] = check_values(
                f"optimizer state {key}", value, tuple(views[key].shape), self.dtype
            )
        for key, value in checked.items():
            views[key][...] = self.backend.asarray(value, self.dtype)


#: What is said where a loss is needed.
NO_LOSS = "the model has no loss yet; call model.compile(loss=..., optimizer=...) first"
