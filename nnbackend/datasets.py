"""Data sets, each a pair (x float32, y int64 or float32)."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend._checks import check_number, check_seed, check_size
from nnbackend._types import HostArray
from nnbackend.data.csv import read_csv, read_frame
from nnbackend.data.dataset import Dataset
from nnbackend.data.idx import read_idx, read_idx_array
from nnbackend.data.images import read_images
from nnbackend.data.npz import read_npz
from nnbackend.data.readers import read
from nnbackend.data.shards import Shards
from nnbackend.errors import DataError, OutOfMemoryError, shown

__all__ = [
    "Dataset",
    "Shards",
    "circles",
    "digits",
    "moons",
    "read",
    "read_csv",
    "read_frame",
    "read_idx",
    "read_idx_array",
    "read_images",
    "read_npz",
    "sine",
    "spiral",
    "vertical",
]

#: Rows of data that is made, and its noise, which float32 has to hold.
MOST_ROWS, MOST_NOISE = 1 << 28, 1e30

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
LabelArray = np.ndarray[Any, np.dtype[np.int64]]


def digits() -> tuple[FloatArray, LabelArray]:
    """Handwritten digits: 1797 pictures of 8 x 8 pixels in ten classes.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository (1998), its test set; licensed CC BY 4.0.

    Returns:
        x (1797, 64) in [0, 1], row by row of the picture; y (1797,), the digit.
    """
    from importlib.resources import files

    with files("nnbackend.data").joinpath("digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        return archive["x"].astype(np.float32) / 16.0, archive["y"].astype(np.int64)


def spiral(
    samples: int = 100, classes: int = 3, noise: float = 0.2, seed: int | None = None
) -> tuple[FloatArray, LabelArray]:
    """Arms of a spiral, one per class: the data of many introductory networks.

    For class c: r = 0 ... 1, t = 4 c ... 4 (c + 1) + noise * normal,
    x = (r sin 2.5 t, r cos 2.5 t). Drawn with NumPy's legacy generator, so that a seed gives
    the same points as in the tutorials.

    Args:
        samples: rows of each class.
        noise: standard deviation of the angle, in radians before the factor 2.5.

    Returns:
        x (samples * classes, 2); y (samples * classes,).
    """
    _check_rows("spiral", samples, classes)
    noise = check_number("spiral.noise", noise, 0.0, MOST_NOISE)
    points = spiral_points(np.random.RandomState(_legacy_seed(seed)), samples, classes, noise)
    return points.astype(np.float32), _labels(samples, classes)


def spiral_points(rng: Any, samples: int, classes: int, noise: float) -> HostArray:
    """The points of :func:`spiral` in float64; ``rng.randn`` draws them."""
    r = np.linspace(0.0, 1.0, samples)
    parts = []
    for c in range(classes):
        t = np.linspace(4 * c, 4 * (c + 1), samples) + noise * rng.randn(samples)
        parts.append(np.stack([r * np.sin(2.5 * t), r * np.cos(2.5 * t)], axis=1))
    return np.concatenate(parts)


def vertical(
    samples: int = 100, classes: int = 3, seed: int | None = None
) -> tuple[FloatArray, LabelArray]:
    """Upright clouds side by side: x = (0.1 normal + c / 3, 0.1 normal + 0.5) for class c.

    Drawn with NumPy's legacy generator, like :func:`spiral`.

    Returns:
        x (samples * classes, 2); y (samples * classes,).
    """
    _check_rows("vertical", samples, classes)
    points = vertical_points(np.random.RandomState(_legacy_seed(seed)), samples, classes)
    return points.astype(np.float32), _labels(samples, classes)


def vertical_points(rng: Any, samples: int, classes: int) -> HostArray:
    """The points of :func:`vertical` in float64; ``rng.randn`` draws them."""
    parts = []
    for c in range(classes):
        columns = [0.1 * rng.randn(samples) + c / 3, 0.1 * rng.randn(samples) + 0.5]
        parts.append(np.stack(columns, axis=1))
    return np.concatenate(parts)


def sine(samples: int = 1000) -> tuple[FloatArray, FloatArray]:
    """One period of a sine: x = 0, 1 / samples, ..., y = sin(2 pi x).

    Returns:
        x (samples, 1); y (samples, 1).
    """
    _check_rows("sine", samples, 1)
    x = np.arange(samples).reshape(-1, 1) / samples
    return x.astype(np.float32), np.sin(2 * np.pi * x).astype(np.float32)


def moons(
    samples: int = 100, noise: float = 0.1, seed: int | None = None
) -> tuple[FloatArray, LabelArray]:
    """Two interleaving half circles, one per class.

    Class 0: (cos t, sin t); class 1: (1 - cos t, 1/2 - sin t), t = 0 ... pi; plus
    noise * normal on both coordinates.

    Returns:
        x (2 samples, 2); y (2 samples,).
    """
    noise = check_number("moons.noise", noise, 0.0, MOST_NOISE)
    t = _angles("moons", samples, np.pi, endpoint=True)
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    lower = np.stack([1.0 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    return _noisy([upper, lower], noise, seed), _labels(samples, 2)


def circles(
    samples: int = 100, noise: float = 0.05, factor: float = 0.5, seed: int | None = None
) -> tuple[FloatArray, LabelArray]:
    """A circle of radius 1 (class 0) around one of radius ``factor`` (class 1), plus
    noise * normal on both coordinates.

    Returns:
        x (2 samples, 2); y (2 samples,).
    """
    check_number("circles.factor", factor, 0.0, 1.0, low_open=True, high_open=True)
    noise = check_number("circles.noise", noise, 0.0, MOST_NOISE)
    t = _angles("circles", samples, 2 * np.pi, endpoint=False)
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    return _noisy([outer, factor * outer], noise, seed), _labels(samples, 2)


def _legacy_seed(seed: int | None) -> int | None:
    seed = check_seed(seed)
    if seed is not None and seed >= 1 << 32:
        raise DataError(f"seed must be below 2**32 for this generator; received {shown(seed)}")
    return seed


def _check_rows(name: str, samples: int, classes: int) -> None:
    rows = check_size(f"{name}.samples", samples) * check_size(f"{name}.classes", classes)
    if rows > MOST_ROWS:
        raise OutOfMemoryError(f"{name} makes at most {MOST_ROWS:,} rows; asked for {rows:,}")


def _angles(name: str, samples: int, end: float, endpoint: bool) -> Any:
    _check_rows(name, samples, 2)
    return np.linspace(0.0, end, samples, endpoint=endpoint)


def _noisy(parts: list[Any], noise: float, seed: int | None) -> FloatArray:
    x = np.concatenate(parts)
    rng = np.random.default_rng(check_seed(seed))
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32)


def _labels(samples: int, classes: int) -> LabelArray:
    return np.repeat(np.arange(classes, dtype=np.int64), samples)
