"""The floor: nothing but the matrix products of the work, by NumPy's BLAS into ready arrays."""

from __future__ import annotations

import numpy as np

from nnbackend.benchmark.cases import EPOCH_BATCHES, Case
from nnbackend.benchmark.operations import Trial
from peers.system import PREDICT_BLOCK, Material, System, trial


class Products(System):
    """Forward, dw and dx products of every dense layer; no dx for the first layer, whose input
    needs no gradient. Nothing to compare: no loss, no update."""

    packages = ("numpy",)

    def losses(self, case: Case, material: Material) -> list[float]:
        return []

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        return np.empty(0)

    def step(self, case: Case, material: Material) -> Trial:
        weights = [w for w, _ in material.weights]
        transposed = [w.T for w in weights]
        rng = np.random.default_rng(0)
        outputs = [np.empty((case.batch, w.shape[1]), np.float32) for w in weights]
        deltas = [rng.standard_normal(y.shape, np.float32) for y in outputs]
        gradients = [np.empty_like(w) for w in weights]
        last = len(weights) - 1

        def products(x: np.ndarray) -> None:
            inputs = [x, *outputs[:-1]]
            for k, w in enumerate(weights):
                np.matmul(inputs[k], w, outputs[k])
            for k in range(last, -1, -1):
                np.matmul(inputs[k].T, deltas[k], gradients[k])
                if k:
                    np.matmul(deltas[k], transposed[k], deltas[k - 1])

        return trial(products, [(x,) for x, _ in material.batches(case)])

    def epoch(self, case: Case, material: Material) -> Trial:
        step = self.step(case, material)
        return Trial(lambda count: step.repeat(count * EPOCH_BATCHES), 0, 0, EPOCH_BATCHES)

    def inference(self, case: Case, material: Material) -> Trial:
        return self._forward(material, 1, [(x,) for x in material.single_rows()])

    def predict(self, case: Case, material: Material) -> Trial:
        rows = len(material.x)
        blocks = [material.x[k : k + PREDICT_BLOCK] for k in range(0, rows, PREDICT_BLOCK)]
        in_blocks = self._forward(material, PREDICT_BLOCK, [(x,) for x in blocks])
        return self.fastest(
            {
                "whole": self._forward(material, rows, [(material.x,)]),
                "in blocks": Trial(lambda count: in_blocks.repeat(count * len(blocks)), 0, 0),
            }
        )

    def _forward(self, material: Material, rows: int, inputs: list[tuple[np.ndarray]]) -> Trial:
        weights = [w for w, _ in material.weights]
        outputs = [np.empty((rows, w.shape[1]), np.float32) for w in weights]

        def products(x: np.ndarray) -> None:
            for w, out in zip(weights, outputs, strict=True):
                np.matmul(x, w, out)
                x = out

        return trial(products, inputs)
