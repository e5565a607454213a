"""Benchmark cases: networks with their data.

The command ``nnbackend bench``, the suite in ``benchmarks/`` and the comparison with other
systems there all measure these cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.contract import Backend
from nnbackend.errors import DataError, unknown_name
from nnbackend.layers import LAYERS, ActivationLayer, BatchNorm, Dense, Dropout
from nnbackend.layers.base import Layer
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import SGD, Adam, Optimizer

Batches = list[tuple[HostArray, HostArray]]

#: Batches of an epoch.
EPOCH_BATCHES = 32
#: A case has as many different batches as fill this, within EPOCH_BATCHES ... MOST_BATCHES.
DATA_BYTES, MOST_BATCHES = 1 << 20, 256

ACTIVATION_BY_NAME = {
    kind.name: kind for kind in LAYERS.values() if issubclass(kind, ActivationLayer)
}
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "adam": lambda: Adam(lr=1e-3),
    "momentum": lambda: SGD(lr=0.01, momentum=0.9),
}


@dataclass(frozen=True)
class Case:
    """A network with its loss, its optimizer and the size of its batches.

    Attributes:
        batch: rows of a training step.
        widths: of the input and of each dense layer's output.
        activation: of the hidden layers.
        loss: softmax_cross_entropy, sigmoid_cross_entropy or mean_squared_error.
        optimizer: a key of ``OPTIMIZERS``.
        dropout: rate after each hidden layer.
        batch_norm: a BatchNorm before each hidden layer's activation.
    """

    name: str
    batch: int
    widths: tuple[int, ...]
    activation: str = "relu"
    loss: str = "softmax_cross_entropy"
    optimizer: str = "adam"
    dropout: float = 0.0
    batch_norm: bool = False

    @property
    def shape(self) -> str:
        """ "32 x (64-32-10)"; a width that repeats often is written once, "64 x (64[8]-10)"."""
        runs: list[list[int]] = []
        for width in self.widths:
            if runs and runs[-1][0] == width:
                runs[-1].append(width)
            else:
                runs.append([width])
        parts = [f"{run[0]}[{len(run)}]" if len(run) > 4 else "-".join(map(str, run))
                 for run in runs]  # fmt: skip
        return f"{self.batch} x ({'-'.join(parts)})"

    @property
    def n_batches(self) -> int:
        """Different batches to train on. There are many, since a network that knows its batch by
        heart makes subnormal numbers, and those are not what a case is about."""
        fitting = DATA_BYTES // (4 * self.batch * self.widths[0])
        return max(EPOCH_BATCHES, min(fitting, MOST_BATCHES))

    def layers(self, dropout: bool = True) -> list[Layer]:
        """New layers; ``dropout=False`` leaves those out, for comparisons of the loss."""
        layers: list[Layer] = []
        *hidden, last = pairwise(self.widths)
        for inputs, outputs in hidden:
            if self.batch_norm:
                activation = ACTIVATION_BY_NAME[self.activation]
                layers += [Dense(inputs, outputs), BatchNorm(outputs), activation()]
            else:
                layers.append(Dense(inputs, outputs, self.activation))
            if self.dropout and dropout:
                layers.append(Dropout(self.dropout))
        return [*layers, Dense(*last)]

    def model(
        self,
        backend: str | Backend | None = None,
        dtype: str = "float32",
        dropout: bool = True,
        precision: str = "fp32",
    ) -> Sequential:
        """A compiled model; always the same initial weights."""
        model = Sequential(
            self.layers(dropout), seed=0, dtype=dtype, backend=backend, precision=precision
        )
        model.compile(self.loss, OPTIMIZERS[self.optimizer]())
        return model

    def data(self, rows: int, seed: int = 0) -> tuple[HostArray, HostArray]:
        """Random rows: x (rows, widths[0]) float32, normal; y (rows,) int64 classes, or
        (rows, widths[-1]) float32: zeros and ones for sigmoid_cross_entropy, else normal."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((rows, self.widths[0]), np.float32)
        shape = (rows, self.widths[-1])
        if self.loss == "softmax_cross_entropy":
            return x, rng.integers(0, shape[1], rows)
        if self.loss == "sigmoid_cross_entropy":
            return x, rng.integers(0, 2, shape).astype(np.float32)
        return x, rng.standard_normal(shape, np.float32)

    def batches(self) -> Batches:
        """``n_batches`` different batches."""
        x, y = self.data(self.n_batches * self.batch)
        parts = [slice(k, k + self.batch) for k in range(0, len(x), self.batch)]
        return [(x[part], y[part]) for part in parts]

    def forward_flops(self, rows: int) -> int:
        """2 m n k for each matrix product."""
        return 2 * rows * sum(i * o for i, o in pairwise(self.widths))

    def backward_flops(self, rows: int, first_dx: bool = False) -> int:
        """The products of dw and dx; training does without the dx of the first layer."""
        first = 0 if first_dx else 2 * rows * self.widths[0] * self.widths[1]
        return 2 * self.forward_flops(rows) - first

    def step_flops(self) -> int:
        """The products of one training step."""
        return self.forward_flops(self.batch) + self.backward_flops(self.batch)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("tiny", 4, (2, 2, 2)),
        Case("spiral", 300, (2, 64, 3)),
        Case("digits", 32, (64, 32, 10)),
        Case("mnist-128", 128, (784, 128, 128, 10)),
        Case("mnist-512", 256, (784, 512, 512, 10)),
        Case("wide", 1024, (1024, 1024, 1024, 1024)),
        Case("deep", 64, (*[64] * 8, 10)),
        Case("tanh-mse", 128, (32, 64, 64, 1), "tanh", "mean_squared_error"),
        Case("binary", 256, (30, 64, 32, 1), loss="sigmoid_cross_entropy"),
        Case("dropout-bn", 128, (64, 128, 128, 10), dropout=0.2, batch_norm=True),
        Case("momentum", 64, (54, 128, 64, 7), optimizer="momentum"),
        Case("rows-2048", 2048, (28, 64, 64, 3)),
        Case("control", 64, (17, 64, 64, 6), "tanh", "mean_squared_error"),
        # the two that SimpleChains.jl publishes
        Case("chain-200", 200, (24, 8, 2), "tanh", "mean_squared_error"),
        Case("chain-10k", 10_000, (4, 32, 16, 4), "tanh", "mean_squared_error"),
    )
}


def choose(
    kind: str, text: str | None, choices: Iterable[str], open_end: bool = False
) -> list[str]:
    """Names written with commas between them; all of the choices where there is no text.

    Args:
        kind: what the names are, for the errors.
        open_end: other names than the choices are accepted.
    """
    if text is None:
        return list(choices)
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise DataError(f"name at least one {kind}: {', '.join(choices)}")
    for name in names:
        if name not in choices and not open_end:
            raise unknown_name(kind, name, choices)
    return names
