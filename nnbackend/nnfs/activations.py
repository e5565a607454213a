"""The book's activations."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.types import Activation
from nnbackend.errors import ShapeError
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.nnfs.arrays import Array, Operations, real


class _Activation:
    """An activation, number by number or row by row.

    Attributes:
        inputs, output: of the last ``forward``.
        dinputs: of the last ``backward``.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._prepare()

    def _prepare(self) -> None:
        self.operations = Operations()
        self.activation = Activation(self.name, ACTIVATIONS[self.name].parameter)

    def forward(self, inputs: Any, training: bool = True) -> None:
        self.inputs = inputs = real(inputs)
        if self.name == "softmax" and inputs.ndim != 2:
            raise ShapeError(f"a softmax takes inputs (samples, classes); received {inputs.shape}")
        self.output = self.operations.activate(self.activation, inputs)

    def backward(self, dvalues: Any) -> None:
        # a script may have changed the output; of a ReLU both say the same
        saved = real(self.inputs if self.name == "relu" else self.output)
        dvalues = real(dvalues)
        dtype = np.result_type(dvalues, saved)
        self.dinputs = self.operations.slope_times(
            self.activation, dvalues.astype(dtype, copy=False), saved.astype(dtype, copy=False)
        )

    # a model file holds what the book's does
    def __getstate__(self) -> dict[str, Any]:
        inner = ("operations", "activation")
        return {name: value for name, value in self.__dict__.items() if name not in inner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare()
        self.__dict__.update(state)


class Activation_ReLU(_Activation):
    """max(0, x)."""

    name = "relu"

    def predictions(self, outputs: Array) -> Array:
        return outputs


class Activation_Softmax(_Activation):
    """exp(x_j) / sum_k exp(x_k) of each row."""

    name = "softmax"

    def predictions(self, outputs: Array) -> Array:
        return np.asarray(np.argmax(outputs, axis=1))


class Activation_Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    name = "sigmoid"

    def predictions(self, outputs: Array) -> Array:
        return (outputs > 0.5) * 1


class Activation_Linear(_Activation):
    """x."""

    name = "linear"

    def forward(self, inputs: Any, training: bool = True) -> None:
        self.inputs = self.output = inputs

    def backward(self, dvalues: Any) -> None:
        self.dinputs = np.array(dvalues)

    def predictions(self, outputs: Array) -> Array:
        return outputs
