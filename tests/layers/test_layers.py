"""Layers by themselves: forward, backward, parameters, and what they refuse."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from needs import need_backend

import nnbackend as nn
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.layers import LAYERS, ActivationLayer
from nnbackend.testing import check_layer_gradients

WITH_PARAMETERS = [
    lambda: nn.Dense(4, 3, seed=1, dtype="float64"),
    lambda: nn.Dense(4, 4, activation="gelu", bias=False, seed=1, dtype="float64"),
    lambda: nn.BatchNorm(4, dtype="float64"),
    lambda: nn.LayerNorm(4, dtype="float64"),
]
ACTIVATION_LAYERS = [kind for kind in LAYERS.values() if issubclass(kind, ActivationLayer)]
ALL = [*WITH_PARAMETERS, *ACTIVATION_LAYERS, lambda: nn.Standardize(4, dtype="float64")]


def make(factory) -> nn.Layer:
    layer = factory()
    if isinstance(layer, nn.Standardize):
        layer.adapt(np.random.default_rng(0).normal(2.0, 3.0, size=(50, 4)))
    return layer


@pytest.mark.parametrize("factory", ALL)
def test_backward_is_the_gradient_of_forward(
    factory, backend: nn.Backend, rng: np.random.Generator
) -> None:
    check_layer_gradients(make(factory), rng.normal(size=(6, 4)), rng)


def test_dense_computes_x_w_plus_b(backend: nn.Backend) -> None:
    layer = nn.Dense(4, 3)
    layer.weight = np.array(
        [[0.2, 0.5, -0.26], [0.8, -0.91, -0.27], [-0.5, 0.26, 0.17], [1, -0.5, 0.87]]
    )
    layer.bias = [2.0, 3.0, 0.5]
    y = backend.to_numpy(layer.forward([[1.0, 2.0, 3.0, 2.5]]))
    np.testing.assert_allclose(y, [[4.8, 1.21, 2.385]], rtol=1e-6)
    assert y.dtype == np.float32


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_threads_that_share_a_layer_get_their_own_outputs(
    backend: nn.Backend, rng: np.random.Generator, activation: str
) -> None:
    layer = nn.Dense(6, 5, activation, seed=1)
    inputs = [rng.normal(size=(rows, 6)).astype(np.float32) for rows in (1, 3, 8, 20)]
    expected = [backend.to_numpy(layer.forward(x)) for x in inputs]

    def differing(i: int) -> int:
        return sum(
            not np.array_equal(backend.to_numpy(layer.forward(inputs[i])), expected[i])
            for _ in range(300)
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(differing, range(4))) == [0, 0, 0, 0]


def test_same_seed_gives_the_same_weights_everywhere(backend: nn.Backend) -> None:
    first = backend.to_numpy(nn.Dense(5, 7, seed=3).weight)
    expected = np.random.default_rng(3).uniform(-(0.5**0.5), 0.5**0.5, (5, 7))
    np.testing.assert_array_equal(first, expected.astype("float32"))
    assert not np.array_equal(first, backend.to_numpy(nn.Dense(5, 7, seed=4).weight))


def test_assigning_copies_and_checks_the_shape(backend: nn.Backend) -> None:
    layer = nn.Dense(2, 3, seed=0)
    view = layer.bias
    layer.bias = np.ones((1, 3))  # the tutorials write biases as a row
    np.testing.assert_array_equal(backend.to_numpy(view), [1, 1, 1])
    with pytest.raises(nn.ShapeError, match=r"Dense.weight has shape \(2, 3\); received \(3, 2\)"):
        layer.weight = np.ones((3, 2))
    without = nn.Dense(2, 3, bias=False)
    assert without.bias is None
    assert without.bias_grad is None
    with pytest.raises(nn.DataError, match="has no bias"):
        without.bias = np.zeros(3)


def test_inputs_survive_and_may_be_strided(backend: nn.Backend, rng: np.random.Generator) -> None:
    wide = rng.normal(size=(8, 8)).astype("float32")
    x, dy = wide[::2, 1::2], wide[1::2, ::2]
    kept = wide.copy()
    for layer in (nn.Dense(4, 4, "silu", seed=0), nn.ReLU(), nn.BatchNorm(4), nn.LayerNorm(4),
                  nn.Dropout(0.5, seed=0), nn.Softmax()):  # fmt: skip
        strided = backend.to_numpy(layer.forward(x, training=True))
        strided_dx = backend.to_numpy(layer.backward(dy)).copy()
        other = copy.deepcopy(layer)
        if isinstance(other, nn.Dropout):
            other.calls = 0
        contiguous = backend.to_numpy(other.forward(x.copy(), training=True))
        np.testing.assert_array_equal(strided, contiguous)
        np.testing.assert_array_equal(strided_dx, backend.to_numpy(other.backward(dy.copy())))
    np.testing.assert_array_equal(wide, kept)


def test_dropout_keeps_the_mean_and_does_nothing_in_inference(backend: nn.Backend) -> None:
    layer = nn.Dropout(0.25, seed=0)
    x = np.ones((200, 50), "float32")
    first, second = (backend.to_numpy(layer.forward(x, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(first.mean() - 1) < 0.02
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(backend.to_numpy(layer.forward(x)), x)
    np.testing.assert_array_equal(backend.to_numpy(layer.backward(x)), x)
    again = nn.Dropout(0.25, seed=0)
    np.testing.assert_array_equal(backend.to_numpy(again.forward(x, training=True)), first)


def test_batch_norm_learns_running_statistics(
    backend: nn.Backend, rng: np.random.Generator
) -> None:
    layer = nn.BatchNorm(3, momentum=1.0, dtype="float64")
    x = rng.normal(5.0, 2.0, size=(40, 3))
    y = backend.to_numpy(layer.forward(x, training=True))
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(layer.running_mean), x.mean(axis=0))
    np.testing.assert_allclose(backend.to_numpy(layer.running_var), x.var(axis=0, ddof=1))
    expected = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0, ddof=1) + 1e-5)
    np.testing.assert_allclose(backend.to_numpy(layer.forward(x)), expected)


def test_batch_norm_refuses_a_training_batch_of_one(backend: nn.Backend) -> None:
    layer = nn.BatchNorm(3)
    with pytest.raises(nn.ShapeError, match="at least 2 rows; received 1"):
        layer.forward(np.ones((1, 3)), training=True)
    layer.forward(np.ones((1, 3)))
    with pytest.raises(nn.DataError, match="needs a forward pass"):
        layer.backward(np.ones((1, 3)))


def test_standardize_learns_mean_and_scale(backend: nn.Backend, rng: np.random.Generator) -> None:
    x = rng.normal([1e6, 0, 3], [1.0, 5.0, 0.0], size=(10_000, 3))
    layer = nn.Standardize(3, dtype="float64")
    with pytest.raises(nn.DataError, match="has not seen data"):
        layer.forward(x)
    layer.adapt(x)
    np.testing.assert_allclose(backend.to_numpy(layer.mean), x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(backend.to_numpy(layer.scale)[:2], 1 / x.std(axis=0)[:2], rtol=1e-7)
    assert backend.to_numpy(layer.scale)[2] == 1  # constant
    with pytest.raises(nn.ShapeError, match=r"\(rows, 3\).*received \(5, 2\)"):
        layer.adapt(np.ones((5, 2)))
    with pytest.raises(nn.DataError, match="NaN"):
        layer.adapt(np.full((5, 3), np.nan))


@pytest.mark.parametrize(("dtype", "spread"), [("float64", 1e-11), ("float32", 1e-5)])
@pytest.mark.parametrize("rows", [500, 1000, 4096, 10_000])
def test_standardize_tells_a_small_spread_from_none(backend, rng, dtype, spread, rows) -> None:
    constants = [0.1, 1 / 3, 0.7, 142857.14, -1e30, 0.0]
    x = np.tile([1.0, *constants], (rows, 1))
    x[:, 0] = 1e3 * (1 + spread * rng.normal(size=rows))
    layer = nn.Standardize(7, dtype=dtype)
    layer.adapt(x)
    scale = backend.to_numpy(layer.scale)
    assert scale[0] * x[:, 0].std() == pytest.approx(1, rel=1e-2)
    assert list(scale[1:]) == [1.0] * 6
    np.testing.assert_allclose(backend.to_numpy(layer.mean), x.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("factory", ALL)
def test_layers_can_be_copied_and_pickled(
    factory, backend: nn.Backend, rng: np.random.Generator
) -> None:
    layer = make(factory)
    x = rng.normal(size=(5, 4))
    y = backend.to_numpy(layer.forward(x))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(backend.to_numpy(other.forward(x)), y)
    for name in layer.parameter_names:
        other.assign(name, np.zeros_like(backend.to_numpy(layer.array(name))))
    np.testing.assert_array_equal(backend.to_numpy(layer.forward(x)), y)


def test_every_activation_has_a_layer() -> None:
    assert {layer().name for layer in ACTIVATION_LAYERS} == set(ACTIVATIONS)


@pytest.mark.parametrize(
    "activation", ["relu", nn.ReLU(), nn.ReLU, {"name": "relu"}, nn.Dense(1, 1, "relu").activation]
)
def test_an_activation_may_be_given_in_several_ways(activation: object) -> None:
    assert nn.Dense(2, 2, activation=activation).activation.name == "relu"


def test_activation_parameters_are_used(backend: nn.Backend) -> None:
    x = np.array([[-2.0, 2.0]])
    for layer in (nn.LeakyReLU(0.5), nn.Dense(2, 2, nn.LeakyReLU(0.5), weight_init=np.eye(2))):
        np.testing.assert_allclose(backend.to_numpy(layer.forward(x)), [[-1.0, 2.0]])


class TestRefusals:
    """Each message states the rule and what was received."""

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: nn.Dense(0, 3), nn.ShapeError, "n_inputs must be at least 1; received 0"),
            (lambda: nn.Dense(3, -1), nn.ShapeError, "n_outputs must be at least 1; received -1"),
            (lambda: nn.Dense(2.5, 3), nn.DTypeError, "whole number; received 2.5"),
            (lambda: nn.Dense(True, 3), nn.DTypeError, "whole number; received True"),
            (lambda: nn.Dense(2, 3, "rely"), nn.UnknownNameError, "Did you mean 'relu'"),
            (lambda: nn.Dense(2, 3, np.tanh), nn.DTypeError, "subclass nn.Layer"),
            (lambda: nn.Dense(2, 3, weight_l2=-1), nn.DataError, "at least 0; received -1"),
            (lambda: nn.Dense(2, 3, weight_l1="a"), nn.DTypeError, "number; received 'a'"),
            (lambda: nn.Dense(2, 3, weight_init="he"), nn.UnknownNameError, "he_normal"),
            (lambda: nn.Dense(2, 3, dtype="float16"), nn.DTypeError, "received 'float16'"),
            (lambda: nn.Dense(2, 3, dtype=7), nn.DTypeError, "received 7"),
            (lambda: nn.Dense(2, 3, seed=-1), nn.DataError, "at least 0; received -1"),
            (lambda: nn.Dense(2, 3, seed=1.5), nn.DTypeError, "received 1.5"),
            (lambda: nn.Dropout(1.0), nn.DataError, r"in \[0, 1\); received 1"),
            (lambda: nn.Dropout(-0.1), nn.DataError, r"in \[0, 1\); received -0.1"),
            (lambda: nn.Dropout(float("nan")), nn.DataError, "received nan"),
            (lambda: nn.BatchNorm(3, momentum=2), nn.DataError, r"in \[0, 1\]; received 2"),
            (lambda: nn.LayerNorm(3, eps=0), nn.DataError, "above 0; received 0"),
            (lambda: nn.LeakyReLU(-1), nn.DataError, "at least 0"),
        ],
    )
    def test_settings(self, call, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            call()

    def test_wrong_width_or_rank(self, backend: nn.Backend) -> None:
        layer = nn.Dense(3, 2)
        with pytest.raises(nn.ShapeError, match=r"\(batch, 3\); received \(4, 5\)"):
            layer.forward(np.ones((4, 5)))
        with pytest.raises(nn.ShapeError, match=r"received \(3,\)"):
            layer.forward(np.ones(3))
        with pytest.raises(nn.ShapeError, match=r"\(batch, width\); received \(2, 0\)"):
            nn.Softmax().forward(np.ones((2, 0)))

    @pytest.mark.parametrize("values", [["a"], [None], [1 + 2j]])
    def test_dtypes_that_are_no_numbers(self, backend: nn.Backend, values: list) -> None:
        with pytest.raises(nn.DTypeError, match="real numbers; received dtype"):
            nn.Dense(1, 2).forward(np.array([values]))

    def test_backward_out_of_order_or_shape(self, backend: nn.Backend) -> None:
        layer = nn.Dense(3, 2)
        with pytest.raises(nn.DataError, match="needs a forward pass before it"):
            layer.backward(np.ones((4, 2)))
        layer.forward(np.ones((4, 3)))
        with pytest.raises(nn.ShapeError, match=r"\(4, 2\); received \(4, 3\)"):
            layer.backward(np.ones((4, 3)))

    def test_initial_values_of_the_wrong_shape(self) -> None:
        with pytest.raises(nn.ShapeError, match=r"Dense.weight has shape \(2, 3\).*\(3, 3\)"):
            _ = nn.Dense(2, 3, weight_init=np.eye(3)).weight
        with pytest.raises(nn.DTypeError, match="finite"):
            _ = nn.Dense(2, 2, weight_init=[[np.nan, 0], [0, 0]]).weight
        with pytest.raises(nn.DTypeError, match="an initializer that is no name"):
            nn.Dense(2, 2, weight_init=["x"])


@pytest.mark.parametrize(
    "layer",
    [lambda: nn.Dense(6, 6), lambda: nn.BatchNorm(6), lambda: nn.LayerNorm(6),
     lambda: nn.Embedding(6, 3, 1)],
    ids=["dense", "batch norm", "layer norm", "embedding"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inputs_that_have_another_shape_now_are_refused(layer, name: str) -> None:
    """Nothing is read behind what the forward pass left, and nothing written."""
    need_backend(name)
    with nn.use_backend(name):
        for change in (
            lambda x: setattr(x, "shape", (6, 5)),
            lambda x: x.resize((2000, 6), refcheck=False),
            lambda x: x.resize((1, 6), refcheck=False),
        ):
            one = layer()
            x = np.zeros((5, 6), np.float32)
            one.forward(x, training=True)
            change(x)
            for shape in {(5, 6), x.shape}:
                with pytest.raises(nn.ShapeError):
                    one.backward(np.ones(shape, np.float32))
