"""A user's own notes, ``model.info``, as JSON holds them: what comes back is what was put in."""

from __future__ import annotations

from typing import Any

from nnbackend.errors import DTypeError, shown

#: Objects of JSON with this one key are dicts whose keys are not all text, and tuples.
_ITEMS, _TUPLE = "nnbackend:items", "nnbackend:tuple"
_MARKS = (_ITEMS, _TUPLE)


def to_json(value: Any) -> Any:
    """``value`` with dicts and tuples that JSON lacks written as objects with a mark."""
    if isinstance(value, dict):
        plain = {key: to_json(item) for key, item in value.items()}
        if all(isinstance(key, str) for key in plain) and not (
            len(plain) == 1 and next(iter(plain)) in _MARKS
        ):
            return plain
        for key in plain:
            if not isinstance(key, str | int | float | bool | None):
                raise DTypeError(
                    f"a model file holds dicts whose keys are text or numbers; received the key "
                    f"{shown(key)}"
                )
        return {_ITEMS: [[key, item] for key, item in plain.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [to_json(item) for item in value]}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    return value


def from_json(value: Any) -> Any:
    """What ``to_json`` was given."""
    if isinstance(value, dict):
        if len(value) == 1:
            mark, content = next(iter(value.items()))
            if mark == _TUPLE:
                return tuple(from_json(item) for item in content)
            if mark == _ITEMS:
                return {key: from_json(item) for key, item in content}
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value
