"""Gradients against central differences along a random direction, in float64.

The directional derivative of a smooth f along a unit vector d is (f(w + h d) - f(w - h d)) / 2h
up to O(h^2); one pair of evaluations checks every component of a gradient at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend.layers.base import Layer

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential

Array64 = np.ndarray[Any, np.dtype[np.float64]]


def directional_error(
    f: Callable[[Array64], float],
    gradient: Array64,
    at: Array64,
    rng: np.random.Generator,
    step: float = 1e-6,
) -> float:
    """Relative difference between ``gradient . d`` and the measured slope along a random d.

    Args:
        f: a scalar function of an array of the shape of ``at``.
        gradient: what is claimed to be its gradient there.
        step: h, relative to the size of ``at`` (at least 1).

    Returns:
        |claimed - measured| / max(|claimed|, |measured|, 1e-8), the smaller of the errors at
        h and 10 h, so that neither rounding nor curvature decides.
    """
    direction = rng.normal(size=at.shape)
    direction /= max(float(np.linalg.norm(direction)), 1e-300)
    claimed = float(np.vdot(gradient, direction))
    errors = []
    for h in (step, 10 * step):
        h *= max(1.0, float(np.abs(at).max(initial=0.0)))
        measured = (f(at + h * direction) - f(at - h * direction)) / (2 * h)
        scale = max(abs(claimed), abs(measured), 1e-8)
        errors.append(abs(claimed - measured) / scale)
    return min(errors)


def gradient_error(
    model: Sequential, x: Any, y: Any, rng: np.random.Generator, sample_weight: Any = None
) -> float:
    """``directional_error`` of a compiled float64 model's loss by all its trained parameters.

    Dropout masks are those of the model's next step, the same in every evaluation.
    """
    if model.dtype != np.float64:
        raise ValueError(f"a gradient check needs a float64 model; received {model.dtype}")
    backend, parameters = model.backend, model.storage.parameters
    trained = slice(0, model.storage.trained)
    at = backend.to_numpy(parameters[trained]).copy()
    model.gradient(x, y, sample_weight)
    gradient = backend.to_numpy(model.storage.gradients[trained]).copy()

    def loss(values: Array64) -> float:
        parameters[trained] = backend.asarray(values, model.dtype)
        return model.gradient(x, y, sample_weight)

    try:
        return directional_error(loss, gradient, at, rng)
    finally:
        parameters[trained] = backend.asarray(at, model.dtype)


def check_layer_gradients(
    layer: Layer, x: Any, rng: np.random.Generator, tolerance: float = 1e-6
) -> None:
    """Check ``backward`` of a float64 layer of one's own, by its input and each parameter.

    The scalar is sum(c * forward(x)) with random c.

    Raises:
        AssertionError: names what is wrong and by how much.
    """
    backend = layer.backend
    x = np.asarray(x, dtype=np.float64)
    y = backend.to_numpy(layer.forward(x, training=True))
    c = rng.normal(size=y.shape)
    dx = backend.to_numpy(layer.backward(c)).copy()
    gradients = {n: backend.to_numpy(layer.gradient(n)).copy() for n in layer.parameter_names}

    def value(inputs: Any) -> float:
        return float((c * backend.to_numpy(layer.forward(inputs, training=True))).sum())

    _require("its input", directional_error(value, dx, x, rng), tolerance, layer)
    for name, gradient in gradients.items():
        at = backend.to_numpy(layer.array(name)).copy()

        def value_of(values: Any, name: str = name) -> float:
            layer.assign(name, values)
            return value(x)

        error = directional_error(value_of, gradient, at, rng)
        layer.assign(name, at)
        _require(name, error, tolerance, layer)


def _require(what: str, error: float, tolerance: float, layer: Layer) -> None:
    if not error < tolerance:
        raise AssertionError(
            f"the gradient of {layer!r} by {what} has a relative error of {error:.2e}; "
            f"the tolerance is {tolerance:.0e}"
        )
