"""The numbers by which a program's table names its steps, for every compiled executor.

A code is a position: entries are added at the end, never moved.
"""

from __future__ import annotations

from enum import IntEnum


class Op(IntEnum):
    """What a row of the table does. PYTHON calls the layer object itself."""

    PYTHON = 0
    DENSE = 1
    ACTIVATION = 2
    DROPOUT = 3
    BATCH_NORM = 4
    LAYER_NORM = 5
    STANDARDIZE = 6


ACTIVATIONS = (
    "linear",
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "gelu_tanh",
    "silu",
    "sigmoid",
    "tanh",
    "softplus",
    "exponential",
    "softmax",
)

LOSSES = (
    "softmax_cross_entropy",
    "categorical_cross_entropy",
    "sigmoid_cross_entropy",
    "binary_cross_entropy",
    "mean_squared_error",
    "sum_squared_error",
    "mean_absolute_error",
    "huber",
    "poisson",
)

STATISTICS = ("correct", "confusion", "regression")


class Update(IntEnum):
    """How an optimizer changes the parameters: a backend's ``<name>_step``."""

    SGD = 0
    ADAGRAD = 1
    RMSPROP = 2
    ADAM = 3
