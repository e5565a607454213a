"""nnbackend on one of its backends."""

from __future__ import annotations

import numpy as np

import nnbackend as nn
from nnbackend.bench import EPOCH_BATCHES, Case, Trial, reset_function
from nnbackend.bench_report import PACKAGES
from peers.system import CHECKED_ROWS, CHECKED_STEPS, Material, System, trial


def model_of(
    case: Case,
    material: Material,
    backend: str | nn.Backend,
    dtype: str = "float32",
    dropout: bool = True,
) -> nn.Sequential:
    """The case's model with the weights that everybody gets."""
    model = case.model(backend, dtype, dropout)
    dense = [layer for layer in model.layers if isinstance(layer, nn.Dense)]
    for layer, (weight, bias) in zip(dense, material.weights, strict=True):
        layer.weight, layer.bias = weight, bias
    return model


def losses_of(model: nn.Sequential, case: Case, material: Material) -> list[float]:
    """The losses of the first steps."""
    batches = material.batches(case)[:CHECKED_STEPS]
    return [float(model.train_step(x, y)) for x, y in batches]


class Ours(System):
    """``train_step``, ``fit``, ``model(x)`` and ``predict`` as everybody calls them."""

    packages = PACKAGES

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = nn.get_backend(backend)

    def losses(self, case: Case, material: Material) -> list[float]:
        model = model_of(case, material, self.backend, dropout=False)
        return losses_of(model, case, material)

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        model = model_of(case, material, self.backend)
        return model.predict(material.x[:CHECKED_ROWS])

    def step(self, case: Case, material: Material) -> Trial:
        model = model_of(case, material, self.backend)
        return trial(model.train_step, material.batches(case), reset_function(model))

    def epoch(self, case: Case, material: Material) -> Trial:
        model = model_of(case, material, self.backend)
        x, y = material.epoch(case)

        def repeat(count: int) -> None:
            model.fit(x, y, epochs=count, batch_size=case.batch, verbose=0)

        return Trial(repeat, 0, 0, EPOCH_BATCHES, reset_function(model))

    def inference(self, case: Case, material: Material) -> Trial:
        model = model_of(case, material, self.backend)
        return trial(model, [(x,) for x in material.single_rows()])

    def predict(self, case: Case, material: Material) -> Trial:
        model = model_of(case, material, self.backend)
        return trial(model.predict, [(material.x,)])
