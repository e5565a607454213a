"""Every operation of every backend against the float64 oracle, from fresh random inputs."""

import secrets

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends.numpy.backend import NumpyBackend
from nnbackend.testing.conformance import CHECKS, check_backend, run_check


@pytest.mark.parametrize("name", CHECKS)
def test_operation_matches_the_oracle(name: str, backend: nn.Backend, dtype: str) -> None:
    run_check(backend, name, CHECKS[name], dtype, secrets.randbelow(1 << 31))


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
        (_ChangesInput, "changed one of its inputs"),
        (_ReadsOutput, "NaN in other places"),
    ],
)
def test_suite_finds_a_backend_that_breaks_the_contract(kind: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backend(kind(), seed=1)
