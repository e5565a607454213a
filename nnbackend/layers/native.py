"""Layers that backends have formulas for."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from nnbackend._checks import declares_all
from nnbackend._names import LAYER_ATTRIBUTES, answer_names_of_others
from nnbackend._settings import Fixed
from nnbackend.backends.types import LINEAR, Activation, DType
from nnbackend.kernels.codes import Op
from nnbackend.layers.base import Layer

T = TypeVar("T")
#: How what a layer is made of is changed.
NEW_LAYER = "make a new layer, and give it the parameters, as in new.weight = old.weight"


class FixedInLayer(Fixed[T]):
    """What a layer's shape and formula are made of."""

    made = "specs"

    def __init__(self, remedy: str = NEW_LAYER) -> None:
        super().__init__(remedy)


class NativeLayer(Layer):
    """A layer that backends have formulas for: it declares a row of a program's table.

    Attributes:
        op: what the row does.
        activation: of the row; LINEAR if there is none.
    """

    op: ClassVar[Op]
    activation: Activation = LINEAR
    n_inputs = FixedInLayer[int | None]()
    n_outputs = FixedInLayer[int | None]()
    dtype = FixedInLayer[DType](
        "it is the model's, nn.Sequential(layers, dtype=...), or a layer's by itself, as in "
        "nn.Dense(2, 3, dtype=...)"
    )

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in LAYER_ATTRIBUTES]

    @property
    def declaration(self) -> NativeLayer | None:
        return self if declares_all(type(self), "op", ("forward", "backward")) else None

    @property
    def row_floats(self) -> tuple[float, ...]:
        """The row's numbers, at most N_FLOATS: rates, penalties, constants."""
        return ()

    def saved_width(self, width: int) -> int:
        """Elements that a training step keeps for the backward pass besides the output, for
        each row of the batch; ``width`` is the layer's number of outputs."""
        return 0


answer_names_of_others(NativeLayer, LAYER_ATTRIBUTES)
