"""The interface of executors, which run a Program and return traces."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.errors import DataError, NonFiniteLossError
from nnbackend.kernels.codes import TRACE_LOSS, TRACE_PENALTY, TRACE_WEIGHT, Op
from nnbackend.program.table import Program

#: Rows of TRACE_SUMS + n_sums numbers, see ``Executor.run``.
Trace = np.ndarray[Any, np.dtype[np.float64]]
Rates = np.ndarray[Any, np.dtype[np.float64]]


class SparseRows:
    """Rows (N, I) of which most numbers are zeros: the others, row after row.

    Attributes:
        values: (Z,) the numbers that are given; those of one place count together.
        columns: (Z,) int32, the column of each, from 0 to ``n_columns`` - 1.
        starts: (N + 1,) int64: row k has those from ``starts[k]`` to ``starts[k + 1]``.
    """

    def __init__(self, values: Array, columns: Array, starts: Array, n_columns: int) -> None:
        """Copies of these.

        Raises:
            DataError: a column or a start lies outside.
        """
        fits = len(columns) == len(values) == starts[-1] and starts[0] == 0
        if not fits or (np.diff(starts) < 0).any():
            raise DataError("sparse rows: each begins where the one before ends")
        if len(columns) and not 0 <= columns.min() <= columns.max() < n_columns:
            raise DataError(
                f"sparse rows: columns must be 0 to {n_columns - 1}; received {columns.min()} to "
                f"{columns.max()}"
            )
        # copies: compiled code reads where these point, whatever becomes of the caller's
        self.values = np.array(values)
        self.columns, self.starts = np.array(columns, np.int32), np.array(starts, np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1


class Data(NamedTuple):
    """Rows on the backend's device.

    Attributes:
        x: (N, I) of the model's dtype; or SparseRows, for an executor that takes them.
        target: (N, O) of the model's dtype, or (N,) int32 class labels.
        weight: (N,) of the model's dtype, or None for ones.
    """

    x: Array
    target: Array
    weight: Array | None = None

    def rows(self, start: int, stop: int) -> Data:
        """Views of rows ``start`` to ``stop``."""
        weight = None if self.weight is None else self.weight[start:stop]
        return Data(self.x[start:stop], self.target[start:stop], weight)


class Run(NamedTuple):
    """Training steps to run in one go, one for each rate.

    Attributes:
        data: rows on the device.
        order: (E, n) int64 on the device: for each epoch the rows in their order; None takes the
            rows in storage order, in every epoch. An epoch's last batch may be smaller.
        batch_size: rows of a step.
        rates: (S,) learning rate of each step.
        first_step: number of updates made before.
        keep_gradient: whether the flat gradient must afterwards be that of the last step.
        first_row: place of the first row in the batch, for dropout: 0, or a multiple of 4 where
            other processes have the rows before.
        batch_weight: sum of weights of a batch that these rows are a part of, by which their loss
            is divided; 0 if they are all of it.
        n_shared: rows of an epoch on all ranks, where ``data`` has this rank's rows of each batch
            alone, one batch after another; see nnbackend.distributed.
    """

    data: Data
    order: Array | None
    batch_size: int
    rates: Rates
    first_step: int
    keep_gradient: bool = True
    first_row: int = 0
    batch_weight: float = 0.0
    n_shared: int | None = None

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return len(self.data.x) if self.order is None else int(self.order.shape[1])


class Trains(Protocol):
    """What a training loop asks for: an executor, or ranks that share its work.

    Attributes:
        pace: rows of a batch, and seconds of a step, of the training that ran last.
    """

    pace: tuple[int, float] | None

    def prepare(self, batch_size: int, data: Data | None) -> None: ...

    def run(self, run: Run) -> Trace: ...


class Executor(ABC):
    """Runs many steps of a Program without returning to the caller between layers."""

    program: Program
    #: rows of a batch, and seconds of a step, of the training that ran last
    pace: tuple[int, float] | None = None
    #: how it runs a program, for a summary
    how: ClassVar[str] = "layer by layer"
    #: what runs programs with parts in Python instead; None for the Python executor
    mixed: ClassVar[type[Executor] | None] = None
    #: whether ``run_shared`` captures steps, with what ranks add up within them
    captures: ClassVar[bool] = False
    #: kinds of rows that it runs; a program with another is interpreted
    ops: ClassVar[frozenset[Op]] = frozenset(Op) - {Op.PYTHON}

    @abstractmethod
    def __init__(self, program: Program, backend: Any) -> None:
        """An executor of ``program`` on ``backend``."""

    def prepare(self, batch_size: int, data: Data | None) -> None:
        """Compile what a training needs, so that it takes no time of the training's own.

        Args:
            data: what will be trained on, where it is on the device already.
        """
        return

    @abstractmethod
    def numbers_changed(self) -> None:
        """Numbers of the program have changed, from the next step on: what holds old ones is made
        anew."""

    @property
    def takes_sparse_rows(self) -> bool:
        """Whether ``run`` and ``gradient`` take SparseRows."""
        return False

    def use_threads(self, most: int) -> None:
        """Use at most so many of the threads that there are, if it has threads of its own."""
        return

    @abstractmethod
    def run(self, run: Run) -> Trace:
        """Train; parameters, state and slots change in place.

        Returns:
            (S, TRACE_SUMS + n_sums) float64 on the host. Per step: the loss times the weight sum
            (for losses that sum: the loss), the penalty, the sum of weights, the metrics' sums.
            From a step on whose loss or gradient is not finite, rows may be NaN and nothing more
            is updated.
        """

    def run_shared(
        self,
        parts: Sequence[tuple[Run, int]],
        add: Callable[[Array], None],
        counts: tuple[int, ...] = (),
    ) -> Array:
        """Steps whose batches ranks share; what they ``add`` up is part of the captured step: see
        nnbackend.distributed. For executors that have it: see ``captures``.

        Args:
            parts: this rank's rows of each batch, and how many the batch has.
            add: array (n,) = the sum of every rank's, in place.
            counts: rows of each rank, where they do not follow from the batch's.

        Returns:
            (steps, TRACE_SUMS + n_sums) on the device, of this rank's rows.
        """
        raise NotImplementedError

    def train_on(self, data: Data, rate: float, number: int) -> Array:
        """One update on these rows, and its loss with penalties, 0-d float64 on the device.
        ``number`` is the number of updates made before.

        Raises:
            NonFiniteLossError: the loss or its gradient is not finite. A GPU, which nobody waits
                for, returns NaN or infinity instead and updates nothing.
        """
        trace = self.run(Run(data, None, len(data.x), np.array([rate]), number))
        loss = total_loss(self.program, trace[0])
        if not math.isfinite(loss):
            raise not_finite_step(number)
        return self.program.backend.asarray(np.array(loss), np.dtype(np.float64))

    def step(self, x: Any, y: Any, number: int, weight: Any = None) -> Array | None:
        """One update straight from a caller's arrays, and its loss with penalties, 0-d float64; see
        ``train_on``.

        None if there is no such shortcut, or the arrays need a conversion or an error message:
        then nothing has changed, and the caller checks them and calls ``run``. ``number`` is the
        number of updates made before.
        """
        return None

    @abstractmethod
    def gradient(self, data: Data, step: int = 0) -> float:
        """Fill the flat gradient for one batch, in training mode, and return the loss with
        penalties. Changes nothing else. ``step`` decides the dropout masks."""

    def gradient_of(self, x: Any, y: Any, number: int, weight: Any) -> float | None:
        """``gradient`` straight from a caller's arrays; None as for ``step``."""
        return None

    @abstractmethod
    def differentiate(self, run: Run) -> Trace:
        """The part of a training step before its update, for a part of a batch: fill the flat
        gradient of the loss over these rows, without penalties, in training mode.

        Args:
            run: one batch; its rate does not matter.

        Returns:
            (1, TRACE_SUMS + n_sums) as ``run`` does, the penalty left out.
        """

    # -- driven from outside: whoever calls these has the loss --------------------------------

    @abstractmethod
    def forward(self, x: Array, number: int) -> Array:
        """Outputs (N, O) for x (N, I) in training mode, a view that the next pass overwrites;
        moves running statistics. ``number`` decides the dropout masks."""

    @abstractmethod
    def backward(self, dy: Array, dx: Array | None, penalties: bool) -> None:
        """Fill the flat gradient from the one by the last ``forward``'s outputs, dy (N, O), and
        dx (N, I), if it is wanted; with ``penalties``, add their gradient."""

    def forward_of(self, x: Any, number: int) -> Array | None:
        """``forward`` straight from a caller's array, its outputs in a new array; None if there is
        no such shortcut, or the array needs a conversion or an error message."""
        return None

    def backward_of(self, dy: Any, dx: Array | None, penalties: bool) -> bool:
        """``backward`` straight from a caller's array; False as for ``forward_of``."""
        return False

    @abstractmethod
    def apply(self, rate: float, number: int) -> bool:
        """One update from the flat gradient, which is clipped in place; False, and nothing is
        updated, if it is not finite (a GPU does not look). ``number`` updates were made before."""

    # -- inference ----------------------------------------------------------------------------

    @abstractmethod
    def evaluate(self, data: Data) -> Trace:
        """One row of a trace, (TRACE_SUMS + n_sums,), over all of ``data`` in inference mode."""

    def call(self, x: Any) -> Array | None:
        """Outputs for a few rows straight from a caller's array, in a new array; None if there
        is no such shortcut. Thread-safe."""
        return None

    @abstractmethod
    def predict(self, x: Array, out: Array) -> None:
        """out (N, O) = the model's outputs for x (N, I), in inference mode. Thread-safe."""


