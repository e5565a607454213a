"""nnbackend on one of its backends."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import nnbackend as nn
from nnbackend.benchmark.cases import EPOCH_BATCHES, OPTIMIZERS, Case
from nnbackend.benchmark.operations import (
    Trial,
    drive,
    driven_batches,
    own_squared_error,
    reset_function,
)
from nnbackend.benchmark.report import PACKAGES
from peers.system import CHECKED_ROWS, CHECKED_STEPS, Material, System, trial


def model_of(
    case: Case,
    material: Material,
    backend: str | nn.Backend,
    dtype: str = "float32",
    dropout: bool = True,
    precision: str = "fp32",
) -> nn.Sequential:
    """The case's model with the weights that everybody gets."""
    model = case.model(backend, dtype, dropout, precision)
    dense = [layer for layer in model.layers if isinstance(layer, nn.Dense)]
    for layer, (weight, bias) in zip(dense, material.weights, strict=True):
        layer.weight, layer.bias = weight, bias
    return model


def losses_of(model: nn.Sequential, case: Case, material: Material) -> list[float]:
    """The losses of the first steps."""
    batches = material.batches(case)[:CHECKED_STEPS]
    return [float(model.train_step(x, y)) for x, y in batches]


def driven_values_of(model: nn.Sequential, case: Case, material: Material) -> list[float]:
    """sum(dy y) of the first driven steps."""
    batches = driven_batches(case)[:CHECKED_STEPS]
    to_numpy = model.backend.to_numpy
    return [float((dy * to_numpy(drive(model, x, dy))).sum()) for x, dy in batches]


def gradient_values_of(model: nn.Sequential, case: Case, material: Material) -> list[float]:
    """Loss and norm of the gradient of two batches."""
    values = []
    for x, y in material.batches(case)[:2]:
        values.append(float(model.gradient(x, y)))
        values.append(float(np.linalg.norm(model.backend.to_numpy(model.flat_gradient))))
    return values


class Ours(System):
    """``train_step``, ``fit``, ``model(x)`` and ``predict`` as everybody calls them. On a GPU, rows
    to train on lie there already, as those of the peers do."""

    packages = (*PACKAGES, "cupy-cuda12x", "cupy-cuda13x")

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = nn.get_backend(backend)

    def gpu(self) -> str:
        if self.backend.name != "cuda":
            return ""
        return self.backend.gpu.tuning.kind  # type: ignore[attr-defined]

    def model(self, case: Case, material: Material, dropout: bool = True) -> nn.Sequential:
        return model_of(case, material, self.backend, dropout=dropout, precision=self.precision)

    def on_device(self, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
        asarray = self.backend.asarray
        return asarray(x, x.dtype), asarray(
            y, np.dtype("int32") if y.dtype.kind == "i" else y.dtype
        )

    def losses(self, case: Case, material: Material) -> list[float]:
        return losses_of(self.model(case, material, dropout=False), case, material)

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        return self.model(case, material).predict(material.x[:CHECKED_ROWS])

    def step(self, case: Case, material: Material) -> Trial:
        model, batches = self.model(case, material), material.batches(case)
        if self.gpu():
            batches = [self.on_device(*batch) for batch in batches]
        finish = self.backend.synchronize
        return trial(model.train_step, batches, reset_function(model), finish)

    def epoch(self, case: Case, material: Material) -> Trial:
        model = self.model(case, material)
        x, y = material.epoch(case)
        if self.gpu():
            x, _ = self.on_device(x, y)

        def repeat(count: int) -> None:
            model.fit(x, y, epochs=count, batch_size=case.batch, verbose=0)

        return Trial(repeat, 0, 0, EPOCH_BATCHES, reset_function(model))

    def driven_values(self, case: Case, material: Material) -> list[float]:
        model = self.model(case, material, dropout=False)
        return driven_values_of(model, case, material)

    def driven(self, case: Case, material: Material) -> Trial:
        model, batches = self.model(case, material), driven_batches(case)
        if self.gpu():
            batches = [self.on_device(*batch) for batch in batches]
        finish = self.backend.synchronize
        return trial(partial(drive, model), batches, reset_function(model), finish)

    def own_loss_values(self, case: Case, material: Material) -> list[float]:
        return losses_of(self._with_own_loss(case, material, dropout=False), case, material)

    def own_loss(self, case: Case, material: Material) -> Trial:
        model = self._with_own_loss(case, material)
        finish = self.backend.synchronize
        return trial(model.train_step, material.batches(case), reset_function(model), finish)

    def _with_own_loss(self, case: Case, material: Material, dropout: bool = True) -> nn.Sequential:
        model = self.model(case, material, dropout)
        model.compile(own_squared_error, OPTIMIZERS[case.optimizer]())
        return model

    def gradient_values(self, case: Case, material: Material) -> list[float]:
        return gradient_values_of(self.model(case, material, dropout=False), case, material)

    def gradient(self, case: Case, material: Material) -> Trial:
        return trial(self.model(case, material).gradient, material.batches(case))

    def inference(self, case: Case, material: Material) -> Trial:
        model = self.model(case, material)
        return trial(model, [(x,) for x in material.single_rows()])

    def predict(self, case: Case, material: Material) -> Trial:
        model = self.model(case, material)
        return trial(model.predict, [(material.x,)])
