"""Every operation of every backend against the float64 oracle, from fresh random inputs."""

import numpy as np
import pytest

from nnbackend.backends.numpy.backend import NumpyBackend
from nnbackend.testing import BackendConformance, check_backend


class TestEveryBackend(BackendConformance):
    """With the fixture ``backend`` of all tests."""


class _Wrong(NumpyBackend):
    def standardize_forward(self, x, mean, scale, out):
        np.subtract(x, mean, out=out)


class _ChangesInput(NumpyBackend):
    def dropout_backward(self, dy, saved, out):
        dy *= saved
        out[...] = dy


class _ReadsOutput(NumpyBackend):
    def regression_sums(self, pred, target, weight, out):
        kept = out.copy()
        super().regression_sums(pred, target, weight, out)
        out += kept


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Wrong, "standardize: off by"),
        pytest.param(_ChangesInput, "changed one of its inputs", marks=pytest.mark.slow),
        pytest.param(_ReadsOutput, "NaN in other places", marks=pytest.mark.slow),
    ],
)
def test_suite_finds_a_backend_that_breaks_the_contract(kind: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backend(kind(), seed=1)


class _OtherNames(NumpyBackend):
    def standardize_forward(self, x, average, scale, out):
        super().standardize_forward(x, average, scale, out)


class _AsksForMore(NumpyBackend):
    def standardize_forward(self, x, mean, scale, out, queue):
        super().standardize_forward(x, mean, scale, out)


class _WrongSlope(NumpyBackend):
    def activation_backward(self, act, dy, saved, out):
        super().activation_backward(act, dy, saved, out)
        if act.name == "tanh":
            out *= 1.001


class _WrongWeights(NumpyBackend):
    def dense_backward(self, dy, x, w, act, saved, dw, db, dx, scratch):
        super().dense_backward(dy, x, w, act, saved, dw, db, dx, scratch)
        if act.name == "silu":
            dw *= 1.001


class _NeverTheSame(NumpyBackend):
    def activation_forward(self, act, x, out):
        super().activation_forward(act, x, out)
        out *= 1 + 1e-6 * np.random.default_rng().normal()

    def dense_forward(self, x, w, b, act, out, saved):
        super().dense_forward(x, w, b, act, out, saved)
        out *= 1 + 1e-6 * np.random.default_rng().normal()

    def bind_dense(self, *arrays):
        return None


@pytest.mark.parametrize(
    ("kind", "check", "arguments"),
    [
        (_OtherNames, "test_signatures_are_those_of_the_contract", ()),
        (_AsksForMore, "test_signatures_are_those_of_the_contract", ()),
        (_WrongSlope, "test_gradients_of_a_loss", ("mean_squared_error",)),
        (_WrongSlope, "test_sizes_around_those_of_blocks_and_registers", (31, "float64")),
        (_WrongWeights, "test_a_training_is_that_of_numpy", ("sgd",)),
        (_NeverTheSame, "test_the_same_seed_gives_the_same_bits", ()),
    ],
)
def test_the_class_finds_what_single_operations_do_not_show(kind, check, arguments) -> None:
    getattr(BackendConformance(), check)(NumpyBackend(), *arguments)
    with pytest.raises(AssertionError):
        getattr(BackendConformance(), check)(kind(), *arguments)
