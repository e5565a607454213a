"""Standardisation of a model's input, learnt once from data."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend._checks import check_real, check_size, real_array
from nnbackend._files import read_rows
from nnbackend._settings import fix
from nnbackend._types import HostArray
from nnbackend.backends.types import Array
from nnbackend.errors import DataError, ShapeError
from nnbackend.kernels.codes import Op
from nnbackend.layers.native import FixedInLayer, NativeLayer
from nnbackend.layers.parameters import Parameter


class Standardize(NativeLayer):
    """y = (x - mean) scale, learnt once from data: zero mean and unit variance per column.

    As a model's first layer it learns from the data of the first ``fit``; elsewhere call
    ``adapt(x)``. Constant columns, whose spread is below 1e-7 of their mean (1e-14 in float64), get
    scale 1. Mean and scale are saved with the model.

    Args:
        n: width.
        skip: so many columns at the beginning stay as they are, such as numbers of categories.
    """

    op = Op.STANDARDIZE
    adapts = True
    transient = ("_x",)
    mean = Parameter()
    scale = Parameter()
    skip = FixedInLayer[int]()

    def __init__(self, n: int, skip: int = 0, *, dtype: str = "float32") -> None:
        n = check_size("Standardize.n", n)
        super().__init__(n, n, dtype=dtype)
        fix(self, skip=check_size("Standardize.skip", skip, 0))
        if self.skip > n:
            raise ShapeError(f"Standardize.skip must be at most n, {n}; received {skip}")
        self.adapted = False
        self.add_parameter("mean", (n,), "zeros", "state")
        self.add_parameter("scale", (n,), "ones", "state")
        self._x: Array | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        adapted = state["adapted"]
        super().__setstate__(state)
        self.adapted = adapted

    @property
    def saved_names(self) -> list[str]:
        return list(self.specs) if self.adapted else []

    def config(self) -> dict[str, Any]:
        return {"n": self.n_inputs, "skip": self.skip}

    def adapt(self, x: Any) -> None:
        """Learn mean and scale of (N, n) data, in one pass over blocks of rows, in float64.

        Raises:
            ShapeError, DataError: wrong width, no rows, or values that are not finite.
        """
        if not (self.backend.owns(x) or hasattr(getattr(x, "dtype", None), "kind")):
            x = real_array("Standardize.adapt's x", x)
        shape = tuple(x.shape)
        if len(shape) != 2 or shape[1] != self.n_inputs or shape[0] == 0:
            raise ShapeError(
                f"Standardize.adapt takes x of shape (rows, {self.n_inputs}), at least one row; "
                f"received {shape}"
            )
        check_real("Standardize.adapt's x", x.dtype)
        x = self.backend.to_numpy(x) if self.backend.owns(x) else x
        self.set_statistics(*self.statistics(x))

    def statistics(self, x: Any) -> tuple[int, HostArray, HostArray]:
        """Number of rows, their mean (N,), and the sum of their squared distances from it (N,)."""
        count, mean = 0, np.zeros(x.shape[1])
        square = np.zeros(x.shape[1])  # sum of squared distances from the mean
        # of distances from the first row: a constant column has no rounding
        first = read_rows(x, slice(0, 1)).astype(np.float64)
        for start in range(0, len(x), 4096):
            block = read_rows(x, slice(start, start + 4096)).astype(np.float64) - first
            block_mean = block.mean(axis=0)
            shift, total = block_mean - mean, count + len(block)
            # merging two means and sums of squares: Chan, Golub and LeVeque (1979)
            square += ((block - block_mean) ** 2).sum(axis=0)
            square += shift**2 * (count * len(block) / total)
            mean += shift * (len(block) / total)
            count = total
        return count, mean + first[0], square

    def set_statistics(self, count: int, mean: HostArray, square: HostArray) -> None:
        """Standardise by what ``statistics`` returns."""
        std = np.sqrt(square / count)
        if not np.isfinite(std).all():
            raise DataError("Standardize.adapt needs finite values; x holds NaN or infinity")
        # of a smaller spread the dtype has no digits; 1 / std must not overflow
        digits = 1e-7 if self.dtype == np.float32 else 1e-14
        constant = std <= np.maximum(digits * np.abs(mean), np.finfo(self.dtype).tiny)
        mean[: self.skip] = 0.0
        constant[: self.skip] = True
        self.assign("mean", mean)
        self.assign("scale", 1.0 / np.where(constant, 1.0, std))
        self.adapted = True

    def forget(self) -> None:
        self.assign("mean", np.zeros(self.specs["mean"].shape))
        self.assign("scale", np.ones(self.specs["scale"].shape))
        self.adapted = False

    def check_adapted(self) -> None:
        if not self.adapted:
            raise DataError(
                "Standardize has not seen data yet: as a model's first layer it learns in fit(x, "
                "y) from arrays; otherwise call layer.adapt(x) first"
            )

    def assign(self, name: str, value: Any) -> None:
        super().assign(name, value)
        self.adapted = True

    def forward(self, x: Any, training: bool = False) -> Array:
        self.check_adapted()
        x = self._input(x)
        self._x = x
        y = self.backend.empty(x.shape, self.dtype)
        self.backend.standardize_forward(x, self.mean, self.scale, y)
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, self._x)
        dx = self.backend.empty(dy.shape, self.dtype)
        self.backend.standardize_backward(dy, self.scale, dx)
        return dx
