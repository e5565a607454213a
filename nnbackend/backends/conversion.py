"""Users' arrays, brought to a backend's device."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend._checks import check_real, real_array
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, DType


def as_device_array(backend: Backend, x: Any, dtype: DType) -> Array:
    """``x`` on the backend's device in ``dtype``; float64, int and bool are cast.

    Raises:
        DTypeError: complex numbers, objects, text.
        DeviceError: an array on another device.
    """
    if type(x) is np.ndarray and x.dtype == dtype:
        return backend.asarray(x, dtype)
    adopted = backend.adopt(x)
    x = real_array("an array", x) if adopted is None else adopted
    check_real("an array", x.dtype if adopted is None else backend.dtype_of(x))
    return backend.asarray(x, dtype)
