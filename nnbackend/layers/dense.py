"""The dense layer."""

from __future__ import annotations

from typing import Any, Literal

from nnbackend._checks import check_flag
from nnbackend._settings import Number, fix
from nnbackend.backends.types import LINEAR, Activation, Array, DenseCalls
from nnbackend.initializers import InitializerLike, initializer_config, resolve_initializer
from nnbackend.kernels.codes import Op
from nnbackend.layers.activations import activation_config, resolve_activation
from nnbackend.layers.native import FixedInLayer, NativeLayer
from nnbackend.layers.parameters import Parameter


class Dense(NativeLayer):
    """y = act(x w + b), every input connected to every output.

    Args:
        n_inputs, n_outputs: I and O.
        activation: a name such as "relu", a layer such as ``nn.ELU(0.5)``, None for linear.
        bias: False leaves b out.
        weight_init, bias_init: a name from ``nnbackend.initializers``, an array, or a callable
            ``(shape, rng) -> array``.
        weight_l1, weight_l2, bias_l1, bias_l2: penalties; adds l1 sum|w| + l2 sum w^2 to the loss.
            They may be changed at any time.
        trainable: False keeps w and b as they are.
        seed, dtype: see ``Layer``.

    Attributes:
        weight: (I, O).   bias: (O,), or None.
        weight_grad, bias_grad: from the last backward pass, of the same shapes.
    """

    op = Op.DENSE
    transient = ("_x", "_saved", "_calls")
    weight = Parameter()
    bias = Parameter()
    activation = FixedInLayer[Activation]()
    weight_l1, weight_l2, bias_l1, bias_l2 = (Number(0.0) for _ in range(4))
    weight_init, bias_init = (FixedInLayer[InitializerLike]() for _ in range(2))
    weight_grad: Any
    bias_grad: Any

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        activation: Any = None,
        bias: bool = True,
        weight_init: InitializerLike = "glorot_uniform",
        bias_init: InitializerLike = "zeros",
        weight_l1: float = 0.0,
        weight_l2: float = 0.0,
        bias_l1: float = 0.0,
        bias_l2: float = 0.0,
        trainable: bool = True,
        *,
        seed: int | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(n_inputs, n_outputs, trainable=trainable, seed=seed, dtype=dtype)
        fix(self, activation=resolve_activation(activation))
        self._keeps_z = self.activation.saves == "input"
        self.weight_l1, self.weight_l2 = weight_l1, weight_l2
        self.bias_l1, self.bias_l2 = bias_l1, bias_l2
        fix(self, weight_init=weight_init, bias_init=bias_init)
        for initializer in (weight_init, bias_init):
            resolve_initializer(initializer)
        self.add_parameter("weight", (n_inputs, n_outputs), weight_init)
        if check_flag("Dense.bias", bias):
            self.add_parameter("bias", (n_outputs,), bias_init, "bias")
        #: quick calls; False where the backend has none
        self._calls: DenseCalls | Literal[False] | None = None
        self._x: Array | None = None
        self._saved: Array | None = None

    def _bound(self) -> DenseCalls | Literal[False]:
        """Quick calls of the layer with its arrays, if the backend has any."""
        arrays = self._arrays or self._draw_standalone()
        gradients = self._gradients
        bound = self.backend.bind_dense(
            arrays["weight"], arrays.get("bias"), self.activation,
            gradients["weight"], gradients.get("bias"),
        )  # fmt: skip
        self._calls = False if bound is None else bound
        return self._calls

    @property
    def row_floats(self) -> tuple[float, ...]:
        """Parameter of the activation, weight_l1, weight_l2, bias_l1, bias_l2."""
        rates = (self.weight_l1, self.weight_l2, self.bias_l1, self.bias_l2)
        return (self.activation.parameter, *rates)

    @property
    def penalties(self) -> dict[str, tuple[float, float]]:
        return {
            "weight": (self.weight_l1, self.weight_l2),
            "bias": (self.bias_l1, self.bias_l2),
        }

    def saved_width(self, width: int) -> int:
        return width

    def config(self) -> dict[str, Any]:
        return {
            "n_inputs": self.n_inputs,
            "n_outputs": self.n_outputs,
            "activation": activation_config(self.activation),
            "bias": "bias" in self.specs,
            "weight_init": initializer_config(self.weight_init),
            "bias_init": initializer_config(self.bias_init),
            "weight_l1": self.weight_l1,
            "weight_l2": self.weight_l2,
            "bias_l1": self.bias_l1,
            "bias_l2": self.bias_l2,
            "trainable": self.trainable,
        }

    def bind(self, *arrays: Any) -> None:
        super().bind(*arrays)
        self._calls = None

    def forward(self, x: Any, training: bool = False) -> Array:
        calls = self._calls
        if calls is None:
            calls = self._bound()
        if calls:
            y = calls.forward(x)
            if y is not None:
                return y
        x, act = self._input(x), self.activation
        backend: Any = self._backend
        arrays = self._arrays or self._draw_standalone()
        weight, shape = arrays["weight"], (len(x), int(self.n_outputs or 0))
        y = backend.empty(shape, self.dtype)
        z = backend.empty(shape, self.dtype) if self._keeps_z else None
        backend.dense_forward(x, weight, arrays.get("bias"), act, y, z)
        self._x, self._saved = x, y if z is None else z
        return y

    def backward(self, dy: Any) -> Array:
        calls = self._calls
        if calls:
            dx = calls.backward(dy)
            if dx is not None:
                return dx
            if calls.kept is not None:
                self._x, self._saved = calls.kept
        dy = self._output_gradient(dy, self._saved)
        x, act, gradients = self._unchanged(self._x, len(dy)), self.activation, self._gradients
        backend: Any = self._backend
        dx = backend.empty(x.shape, self.dtype)
        scratch = dy if act is LINEAR else backend.empty(dy.shape, self.dtype)
        backend.dense_backward(
            dy, x, self._arrays["weight"], act, self._saved,
            gradients["weight"], gradients.get("bias"), dx, scratch,
        )  # fmt: skip
        return dx
