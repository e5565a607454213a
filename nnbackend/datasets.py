"""Data sets: every one is a pair (x float32, y int64 or float32)."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np

from nnbackend._checks import check_number, check_seed, check_size

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
LabelArray = np.ndarray[Any, np.dtype[np.int64]]


def digits() -> tuple[FloatArray, LabelArray]:
    """Handwritten digits: 1797 pictures of 8 x 8 pixels in ten classes.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository (1998), its test part; licensed CC BY 4.0.

    Returns:
        x (1797, 64) in [0, 1], row by row of the picture; y (1797,), the digit.
    """
    with files("nnbackend.data").joinpath("digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        return archive["x"].astype(np.float32) / 16.0, archive["y"].astype(np.int64)


def spiral(
    samples: int = 100, classes: int = 3, noise: float = 0.2, seed: int | None = None
) -> tuple[FloatArray, LabelArray]:
    """Arms of a spiral, one a class: the data of many first networks.

    For class c: r = 0 ... 1, t = 4 c ... 4 (c + 1) + noise * normal,
    x = (r sin 2.5 t, r cos 2.5 t). Drawn with NumPy's legacy generator, so that a seed gives
    the same points as in the tutorials.

    Args:
        samples: rows of each class.
        noise: standard deviation of the angle, in radians before the factor 2.5.

    Returns:
        x (samples * classes, 2); y (samples * classes,).
    """
    check_size("spiral.samples", samples)
    check_size("spiral.classes", classes)
    check_number("spiral.noise", noise, 0.0)
    rng = np.random.RandomState(check_seed(seed))
    r = np.linspace(0.0, 1.0, samples)
    parts = []
    for c in range(classes):
        t = np.linspace(4 * c, 4 * (c + 1), samples) + noise * rng.randn(samples)
        parts.append(np.stack([r * np.sin(2.5 * t), r * np.cos(2.5 * t)], axis=1))
    return np.concatenate(parts).astype(np.float32), _labels(samples, classes)


def vertical(
    samples: int = 100, classes: int = 3, seed: int | None = None
) -> tuple[FloatArray, LabelArray]:
    """Upright clouds side by side: x = (0.1 normal + c / 3, 0.1 normal + 0.5) for class c.

    Drawn with NumPy's legacy generator, as :func:`spiral`.

    Returns:
        x (samples * classes, 2); y (samples * classes,).
    """
    check_size("vertical.samples", samples)
    check_size("vertical.classes", classes)
    rng = np.random.RandomState(check_seed(seed))
    parts = []
    for c in range(classes):
        columns = [0.1 * rng.randn(samples) + c / 3, 0.1 * rng.randn(samples) + 0.5]
        parts.append(np.stack(columns, axis=1))
    return np.concatenate(parts).astype(np.float32), _labels(samples, classes)


def sine(samples: int = 1000) -> tuple[FloatArray, FloatArray]:
    """One period of a sine: x = 0, 1 / samples, ..., y = sin(2 pi x).

    Returns:
        x (samples, 1); y (samples, 1).
    """
    check_size("sine.samples", samples)
    x = np.arange(samples).reshape(-1, 1) / samples
    return x.astype(np.float32), np.sin(2 * np.pi * x).astype(np.float32)


def _labels(samples: int, classes: int) -> LabelArray:
    return np.repeat(np.arange(classes, dtype=np.int64), samples)
