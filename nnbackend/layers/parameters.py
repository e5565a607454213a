"""How a layer declares what it learns: ``weight = Parameter()``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from nnbackend._checks import check_real, real_array
from nnbackend.backends.types import Array
from nnbackend.errors import DataError, ShapeError
from nnbackend.initializers import InitializerLike

#: "weight" is trained and decayed, "bias" trained and not decayed, "state" only saved.
ParameterKind = Literal["weight", "bias", "state"]


class ParameterSpec(NamedTuple):
    """One declared array of a layer."""

    shape: tuple[int, ...]
    initializer: InitializerLike
    kind: ParameterKind


class HasArrays(Protocol):
    """What a parameter needs of its layer."""

    def array(self, name: str) -> Array | None: ...

    def gradient(self, name: str) -> Array | None: ...

    def assign(self, name: str, value: Any) -> None: ...


class Parameter:
    """Class attribute for a parameter: reading gives the current view, assigning copies.

    Declaring ``factor = Parameter()`` also gives the layer ``factor_grad``.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        setattr(owner, f"{name}_grad", Gradient(name))

    def __get__(self, layer: HasArrays | None, owner: type | None = None) -> Any:
        return self if layer is None else layer.array(self.name)

    def __set__(self, layer: HasArrays, value: Any) -> None:
        layer.assign(self.name, value)


class Gradient:
    """Class attribute for the gradient of the parameter ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: HasArrays | None, owner: type | None = None) -> Any:
        return self if layer is None else layer.gradient(self.name)

    def __set__(self, layer: HasArrays, value: Any) -> None:
        gradient = layer.gradient(self.name)
        if gradient is None:
            raise DataError(f"this {type(layer).__name__} has no {self.name}")
        what = f"{type(layer).__name__}.{self.name}_grad"
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
        value = value if is_array else real_array(what, value)
        check_real(what, value.dtype)
        if value.shape not in (gradient.shape, (1, *gradient.shape)):
            raise ShapeError(
                f"{what} has shape {tuple(gradient.shape)}; received {tuple(value.shape)}"
            )
        gradient[...] = value.reshape(gradient.shape)


def check_no_inner_layer(layer: Any, others: Sequence[Any]) -> None:
    """Refuse a layer that has one with arrays among its attributes, and none of ``others``."""
    known = {id(other) for other in others}
    for name, value in vars(layer).items():
        for part in _parts(value):
            has_arrays = hasattr(part, "add_parameter") and getattr(part, "specs", None)
            if has_arrays and id(part) not in known:
                what = type(layer).__name__
                raise DataError(
                    f"{what}.{name} holds a layer with arrays of its own, which a model would "
                    f"neither train nor save: declare them with add_parameter of {what}, or put "
                    f"that layer into the model itself"
                )


def _parts(value: Any, depth: int = 3) -> Iterator[Any]:
    """What a value is, or holds, also in lists of lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if depth and isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _parts(part, depth - 1)
    else:
        yield value
