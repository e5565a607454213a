"""Model files of the book, which are pickles, read without running them.

A pickle is a program that may call anything. Its instructions are followed here only as far as they
describe data: numbers, text, lists, dicts, NumPy's arrays, and objects of known classes.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np

from nnbackend._checks import check_path
from nnbackend._files import existing_file, write_atomically
from nnbackend.errors import CheckpointError

#: NumPy's modules, by the names of versions 1 and 2.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_COLLECTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple, "LIST": list, "DICT": lambda items: _dict_of(items),
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()
#: Arrays are copied from text, which is copied from text: so many times what the file holds.
_COPIES, _SPARE = 8, 1 << 20
#: Of an array, as NumPy has it.
MOST_AXES = 64


class _Name:
    """A class or function that a pickle asks for."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    @property
    def refusal(self) -> CheckpointError:
        return CheckpointError(
            f"the file asks for {self.module}.{self.name}, which is neither a class of the book "
            f"nor a NumPy array, so it is not loaded: a pickle can run any program. A class of "
            f"your own goes into Model.load(path, custom_objects={{{self.name!r}: {self.name}}})"
        )


class _Object:
    """An object of a class with that name, and its attributes."""

    def __init__(self, name: _Name) -> None:
        self.name, self.state = name, dict[str, Any]()


