"""Networks that ranks train, and data for them."""

import numpy as np

import nnbackend as nn

ROWS, WIDTH, CLASSES = 203, 7, 3
rng = np.random.default_rng(5)
X, Y = rng.normal(size=(ROWS, WIDTH)), rng.integers(0, CLASSES, ROWS)
WEIGHT = rng.uniform(0.1, 2, ROWS)


def plain() -> list[nn.Layer]:
    return [
        nn.Dense(WIDTH, 12, activation="tanh", weight_l2=0.01),
        nn.Dropout(0.3),
        nn.Dense(12, CLASSES, bias_l1=0.001),
    ]


def normalised() -> list[nn.Layer]:
    # a bias before a batch norm has no gradient but rounding, of which Adam makes a step
    return [
        nn.Standardize(WIDTH),
        nn.Dense(WIDTH, 12, bias=False),
        nn.BatchNorm(12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Dense(12, 8, bias=False),
        nn.BatchNorm(8),
        nn.GELU(),
        nn.Dense(8, CLASSES),
    ]


def row_by_row() -> list[nn.Layer]:
    return [nn.Dense(WIDTH, 12, activation="gelu"), nn.LayerNorm(12), nn.Dense(12, CLASSES)]


def divided() -> list[nn.Layer]:
    return [nn.Dense(WIDTH, 16, activation="relu"), nn.Dense(16, CLASSES)]


def coupled() -> list[nn.Layer]:
    return [nn.Dense(WIDTH, 9, bias=False), nn.BatchNorm(9), nn.Tanh(), nn.Dense(9, CLASSES)]


NETWORKS = [plain, normalised, row_by_row, divided]


def make(layers, backend, dtype="float64", **compiled):
    model = nn.Sequential(layers(), seed=3, dtype=dtype, backend=backend)
    settings = {
        "loss": "softmax_cross_entropy",
        "optimizer": nn.Adam(1e-2, clip_norm=0.5 if layers is row_by_row else None),
        "metrics": ["accuracy", "f1"],
    }
    model.compile(**(settings | compiled))
    return model
