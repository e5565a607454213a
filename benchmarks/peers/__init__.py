"""The systems that ``benchmarks/compare.py`` measures, each in a worker process of its own."""

from __future__ import annotations

from typing import NamedTuple


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


#: "products" is the floor, "numba" and "numpy" are ours, the others are the peers.
SYSTEMS = {
    "products": Entry("peers.products:Products"),
    "numba": Entry("peers.ours:Ours", ("numba",), 'pip install "nnbackend[numba]"'),
    "numpy": Entry("peers.ours:Ours", ("numpy",)),
    "torch": Entry("peers.torch_eager:TorchEager", install="pip install torch==2.13.0"),
    "torch-compiled": Entry(
        "peers.torch_compiled:TorchCompiled", install="pip install torch==2.13.0"
    ),
    "jax": Entry("peers.jax_jit:Jax", install="pip install jax"),
    "scikit-learn": Entry("peers.scikit:ScikitLearn", install="pip install scikit-learn"),
    "onnxruntime": Entry("peers.onnx_runtime:OnnxRuntime", install="pip install onnx onnxruntime"),
}
FLOOR = "products"
OURS = ("numba", "numpy")
PEERS = tuple(name for name in SYSTEMS if name != FLOOR and name not in OURS)
