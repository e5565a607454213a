"""Layers that normalise: over the batch, or within each row."""

from __future__ import annotations

from typing import Any

from nnbackend._checks import check_coupled_rows, check_size
from nnbackend._settings import Number
from nnbackend.backends.types import Array
from nnbackend.kernels.codes import Op
from nnbackend.layers.native import NativeLayer
from nnbackend.layers.parameters import Parameter


class _Norm(NativeLayer):
    """What BatchNorm and LayerNorm share: gamma and beta, one for each column."""

    transient = ("_x", "_saved")
    gamma = Parameter()
    beta = Parameter()
    eps = Number(0.0, low_open=True)
    gamma_grad: Any
    beta_grad: Any

    def __init__(self, n: int, eps: float, trainable: bool, dtype: str) -> None:
        n = check_size(f"{type(self).__name__}.n", n)
        super().__init__(n, n, trainable=trainable, dtype=dtype)
        self.eps = eps
        self.add_parameter("gamma", (n,), "ones", "bias")
        self.add_parameter("beta", (n,), "zeros", "bias")
        self._x: Array | None = None
        self._rows = 0
        self._saved: Array | None = None


class BatchNorm(_Norm):
    """Each column normalised by the batch's statistics (Ioffe and Szegedy, 2015).

    Training uses the mean and biased variance of the batch, which needs at least two rows;
    inference uses running statistics, which move by ``momentum`` towards each batch's mean and
    unbiased variance.

    Args:
        n: width.
        momentum: in [0, 1]; 0.1 keeps 90 % of the running value at each step.
        eps: added to the variance.
        trainable: False freezes gamma and beta; the running statistics still move.
    """

    op = Op.BATCH_NORM
    couples_rows = True
    running_mean = Parameter()
    running_var = Parameter()
    momentum = Number(0.0, 1.0)

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
        self.momentum = momentum
        self.add_parameter("running_mean", (n,), "zeros", "state")
        self.add_parameter("running_var", (n,), "ones", "state")

    @property
    def row_floats(self) -> tuple[float, ...]:
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
        y = self.backend.empty(x.shape, self.dtype)
        self._x, self._saved, self._rows = x, None, len(x)
        if not training:
            self.backend.batch_norm_inference(
                x, self.gamma, self.beta, self.running_mean, self.running_var, self.eps, y
            )
            return y
        check_coupled_rows(len(x))
        self._saved = self.backend.empty((2, x.shape[1]), self.dtype)
        self.backend.batch_norm_forward(
            x, self.gamma, self.beta, self.running_mean, self.running_var,
            self.momentum, self.eps, y, self._saved,
        )  # fmt: skip
        return y

    def backward(self, dy: Any) -> Array:
        if self._saved is None:
            self._x = None  # only a training pass can be differentiated
        dy = self._output_gradient(dy, self._x)
        x, dx = self._unchanged(self._x, self._rows), self.backend.empty(dy.shape, self.dtype)
        self.backend.batch_norm_backward(
            dy, x, self.gamma, self._saved, self.gamma_grad, self.beta_grad, dx
        )
        return dx


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
    def row_floats(self) -> tuple[float, ...]:
        """eps."""
        return (self.eps,)

    def saved_width(self, width: int) -> int:
        return 2

    def config(self) -> dict[str, Any]:
        return {"n": self.n_inputs, "eps": self.eps, "trainable": self.trainable}

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.empty(x.shape, self.dtype)
        self._rows = len(x)
        self._x, self._saved = x, self.backend.empty((2, len(x)), self.dtype)
        self.backend.layer_norm_forward(x, self.gamma, self.beta, self.eps, y, self._saved)
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, self._x)
        x, dx = self._unchanged(self._x, self._rows), self.backend.empty(dy.shape, self.dtype)
        self.backend.layer_norm_backward(
            dy, x, self.gamma, self._saved, self.gamma_grad, self.beta_grad, dx
        )
        return dx
