"""The book's layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.errors import ShapeError
from nnbackend.nnfs.arrays import Array, Flat, Operations, bound, randn, real


class Layer_Dense:
    """y = x w + b.

    Args:
        n_inputs, n_neurons: I and O.
        weight_regularizer_l1, weight_regularizer_l2, bias_regularizer_l1, bias_regularizer_l2:
            what the losses add l1 sum|w| + l2 sum w^2 by. The slope of |w| is 1 at 0.
        scale: of the weights, scale * randn(I, O) from NumPy's global generator.

    Attributes:
        weights: (I, O).   biases: (1, O). Both can be changed in place, or assigned.
        inputs, output: of the last ``forward``.
        dweights, dbiases, dinputs: the gradients by each, of the last ``backward``.
        weight_momentums, weight_cache, bias_momentums, bias_cache: an optimizer's.
    """

    weight_momentums: Array
    weight_cache: Array
    bias_momentums: Array
    bias_cache: Array

    def __init__(
        self,
        n_inputs: int,
        n_neurons: int,
        weight_regularizer_l1: float = 0,
        weight_regularizer_l2: float = 0,
        bias_regularizer_l1: float = 0,
        bias_regularizer_l2: float = 0,
        *,
        scale: float = 0.01,
    ) -> None:
        self.weight_regularizer_l1, self.weight_regularizer_l2 = (
            weight_regularizer_l1, weight_regularizer_l2,
        )  # fmt: skip
        self.bias_regularizer_l1, self.bias_regularizer_l2 = (
            bias_regularizer_l1, bias_regularizer_l2,
        )  # fmt: skip
        self._take(scale * randn(n_inputs, n_neurons), np.zeros((1, n_neurons)))

    def _take(self, weights: Any, biases: Any) -> None:
        """New parameters, of the weights' dtype."""
        weights = real(weights)
        if weights.ndim != 2:
            raise ShapeError(f"weights have the shape (inputs, neurons); received {weights.shape}")
        self.operations = operations = Operations()
        self.values = Flat(operations, weights.shape, weights.dtype)
        self.gradients = Flat(operations, weights.shape, weights.dtype)
        self.values.assign("weights", weights)
        self.values.assign("biases", biases)
        #: the optimizer's vectors, and the names that it gives their parts
        self.slots: dict[str, Flat] = {}
        self._calls = bound(operations, self.values, self.gradients)
        self._bound = False

    @property
    def weights(self) -> Array:
        return self.values.weights

    @weights.setter
    def weights(self, value: Any) -> None:
        self.values.assign("weights", value)

    @property
    def biases(self) -> Array:
        return self.values.biases

    @biases.setter
    def biases(self, value: Any) -> None:
        self.values.assign("biases", value)

    @property
    def dweights(self) -> Array:
        return self.gradients.weights

    @dweights.setter
    def dweights(self, value: Any) -> None:
        self.gradients.assign("weights", value)

    @property
    def dbiases(self) -> Array:
        return self.gradients.biases

    @dbiases.setter
    def dbiases(self, value: Any) -> None:
        self.gradients.assign("biases", value)

    def forward(self, inputs: Any, training: bool = True) -> None:
        """output (B, O) from inputs (B, I)."""
        self.inputs = inputs
        output = None if self._calls is None else self._calls.forward(inputs)
        self._bound = output is not None
        self.output = self._forward(inputs) if output is None else output

    def _forward(self, inputs: Any) -> Array:
        x, weights = real(inputs), self.weights
        if x.ndim != 2 or x.shape[1] != weights.shape[0]:
            raise ShapeError(
                f"Layer_Dense with weights {weights.shape} takes inputs (samples, "
                f"{weights.shape[0]}); received {x.shape}"
            )
        dtype = np.result_type(x, weights)
        parts = (x, weights, self.values.flat_biases)
        return self.operations.dense(*(part.astype(dtype, copy=False) for part in parts))

    def backward(self, dvalues: Any) -> None:
        """dweights, dbiases and dinputs from the gradient by the output."""
        dx = None
        if self._bound and self._calls is not None:
            dx = self._calls.backward(dvalues)
        self.dinputs = self._backward(dvalues) if dx is None else dx
        self._add_penalties()

    def _backward(self, dvalues: Any) -> Array:
        dy, x, weights = real(dvalues), real(self.inputs), self.weights
        if dy.shape != self.output.shape:
            raise ShapeError(
                f"Layer_Dense.backward takes dvalues of its output's shape, {self.output.shape}; "
                f"received {dy.shape}"
            )
        dtype = np.result_type(dy, x, weights)
        dw, db, dx = self.operations.dense_back(
            *(part.astype(dtype, copy=False) for part in (dy, x, weights))
        )
        self.dweights, self.dbiases = dw, db
        return dx

    def _add_penalties(self) -> None:
        for values, gradient, l1, l2 in (
            (self.weights, self.dweights, self.weight_regularizer_l1, self.weight_regularizer_l2),
            (self.biases, self.dbiases, self.bias_regularizer_l1, self.bias_regularizer_l2),
        ):
            if l1 > 0:
                gradient += l1 * np.where(values < 0, -1, 1).astype(values.dtype)
            if l2 > 0:
                gradient += 2 * l2 * values

    def slot(self, name: str) -> Flat:
        """The optimizer's vector ``name``, such as "momentums", zeros at first; its parts are the
        layer's attributes."""
        found = self.slots.get(name)
        if found is None:
            values = self.values
            found = self.slots[name] = Flat(self.operations, values.shape, values.dtype)
            self.__dict__[f"weight_{name}"] = found.weights
            self.__dict__[f"bias_{name}"] = found.biases
        return found

    def get_parameters(self) -> tuple[Array, Array]:
        return self.weights, self.biases

    def set_parameters(self, weights: Any, biases: Any) -> None:
        self.weights, self.biases = weights, biases

    # a model file holds what the book's does
    def __getstate__(self) -> dict[str, Any]:
        inner = ("operations", "values", "gradients", "slots", "_calls", "_bound")
        state = {name: value for name, value in self.__dict__.items() if name not in inner}
        return {**state, "weights": self.weights, "biases": self.biases}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self._take(state.pop("weights"), state.pop("biases"))
        for name in ("momentums", "cache"):
            if f"weight_{name}" in state:
                own = self.slot(name)
                own.assign("weights", state.pop(f"weight_{name}"))
                own.assign("biases", state.pop(f"bias_{name}"))
        for name in ("dweights", "dbiases"):
            if name in state:
                setattr(self, name, state.pop(name))
        self.__dict__.update(state)


class Layer_Dropout:
    """While it trains, sets outputs to 0 with probability ``rate`` and multiplies the others by
    1 / (1 - rate). Which ones: ``binomial`` of NumPy's global generator.

    Attributes:
        rate: 1 - rate, the share that is kept, as in the book.
        binary_mask: what the inputs were multiplied by.
    """

    def __init__(self, rate: float) -> None:
        self.rate = 1 - rate

    def forward(self, inputs: Any, training: bool = True) -> None:
        self.inputs = inputs = real(inputs)
        if not training:
            self.output = inputs.copy()
            return
        mask = np.random.binomial(1, self.rate, size=inputs.shape) / self.rate
        self.binary_mask = mask.astype(inputs.dtype, copy=False)
        self.output = inputs * self.binary_mask

    def backward(self, dvalues: Any) -> None:
        self.dinputs = dvalues * self.binary_mask


class Layer_Input:
    """What a model's first layer is told to be its input."""

    def forward(self, inputs: Any, training: bool = True) -> None:
        self.output = inputs
