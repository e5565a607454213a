"""Learnt vectors for categories."""

from __future__ import annotations

from typing import Any

from nnbackend._checks import check_size
from nnbackend._settings import fix
from nnbackend.backends.types import Array
from nnbackend.errors import ShapeError
from nnbackend.initializers import InitializerLike, initializer_config, resolve_initializer
from nnbackend.kernels.codes import Op
from nnbackend.layers.native import FixedInLayer, NativeLayer
from nnbackend.layers.parameters import Parameter


class Embedding(NativeLayer):
    """The first column holds numbers of categories, and is replaced by the category's row of
    ``weight``, behind the other columns: y = [x_2 ... x_I, weight[x_1]].

    A layer for each column of categories, one after the other, takes the columns in their order;
    what they learn stands in that order behind the columns of numbers. It is what a dense layer
    does with a column for each category, without making them. Numbers are rounded; one that
    is no category then (below 0, ``n_categories`` or more) gives NaN.

    Args:
        n_inputs: I, the column of categories included.
        n_categories: K; categories are 0 ... K - 1.
        width: D, numbers for each.
        weight_init: as in ``Dense``.
        trainable, seed, dtype: see ``Layer``.

    Attributes:
        weight: (K, D).
        weight_grad: from the last backward pass, of the same shape.
    """

    op = Op.EMBEDDING
    transient = ("_x", "_y")
    weight = Parameter()
    weight_grad: Any
    n_categories, width = (FixedInLayer[int]() for _ in range(2))
    weight_init = FixedInLayer[InitializerLike]()

    def __init__(
        self,
        n_inputs: int,
        n_categories: int,
        width: int,
        weight_init: InitializerLike = "glorot_uniform",
        trainable: bool = True,
        *,
        seed: int | None = None,
        dtype: str = "float32",
    ) -> None:
        fix(
            self,
            n_categories=check_size("Embedding.n_categories", n_categories),
            width=check_size("Embedding.width", width),
            weight_init=weight_init,
        )
        if self.n_categories > 1 << 23:
            raise ShapeError(
                f"Embedding.n_categories must be at most {1 << 23:,}, up to which float32 can be "
                f"rounded to whole numbers; received {n_categories:,}"
            )
        inputs = check_size("Embedding.n_inputs", n_inputs)
        super().__init__(
            inputs, inputs - 1 + self.width, trainable=trainable, seed=seed, dtype=dtype
        )
        resolve_initializer(weight_init)
        self.add_parameter("weight", (self.n_categories, self.width), weight_init)
        self._x: Array | None = None
        self._y: Array | None = None

    @property
    def row_floats(self) -> tuple[float, ...]:
        """n_categories."""
        return (float(self.n_categories),)

    def config(self) -> dict[str, Any]:
        return {
            "n_inputs": self.n_inputs,
            "n_categories": self.n_categories,
            "width": self.width,
            "weight_init": initializer_config(self.weight_init),
            "trainable": self.trainable,
        }

    def forward(self, x: Any, training: bool = False) -> Array:
        x = self._input(x)
        y = self.backend.empty((len(x), int(self.n_outputs or 0)), self.dtype)
        self.backend.embedding_forward(x, self.array("weight"), y)
        self._x, self._y = x, y
        return y

    def backward(self, dy: Any) -> Array:
        dy = self._output_gradient(dy, self._y)
        x = self._unchanged(self._x, len(dy))
        dx = self.backend.empty(x.shape, self.dtype)
        self.backend.embedding_backward(dy, x, self.gradient("weight"), dx)
        return dx
