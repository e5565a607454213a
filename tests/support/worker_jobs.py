"""What worker processes are sent: where tests are not on their path, this is."""

import numpy as np

import nnbackend as nn


def network(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(
        [nn.Dense(4, 64, "tanh"), nn.LayerNorm(64), nn.Dropout(0.1), nn.Dense(64, 3)], seed=seed
    )
    model.compile("softmax_cross_entropy", nn.Adam(0.01))
    return model


def trained(seed: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    model = network(seed)
    model.fit(x, y, epochs=2, batch_size=32, verbose=0)
    return model.predict(x)


def trained_further(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> nn.Sequential:
    model.fit(x, y, epochs=1, verbose=0)
    return model
