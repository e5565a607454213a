"""Compile everything ahead of time, for container images and read-only home folders."""

from __future__ import annotations

import numpy as np

from nnbackend.backends import get_backend, use_backend
from nnbackend.layers import Dense
from nnbackend.model.sequential import Sequential

#: Rows that one thread handles, and rows that are worth several.
FEW, MANY = 8, 1024


def warm_up(backend: str = "numba", dtypes: tuple[str, ...] = ("float32", "float64")) -> None:
    """Train and use a small network on ``backend`` in each way that has its own compiled code:
    steps on one thread and on several, class labels and numbers as targets, single operations.

    Raises:
        BackendUnavailableError: the backend cannot run here.
    """
    get_backend(backend).compile_ahead(dtypes)
    for dtype in dtypes:
        _use(backend, dtype)


def _use(backend: str, dtype: str) -> None:
    for loss in ("softmax_cross_entropy", "mean_squared_error"):
        with use_backend(backend):
            model = Sequential([Dense(64, 64, "relu"), Dense(64, 4)], seed=0, dtype=dtype)
        model.compile(loss)
        for rows in (FEW, MANY):
            x = np.zeros((rows, 64), dtype)
            y = np.zeros((rows, 4), dtype) if "squared" in loss else np.zeros(rows, np.int64)
            for _ in range(2):  # the second step takes the short cut
                model.train_step(x, y)
            model.evaluate(x, y)
            model(x)
        layer = model.layers[0]
        layer.backward(layer.forward(x, training=True))
