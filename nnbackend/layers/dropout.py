"""Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend._settings import Number
from nnbackend.backends.types import Array
from nnbackend.kernels.codes import Op
from nnbackend.layers.native import NativeLayer


class Dropout(NativeLayer):
    """In training, zero each element with probability ``rate`` and scale up the rest by
    1 / (1 - rate) (Srivastava et al., 2014). The same seed gives the same masks everywhere.

    Args:
        rate: share of elements dropped, in [0, 1). It may be changed at any time.
        seed: for use outside a model; inside one, the model's seed decides.
    """

    op = Op.DROPOUT
    transient = ("_mask",)
    rate = Number(0.0, 1.0, high_open=True)

    def __init__(self, rate: float, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.rate = rate
        self.calls = 0
        self.key = int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0])
        self._mask: Array | None = None

    @property
    def row_floats(self) -> tuple[float, ...]:
        """rate."""
        return (self.rate,)

    def saved_width(self, width: int) -> int:
        return width

    def config(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        self._mask = self.backend.empty(x.shape, self.dtype)
        if not training:
            self._mask[...] = 1
            return x
        y = self.backend.empty(x.shape, self.dtype)
        self.backend.dropout_forward(x, self.rate, self.key, self.calls, y, self._mask)
        self.calls += 1
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, self._mask)
        dx = self.backend.empty(dy.shape, self.dtype)
        self.backend.dropout_backward(dy, self._mask, dx)
        return dx
