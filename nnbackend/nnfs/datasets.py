"""``init`` and the data sets of the book's own package, drawn from NumPy's global generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend._checks import check_dtype, check_size
from nnbackend.datasets import spiral_points, vertical_points
from nnbackend.nnfs import arrays
from nnbackend.nnfs.arrays import Array


def init(default_dtype: str = "float32", random_seed: int | None = 0) -> None:
    """Weights and data in this dtype from now on; seeds NumPy's global generator. Nothing of NumPy
    is replaced."""
    arrays.default_dtype = check_dtype(default_dtype)
    if random_seed is not None:
        np.random.seed(random_seed)


def spiral_data(samples: int, classes: int) -> tuple[Array, Array]:
    """Arms of a spiral: X (samples * classes, 2), y (samples * classes,) uint8."""
    _check_sizes(samples, classes)
    return _data(spiral_points(np.random, samples, classes, 0.2), samples, classes)


def vertical_data(samples: int, classes: int) -> tuple[Array, Array]:
    """Upright clouds side by side, of the same shapes."""
    _check_sizes(samples, classes)
    return _data(vertical_points(np.random, samples, classes), samples, classes)


def sine_data(samples: int = 1000) -> tuple[Array, Array]:
    """One period of a sine: X and y (samples, 1)."""
    check_size("samples", samples)
    x = np.arange(samples).reshape(-1, 1) / samples
    return _real(x), _real(np.sin(2 * np.pi * x))


def _check_sizes(samples: Any, classes: Any) -> None:
    check_size("samples", samples)
    check_size("classes", classes)


def _data(points: Array, samples: int, classes: int) -> tuple[Array, Array]:
    return _real(points), np.repeat(np.arange(classes, dtype=np.uint8), samples)


def _real(x: Array) -> Array:
    return x.astype(arrays.default_dtype, copy=False)
