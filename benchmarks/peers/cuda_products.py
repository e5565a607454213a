"""The floor on a GPU: nothing but the matrix products of the work, by cuBLASLt, as a CUDA graph."""

from __future__ import annotations

import numpy as np

import nnbackend as nn
from nnbackend.backends._cuda_products import Product
from nnbackend.backends.cuda_backend import CudaBackend
from nnbackend.bench import EPOCH_BATCHES, Case, Trial
from peers.system import Material, System

FLOAT32 = np.dtype(np.float32)


def products_of(
    gpu_backend: CudaBackend,
    shapes: list[tuple[int, int]],
    rows: int,
    operand: np.dtype[np.generic] = FLOAT32,
    tf32: bool = False,
) -> list[Product]:
    """Forward, dw and dx products of dense layers (I, O), with no dx for the first one. Operands
    are of dtype ``operand``, uint16 for bfloat16; weight gradients are float32."""
    zeros, last = gpu_backend.zeros, len(shapes) - 1
    widths = [shapes[0][0], *(outputs for _, outputs in shapes)]
    values = [zeros((rows, width), operand) for width in widths]
    deltas = [zeros((rows, width), operand) for width in widths]
    weights = [zeros(shape, operand) for shape in shapes]
    gradients = [zeros(shape, FLOAT32) for shape in shapes]
    found = [Product(values[k], weights[k], values[k + 1], tf32=tf32) for k in range(len(shapes))]
    for k in range(last, -1, -1):
        found.append(Product(values[k], deltas[k + 1], gradients[k], a_t=True, tf32=tf32))
        if k:
            found.append(Product(deltas[k + 1], weights[k], deltas[k], b_t=True, tf32=tf32))
    return found


class CudaProducts(System):
    def __init__(self, backend: str | CudaBackend = "cuda") -> None:
        super().__init__()
        found = nn.get_backend(backend)
        if not isinstance(found, CudaBackend):
            raise TypeError(f"these are products on a GPU; received {found}")
        self.backend = found

    def losses(self, case: Case, material: Material) -> list[float]:
        return []

    def step(self, case: Case, material: Material) -> Trial:
        gpu = self.backend.gpu
        shapes = [w.shape for w, _ in material.weights]
        tf32 = self.precision == "tf32"
        products = products_of(self.backend, shapes, case.batch, FLOAT32, tf32)

        def work() -> None:
            for product in products:
                gpu.product(product)

        work()  # algorithms are chosen before the capture
        replay = gpu.capture(work)

        def repeat(count: int) -> None:
            for _ in range(count):
                replay()
            gpu.synchronize()

        return Trial(repeat, 0, 0)

    def epoch(self, case: Case, material: Material) -> Trial:
        step = self.step(case, material)
        return Trial(lambda count: step.repeat(count * EPOCH_BATCHES), 0, 0, EPOCH_BATCHES)