class _Type:
    """A dtype; the order of its bytes comes after it."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "fiub" or self.dtype.fields or self.dtype.subdtype:
            raise CheckpointError(f"the file holds an array of {code}, which is no number")


class _Array:
    """An array whose contents come after it."""

    array: np.ndarray[Any, Any]


class _Machine:
    """The stack that a pickle's instructions work on."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.spare = 0  #: bytes of arrays and text that may still be made
        self.memo: dict[int, Any] = {}
        self.objects: list[_Object] = []

    def follow(self, content: bytes) -> Any:
        """What the instructions describe."""
        self.spare = _SPARE + _COPIES * len(content)
        for opcode, argument, _ in pickletools.genops(BytesIO(content)):
            if opcode.name == "STOP":
                (result,) = self.stack
                return result
            self._do(opcode.name, argument)
        raise ValueError("it does not end")

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in _COLLECTIONS:
            items = self._to_mark()
            stack.append(_COLLECTIONS[name](items))
        elif name in ("APPEND", "APPENDS"):
            items = self._to_mark() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(_dict_of(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            own, module = stack.pop(), stack.pop()
            stack.append(_Name(_expect(module, str), _expect(own, str)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name)
            stack.append(self._made(called, arguments, name == "NEWOBJ"))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state, self._take)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has an instruction {name}")

    def _to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _made(self, called: _Name, arguments: tuple[Any, ...], is_new: bool) -> Any:
        """What a call would make."""
        place = called.module, called.name
        if is_new and not arguments:
            return self._object(called)
        if place in (("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")):
            kind, base, state = arguments
            if (_expect(base, _Name).name, state) == ("object", None):
                return self._object(_expect(kind, _Name))
        if called.module in _MULTIARRAY and called.name == "_reconstruct":
            kind = _expect(arguments[0], _Name)
            if (kind.module, kind.name) != ("numpy", "ndarray"):
                raise kind.refusal
            return _Array()
        if place == ("numpy", "dtype"):
            return _Type(_expect(arguments[0], str))
        if called.module in _MULTIARRAY and called.name == "scalar":
            kind, content = arguments
            self._take(len(content))
            return np.frombuffer(_expect(content, bytes), _expect(kind, _Type).dtype, 1)[0]
        if called.module in _NUMERIC and called.name == "_frombuffer":
            content, kind, shape, order = arguments
            self._take(len(content))
            return _array(content, _expect(kind, _Type).dtype, shape, order == "F")
        if place == ("_codecs", "encode") and arguments[1:] == ("latin1",):
            self._take(len(_expect(arguments[0], str)))
            return arguments[0].encode("latin1")
        raise called.refusal

    def _take(self, size: int) -> None:
        """What a file holds once it may not ask for again and again."""
        self.spare -= size
        if self.spare < 0:
            raise ValueError("its arrays take more memory than the file has contents for")

    def _object(self, name: _Name) -> _Object:
        self.objects.append(_Object(name))
        return self.objects[-1]


def _build(what: Any, state: Any, take: Callable[[int], None]) -> None:
    """Fill in what was made."""
    if isinstance(what, _Object):
        for name, value in _expect(state, dict).items():
            if not _expect(name, str).isidentifier() or name.startswith("_"):
                raise ValueError(f"it has an attribute {name!r}")
            what.state[name] = value
    elif isinstance(what, _Type):
        if state[1] != "|":
            what.dtype = what.dtype.newbyteorder(_expect(state[1], str))
    else:
        _, shape, kind, is_fortran, content = state
        take(len(content))
        _expect(what, _Array).array = _array(content, _expect(kind, _Type).dtype, shape, is_fortran)


def _array(content: Any, dtype: np.dtype[Any], shape: Any, is_fortran: bool) -> Any:
    sizes = [_expect(size, int) for size in _expect(shape, tuple)]
    if len(sizes) > MOST_AXES or any(not 0 <= size < 1 << 63 for size in sizes):
        raise ValueError("it has an array of a shape that no array has")
    if len(content) != math.prod(sizes) * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    flat = np.frombuffer(_expect(content, bytes, bytearray), dtype)
    found = flat.reshape(sizes, order="F" if is_fortran else "C")
    return found.astype(dtype.newbyteorder("="))


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    for key in items[::2]:  # a tuple of tuples of the same tuple takes for ever to be looked up
        _expect(key, str, bytes, int, float, type(None))
    return dict(zip(items[::2], items[1::2], strict=True))


def _expect(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise ValueError(f"it has {type(value).__name__} where there must be {kinds[0].__name__}")
    return value


def read(content: bytes, classes: Mapping[str, type]) -> Any:
    """What a pickle describes; objects of ``classes``, wherever those were defined when it was
    written.

    Raises:
        CheckpointError: it asks for anything else, which the message names.
    """
    machine = _Machine()
    described = machine.follow(content)
    made: dict[int, Any] = {}
    for described_object in machine.objects:
        kind: Any = classes.get(described_object.name.name)
        if kind is None:
            raise described_object.name.refusal
        made[id(described_object)] = kind.__new__(kind)
    for described_object in machine.objects:
        state = {name: _real(value, made) for name, value in described_object.state.items()}
        own = made[id(described_object)]
        if hasattr(own, "__setstate__"):
            own.__setstate__(state)
        else:
            own.__dict__.update(state)
    return _real(described, made)


def _real(value: Any, made: dict[int, Any]) -> Any:
    """With the objects in place of their descriptions; shared parts stay shared."""
    if isinstance(value, _Name):
        raise value.refusal
    if isinstance(value, _Array):
        return value.array
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, list):
        made[id(value)] = found = list[Any]()
        found.extend(_real(item, made) for item in value)
        return found
    if isinstance(value, dict):
        made[id(value)] = pairs = dict[Any, Any]()
        pairs.update((_real(key, made), _real(item, made)) for key, item in value.items())
        return pairs
    if isinstance(value, tuple):
        made[id(value)] = items = tuple(_real(item, made) for item in value)
        return items
    return value


def load(path: Any, classes: Mapping[str, type]) -> Any:
    """What a file holds; see ``read``.

    Raises:
        CheckpointError: it asks for anything but ``classes`` and arrays, or is damaged.
    """
    content = existing_file(path).read_bytes()
    try:
        return read(content, classes)
    except CheckpointError:
        raise
    except Exception as error:  # of a file that is damaged, or made to be
        raise CheckpointError(
            f"{path} is no model file of the book: {type(error).__name__}: {error}"
        ) from error


def save(path: Any, what: Any, classes: Mapping[str, type]) -> None:
    """Write a file that ``load`` can read with these classes."""
    path = check_path("path", path)
    content = pickle.dumps(what)
    read(content, classes)
    write_atomically(path, content)


def classes_in(*objects: Any) -> Iterator[type]:
    """Classes of objects, without those of Python itself."""
    for kind in {type(value) for value in objects}:
        if kind.__module__ not in ("builtins", "numpy"):
            yield kind
