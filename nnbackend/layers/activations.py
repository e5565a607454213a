"""Activation functions: the names, and a layer for each.

The formulas are in the backends (``nnbackend.backends.numpy.activations``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from nnbackend._checks import check_name, check_number
from nnbackend._settings import fix
from nnbackend.backends.types import LINEAR, Activation, Array
from nnbackend.errors import DTypeError, shown
from nnbackend.kernels.codes import ACTIVATIONS, Op
from nnbackend.layers.native import FixedInLayer, NativeLayer


def resolve_activation(spec: Any) -> Activation:
    """The Activation behind a name, None (linear), a layer such as ``nn.ELU(0.5)`` or its
    class, or a saved configuration."""
    if spec is None:
        return LINEAR
    if isinstance(spec, type) and issubclass(spec, ActivationLayer):
        spec = spec()
    if isinstance(spec, ActivationLayer):
        return spec.activation
    if isinstance(spec, Mapping):
        spec = Activation(str(spec.get("name")), spec.get("parameter", 0.0))
    if isinstance(spec, Activation):
        check_name("activation", spec.name, ACTIVATIONS)
        # a negative slope would hide the sign of x in the output
        low = 0.0 if ACTIVATIONS[spec.name].saves == "output" else -math.inf
        parameter = check_number(f"the parameter of {spec.name}", spec.parameter, low)
        return Activation(spec.name, parameter)
    if not isinstance(spec, str):
        raise DTypeError(
            f"an activation is a name such as 'relu', or a layer such as nn.ReLU(); received "
            f"{shown(spec)}. Put a custom function into a custom layer "
            f"(subclass nn.Layer)"
        )
    check_name("activation", spec, ACTIVATIONS)
    return Activation(spec, ACTIVATIONS[spec].parameter)


def activation_config(act: Activation) -> Any:
    """A name, or name and parameter if the parameter is not the default."""
    if act.parameter == ACTIVATIONS[act.name].parameter:
        return act.name
    return {"name": act.name, "parameter": act.parameter}


class ActivationLayer(NativeLayer):
    """An activation function as a separate layer; takes and keeps any width."""

    op = Op.ACTIVATION
    transient = ("_saved",)
    name: ClassVar[str]
    activation = FixedInLayer[Activation]()

    def __init__(self) -> None:
        super().__init__()
        fix(self, activation=Activation(self.name, ACTIVATIONS[self.name].parameter))
        self._saved: Array | None = None

    @property
    def row_floats(self) -> tuple[float, ...]:
        return (self.activation.parameter,)

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.empty(x.shape, self.dtype)
        self.backend.activation_forward(self.activation, x, y)
        self._saved = x if self.activation.saves == "input" else y
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, self._saved)
        dx = self.backend.empty(dy.shape, self.dtype)
        self.backend.activation_backward(self.activation, dy, self._saved, dx)
        return dx


class Linear(ActivationLayer):
    """y = x."""

    name = "linear"


class ReLU(ActivationLayer):
    """y = max(x, 0)."""

    name = "relu"


class LeakyReLU(ActivationLayer):
    """y = x for x > 0, slope x otherwise."""

    name = "leaky_relu"

    def __init__(self, slope: float = 0.01) -> None:
        # a negative slope would hide the sign of x in the output
        super().__init__()
        fix(self, activation=Activation(self.name, check_number("LeakyReLU.slope", slope, 0.0)))

    def config(self) -> dict[str, Any]:
        return {"slope": self.activation.parameter}


class ELU(ActivationLayer):
    """y = x for x > 0, alpha (exp(x) - 1) otherwise."""

    name = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        fix(self, activation=Activation(self.name, check_number("ELU.alpha", alpha, 0.0)))

    def config(self) -> dict[str, Any]:
        return {"alpha": self.activation.parameter}


class GELU(ActivationLayer):
    """y = x Phi(x), the exact form with erf."""

    name = "gelu"


class GELUTanh(ActivationLayer):
    """GELU by its tanh approximation."""

    name = "gelu_tanh"


class SiLU(ActivationLayer):
    """y = x sigmoid(x)."""

    name = "silu"


class Mish(ActivationLayer):
    """y = x tanh(log(1 + exp(x)))."""

    name = "mish"


class Sigmoid(ActivationLayer):
    """y = 1 / (1 + exp(-x))."""

    name = "sigmoid"


class Tanh(ActivationLayer):
    """y = tanh(x)."""

    name = "tanh"


class Softplus(ActivationLayer):
    """y = log(1 + exp(x))."""

    name = "softplus"


class Exponential(ActivationLayer):
    """y = exp(x)."""

    name = "exponential"


class Softmax(ActivationLayer):
    """y = exp(x) / sum exp(x), along each row."""

    name = "softmax"
