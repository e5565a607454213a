"""Activation functions: the names, and a layer for each.

The formulas stand with the backends (``nnbackend.backends._elementwise``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from nnbackend._checks import check_number
from nnbackend.backends.base import LINEAR, Activation, Array
from nnbackend.errors import DataError, DTypeError, unknown_name
from nnbackend.kernels.codes import Op
from nnbackend.layer import NativeLayer

#: Name -> default parameter; the position is the code in a program's table.
ACTIVATIONS: dict[str, float] = {
    "linear": 0.0,
    "relu": 0.0,
    "leaky_relu": 0.01,
    "elu": 1.0,
    "gelu": 0.0,
    "gelu_tanh": 0.0,
    "silu": 0.0,
    "sigmoid": 0.0,
    "tanh": 0.0,
    "softplus": 0.0,
    "exponential": 0.0,
    "softmax": 0.0,
}
CODES: dict[str, int] = {name: code for code, name in enumerate(ACTIVATIONS)}
NAMES: tuple[str, ...] = tuple(ACTIVATIONS)


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
        spec = Activation(str(spec.get("name")), float(spec.get("parameter", 0.0)))
    if isinstance(spec, Activation):
        if spec.name not in ACTIVATIONS:
            raise unknown_name("activation", spec.name, ACTIVATIONS)
        return spec
    if not isinstance(spec, str):
        raise DTypeError(
            f"an activation is a name such as 'relu', or a layer such as nn.ReLU(); received "
            f"{type(spec).__name__}. A function of your own goes into a layer of your own "
            f"(subclass nn.Layer)"
        )
    if spec not in ACTIVATIONS:
        raise unknown_name("activation", spec, ACTIVATIONS)
    return Activation(spec, ACTIVATIONS[spec])


def activation_config(act: Activation) -> Any:
    """A name, or name and parameter where it is not the usual one."""
    if act.parameter == ACTIVATIONS[act.name]:
        return act.name
    return {"name": act.name, "parameter": act.parameter}


class ActivationLayer(NativeLayer):
    """An activation function as a layer of its own; takes and keeps any width."""

    op = Op.ACTIVATION
    transient = ("_saved",)
    name: ClassVar[str]

    def __init__(self, parameter: float | None = None) -> None:
        super().__init__()
        default = ACTIVATIONS[self.name]
        self.activation = Activation(self.name, default if parameter is None else parameter)
        self._saved: Array | None = None

    @property
    def activation_code(self) -> int:
        return CODES[self.name]

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.activation.parameter,)

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.zeros(x.shape, self.dtype)
        self.backend.activation_forward(self.activation, x, y)
        self._saved = x if self.backend.activation_saves(self.activation) == "input" else y
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, None if self._saved is None else self._saved.shape)
        dx = self.backend.zeros(dy.shape, self.dtype)
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
        super().__init__(check_number("LeakyReLU.slope", slope, 0.0))

    def config(self) -> dict[str, Any]:
        return {"slope": self.activation.parameter}


class ELU(ActivationLayer):
    """y = x for x > 0, alpha (exp(x) - 1) otherwise."""

    name = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(check_number("ELU.alpha", alpha, 0.0))

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


ACTIVATION_LAYERS: dict[str, type[ActivationLayer]] = {
    cls.__name__: cls
    for cls in (
        Linear, ReLU, LeakyReLU, ELU, GELU, GELUTanh, SiLU, Sigmoid, Tanh, Softplus,
        Exponential, Softmax,
    )
}  # fmt: skip


#: Activations whose outputs are probabilities, or can be with a suitable layer after them.
_PROBABILITIES = ("softmax", "sigmoid")


def warn_without_probabilities(activation: Activation, loss_name: str) -> None:
    """Warn where a loss over probabilities follows outputs that are none."""
    if activation.name not in _PROBABILITIES:
        link, logits = {
            "categorical_cross_entropy": ("softmax", "softmax_cross_entropy"),
            "binary_cross_entropy": ("sigmoid", "sigmoid_cross_entropy"),
        }[loss_name]
        warnings.warn(
            f"{loss_name} takes probabilities, but the model's outputs, after "
            f"{activation.name!r}, need not lie in [0, 1] and will be clipped. Use "
            f"loss={logits!r}, or end the model with activation={link!r}",
            stacklevel=3,
        )


def last_activation(activation: Activation, loss_name: str, link: str | None) -> None:
    """Refuse a link (softmax, sigmoid) before a loss that applies it itself."""
    if link is not None and activation.name in ("softmax", "sigmoid"):
        remedy = {
            "softmax": "categorical_cross_entropy",
            "sigmoid": "binary_cross_entropy",
        }[activation.name]
        raise DataError(
            f"{loss_name} works on logits and applies {link} itself, but the model ends with "
            f"{activation.name}. Remove that activation (predict_proba still gives "
            f"probabilities), or keep it and use loss={remedy!r}"
        )
