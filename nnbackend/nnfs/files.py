"""Model files of the book, which are pickles: only its classes and NumPy's arrays come out."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

from nnbackend.errors import CheckpointError

#: What a pickled array asks for, by the names of NumPy 1 and 2.
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"),
                             ("numeric", "_frombuffer"))
    ),
}  # fmt: skip
#: What makes an object of a class.
_MAKERS = {("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"),
           ("builtins", "object"), ("__builtin__", "object")}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, classes: Mapping[str, type]) -> None:
        super().__init__(file)
        self.classes = classes

    def find_class(self, module: str, name: str) -> Any:
        # wherever the book's classes were defined when the file was written: that is not imported
        if name in self.classes:
            return self.classes[name]
        if (module, name) in _NUMPY | _MAKERS:
            return super().find_class(module, name)
        raise CheckpointError(
            f"the file asks for {module}.{name}, which is neither a class of the book nor a NumPy "
            f"array, so it is not loaded: a pickle can run any program"
        )


def load(path: Any, classes: Mapping[str, type]) -> Any:
    """What a file holds.

    Args:
        classes: those that may come out of it, by name.

    Raises:
        CheckpointError: it asks for anything else, or is no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _Unpickler(file, classes).load()
        except CheckpointError:
            raise
        except Exception as error:  # of a file that is damaged, or made to be
            raise CheckpointError(
                f"{path} is no model file of the book: {type(error).__name__}: {error}"
            ) from error


def save(path: Any, what: Any) -> None:
    from nnbackend._files import write_atomically

    write_atomically(path, pickle.dumps(what))
