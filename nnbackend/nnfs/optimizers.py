"""The book's optimizers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from nnbackend._checks import check_number
from nnbackend.backends.types import UpdateRule
from nnbackend.nnfs.arrays import Operations
from nnbackend.nnfs.layers import Layer_Dense

#: A rule is made once for settings that stay.
_rule_of = lru_cache(UpdateRule)


class _Optimizer:
    """lr = lr0 / (1 + decay iterations), and a step for each layer.

    Call ``pre_update_params``, ``update_params`` for each layer, and ``post_update_params``.

    Attributes:
        learning_rate, current_learning_rate: lr0 and lr.
        iterations: steps made.
    """

    #: the layers' attributes that a rule keeps its vectors in, without "weight_" and "bias_"
    keeps: ClassVar[tuple[str, ...]] = ()

    def __init__(self, learning_rate: float, decay: float) -> None:
        check_number("learning_rate", learning_rate, 0.0)
        check_number("decay", decay, 0.0)
        self.learning_rate = self.current_learning_rate = learning_rate
        self.decay, self.iterations = decay, 0

    def _rule(self) -> UpdateRule:
        raise NotImplementedError

    def pre_update_params(self) -> None:
        if self.decay:
            self.current_learning_rate = self.learning_rate / (1 + self.decay * self.iterations)

    def update_params(self, layer: Any) -> None:
        """A step for a Layer_Dense, or any layer with weights, biases and their gradients."""
        rule = self._rule()
        if not isinstance(layer, Layer_Dense):
            self._update_typed(layer, rule)
            return
        slots = [layer.slot(name).vector for name in self.keeps] if rule.slots else ()
        layer.operations.update(
            rule, layer.values.vector, layer.gradients.vector, slots, self.current_learning_rate,
            self.iterations,
        )  # fmt: skip

    def _update_typed(self, layer: Any, rule: UpdateRule) -> None:
        """For a layer of a script's own."""
        operations = Operations()
        for part, values in (("weight", layer.weights), ("bias", layer.biases)):
            names = [f"{part}_{name}" for name in self.keeps] if rule.slots else []
            for name in names:
                if not hasattr(layer, name):
                    setattr(layer, name, np.zeros_like(values))
            gradient = layer.dweights if part == "weight" else layer.dbiases
            arrays = [values, gradient, *(getattr(layer, name) for name in names)]
            flat = [np.array(array, values.dtype).reshape(-1) for array in arrays]
            rate, number = self.current_learning_rate, self.iterations
            operations.update(rule, flat[0], flat[1], flat[2:], rate, number)
            for array, new in zip((values, *arrays[2:]), (flat[0], *flat[2:]), strict=True):
                array[...] = new.reshape(array.shape)

    def post_update_params(self) -> None:
        self.iterations += 1


class Optimizer_SGD(_Optimizer):
    """v = momentum v - lr g;  w += v.  Without momentum w -= lr g."""

    keeps = ("momentums",)

    def __init__(
        self, learning_rate: float = 1.0, decay: float = 0.0, momentum: float = 0.0
    ) -> None:
        super().__init__(learning_rate, decay)
        check_number("momentum", momentum, 0.0, 1.0)
        self.momentum = momentum

    def _rule(self) -> UpdateRule:
        return _rule_of("momentum", momentum=self.momentum) if self.momentum else _rule_of("sgd")


class Optimizer_Adagrad(_Optimizer):
    """c += g^2;  w -= lr g / (sqrt(c) + epsilon)."""

    keeps = ("cache",)

    def __init__(
        self, learning_rate: float = 1.0, decay: float = 0.0, epsilon: float = 1e-7
    ) -> None:
        super().__init__(learning_rate, decay)
        check_number("epsilon", epsilon, 0.0)
        self.epsilon = epsilon

    def _rule(self) -> UpdateRule:
        return _rule_of("adagrad", eps=self.epsilon)


class Optimizer_RMSprop(_Optimizer):
    """c = rho c + (1 - rho) g^2;  w -= lr g / (sqrt(c) + epsilon)."""

    keeps = ("cache",)

    def __init__(
        self,
        learning_rate: float = 0.001,
        decay: float = 0.0,
        epsilon: float = 1e-7,
        rho: float = 0.9,
    ) -> None:
        super().__init__(learning_rate, decay)
        check_number("epsilon", epsilon, 0.0)
        check_number("rho", rho, 0.0, 1.0)
        self.epsilon, self.rho = epsilon, rho

    def _rule(self) -> UpdateRule:
        return _rule_of("rmsprop", rho=self.rho, eps=self.epsilon)


class Optimizer_Adam(_Optimizer):
    """m = beta_1 m + (1 - beta_1) g;  c = beta_2 c + (1 - beta_2) g^2;
    w -= lr m' / (sqrt(c') + epsilon), where m' = m / (1 - beta_1^t), c' = c / (1 - beta_2^t),
    t from 1."""

    keeps = ("momentums", "cache")

    def __init__(
        self,
        learning_rate: float = 0.001,
        decay: float = 0.0,
        epsilon: float = 1e-7,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
    ) -> None:
        super().__init__(learning_rate, decay)
        check_number("epsilon", epsilon, 0.0)
        check_number("beta_1", beta_1, 0.0, 1.0, high_open=True)
        check_number("beta_2", beta_2, 0.0, 1.0, high_open=True)
        self.epsilon, self.beta_1, self.beta_2 = epsilon, beta_1, beta_2

    def _rule(self) -> UpdateRule:
        return _rule_of("adam", beta1=self.beta_1, beta2=self.beta_2, eps=self.epsilon)
