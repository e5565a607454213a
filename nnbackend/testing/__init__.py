"""For tests: the conformance suite of the backend contract, and gradient checks.

>>> from nnbackend import get_backend
>>> from nnbackend.testing import check_backend
>>> check_backend(get_backend("numpy"))
"""

from nnbackend.testing.conformance import CHECKS, check_backend
from nnbackend.testing.gradients import check_layer_gradients, directional_error, gradient_error

__all__ = [
    "CHECKS",
    "check_backend",
    "check_layer_gradients",
    "directional_error",
    "gradient_error",
]
