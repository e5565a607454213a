"""Layers, one file for each kind."""

from nnbackend.layers.activations import (
    ELU,
    GELU,
    ActivationLayer,
    Exponential,
    GELUTanh,
    LeakyReLU,
    Linear,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from nnbackend.layers.base import Layer
from nnbackend.layers.dense import Dense
from nnbackend.layers.dropout import Dropout
from nnbackend.layers.embedding import Embedding
from nnbackend.layers.normalization import BatchNorm, LayerNorm
from nnbackend.layers.parameters import Gradient, Parameter
from nnbackend.layers.standardize import Standardize

#: Built-in layers by the names that model files have for them.
LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (
        Dense, Embedding, Dropout, BatchNorm, LayerNorm, Standardize, Linear, ReLU, LeakyReLU,
        ELU, GELU, GELUTanh, SiLU, Sigmoid, Tanh, Softplus, Exponential, Softmax, Mish,
    )
}  # fmt: skip

__all__ = [
    "ELU",
    "GELU",
    "LAYERS",
    "ActivationLayer",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Embedding",
    "Exponential",
    "GELUTanh",
    "Gradient",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Mish",
    "Parameter",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Standardize",
    "Tanh",
]
