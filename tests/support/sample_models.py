"""Models, data and parts of one's own that several tests use."""

import numpy as np

import nnbackend as nn


def small(seed: int = 0, dtype: str = "float64", **compile_settings) -> nn.Sequential:
    model = nn.Sequential(
        [nn.Dense(4, 8, "tanh"), nn.Dropout(0.2), nn.BatchNorm(8), nn.Dense(8, 3)],
        seed=seed,
        dtype=dtype,
    )
    settings = {"loss": "softmax_cross_entropy", "optimizer": "adam", "metrics": ["accuracy"]}
    model.compile(**{**settings, **compile_settings})
    return model


def data(rng: np.random.Generator, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(rows, 4)), rng.integers(0, 3, rows)


def weights(model: nn.Sequential) -> np.ndarray:
    return model.backend.to_numpy(model.storage.parameters).copy()


class Scale(nn.Layer):
    """A layer of one's own, as in the documentation of nn.Layer."""

    factor = nn.Parameter()

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.add_parameter("factor", (width,), "ones")

    def forward(self, x, training=False):
        self.x = x
        return x * self.factor

    def backward(self, dy):
        self.factor_grad = (dy * self.x).sum(axis=0)
        return dy * self.factor


def squared(y_true, y_pred):
    error = y_pred - y_true
    return (error**2).mean(), 2 * error / error.size
