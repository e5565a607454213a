"""The book's layers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from nnbackend._checks import check_number, check_size
from nnbackend.errors import ShapeError
from nnbackend.nnfs.arrays import Array, Flat, Operations, bound, randn, real

#: What a layer keeps besides what the book's does.
_INNER = (
    "operations", "values", "gradients", "slots", "_calls", "_seen", "_held", "_differentiated",
)  # fmt: skip


def penalties_of(layer: Any) -> tuple[tuple[Array, float, float], ...]:
    """(values, l1, l2) of the weights, and of the biases."""
    return (
        (layer.weights, layer.weight_regularizer_l1, layer.weight_regularizer_l2),
        (layer.biases, layer.bias_regularizer_l1, layer.bias_regularizer_l2),
    )


def _add_slope(gradient: Array, values: Array, l1: float, l2: float) -> None:
    """Add that of l1 sum|w| + l2 sum w^2."""
    if l1 > 0:
        gradient += l1 * np.where(values < 0, -1, 1).astype(values.dtype)
    if l2 > 0:
        gradient += 2 * l2 * values


class _SlotPart:
    """An optimizer's vector of a layer: "weight_momentums" is a part of the slot "momentums"."""

    def __init__(self, part: str, name: str) -> None:
        self.part, self.name = part, name

    def __get__(self, layer: Layer_Dense | None, kind: type | None = None) -> Any:
        if layer is None:
            return self
        if self.name not in layer.slots:
            raise AttributeError(f"no optimizer has updated this layer: it has no {self.name} yet")
        return getattr(layer.slots[self.name], self.part)

    def __set__(self, layer: Layer_Dense, value: Any) -> None:
        layer.slot(self.name).assign(self.part, value)

    def __delete__(self, layer: Layer_Dense) -> None:
        layer.slots.clear()  # the optimizer begins anew


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
        weight_momentums, weight_cache, bias_momentums, bias_cache: an optimizer's, once it has
            updated the layer. Deleting one makes it begin anew.
    """

    weight_regularizer_l1: float = 0
    weight_regularizer_l2: float = 0
    bias_regularizer_l1: float = 0
    bias_regularizer_l2: float = 0
    weight_momentums = _SlotPart("weights", "momentums")
    weight_cache = _SlotPart("weights", "cache")
    bias_momentums = _SlotPart("biases", "momentums")
    bias_cache = _SlotPart("biases", "cache")

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
        check_size("n_inputs", n_inputs)
        check_size("n_neurons", n_neurons)
        for name, value in (
            ("weight_regularizer_l1", weight_regularizer_l1),
            ("weight_regularizer_l2", weight_regularizer_l2),
            ("bias_regularizer_l1", bias_regularizer_l1),
            ("bias_regularizer_l2", bias_regularizer_l2),
        ):
            check_number(name, value, 0.0)
        self.weight_regularizer_l1 = weight_regularizer_l1
        self.weight_regularizer_l2 = weight_regularizer_l2
        self.bias_regularizer_l1 = bias_regularizer_l1
        self.bias_regularizer_l2 = bias_regularizer_l2
        self._take(scale * randn(n_inputs, n_neurons), np.zeros((1, n_neurons)))

    def _take(self, weights: Any, biases: Any) -> None:
        """New parameters, of the weights' dtype; the optimizer begins anew."""
        weights = real(weights)
        if weights.ndim != 2:
            raise ShapeError(f"weights have the shape (inputs, neurons); received {weights.shape}")
        self.operations = Operations()
        #: the optimizer's vectors, by the names that it gives their parts
        self.slots: dict[str, Flat] = {}
        self._set_values(weights, biases)

    def _set_values(self, weights: Array, biases: Any) -> None:
        """Arrays of their own: who holds the ones before keeps them as they were."""
        values = Flat(self.operations, weights.shape, weights.dtype)
        values.assign("weights", weights)
        values.assign("biases", biases)
        self.values = values
        self._make_gradients()

    def _make_gradients(self) -> None:
        values = self.values
        self.gradients = Flat(self.operations, values.shape, values.dtype)
        self._calls = bound(self.operations, values, self.gradients)
        self._seen: Any = None
        self._differentiated = False
        self._held = self._holders()

    def _holders(self) -> tuple[int, int, int]:
        """How often the arrays of the gradients are referred to."""
        own = self.gradients
        return (
            sys.getrefcount(own.weights), sys.getrefcount(own.biases), sys.getrefcount(own.memory),
        )  # fmt: skip

    @property
    def weights(self) -> Array:
        return self.values.weights

    @weights.setter
    def weights(self, value: Any) -> None:
        if "values" not in self.__dict__:  # a subclass makes its own
            new = real(value)
            self._take(new, self.__dict__.pop("first_biases", np.zeros((1, new.shape[-1]))))
            return
        self._assign("weights", value)

    @property
    def biases(self) -> Array:
        return self.values.biases

    @biases.setter
    def biases(self, value: Any) -> None:
        if "values" not in self.__dict__:
            self.__dict__["first_biases"] = value
            return
        self._assign("biases", value)

    def _assign(self, name: str, value: Any) -> None:
        value = self.values.checked(name, value)
        weights, biases = (value, self.biases) if name == "weights" else (self.weights, value)
        weights, before, differentiated = real(weights), self.gradients, self._differentiated
        if weights.dtype != self.values.dtype:
            self.slots = {name: own.of_type(weights.dtype) for name, own in self.slots.items()}
        self._set_values(weights, biases)
        if differentiated:
            self.dweights, self.dbiases = before.weights, before.biases

    @property
    def dweights(self) -> Array:
        return self.gradients.weights

    @dweights.setter
    def dweights(self, value: Any) -> None:
        self._differentiated = True
        self.gradients.assign("weights", value)

    @property
    def dbiases(self) -> Array:
        return self.gradients.biases

    @dbiases.setter
    def dbiases(self, value: Any) -> None:
        self._differentiated = True
        self.gradients.assign("biases", value)

    def forward(self, inputs: Any, training: bool = True) -> None:
        """output (B, O) from inputs (B, I)."""
        self.inputs = inputs
        output = None if self._calls is None else self._calls.forward(inputs)
        #: inputs of a forward that can be gone back from the quick way
        self._seen = inputs if output is not None else None
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
        dx, seen = None, self._seen
        if self._holders() != self._held:  # somebody keeps the gradients of before
            self._make_gradients()
        elif seen is not None and seen is self.inputs and self._calls is not None:
            dx = self._calls.backward(dvalues)
        self.dinputs = self._backward(dvalues) if dx is None else dx
        self._differentiated = True
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
        of_weights, of_biases = penalties_of(self)
        _add_slope(self.dweights, *of_weights)
        _add_slope(self.dbiases, *of_biases)

    def slot(self, name: str) -> Flat:
        """The optimizer's vector ``name``, such as "momentums", zeros at first."""
        found = self.slots.get(name)
        if found is None:
            values = self.values
            found = self.slots[name] = Flat(self.operations, values.shape, values.dtype)
        return found

    def get_parameters(self) -> tuple[Array, Array]:
        return self.weights, self.biases

    def set_parameters(self, weights: Any, biases: Any) -> None:
        self.check_parameters(weights, biases)
        self.weights, self.biases = weights, biases

    def check_parameters(self, weights: Any, biases: Any) -> None:
        """Raise a ShapeError where they do not fit."""
        self.values.checked("weights", weights)
        self.values.checked("biases", biases)

    def forget_gradients(self) -> None:
        """As before the first ``backward``."""
        self._make_gradients()

    # a model file holds what the book's does
    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in _INNER}
        state |= {"weights": self.weights, "biases": self.biases}
        for name, own in self.slots.items():
            state |= {f"weight_{name}": own.weights, f"bias_{name}": own.biases}
        if self._differentiated:
            state |= {"dweights": self.dweights, "dbiases": self.dbiases}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {name: value for name, value in state.items() if name not in _INNER}
        self._take(state.pop("weights"), state.pop("biases"))
        for name in ("momentums", "cache"):
            for part, own in (("weight", "weights"), ("bias", "biases")):
                if f"{part}_{name}" in state:
                    self.slot(name).assign(own, state.pop(f"{part}_{name}"))
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
        check_number("rate", rate, 0.0, 1.0, high_open=True)
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
