"""What every check of the conformance suite uses: inputs, poisoned outputs, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array

Check = Callable[["Case"], None]
#: Largest error allowed, relative to the size of the values, by dtype.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


class Case:
    """A backend, a dtype and a generator, with the helpers that every check uses."""

    def __init__(self, backend: Backend, dtype: Any, seed: int) -> None:
        self.backend, self.dtype = backend, np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self._inputs: list[tuple[Array, HostArray]] = []

    def normal(self, *shape: int) -> HostArray:
        """Standard normal numbers that are exact in the dtype."""
        return self.rng.normal(size=shape).astype(self.dtype)

    def put(self, values: HostArray, dtype: Any = None) -> Array:
        """An input on the device, remembered to be checked for changes."""
        kept = np.array(values, dtype=dtype or self.dtype)
        device = self.backend.zeros(kept.shape, kept.dtype)
        device[...] = self.backend.asarray(kept, kept.dtype)
        self._inputs.append((device, kept))
        return device

    def state(self, values: HostArray) -> Array:
        """An array that the operation may change."""
        device = self.backend.zeros(values.shape, self.dtype)
        device[...] = self.backend.asarray(values, self.dtype)
        return device

    def poisoned(self, *shape: int, dtype: Any = None) -> Array:
        """An output full of NaN (or of large numbers)."""
        kind = np.dtype(dtype or self.dtype)
        out = self.backend.zeros(shape, kind)
        out[...] = np.nan if kind.kind == "f" else np.iinfo(kind).max
        return out

    def scalar(self) -> Array:
        """A poisoned 0-d float64."""
        return self.poisoned(dtype=np.float64)

    def equal(self, what: str, received: Array, expected: Any, slack: float = 1.0) -> None:
        """Compare with the oracle, within the dtype's tolerance."""
        if not isinstance(received, np.ndarray):
            received = self.backend.to_numpy(received)
        got = np.asarray(received, dtype=np.float64)
        want = np.asarray(expected, dtype=np.float64)
        if got.shape != want.shape:
            raise AssertionError(f"{what}: shape {got.shape} instead of {want.shape}")
        if not np.array_equal(np.isnan(got), np.isnan(want)):
            raise AssertionError(f"{what}: NaN in other places than expected")
        finite = np.isfinite(want)
        if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
            raise AssertionError(f"{what}: infinities in other places than expected")
        scale = max(1.0, float(np.abs(want[finite]).max(initial=0.0)))
        limit = slack * TOLERANCE[self.dtype.name] * scale
        error = float(np.abs(got[finite] - want[finite]).max(initial=0.0))
        if not error <= limit:
            raise AssertionError(f"{what}: off by {error:.3e}; allowed {limit:.1e}")

    def inputs_unchanged(self) -> None:
        """No input was written to."""
        for device, kept in self._inputs:
            if not np.array_equal(self.backend.to_numpy(device), kept, equal_nan=True):
                raise AssertionError("the operation changed one of its inputs")


def run_check(backend: Backend, name: str, check: Check, dtype: str, seed: int) -> None:
    """Run one check; the error names everything needed to repeat it."""
    case = Case(backend, dtype, seed)
    try:
        check(case)
        case.inputs_unchanged()
    except AssertionError as error:
        raise AssertionError(
            f"{backend!r} fails {name} in {dtype} with seed {seed}: {error}"
        ) from error
