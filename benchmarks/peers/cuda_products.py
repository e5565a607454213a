"""The floor on a GPU: nothing but the matrix products of the work, by cuBLASLt, as a CUDA graph.
They follow each other; a step that runs some beside others can be below it where they are small.
"""

from __future__ import annotations

import numpy as np

import nnbackend as nn
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.gemm import Product
from nnbackend.backends.types import Array
from nnbackend.benchmark.cases import EPOCH_BATCHES, Case
from nnbackend.benchmark.operations import Trial
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
    are of dtype ``operand``, uint16 for bfloat16; weight gradients are float32. All numbers are
    about 1, and stay so: a GPU multiplies zeros with less power, and so faster."""
    rng, last = np.random.default_rng(0), len(shapes) - 1

    def normal(shape: tuple[int, int], scale: float = 1.0) -> Array:
        numbers = rng.standard_normal(shape, np.float32) * np.float32(scale)
        real = gpu_backend.asarray(numbers, FLOAT32)
        if operand == FLOAT32:
            return real
        bf16 = gpu_backend.zeros(shape, operand)
        gpu_backend.round_to_bf16(real, bf16)
        return bf16

    widths = [shapes[0][0], *(outputs for _, outputs in shapes)]
    values = [normal((rows, width)) for width in widths]
    deltas = [normal((rows, width)) for width in widths]
    weights = [normal(shape, shape[0] ** -0.5) for shape in shapes]
    gradients = [gpu_backend.zeros(shape, FLOAT32) for shape in shapes]
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
