"""Layers that backends have formulas for."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from nnbackend._checks import declares_all
from nnbackend._names import LAYER_ATTRIBUTES, NameOfOthers
from nnbackend._settings import Fixed
from nnbackend.backends.types import LINEAR, Activation
from nnbackend.kernels.codes import Op
from nnbackend.layers.base import Layer

T = TypeVar("T")


class FixedInLayer(Fixed[T]):
    """What a layer's shape and formula are made of."""

    made = "specs"

    def __init__(self) -> None:
        super().__init__(
            "make a new layer, and give it the parameters, as in new.weight = old.weight"
        )


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


for _name in LAYER_ATTRIBUTES:  # not by __setattr__, which every attribute would pay for
    setattr(NativeLayer, _name, NameOfOthers(_name))
