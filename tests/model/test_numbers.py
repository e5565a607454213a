"""Numbers that a model cannot go on with are refused where they come in, and while it trains."""

import numpy as np
import pytest
from sample_models import data

import nnbackend as nn


def regression(optimizer) -> nn.Sequential:
    model = nn.Sequential([nn.Dense(4, 1)], seed=0)
    model.compile("mean_squared_error", optimizer)
    return model


@pytest.mark.parametrize(
    "optimizer", [nn.Adam(), nn.RMSprop(), nn.AdaGrad()], ids=["adam", "rmsprop", "adagrad"]
)
def test_an_optimizer_whose_squares_overflow_stops_the_training(
    backend, optimizer, tmp_path
) -> None:
    """Gradients of 1e25 are finite, and their squares are not: every later step would be 0."""
    model = regression(optimizer)
    x, y = np.full((32, 4), 1e3, np.float32), np.full(32, 1e22, np.float32)
    with pytest.raises(nn.NonFiniteLossError):
        model.fit(x, y, epochs=3, verbose=0)
    for name, values in {**model.arrays(), **model.optimizer_state()}.items():
        assert np.isfinite(values).all(), name
    model.save(tmp_path / "m")
    nn.load(tmp_path / "m")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_weights_are_finite(backend, value) -> None:
    model = regression("sgd")
    before = model.layers[0].weight.copy()
    with pytest.raises(nn.DataError, match=r"Dense.weight must hold finite float32 numbers"):
        model.layers[0].weight = np.full((4, 1), value)
    np.testing.assert_array_equal(
        model.backend.to_numpy(model.layers[0].weight), model.backend.to_numpy(before)
    )


def test_a_model_that_is_not_finite_is_not_saved(backend, tmp_path) -> None:
    model = regression("sgd")
    model.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    model.layers[0].weight[1, 0] = np.nan  # past every check, by the view
    with pytest.raises(nn.DataError, match="layers.0.weight holds NaN or infinity"):
        model.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before


@pytest.mark.parametrize("target", [1e39, -1e39, np.inf, np.nan])
def test_targets_that_overflow_the_dtype(backend, rng, target) -> None:
    x = rng.normal(size=(8, 4))
    y = rng.normal(size=8)
    y[5] = target
    model = regression("sgd")
    for call in (model.train_step, model.evaluate, model.gradient, model.fit):
        with pytest.raises(nn.DataError, match="targets must be finite in float32.*row 5"):
            call(x, y)


@pytest.mark.parametrize("label", [-1, 3, 2**40])
@pytest.mark.parametrize("own", [False, True], ids=["built in", "own loss"])
def test_labels_are_numbers_of_classes(backend, rng, label, own) -> None:
    def loss(y_true, y_pred):
        return nn.losses.SoftmaxCrossEntropy()(backend.to_numpy(y_true), y_pred)

    x, y = data(rng)
    y = y.astype(np.int64)
    y[7] = label
    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile(loss if own else "softmax_cross_entropy")
    with pytest.raises(nn.DataError, match=rf"lie in 0 ... 2.*received {label} in row 7"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("label", [0.5, np.nan, -1.0])
def test_labels_are_whole_numbers(backend, rng, label) -> None:
    x, y = data(rng)
    y = y.astype(float)
    y[7] = label
    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy")
    with pytest.raises(nn.DataError, match=r"class labels must.*in row 7"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 10**400])
@pytest.mark.parametrize(
    "make",
    [nn.ELU, nn.LeakyReLU, lambda number: {"name": "elu", "parameter": number}],
    ids=["ELU", "LeakyReLU", "dict"],
)
def test_the_parameter_of_an_activation_is_finite(make, number) -> None:
    with pytest.raises(nn.DataError, match="must be"):
        nn.Dense(2, 2, make(number))
