"""The compiled functions against a wider type, in units in the last place."""

from collections.abc import Callable

import numpy as np
import pytest

numba = pytest.importorskip("numba")
special = pytest.importorskip("scipy.special")

from nnbackend.kernels.cpu.codegen import math as cpu_math  # noqa: E402


def compiled(function: Callable) -> Callable:
    """``function`` over arrays."""

    @numba.njit
    def run(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    def call(x):
        out = np.empty_like(x)
        run(x, out)
        return out

    return call


def largest_error(received: np.ndarray, exact: np.ndarray) -> float:
    rounded = exact.astype(received.dtype)
    return float((np.abs(received - exact) / np.spacing(np.abs(rounded)).astype(exact.dtype)).max())


# the bounds are those that cpu_math states; ranges within a type's normal results
FLOAT32 = [
    ("exp", np.exp, lambda r, n: r.uniform(-87.0, 88.7, n), 2.0),
    ("exp", np.exp, lambda r, n: r.uniform(-1.0, 1.0, n), 2.0),
    ("expm1", np.expm1, lambda r, n: r.uniform(-20.0, 2.0, n), 3.0),
    ("expm1", np.expm1, lambda r, n: -np.exp(r.uniform(-30.0, 0.0, n)), 3.0),
    ("log", np.log, lambda r, n: np.exp(r.uniform(-87.0, 88.0, n)), 1.0),
    ("log", np.log, lambda r, n: r.uniform(0.5, 2.0, n), 1.0),
    ("log1p", np.log1p, lambda r, n: np.exp(r.uniform(-60.0, 20.0, n)), 2.0),
    ("tanh", np.tanh, lambda r, n: r.uniform(-10.0, 10.0, n), 2.0),
    ("tanh", np.tanh, lambda r, n: r.uniform(-1.0, 1.0, n), 2.0),
    ("erfc", special.erfc, lambda r, n: r.uniform(-6.0, 9.0, n), 5.0),
]
FLOAT64 = [
    ("exp", np.exp, lambda r, n: r.uniform(-708.0, 709.7, n), 2.0),
    ("exp", np.exp, lambda r, n: r.uniform(-1.0, 1.0, n), 2.0),
    ("expm1", np.expm1, lambda r, n: r.uniform(-50.0, 2.0, n), 3.0),
    ("expm1", np.expm1, lambda r, n: r.uniform(-1.0, 1.0, n), 3.0),
    ("expm1", np.expm1, lambda r, n: -np.exp(r.uniform(-60.0, 0.0, n)), 3.0),
    ("expm1", np.expm1, lambda r, n: r.uniform(600.0, 709.7, n), 3.0),
    ("log", np.log, lambda r, n: np.exp(r.uniform(-700.0, 700.0, n)), 1.0),
    ("log", np.log, lambda r, n: r.uniform(1.7e308, 1.79e308, n), 1.0),
    ("log", np.log, lambda r, n: r.uniform(0.5, 2.0, n), 1.0),
    ("log1p", np.log1p, lambda r, n: np.exp(r.uniform(-60.0, 20.0, n)), 2.0),
    ("tanh", np.tanh, lambda r, n: r.uniform(-20.0, 20.0, n), 3.0),
    ("tanh", np.tanh, lambda r, n: r.uniform(-1.0, 1.0, n), 3.0),
    ("tanh", np.tanh, lambda r, n: np.exp(r.uniform(-60.0, 0.0, n)), 3.0),
]


@pytest.mark.parametrize(("name", "exact", "draw", "bound"), FLOAT32)
def test_float32_errors_stay_below_their_bounds(rng, name, exact, draw, bound) -> None:
    x = draw(rng, 200_000).astype(np.float32)
    received = compiled(getattr(cpu_math, name))(x)
    assert largest_error(received, exact(x.astype(np.float64))) <= bound


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no type here is wider than float64")
@pytest.mark.parametrize(("name", "exact", "draw", "bound"), FLOAT64)
def test_float64_errors_stay_below_their_bounds(rng, name, exact, draw, bound) -> None:
    x = draw(rng, 200_000)
    received = compiled(getattr(cpu_math, name))(x)
    assert largest_error(received, exact(x.astype(np.longdouble))) <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits_and_nan(dtype) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0], dtype)
    for name, exact in (("exp", np.exp), ("expm1", np.expm1), ("tanh", np.tanh),
                        ("erfc", special.erfc)):  # fmt: skip
        np.testing.assert_array_equal(compiled(getattr(cpu_math, name))(x), exact(x))
    x = np.array([np.nan, np.inf, -1.0, 0.0], dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        np.testing.assert_array_equal(compiled(cpu_math.log)(x), np.log(x))


def test_float64_agrees_with_the_c_librarys(rng) -> None:
    x = rng.uniform(0.1, 3.0, 1000)
    for name in ("exp", "expm1", "log", "log1p", "tanh"):
        expected = getattr(np, name)(x)
        np.testing.assert_allclose(compiled(getattr(cpu_math, name))(x), expected, rtol=1e-15)


def test_float64_results_below_the_normal_ones_are_rounded_once_too() -> None:
    x = np.array([-708.5, -720.0, -744.9, -745.2, -800.0])
    np.testing.assert_allclose(compiled(cpu_math.exp)(x), np.exp(x), rtol=0, atol=5e-324)
    tiny = np.array([5e-324, 1e-310, 2.2e-308])
    np.testing.assert_allclose(compiled(cpu_math.log)(tiny), np.log(tiny), rtol=1e-15)
