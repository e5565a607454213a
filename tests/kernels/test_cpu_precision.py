"""Kernels of float32 compute in float32: half the bytes and twice the numbers in a register."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends.types import Activation
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.testing import oracle

pytestmark = pytest.mark.skipif(
    not nn.available_backends()["numba"].ok, reason="numba cannot run here"
)
NAMES = ["elu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus", "exponential", "mish"]


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_is_not_computed_in_float64(rng, name) -> None:
    """What is computed in float64 and rounded once is the nearest float32 number everywhere."""
    backend = nn.get_backend("numba")
    act = Activation(name, ACTIVATIONS[name].parameter)
    x = rng.uniform(-6, 6, (200, 100)).astype(np.float32)
    out = np.empty_like(x)
    backend.activation_forward(act, x, out)
    exact, _ = oracle.activation(act, x, x)
    nearest = exact.astype(np.float32)
    assert 0.001 < np.mean(out != nearest) < 0.9
    np.testing.assert_allclose(out, nearest, rtol=2e-6, atol=1e-7)


def test_a_product_is_not_summed_in_float64(rng) -> None:
    backend = nn.get_backend("numba")
    x, w = rng.normal(size=(300, 400)).astype("f4"), rng.normal(size=(400, 90)).astype("f4")
    out = np.empty((300, 90), np.float32)
    backend.dense_forward(x, w, None, Activation("linear"), out, None)
    nearest = (x.astype(float) @ w.astype(float)).astype(np.float32)
    assert np.mean(out != nearest) > 0.3
    np.testing.assert_allclose(out, nearest, atol=1e-4)


def test_an_update_is_not_computed_in_float64(rng) -> None:
    backend = nn.get_backend("numba")
    rule = nn.Adam().rule
    w, g = rng.normal(size=20_000).astype("f4"), rng.normal(size=20_000).astype("f4")
    exact = w.astype(float)
    slots = [np.zeros(20_000, np.float32) for _ in rule.slots]
    exact_slots = oracle.slots(rule, 20_000)
    for step in range(5):
        backend.update(rule, w, g, slots, 0.01, step, np.empty(0, np.float32))
        exact = oracle.step(rule, 0.01, exact, g.astype(float), exact_slots, step)
    assert np.mean(w != exact.astype(np.float32)) > 0.01
    np.testing.assert_allclose(w, exact, atol=1e-6)
