"""Backends: the contract that they keep, the choice among them, and a folder for each."""

from nnbackend.backends.contract import Backend
from nnbackend.backends.registry import (
    available_backends,
    get_backend,
    register_backend,
    set_backend,
    use_backend,
)
from nnbackend.backends.types import Activation, Array, Availability, LossFormula, UpdateRule

__all__ = [
    "Activation",
    "Array",
    "Availability",
    "Backend",
    "LossFormula",
    "UpdateRule",
    "available_backends",
    "get_backend",
    "register_backend",
    "set_backend",
    "use_backend",
]
