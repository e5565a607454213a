"""What every backend has to pass, as a class for pytest: see ``BackendConformance``."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import LINEAR, Activation
from nnbackend.errors import NonFiniteLossError
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.layers import BatchNorm, Dense, Dropout, Embedding, LayerNorm, Standardize
from nnbackend.layers.base import Layer
from nnbackend.losses import LOSSES
from nnbackend.model.loading import load
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSprop
from nnbackend.testing import oracle
from nnbackend.testing.case import TOLERANCE, Case, run_check
from nnbackend.testing.conformance import CHECKS, check_dense
from nnbackend.testing.gradients import gradient_error

SIZES = (0, 1, 31, 257)
#: Rows that train the networks below: the last batch of an epoch is smaller.
ROWS, BATCH = 70, 16
#: What a loss of probabilities or rates needs before it.
LINKS = {
    "categorical_cross_entropy": "softmax",
    "binary_cross_entropy": "sigmoid",
    "poisson": "softplus",
}
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(0.05),
    "momentum": SGD(0.02, momentum=0.9, nesterov=True),
    "adagrad": AdaGrad(0.05),
    "rmsprop": RMSprop(0.01),
    "adam": Adam(0.01, clip_norm=0.5),
    "adamw": AdamW(0.01),
}
#: Layers between two dense ones of width 6.
MIDDLES: dict[str, Callable[[], list[Layer]]] = {
    "dropout": lambda: [Dropout(0.3)],
    "batch norm": lambda: [BatchNorm(6)],
    "layer norm": lambda: [LayerNorm(6)],
    "softmax": lambda: [Dense(6, 6, "softmax")],
    "frozen": lambda: [Dense(6, 6, "tanh", trainable=False)],
    "no bias": lambda: [Dense(6, 6, "gelu", bias=False)],
    "penalties": lambda: [Dense(6, 6, "tanh", weight_l2=0.1, bias_l2=0.2)],
}


class BackendConformance:
    """Tests of a backend; subclass it, and give it a fixture ``backend``:

    ::

        class TestMine(BackendConformance):
            @pytest.fixture
            def backend(self):
                return Mine()

    Every operation is compared with a float64 oracle on fresh random inputs, outputs filled with
    NaN beforehand; gradients with central differences; whole trainings with those of NumPy.
    """

    # -- operations -------------------------------------------------------------------------

    def test_signatures_are_those_of_the_contract(self, backend: Backend) -> None:
        """What is added has a default."""
        for name, own in inspect.getmembers(type(backend), inspect.isfunction):
            contract = getattr(Backend, name, None)
            if name.startswith("_") or not inspect.isfunction(contract) or own is contract:
                continue
            asked = list(inspect.signature(contract).parameters.values())
            given = list(inspect.signature(own).parameters.values())
            names = [parameter.name for parameter in asked]
            assert [parameter.name for parameter in given[: len(asked)]] == names, name
            added = given[len(asked) :]
            assert all(p.default is not p.empty or p.kind in _OPEN for p in added), name

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("name", CHECKS)
    def test_an_operation_agrees_with_the_oracle(
        self, backend: Backend, name: str, dtype: str
    ) -> None:
        _need(backend, dtype)
        run_check(backend, name, CHECKS[name], dtype, secrets.randbelow(1 << 31))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("size", SIZES)
    def test_sizes_around_those_of_blocks_and_registers(
        self, backend: Backend, size: int, dtype: str
    ) -> None:
        _need(backend, dtype)
        case = Case(backend, dtype, secrets.randbelow(1 << 31))
        x, dy = case.normal(size, 3), case.normal(size, 3)
        for act in _activations():
            y, dz = oracle.activation(act, x, dy)
            out, dx = case.poisoned(size, 3), case.poisoned(size, 3)
            given = case.put(x)
            backend.activation_forward(act, given, out)
            saved = given if act.saves == "input" else out
            backend.activation_backward(act, case.put(dy), saved, dx)
            case.equal(f"{act.name} of {size} rows", out, y)
            case.equal(f"{act.name} of {size} rows, back", dx, dz)
        mean, scale, out = case.normal(3), case.normal(3), case.poisoned(size, 3)
        backend.standardize_forward(case.put(x), case.put(mean), case.put(scale), out)
        case.equal(f"standardize of {size} rows", out, (x.astype(float) - mean) * scale)
        case.inputs_unchanged()
        if size:
            check_dense(case, Activation("relu"), x, case.normal(3, 5), case.normal(5),
                        case.normal(size, 5))  # fmt: skip

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_shapes_that_hypothesis_makes(self, backend: Backend, dtype: str) -> None:
        _need(backend, dtype)
        hypothesis = pytest.importorskip("hypothesis")
        sizes = hypothesis.strategies.integers(1, 70)
        acts = hypothesis.strategies.sampled_from(_activations())

        def check(rows: int, inputs: int, outputs: int, act: Activation, has_bias: bool) -> None:
            case = Case(backend, dtype, rows * 10_007 + inputs * 101 + outputs)
            bias = case.normal(outputs) if has_bias else None
            x, w, dy = (
                case.normal(*s) for s in ((rows, inputs), (inputs, outputs), (rows, outputs))
            )
            check_dense(case, act, x, w, bias, dy)

        given = hypothesis.given(sizes, sizes, sizes, acts, hypothesis.strategies.booleans())
        hypothesis.settings(max_examples=25, deadline=None, database=None)(given(check))()

    # -- arrays -----------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_host_data_of_any_layout_arrive_as_they_are(self, backend: Backend, dtype: str) -> None:
        x = np.random.default_rng().normal(size=(8, 6)).astype(dtype)
        for given in (x, x[::2, 1::3], x.T, x[::-1], x.tolist(), x.astype(">f8"), x[:0], x[0, 0]):
            array = backend.asarray(given, np.dtype(dtype))
            assert backend.owns(array)
            assert backend.dtype_of(array) == dtype
            expected = np.asarray(given, dtype)
            np.testing.assert_array_equal(backend.to_numpy(array), expected)
            assert tuple(array.shape) == expected.shape

    def test_outputs_keep_their_type_and_shape(self, backend: Backend) -> None:
        """A view of a larger array is written, and nothing beside it."""
        for dtype in backend.dtypes:
            case = Case(backend, dtype, 3)
            around, x = case.state(np.full((6, 4), 7.0)), case.put(case.normal(4, 4))
            inner = around[1:5]
            backend.activation_forward(LINEAR, x, inner)
            found = backend.to_numpy(around)
            assert (found.dtype, found.shape) == (np.dtype(dtype), (6, 4))
            np.testing.assert_array_equal(found[1:5], backend.to_numpy(x))
            np.testing.assert_array_equal(found[[0, 5]], 7)

    # -- gradients --------------------------------------------------------------------------

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_gradients_through_an_activation(self, backend: Backend, activation: str) -> None:
        _check_gradient(backend, [Dense(4, 6, activation), Dense(6, 3)], "softmax_cross_entropy")

    @pytest.mark.parametrize("loss", LOSSES)
    def test_gradients_of_a_loss(self, backend: Backend, loss: str) -> None:
        _check_gradient(backend, [Dense(4, 6, "tanh"), Dense(6, 3, LINKS.get(loss))], loss)

    @pytest.mark.parametrize("middle", MIDDLES)
    def test_gradients_through_a_layer(self, backend: Backend, middle: str) -> None:
        layers: list[Layer] = [Dense(4, 6, "tanh"), *MIDDLES[middle](), Dense(6, 3)]
        _check_gradient(backend, layers, "softmax_cross_entropy")

    def test_gradients_of_vectors_for_categories(self, backend: Backend) -> None:
        rng = np.random.default_rng()
        x = np.c_[rng.integers(0, 5, 30), rng.normal(size=(30, 3))]
        layers: list[Layer] = [Embedding(4, 5, 2), Dense(5, 3)]
        _check_gradient(backend, layers, "softmax_cross_entropy", x)

    # -- trainings --------------------------------------------------------------------------

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_a_training_is_that_of_numpy(self, backend: Backend, optimizer: str) -> None:
        found, expected = (
            _trained(where, optimizer) for where in (backend, get_backend("numpy"))
        )  # fmt: skip
        exact = "float64" in backend.dtypes
        rtol, atol = (1e-7, 1e-9) if exact else (2e-3, 2e-4)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-9 if exact else 1e-4)
        for name, array in expected[0].arrays().items():
            np.testing.assert_allclose(
                found[0].arrays()[name], array, rtol=rtol, atol=atol, err_msg=name
            )

    def test_the_same_seed_gives_the_same_bits(self, backend: Backend) -> None:
        one, other = (_trained(backend, "adam", "float32") for _ in range(2))
        assert one[1] == other[1]
        for name, array in one[0].arrays().items():
            np.testing.assert_array_equal(other[0].arrays()[name], array, err_msg=name)

    def test_a_training_in_two_calls_is_one_in_one(self, backend: Backend) -> None:
        whole, _ = _trained(backend, "adam")
        parts, _ = _trained(backend, "adam", epochs=1)
        x, y, weight = _data()
        parts.fit(x, y, epochs=2, batch_size=BATCH, sample_weight=weight, verbose=0)
        for name, array in whole.arrays().items():
            np.testing.assert_array_equal(parts.arrays()[name], array, err_msg=name)

    def test_its_own_arrays_are_taken_like_those_of_the_host(self, backend: Backend) -> None:
        models = [_trained(backend, "adam", epochs=1)[0] for _ in range(2)]
        x, y, weight = _data()
        dtypes = (np.dtype(backend.dtypes[-1]), y.dtype, np.dtype(backend.dtypes[-1]))
        own = [backend.asarray(*pair) for pair in zip((x, y, weight), dtypes, strict=True)]
        results = []
        for model, (a, b, w) in zip(models, ((x, y, weight), own), strict=True):
            model.fit(a, b, epochs=1, batch_size=BATCH, sample_weight=w, verbose=0)
            step = model.train_step(a[:8], b[:8])
            figures = model.evaluate(a, b, sample_weight=w)
            results.append((model.arrays(), float(step), figures, model.predict(a)))
        assert results[0][1:3] == results[1][1:3]
        np.testing.assert_array_equal(results[0][3], results[1][3])
        for name, array in results[0][0].items():
            np.testing.assert_array_equal(results[1][0][name], array, err_msg=name)

    def test_a_model_file_is_read_by_numpy(self, backend: Backend, tmp_path: Path) -> None:
        model, _ = _trained(backend, "adam")
        model.save(tmp_path / "model.safetensors")
        x, _, _ = _data()
        there = load(tmp_path / "model.safetensors", backend=get_backend("numpy"))
        rtol, atol = (1e-9, 1e-12) if "float64" in backend.dtypes else (1e-4, 1e-5)
        np.testing.assert_allclose(there.predict(x), model.predict(x), rtol=rtol, atol=atol)

    def test_a_loss_that_is_not_finite_is_found(self, backend: Backend) -> None:
        model, _ = _trained(backend, "sgd", epochs=1)
        x, y, _ = _data()
        model.compile("softmax_cross_entropy", SGD(1e300))
        with pytest.raises(NonFiniteLossError):
            model.fit(x, y, epochs=3, batch_size=BATCH, verbose=0)
        assert all(np.isfinite(array).all() for array in model.arrays().values())


#: Kinds of parameters that any call leaves out.
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _need(backend: Backend, dtype: str) -> None:
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend.device} has no {dtype}")


def _activations() -> list[Activation]:
    return [Activation(name, kind.parameter) for name, kind in ACTIVATIONS.items()]


def _check_gradient(backend: Backend, layers: list[Layer], loss: str, x: Any = None) -> None:
    _need(backend, "float64")
    rng = np.random.default_rng()
    model = Sequential(layers, seed=1, dtype="float64", backend=backend)
    model.compile(loss, "sgd")
    rows = 9 if x is None else len(x)
    x = rng.normal(size=(rows, 4)) if x is None else x
    if loss in ("softmax_cross_entropy", "categorical_cross_entropy"):
        y: Any = rng.integers(0, 3, rows)
    elif loss == "poisson":
        y = rng.poisson(2.0, size=(rows, 3)).astype(float)
    else:
        y = rng.uniform(size=(rows, 3))
    weight = rng.uniform(0.5, 2.0, rows)
    error = gradient_error(model, x, y, rng, weight)
    assert error < 1e-6, f"the gradient of {loss} is off by {error:.1e}"


def _data() -> tuple[Any, Any, Any]:
    """x, y and weights."""
    rng = np.random.default_rng(11)
    return rng.normal(size=(ROWS, 5)), rng.integers(0, 3, ROWS), rng.uniform(0.5, 1.5, ROWS)


def _trained(
    backend: Backend, optimizer: str, dtype: str | None = None, epochs: int = 3
) -> tuple[Sequential, list[float]]:
    """A network with a layer of every kind after some epochs, and its losses; of the widest dtype
    that the backend has."""
    layers: list[Layer] = [
        Standardize(5), Dense(5, 8, "relu", weight_l2=1e-3, bias=False), BatchNorm(8),
        Dropout(0.2), Dense(8, 7, "silu"), LayerNorm(7), Dense(7, 3),
    ]  # fmt: skip
    model = Sequential(layers, seed=2, dtype=dtype or backend.dtypes[-1], backend=backend)
    model.compile("softmax_cross_entropy", OPTIMIZERS[optimizer], ["accuracy"])
    x, y, weight = _data()
    layers[0].adapt(x)
    history = model.fit(x, y, epochs, BATCH, sample_weight=weight, verbose=0)
    return model, history["loss"]
