"""Whole models against central differences, in float64, along a random direction."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.losses import LOSSES
from nnbackend.testing import check_layer_gradients, gradient_error

PROBABILITIES = ("categorical_cross_entropy", "binary_cross_entropy", "poisson")


def targets(loss: str, rows: int, outputs: int, rng: np.random.Generator) -> np.ndarray:
    if loss in ("softmax_cross_entropy", "categorical_cross_entropy"):
        return rng.integers(0, outputs, rows)
    if loss in ("sigmoid_cross_entropy", "binary_cross_entropy"):
        return rng.uniform(size=(rows, outputs))
    return (
        rng.poisson(2.0, size=(rows, outputs))
        if loss == "poisson"
        else rng.normal(size=(rows, outputs))
    )


def model_for(layers: list[nn.Layer], loss: str) -> nn.Sequential:
    model = nn.Sequential(layers, seed=5, dtype="float64")
    model.compile(loss=loss, optimizer="sgd")
    return model


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_with_every_activation_and_loss(
    backend: nn.Backend, rng: np.random.Generator, activation: str, loss: str
) -> None:
    """Where the loss takes probabilities or rates, an output layer that gives them follows."""
    layers: list[nn.Layer] = [nn.Dense(4, 5, activation=activation)]
    if loss in PROBABILITIES:
        link = {"categorical_cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}
        layers.append(nn.Dense(5, 5, activation=link.get(loss, "softplus")))
    elif nn.losses.LOSSES[loss].from_logits:
        layers.append(nn.Dense(5, 5))
    model = model_for(layers, loss)
    x = rng.normal(size=(7, 4))
    assert gradient_error(model, x, targets(loss, 7, 5, rng), rng) < 1e-6


@pytest.mark.parametrize(
    "middle",
    [
        lambda: nn.Dropout(0.4),
        lambda: nn.BatchNorm(6),
        lambda: nn.LayerNorm(6),
        lambda: nn.ELU(0.3),
        lambda: nn.Softmax(),
        lambda: nn.Dense(6, 6, "tanh", trainable=False),
        lambda: nn.Dense(6, 6, "tanh", bias=False),
    ],
)
def test_layers_between_dense_ones(backend: nn.Backend, rng: np.random.Generator, middle) -> None:
    model = model_for([nn.Dense(4, 6, "tanh"), middle(), nn.Dense(6, 3)], "mean_squared_error")
    x, y = rng.normal(size=(9, 4)), rng.normal(size=(9, 3))
    assert gradient_error(model, x, y, rng) < 1e-6


def test_penalties_and_weights_of_rows(backend: nn.Backend, rng: np.random.Generator) -> None:
    penalties = {"weight_l1": 0.01, "weight_l2": 0.02, "bias_l1": 0.03, "bias_l2": 0.04}
    model = model_for(
        [nn.Dense(4, 6, "silu", bias_init="normal", **penalties), nn.Dense(6, 1, weight_l2=0.1)],
        "huber",
    )
    x, y, weight = rng.normal(size=(9, 4)), rng.normal(size=9), rng.uniform(size=9)
    assert gradient_error(model, x, y, rng, sample_weight=weight) < 1e-6


def test_standardize_passes_gradients_on(backend: nn.Backend, rng: np.random.Generator) -> None:
    middle = nn.Standardize(5)
    model = model_for([nn.Dense(4, 5, "tanh"), middle, nn.Dense(5, 2)], "mean_absolute_error")
    middle.adapt(rng.normal(1.0, 4.0, size=(30, 5)))
    assert gradient_error(model, rng.normal(size=(9, 4)), rng.normal(size=(9, 2)), rng) < 1e-6


def test_gradient_leaves_the_model_as_it_was(backend: nn.Backend, rng: np.random.Generator) -> None:
    model = model_for([nn.Dense(4, 5), nn.BatchNorm(5), nn.Dense(5, 2)], "mean_squared_error")
    before = backend.to_numpy(model.storage.parameters).copy()
    state = backend.to_numpy(model.storage.state).copy()
    model.gradient(rng.normal(size=(9, 4)), rng.normal(size=(9, 2)))
    np.testing.assert_array_equal(backend.to_numpy(model.storage.parameters), before)
    np.testing.assert_array_equal(backend.to_numpy(model.storage.state), state)


def test_gradient_of_layers_used_one_by_one_is_that_of_the_model(
    backend: nn.Backend, rng: np.random.Generator
) -> None:
    model = model_for([nn.Dense(4, 5, "gelu"), nn.LayerNorm(5), nn.Dense(5, 3)],
                      "softmax_cross_entropy")  # fmt: skip
    x, y = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    loss = model.gradient(x, y)
    flat = backend.to_numpy(model.storage.gradients).copy()
    out = x
    for layer in model.layers:
        out = layer.forward(out, training=True)
    value, dy = nn.losses.SoftmaxCrossEntropy()(y, out)
    for layer in reversed(model.layers):
        dy = layer.backward(dy)
    assert abs(value - loss) < 1e-12
    np.testing.assert_allclose(backend.to_numpy(model.storage.gradients), flat, atol=1e-14)


def test_check_finds_a_wrong_backward(rng: np.random.Generator) -> None:
    class Wrong(nn.Tanh):
        def backward(self, dy):
            return 1.01 * super().backward(dy)

    with pytest.raises(AssertionError, match="by its input has a relative error"):
        check_layer_gradients(Wrong(), rng.normal(size=(3, 4)), rng)
    with pytest.raises(ValueError, match="float64 model"):
        gradient_error(nn.Sequential([nn.Dense(2, 1)]), [[1, 2]], [1], rng)
