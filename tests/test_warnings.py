"""A warning names the user's line, however deep inside the library its reason is found."""

import warnings

import numpy as np
import pytest
import sklearn.pipeline

import nnbackend as nn
import nnbackend.sklearn as ours
from nnbackend.backends.numpy.backend import NumpyBackend
from nnbackend.executor import choice

X = np.random.default_rng(0).normal(size=(30, 4))


class Scale(nn.Layer):
    def forward(self, x, training=False):
        return 2 * x

    def backward(self, dy):
        return 2 * dy


class Compiled(NumpyBackend):
    """One that has an executor of its own, and none for parts in Python."""

    executor = "nnbackend.backends.array_api.backend:ExecutorOfItsOwn"


def in_python(then):
    def go(monkeypatch):
        monkeypatch.setattr(choice, "_announced", set())

        class Kind(choice.PythonExecutor):
            mixed = None

        monkeypatch.setattr(choice, "executor_class", lambda backend: Kind)
        return then()

    return go


def own_layer():
    return nn.Sequential([Scale(), nn.Dense(4, 1)], backend=Compiled())


def own_loss():
    model = nn.Sequential([nn.Dense(4, 1)], backend=Compiled())
    model.compile(lambda t, p: (0.0, p), "sgd")


def unlikely_ending(monkeypatch):
    nn.Sequential([nn.Dense(4, 1, "tanh")]).compile("binary_cross_entropy")


def estimator_whose_backend_is_gone(monkeypatch):
    model = ours.MLPRegressor(hidden_layer_sizes=(2,), max_iter=200, tol=1.0).fit(X, X[:, 0])
    model.backend, model._network = "cuda:77", None
    sklearn.pipeline.make_pipeline(model).predict(X)


@pytest.mark.parametrize(
    "go",
    [in_python(own_layer), in_python(own_loss), unlikely_ending,
     estimator_whose_backend_is_gone],
)  # fmt: skip
def test_the_line_is_the_users(go, monkeypatch) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        go(monkeypatch)
    assert found
    assert {warning.filename for warning in found} == {__file__}
