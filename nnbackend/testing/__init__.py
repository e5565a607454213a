"""For tests: the conformance suite of the backend contract, and gradient checks.

>>> from nnbackend import get_backend
>>> from nnbackend.testing import check_backend
>>> check_backend(get_backend("numpy"))
"""

from typing import TYPE_CHECKING, Any

from nnbackend.testing.conformance import CHECKS, check_backend
from nnbackend.testing.gradients import check_layer_gradients, directional_error, gradient_error

if TYPE_CHECKING:
    from nnbackend.testing.suite import BackendConformance

__all__ = [
    "CHECKS",
    "BackendConformance",
    "check_backend",
    "check_layer_gradients",
    "directional_error",
    "gradient_error",
]


def __getattr__(name: str) -> Any:
    """``BackendConformance`` needs pytest, the others do not."""
    if name != "BackendConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnbackend.testing.suite import BackendConformance

    return BackendConformance
