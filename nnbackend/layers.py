"""The layers with something to learn or to decide: Dense, Dropout, norms, Standardize."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend._checks import check_number
from nnbackend.activations import CODES, activation_config, resolve_activation
from nnbackend.backends.base import Array
from nnbackend.errors import DataError, DTypeError, ShapeError
from nnbackend.initializers import InitializerLike, initializer_config, resolve_initializer
from nnbackend.kernels.codes import Op
from nnbackend.layer import NativeLayer, Parameter


class Dense(NativeLayer):
    """y = act(x w + b), every input connected with every output.

    Args:
        n_inputs, n_outputs: I and O.
        activation: a name such as "relu", a layer such as ``nn.ELU(0.5)``, None for linear.
        bias: False leaves b out.
        weight_init, bias_init: a name of ``nnbackend.initializers``, an array, or a callable
            ``(shape, rng) -> array``.
        weight_l1, weight_l2, bias_l1, bias_l2: penalties; l1 sum|w| + l2 sum w^2 joins the loss.
        trainable: False keeps w and b as they are.
        seed, dtype: see ``Layer``.

    Attributes:
        weight: (I, O).   bias: (O,), or None.
        weight_grad, bias_grad: what the last backward pass gave, of the same shapes.
    """

    op = Op.DENSE
    transient = ("_x", "_saved")
    weight = Parameter()
    bias = Parameter()
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
        self.activation = resolve_activation(activation)
        self.weight_l1 = check_number("Dense.weight_l1", weight_l1, 0.0)
        self.weight_l2 = check_number("Dense.weight_l2", weight_l2, 0.0)
        self.bias_l1 = check_number("Dense.bias_l1", bias_l1, 0.0)
        self.bias_l2 = check_number("Dense.bias_l2", bias_l2, 0.0)
        self.weight_init, self.bias_init = weight_init, bias_init
        for initializer in (weight_init, bias_init):
            resolve_initializer(initializer)
        self.add_parameter("weight", (n_inputs, n_outputs), weight_init)
        if bias:
            self.add_parameter("bias", (n_outputs,), bias_init, "bias")
        self._x: Array | None = None
        self._saved: Array | None = None

    @property
    def activation_code(self) -> int:
        return CODES[self.activation.name]

    @property
    def numbers(self) -> tuple[float, ...]:
        """Parameter of the activation, weight_l1, weight_l2, bias_l1, bias_l2."""
        penalties = (self.weight_l1, self.weight_l2, self.bias_l1, self.bias_l2)
        return (self.activation.parameter, *penalties)

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

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.zeros((len(x), self.weight.shape[1]), self.dtype)
        saves = self.backend.activation_saves(self.activation)
        z = self.backend.zeros(y.shape, self.dtype) if saves == "input" else None
        self.backend.dense_forward(x, self.weight, self.bias, self.activation, y, z)
        self._x, self._saved = x, y if z is None else z
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, None if self._saved is None else self._saved.shape)
        dx = self.backend.zeros(self._x.shape, self.dtype)  # type: ignore[union-attr]
        scratch = self.backend.zeros(dy.shape, self.dtype)
        self.backend.dense_backward(
            dy, self._x, self.weight, self.activation, self._saved,
            self.weight_grad, self.bias_grad, dx, scratch,
        )  # fmt: skip
        return dx


class Dropout(NativeLayer):
    """In training each element is zeroed with probability ``rate``, the rest is scaled up by
    1 / (1 - rate) (Srivastava et al., 2014). The same seed gives the same masks everywhere.

    Args:
        rate: share of elements dropped, in [0, 1).
        seed: for use outside a model; the model's seed decides inside one.
    """

    op = Op.DROPOUT
    transient = ("_mask",)

    def __init__(self, rate: float, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.rate = check_number("Dropout.rate", rate, 0.0, 1.0, high_open=True)
        self.calls = 0
        self.key = int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0])
        self._mask: Array | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """rate."""
        return (self.rate,)

    def saved_width(self, width: int) -> int:
        return width

    def config(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        self._mask = self.backend.zeros(x.shape, self.dtype)
        if not training:
            self._mask[...] = 1
            return x
        y = self.backend.zeros(x.shape, self.dtype)
        self.backend.dropout_forward(x, self.rate, self.key, self.calls, y, self._mask)
        self.calls += 1
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, None if self._mask is None else self._mask.shape)
        dx = self.backend.zeros(dy.shape, self.dtype)
        self.backend.dropout_backward(dy, self._mask, dx)
        return dx


class _Norm(NativeLayer):
    """What BatchNorm and LayerNorm share: gamma and beta, one for each column."""

    transient = ("_x", "_saved")
    gamma = Parameter()
    beta = Parameter()
    gamma_grad: Any
    beta_grad: Any

    def __init__(self, n: int, eps: float, trainable: bool, dtype: str) -> None:
        super().__init__(n, n, trainable=trainable, dtype=dtype)
        self.eps = check_number(f"{type(self).__name__}.eps", eps, 0.0, low_open=True)
        self.add_parameter("gamma", (n,), "ones", "bias")
        self.add_parameter("beta", (n,), "zeros", "bias")
        self._x: Array | None = None
        self._saved: Array | None = None


class BatchNorm(_Norm):
    """Each column normalised by the batch's statistics (Ioffe and Szegedy, 2015).

    In training by mean and biased variance of the batch, of at least two rows; in inference by
    running statistics, which move by ``momentum`` towards each batch's mean and unbiased
    variance.

    Args:
        n: width.
        momentum: in [0, 1]; 0.1 keeps 90 % of the running value at each step.
        eps: added to the variance.
        trainable: False keeps gamma and beta; the running statistics move all the same.
    """

    op = Op.BATCH_NORM
    running_mean = Parameter()
    running_var = Parameter()

    def __init__(
        self,
        n: int,
        momentum: float = 0.1,
        eps: float = 1e-5,
        trainable: bool = True,
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__(n, eps, trainable, dtype)
        self.momentum = check_number("BatchNorm.momentum", momentum, 0.0, 1.0)
        self.add_parameter("running_mean", (n,), "zeros", "state")
        self.add_parameter("running_var", (n,), "ones", "state")

    @property
    def numbers(self) -> tuple[float, ...]:
        """momentum, eps."""
        return (self.momentum, self.eps)

    def saved_width(self, width: int) -> int:
        return width  # mean and scale are 2 n, and a batch has at least 2 rows

    def config(self) -> dict[str, Any]:
        return {
            "n": self.n_inputs,
            "momentum": self.momentum,
            "eps": self.eps,
            "trainable": self.trainable,
        }

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.zeros(x.shape, self.dtype)
        self._x, self._saved = x, None
        if not training:
            self.backend.batch_norm_inference(
                x, self.gamma, self.beta, self.running_mean, self.running_var, self.eps, y
            )
            return y
        check_batch_norm_rows(len(x))
        self._saved = self.backend.zeros((2, x.shape[1]), self.dtype)
        self.backend.batch_norm_forward(
            x, self.gamma, self.beta, self.running_mean, self.running_var,
            self.momentum, self.eps, y, self._saved,
        )  # fmt: skip
        return y

    def backward(self, dy: Any) -> Array:
        if self._saved is None:
            self._x = None  # only a training pass can be differentiated
        dy = self._output_gradient(dy, None if self._x is None else self._x.shape)
        dx = self.backend.zeros(dy.shape, self.dtype)
        self.backend.batch_norm_backward(
            dy, self._x, self.gamma, self._saved, self.gamma_grad, self.beta_grad, dx
        )
        return dx


def check_batch_norm_rows(rows: int) -> None:
    """A variance needs two rows."""
    if rows < 2:
        raise ShapeError(
            f"BatchNorm in training needs batches of at least 2 rows; received {rows}. Choose a "
            "batch_size that leaves no single row at the end of the data"
        )


class LayerNorm(_Norm):
    """Each row normalised by its own mean and variance (Ba, Kiros and Hinton, 2016).

    Args:
        n: width.
        eps: added to the variance.
    """

    op = Op.LAYER_NORM

    def __init__(
        self, n: int, eps: float = 1e-5, trainable: bool = True, *, dtype: str = "float32"
    ) -> None:
        super().__init__(n, eps, trainable, dtype)

    @property
    def numbers(self) -> tuple[float, ...]:
        """eps."""
        return (self.eps,)

    def saved_width(self, width: int) -> int:
        return 2

    def config(self) -> dict[str, Any]:
        return {"n": self.n_inputs, "eps": self.eps, "trainable": self.trainable}

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.zeros(x.shape, self.dtype)
        self._x, self._saved = x, self.backend.zeros((2, len(x)), self.dtype)
        self.backend.layer_norm_forward(x, self.gamma, self.beta, self.eps, y, self._saved)
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, None if self._x is None else self._x.shape)
        dx = self.backend.zeros(dy.shape, self.dtype)
        self.backend.layer_norm_backward(
            dy, self._x, self.gamma, self._saved, self.gamma_grad, self.beta_grad, dx
        )
        return dx


class Standardize(NativeLayer):
    """y = (x - mean) scale, learnt once from data: zero mean and unit variance per column.

    As a model's first layer it learns from the data of the first ``fit``; elsewhere call
    ``adapt(x)``. Constant columns get scale 1. Mean and scale are saved with the model.

    Args:
        n: width.
    """

    op = Op.STANDARDIZE
    transient = ("_shape",)
    mean = Parameter()
    scale = Parameter()

    def __init__(self, n: int, *, dtype: str = "float32") -> None:
        super().__init__(n, n, dtype=dtype)
        self.adapted = False
        self.add_parameter("mean", (n,), "zeros", "state")
        self.add_parameter("scale", (n,), "ones", "state")
        self._shape: tuple[int, ...] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        adapted = state["adapted"]
        super().__setstate__(state)
        self.adapted = adapted

    @property
    def saved_names(self) -> list[str]:
        return list(self.specs) if self.adapted else []

    def config(self) -> dict[str, Any]:
        return {"n": self.n_inputs}

    def adapt(self, x: Any) -> None:
        """Learn mean and scale of (N, n) data, in one pass over blocks of rows, in float64.

        Raises:
            ShapeError, DataError: wrong width, no rows, or values that are not finite.
        """
        from nnbackend.sources import read_rows

        if not hasattr(x, "shape"):
            x = np.asarray(x)
        shape = tuple(x.shape)
        if len(shape) != 2 or shape[1] != self.n_inputs or shape[0] == 0:
            raise ShapeError(
                f"Standardize.adapt takes x of shape (rows, {self.n_inputs}), at least one row; "
                f"received {shape}"
            )
        if x.dtype.kind not in "fiub":
            raise DTypeError(f"Standardize.adapt takes real numbers; received dtype {x.dtype}")
        x = self.backend.to_numpy(x) if self.backend.owns(x) else x
        count, mean = 0, np.zeros(x.shape[1])
        square = np.zeros(x.shape[1])  # sum of squared distances from the mean
        for start in range(0, len(x), 4096):
            block = read_rows(x, slice(start, start + 4096)).astype(np.float64)
            block_mean = block.mean(axis=0)
            shift, total = block_mean - mean, count + len(block)
            # merging two means and sums of squares: Chan, Golub and LeVeque (1979)
            square += ((block - block_mean) ** 2).sum(axis=0)
            square += shift**2 * (count * len(block) / total)
            mean += shift * (len(block) / total)
            count = total
        std = np.sqrt(square / count)
        if not np.isfinite(std).all():
            raise DataError("Standardize.adapt needs finite values; x holds NaN or infinity")
        # rounding leaves a constant column a spread of this size; 1 / std must not overflow
        constant = std <= np.maximum(1e-7 * np.abs(mean), np.finfo(self.dtype).tiny)
        self.assign("mean", mean)
        self.assign("scale", 1.0 / np.where(constant, 1.0, std))
        self.adapted = True

    def check_adapted(self) -> None:
        if not self.adapted:
            raise DataError(
                "Standardize has not seen data yet: as a model's first layer it learns in fit(x, "
                "y) from arrays; otherwise call layer.adapt(x) before"
            )

    def assign(self, name: str, value: Any) -> None:
        super().assign(name, value)
        self.adapted = True

    def forward(self, x: Any, training: bool = False) -> Array:
        self.check_adapted()
        x = self._input(x)
        self._shape = x.shape
        y = self.backend.zeros(x.shape, self.dtype)
        self.backend.standardize_forward(x, self.mean, self.scale, y)
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, self._shape)
        dx = self.backend.zeros(dy.shape, self.dtype)
        self.backend.standardize_backward(dy, self.scale, dx)
        return dx
