"""The systems that ``benchmarks/compare.py`` measures, each in a worker process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

#: Kinds of measurements: training, inference, and steps in which the caller has the loss or takes
#: only the gradient.
TRAINING, INFERENCE = ("step", "epoch"), ("inference", "predict")
DRIVEN = ("driven", "own-loss", "gradient")
TORCH, TORCH_CUDA = "pip install torch==2.13.0", "pip install torch"
JAX, JAX_CUDA = "pip install jax", 'pip install "jax[cuda12]"'


class Entry(NamedTuple):
    """Where a system is written, and how to get what it needs.

    Attributes:
        place: "module:class", imported in the system's own worker process only.
        arguments: of the class.
        install: the command for someone who lacks the package.
    """

    place: str
    arguments: tuple[str, ...] = ()
    install: str = ""


@dataclass(frozen=True)
class Field:
    """Systems that are measured side by side on one kind of device.

    Attributes:
        systems: by name.
        floor: the one that does nothing but the matrix products.
        ours: our backends, that which the ratios are of first.
        environment: of the workers.
    """

    device: str
    systems: Mapping[str, Entry]
    floor: str
    ours: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(n for n in self.systems if n != self.floor and n not in self.ours)


CPU = Field(
    "cpu",
    {
        "products": Entry("peers.products:Products"),
        "numba": Entry("peers.ours:Ours", ("numba",), 'pip install "nnbackend[numba]"'),
        "numpy": Entry("peers.ours:Ours", ("numpy",)),
        "torch": Entry("peers.torch_eager:TorchEager", install=TORCH),
        "torch-compiled": Entry("peers.torch_compiled:TorchCompiled", install=TORCH),
        "jax": Entry("peers.jax_jit:Jax", install=JAX),
        "scikit-learn": Entry("peers.scikit:ScikitLearn", install="pip install scikit-learn"),
        "onnxruntime": Entry(
            "peers.onnx_runtime:OnnxRuntime", install="pip install onnx onnxruntime"
        ),
    },
    floor="products",
    ours=("numba", "numpy"),
    environment={"JAX_PLATFORMS": "cpu"},
)
CUDA = Field(
    "cuda",
    {
        "cuda-products": Entry("peers.cuda_products:CudaProducts"),
        "cuda": Entry("peers.ours:Ours", ("cuda",), 'pip install "nnbackend[cuda12]"'),
        "torch-cuda": Entry("peers.torch_eager:TorchEager", ("cuda",), TORCH_CUDA),
        "torch-reduce-overhead": Entry("peers.torch_compiled:TorchCompiled", ("cuda",), TORCH_CUDA),
        "torch-graph": Entry("peers.torch_graph:TorchGraph", install=TORCH_CUDA),
        "jax-cuda": Entry("peers.jax_jit:Jax", ("cuda",), JAX_CUDA),
    },
    floor="cuda-products",
    ours=("cuda",),
    # every worker keeps its context: none may take all of the memory
    environment={"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
)
FIELDS = {field.device: field for field in (CPU, CUDA)}
SYSTEMS = {**CPU.systems, **CUDA.systems}
#: How exactly float32 numbers are multiplied, where a GPU gives a choice; the same for all.
PRECISION_VARIABLE = "NN_COMPARE_PRECISION"