#: What is said where a backward pass has no forward pass before it.
NO_FORWARD = (
    "backward needs a forward pass in training mode before it: call model.forward(x) first, "
    "without training=False"
)
#: And where it is not the last thing that layers written in Python have done.
OVERTAKEN = (
    "model(x), predict or evaluate came between forward and backward. This model has layers "
    "written in Python, which keep what their backward pass needs of one pass only: predict before "
    "forward, or with a copy, copy.deepcopy(model)"
)


#: What helps against it.
AGAINST_NAN = (
    "Try a smaller learning rate, clip_norm=1.0 in the optimizer, or nn.Standardize as the first "
    "layer"
)


def not_finite_step(number: int) -> NonFiniteLossError:
    """The error of a single step whose loss or gradient became NaN or infinite; ``number`` updates
    were made before it."""
    return NonFiniteLossError(
        f"the loss or its gradient became NaN or infinite in step {number + 1}, which was not "
        f"completed. {AGAINST_NAN}",
        step=number + 1,
    )


def total_loss(program: Program, trace: Trace) -> float:
    """Loss with penalties of one row of a trace."""
    return data_loss(program, trace[TRACE_LOSS], trace[TRACE_WEIGHT]) + float(trace[TRACE_PENALTY])


def data_loss(program: Program, loss_sum: float, weight_sum: float) -> float:
    """The loss of summed trace columns: a mean, or a sum for losses that sum."""
    if not program.averages:
        return float(loss_sum)
    return float(loss_sum / weight_sum) if weight_sum else 0.0
