"""Models drawn at random: layers, losses, optimizers, penalties, batch sizes, data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import nnbackend as nn
from nnbackend.kernels.codes import ACTIVATIONS

#: Losses with the activation that the last layer ends with, and what their targets look like.
LOSSES = {
    "softmax_cross_entropy": (None, "labels"),
    "categorical_cross_entropy": ("softmax", "labels"),
    "sigmoid_cross_entropy": (None, "shares"),
    "binary_cross_entropy": ("sigmoid", "shares"),
    "mean_squared_error": (None, "numbers"),
    "sum_squared_error": (None, "numbers"),
    "mean_absolute_error": (None, "numbers"),
    "huber": (None, "numbers"),
    "poisson": ("softplus", "counts"),
}


@dataclass
class Drawn:
    """What a random number decided, to be built as often as it is needed.

    Attributes:
        x, y, weight: data; the weight may be None.
        settings: of ``fit``.
    """

    seed: int
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None
    settings: dict[str, Any]

    def model(self, dtype: str, backend: nn.Backend | str | None = None) -> nn.Sequential:
        """A fresh one."""
        rng = np.random.default_rng(self.seed)
        loss = str(rng.choice(list(LOSSES)))
        outputs = self.settings["outputs"]
        model = nn.Sequential(_layers(rng, self.x.shape[1], outputs, LOSSES[loss][0]),
                              seed=self.seed, dtype=dtype, backend=backend)  # fmt: skip
        kind = LOSSES[loss][1]
        metrics = {"labels": ["accuracy"], "numbers": ["mae", "r2"], "counts": ["mse"]}
        model.compile(loss, _optimizer(rng), metrics.get(kind, []))
        return model

    def fit(self, model: nn.Sequential, epochs: int) -> nn.History:
        return model.fit(
            self.x, self.y, epochs=epochs, batch_size=self.settings["batch_size"],
            shuffle=self.settings["shuffle"], sample_weight=self.weight, verbose=0,
        )  # fmt: skip


def draw(seed: int, most_rows: int = 150) -> Drawn:
    """The model, data and settings of a seed."""
    rng = np.random.default_rng([seed, 1])
    loss = str(np.random.default_rng(seed).choice(list(LOSSES)))
    rows, inputs, outputs = (int(rng.integers(low, high)) for low, high in
                             ((4, most_rows), (1, 20), (2, 6)))  # fmt: skip
    x = rng.normal(size=(rows, inputs))
    kind = LOSSES[loss][1]
    if kind == "labels":
        y: np.ndarray = rng.integers(0, outputs, rows)
    elif kind == "shares":
        y = rng.integers(0, 2, (rows, outputs)).astype(float)
    else:
        y = rng.normal(size=(rows, outputs)) if kind == "numbers" else rng.poisson(
            2.0, (rows, outputs)).astype(float)  # fmt: skip
    weight = rng.uniform(0.1, 2.0, rows) if rng.random() < 0.3 else None
    # a batch norm takes no batch of one row
    sizes = [b for b in range(2, rows + 1) if rows % b != 1]
    settings = {
        "outputs": outputs, "batch_size": int(rng.choice(sizes)), "shuffle": rng.random() < 0.8,
    }  # fmt: skip
    return Drawn(seed, x, y, weight, settings)


def _layers(
    rng: np.random.Generator, inputs: int, outputs: int, ending: str | None
) -> list[nn.Layer]:
    layers: list[nn.Layer] = [nn.Standardize(inputs)] if rng.random() < 0.2 else []
    width = inputs
    # an exponential of an exponential leaves the numbers within a few steps
    names = [name for name in ACTIVATIONS if name not in ("exponential", "linear")]
    for _ in range(int(rng.integers(0, 4))):
        n = int(rng.integers(1, 40))
        penalties = {"weight_l2": 1e-3, "bias_l1": 1e-4} if rng.random() < 0.3 else {}
        layers.append(nn.Dense(width, n, str(rng.choice(names)), bias=bool(rng.random() < 0.9),
                               trainable=bool(rng.random() < 0.9), **penalties))  # fmt: skip
        width = n
        kind = rng.integers(0, 6)
        if kind == 0:
            layers.append(nn.BatchNorm(n))
        elif kind == 1:
            layers.append(nn.LayerNorm(n))
        elif kind == 2:
            layers.append(nn.Dropout(float(rng.uniform(0.1, 0.5))))
        elif kind == 3:
            layers.append(nn.Tanh())
    return [*layers, nn.Dense(width, outputs, ending)]


def _optimizer(rng: np.random.Generator) -> nn.Optimizer:
    clip = float(rng.uniform(0.5, 2.0)) if rng.random() < 0.3 else None
    rate: Any = 1e-3 if rng.random() < 0.7 else nn.InverseTimeDecay(1e-3, 0.01)
    made = [
        lambda: nn.SGD(rate, clip_norm=clip),
        lambda: nn.SGD(rate, momentum=0.9, clip_norm=clip),
        lambda: nn.SGD(rate, momentum=0.9, nesterov=True, clip_norm=clip),
        lambda: nn.AdaGrad(rate, clip_norm=clip),
        lambda: nn.RMSprop(rate, clip_norm=clip),
        lambda: nn.Adam(rate, clip_norm=clip),
        lambda: nn.AdamW(rate, weight_decay=0.1, clip_norm=clip),
    ]
    return made[rng.integers(len(made))]()
