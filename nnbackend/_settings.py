"""Attributes that may not be assigned just like that: they are checked, or refused with a remedy.

None has a ``__get__``: what is read lies in the object's own dict, as quick as any attribute.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from nnbackend._checks import check_number

T = TypeVar("T")


class Fixed(Generic[T]):
    """Class attribute for what an object sets itself while it is made, with ``fix``. Whoever
    assigns another value later is told what to do instead; a layer written in Python may do as it
    likes.

    Attributes:
        made: an attribute that an object has as soon as it is made.
    """

    made: ClassVar[str]

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        def __get__(self, holder: object, owner: type) -> T: ...

    def __set__(self, holder: Any, value: T) -> None:
        own = vars(holder)
        is_made = self.made in own and getattr(holder, "declaration", holder) is not None
        if is_made and not self._is(own.get(self.name), value):
            raise AttributeError(
                f"{type(holder).__name__}.{self.name} cannot be assigned: {self.remedy}",
                name=self.name, obj=holder,
            )  # fmt: skip
        own[self.name] = value

    @staticmethod
    def _is(old: object, new: object) -> bool:
        """Whether nothing would change."""
        return old is new or (isinstance(new, int | str | tuple) and old == new)


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
        number, own = check_number(what, value, self.low, self.high, **self.open), vars(layer)
        model = layer.owner if own.get("_owner") is not None else None
        if model is None:
            own[self.name] = number
        elif own[self.name] != number:
            model.change_number(layer, self.name, number)


class FixedList(list[T]):
    """A list that is read: whoever adds to it is told what to do instead."""

    remedy = ""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise AttributeError(f"this list stays as it is: {self.remedy}")

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> Any:
        return type(self), (list(self),)
