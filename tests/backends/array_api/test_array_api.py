"""The backend over the array API standard, on a library that has the standard and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from nnbackend.backends.array_api import ArrayApiBackend
from nnbackend.backends.types import Availability
from nnbackend.testing import BackendConformance

strict = pytest.importorskip("array_api_strict")
Array = type(strict.zeros(1))


class StrictBackend(ArrayApiBackend):
    name = "strict"
    xp = strict

    def __init__(self, index=None):
        place = strict.Device("CPU_DEVICE" if index is None else index)
        super().__init__(index, place, strict.Device("CPU_DEVICE"))
        if index == "no_float64":
            self.dtypes = ("float32",)

    @classmethod
    def is_available(cls):
        return Availability(True, devices=("strict", "strict:device1", "strict:no_float64"))

    def owns(self, x):
        return isinstance(x, Array) and x.device in (self.place, self.host)

    def to_numpy(self, x):
        return np.asarray(x.to_device(self.host))

    def synchronize(self):
        pass


@pytest.fixture(autouse=True)
def _what_the_contract_asks_for_beside_the_standard(monkeypatch):
    """``len(a)``, ``a.reshape(shape)``, and ``a[i:j]`` where there are more axes."""

    def reshape(array, *shape):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        return strict.reshape(array, shape, copy=False)

    def all_axes(array, key):
        key = key if isinstance(key, tuple) else (key,)
        open_ended = any(part is Ellipsis for part in key) or len(key) >= array.ndim
        return key if open_ended else (*key, ...)

    get, put = Array.__getitem__, Array.__setitem__
    monkeypatch.setattr(Array, "__getitem__", lambda a, key: get(a, all_axes(a, key)))
    monkeypatch.setattr(Array, "__setitem__", lambda a, key, x: put(a, all_axes(a, key), x))
    monkeypatch.setattr(Array, "__len__", lambda a: a.shape[0], raising=False)
    monkeypatch.setattr(Array, "reshape", reshape, raising=False)
    with np.errstate(all="ignore"):  # it is NumPy inside
        yield


@pytest.mark.slow  # what is fast is in docs/own-backend.md
@pytest.mark.parametrize("place", ["CPU_DEVICE", "device1", "no_float64"])
class TestStandard(BackendConformance):
    """In the memory of the host, on a device, and on one that has no float64, as Apple's have."""

    @pytest.fixture
    def backend(self, place):
        return StrictBackend(place)
