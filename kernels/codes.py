"""What backends have formulas for: activations, losses, updates, layers, and their numbers.

One declaration of each, read by layers, by lowering, by every executor and by the generated part of
the CUDA source. A code is a position: entries are added at the end, never moved.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple


class Op(IntEnum):
    """What a row of a program's table does. PYTHON calls the layer object itself."""

    PYTHON = 0
    DENSE = 1
    ACTIVATION = 2
    DROPOUT = 3
    BATCH_NORM = 4
    LAYER_NORM = 5
    STANDARDIZE = 6
    EMBEDDING = 7


#: Numbers of a row in float64: rates, penalties, constants of its formula.
N_FLOATS = 5

#: Which array an activation's derivative is computed from: its output y, its input z, or neither.
Saves = Literal["output", "input", "nothing"]


class ActivationKind(NamedTuple):
    """An activation: what its formula's number usually is, and what its derivative needs."""

    code: int
    saves: Saves
    parameter: float = 0.0


ACTIVATIONS: dict[str, ActivationKind] = {
    "linear": ActivationKind(0, "nothing"),
    "relu": ActivationKind(1, "output"),
    "leaky_relu": ActivationKind(2, "output", 0.01),
    "elu": ActivationKind(3, "output", 1.0),
    "gelu": ActivationKind(4, "input"),
    "gelu_tanh": ActivationKind(5, "input"),
    "silu": ActivationKind(6, "input"),
    "sigmoid": ActivationKind(7, "output"),
    "tanh": ActivationKind(8, "output"),
    "softplus": ActivationKind(9, "output"),
    "exponential": ActivationKind(10, "output"),
    "softmax": ActivationKind(11, "output"),
    "mish": ActivationKind(12, "input"),
}


class LossKind(NamedTuple):
    """A loss: whether it is a mean over the rows' weights, or a sum."""

    code: int
    averages: bool = True


LOSSES: dict[str, LossKind] = {
    "softmax_cross_entropy": LossKind(0),
    "categorical_cross_entropy": LossKind(1),
    "sigmoid_cross_entropy": LossKind(2),
    "binary_cross_entropy": LossKind(3),
    "mean_squared_error": LossKind(4),
    "sum_squared_error": LossKind(5, averages=False),
    "mean_absolute_error": LossKind(6),
    "huber": LossKind(7),
    "poisson": LossKind(8),
}

#: Sums behind metrics.
STATISTICS = ("correct", "confusion", "regression")
CORRECT, CONFUSION, REGRESSION = range(len(STATISTICS))

#: Columns of a trace: one row for each step, float64, the metrics' sums from TRACE_SUMS on.
TRACE_LOSS, TRACE_PENALTY, TRACE_WEIGHT, TRACE_SUMS = range(4)


class UpdateKind(NamedTuple):
    """An optimizer's formula: the vectors that it keeps beside the parameters, and whether it
    takes the gradient's square, which overflows first."""

    code: int
    slots: tuple[str, ...] = ()
    squares: bool = False


UPDATES: dict[str, UpdateKind] = {
    "sgd": UpdateKind(0),
    "momentum": UpdateKind(1, ("velocity",)),
    "adagrad": UpdateKind(2, ("cache",), squares=True),
    "rmsprop": UpdateKind(3, ("cache",), squares=True),
    "adam": UpdateKind(4, ("m", "v"), squares=True),
}
#: The numbers in those formulas, the rate apart; each formula reads its own.
UPDATE_NUMBERS = ("momentum", "nesterov", "rho", "beta1", "beta2", "eps", "weight_decay", "eps_hat")
