"""Attributes that may not be assigned just like that: they are checked, or refused with a remedy.

None has a ``__get__``: what is read lies in the object's own dict, as quick as any attribute.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nnbackend._checks import check_number

T = TypeVar("T")


class Fixed(Generic[T]):
    """Class attribute for what is set once, by the object itself; ``remedy`` tells whoever assigns
    it later what to do instead. A layer written in Python may do as it likes."""

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        def __get__(self, holder: object, owner: type) -> T: ...

    def __set__(self, holder: Any, value: T) -> None:
        if self.name in vars(holder) and getattr(holder, "declaration", holder) is not None:
            raise AttributeError(
                f"{type(holder).__name__}.{self.name} cannot be assigned: {self.remedy}",
                name=self.name, obj=holder,
            )  # fmt: skip
        vars(holder)[self.name] = value


def fix(holder: object, **values: object) -> None:
    """Set what is Fixed; for the class itself."""
    vars(holder).update(values)


class Number:
    """Class attribute for a number in a layer's formula, checked whenever it is assigned. Inside a
    model, a change acts from the next step on; see ``LayerStack.change_number``."""

    def __init__(
        self,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        low_open: bool = False,
        high_open: bool = False,
    ) -> None:
        self.low, self.high = low, high
        self.open = {"low_open": low_open, "high_open": high_open}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        def __get__(self, layer: object, owner: type) -> float: ...

    def __set__(self, layer: Any, value: float) -> None:
        what = f"{type(layer).__name__}.{self.name}"
        number = check_number(what, value, self.low, self.high, **self.open)
        if layer.owner is None:
            vars(layer)[self.name] = number
        else:
            layer.owner.change_number(layer, self.name, number)
