"""The book's classes one by one: golden numbers, finite differences, habits of scripts."""

import copy

import numpy as np
import pytest
from goldens import golden_arrays, golden_index

import nnbackend as nn
from nnbackend.nnfs import (
    Accuracy,
    Accuracy_Categorical,
    Activation_Linear,
    Activation_ReLU,
    Activation_Sigmoid,
    Activation_Softmax,
    Activation_Softmax_Loss_CategoricalCrossentropy,
    Layer_Dense,
    Layer_Dropout,
    Loss,
    Loss_BinaryCrossentropy,
    Loss_CategoricalCrossentropy,
    Loss_MeanAbsoluteError,
    Loss_MeanSquaredError,
    Optimizer_Adagrad,
    Optimizer_Adam,
    Optimizer_RMSprop,
    Optimizer_SGD,
    init,
)

INDEX = golden_index()
ACTIVATIONS = {
    "ReLU": Activation_ReLU, "Sigmoid": Activation_Sigmoid, "Softmax": Activation_Softmax,
    "Linear": Activation_Linear,
}  # fmt: skip
OPTIMIZERS = {
    "sgd": lambda: Optimizer_SGD(), "sgd_mom": lambda: Optimizer_SGD(0.1, momentum=0.9),
    "adam": lambda: Optimizer_Adam(),
}  # fmt: skip


@pytest.fixture
def arrays(dtype: str) -> dict[str, np.ndarray]:
    short = {"float32": "f32_", "float64": "f64_"}[dtype]
    found = golden_arrays("unit.npz")
    return {key.removeprefix(short): value for key, value in found.items()
            if key.startswith(("in_", short))}  # fmt: skip


def limits(name: str, dtype: str) -> dict[str, float]:
    own = INDEX[name]["tolerance"]
    return {"atol": own.get(f"abs_{dtype}", own.get("abs", 0.0)),
            "rtol": own.get(f"rel_{dtype}", 0.0)}  # fmt: skip


def dense_of(weights, biases, dtype: str) -> Layer_Dense:
    init(dtype, None)
    layer = Layer_Dense(*np.shape(weights))
    layer.weights, layer.biases = np.asarray(weights, dtype), biases
    return layer


def test_dense(backend, dtype: str, arrays: dict) -> None:
    layer = dense_of(arrays["in_dense_W"], arrays["in_dense_b"], dtype)
    layer.forward(arrays["in_dense_x"].astype(dtype))
    layer.backward(arrays["in_dense_dvalues"].astype(dtype))
    for name in ("output", "dinputs", "dweights", "dbiases"):
        found, expected = getattr(layer, name), arrays[f"dense_{name}"]
        assert type(found) is np.ndarray
        assert (found.dtype, found.shape) == (np.dtype(dtype), np.atleast_2d(expected).shape)
        np.testing.assert_allclose(found, np.atleast_2d(expected), **limits("unit_dense", dtype))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend, dtype: str, arrays: dict, name: str) -> None:
    layer = ACTIVATIONS[name]()
    layer.forward(arrays["in_act_x"].astype(dtype))
    layer.backward(arrays["in_act_dvalues"].astype(dtype))
    for attribute in ("output", "dinputs"):
        found, expected = getattr(layer, attribute), arrays[f"{name}_{attribute}"]
        np.testing.assert_allclose(found, expected, **limits("unit_activations", dtype))
    outputs = layer.output
    predictions = {"Softmax": outputs.argmax(1), "Sigmoid": (outputs > 0.5).astype(int)}
    np.testing.assert_array_equal(layer.predictions(outputs), predictions.get(name, outputs))


def test_dropout(backend, dtype: str, arrays: dict, monkeypatch) -> None:
    layer = Layer_Dropout(float(arrays["in_drop_rate"]))
    keep, asked = arrays["in_drop_keep"], []
    draw = lambda *given, size: asked.append((given, size)) or keep  # noqa: E731
    monkeypatch.setattr(np.random, "binomial", draw)
    layer.forward(arrays["in_drop_x"].astype(dtype))
    layer.backward(arrays["in_drop_dvalues"].astype(dtype))
    own = limits("unit_dropout_given_mask", dtype)
    np.testing.assert_allclose(layer.output, arrays["drop_train_output"], **own)
    np.testing.assert_allclose(layer.dinputs, arrays["drop_dinputs"], **own)
    assert asked == [((1, layer.rate), keep.shape)]
    layer.forward(arrays["in_drop_x"].astype(dtype), training=False)
    np.testing.assert_array_equal(layer.output, arrays["drop_eval_output"])


@pytest.mark.parametrize("target", ["sparse", "onehot"])
def test_categorical_cross_entropy(backend, dtype: str, arrays: dict, target: str) -> None:
    own, loss = limits("unit_cce", dtype), Loss_CategoricalCrossentropy()
    p, t = arrays["in_cce_p"].astype(dtype), arrays[f"in_cce_t_{target}"]
    suffix = "_onehot" if target == "onehot" else ""
    clipped = {**own, "atol": max(own["atol"], 2e-6 if dtype == "float32" else 0.0)}
    expected = arrays[f"cce_sample_losses_{target}"]
    np.testing.assert_allclose(loss.forward(p, t), expected, **clipped)
    np.testing.assert_allclose(loss.calculate(p, t), arrays["cce_mean"], **clipped)
    loss.backward(p[2:], t[2:])
    scale = len(p[2:]) / len(p)
    for expected in (arrays[f"cce_dinputs_rows2to5{suffix}"],):
        close = np.allclose(loss.dinputs, expected, **own)
        assert close or np.allclose(loss.dinputs * scale, expected, **own)


@pytest.mark.parametrize("target", ["sparse", "onehot"])
def test_softmax_and_cross_entropy_in_one_and_in_two(backend, dtype, arrays, target) -> None:
    own = limits("unit_softmax_cce", dtype)
    z, t = arrays["in_smcce_logits"].astype(dtype), arrays[f"in_cce_t_{target}"]
    both = Activation_Softmax_Loss_CategoricalCrossentropy()
    value = both.forward(z, t)
    both.backward(both.output, t)
    suffix = "_onehot" if target == "onehot" else ""
    np.testing.assert_allclose(both.output, arrays["smcce_probs"], **own)
    np.testing.assert_allclose(both.dinputs, arrays[f"smcce_combined_dinputs{suffix}"], **own)
    softmax, loss = Activation_Softmax(), Loss_CategoricalCrossentropy()
    softmax.forward(z)
    assert loss.calculate(softmax.output, t) == value
    loss.backward(softmax.output, t)
    softmax.backward(loss.dinputs)
    np.testing.assert_allclose(softmax.dinputs, both.dinputs, atol=10 * own["atol"])


@pytest.mark.parametrize(
    ("name", "kind", "pred", "target", "gradient"),
    [
        ("bce", Loss_BinaryCrossentropy, "in_bce_p", "in_bce_t", "bce_dinputs"),
        ("mse", Loss_MeanSquaredError, "in_reg_pred", "in_reg_true", "mse_dinputs_book"),
    ],
)
def test_losses_of_numbers(dtype, arrays, name, kind, pred, target, gradient) -> None:
    own, loss = limits(f"unit_{name}", dtype), kind()
    p, t = arrays[pred].astype(dtype), arrays[target].astype(dtype)
    np.testing.assert_allclose(loss.calculate(p, t), arrays[f"{name}_mean"], **own)
    loss.backward(p, t)
    np.testing.assert_allclose(loss.dinputs, arrays[gradient], **own)
    loss.new_pass()
    loss.calculate(p[:2], t[:2])
    loss.calculate(p[2:], t[2:])
    np.testing.assert_allclose(loss.calculate_accumulated(), arrays[f"{name}_mean"], **own)


def test_the_absolute_errors_gradient_has_the_sign_with_which_it_falls(rng) -> None:
    """Unlike the book's."""
    p, t = rng.normal(size=(2, 5, 3))
    loss = Loss_MeanAbsoluteError()
    loss.backward(p, t)
    before, small = loss.calculate(p, t), 1e-6
    for place in np.ndindex(p.shape):
        moved = p.copy()
        moved[place] += small
        slope = (loss.calculate(moved, t) - before) / small
        assert loss.dinputs[place] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_with_given_gradients(backend, dtype: str, arrays: dict, name: str) -> None:
    layer = dense_of(arrays["in_opt_W0"], arrays["in_opt_b0"], dtype)
    optimizer = OPTIMIZERS[name]()
    for step in range(10):
        layer.dweights, layer.dbiases = arrays["in_opt_GW"][step], arrays["in_opt_Gb"][step]
        optimizer.pre_update_params()
        optimizer.update_params(layer)
        optimizer.post_update_params()
        for found, letter in ((layer.weights, "W"), (layer.biases, "b")):
            expected = arrays[f"opt_{name}_{letter}"][step]
            # in float64 the stored gradients are rounded, the largest ones by 6e-5
            atol = 1e-3 if dtype == "float64" and name == "sgd" else 1e-5
            np.testing.assert_allclose(found, expected.reshape(found.shape), 1e-6, atol)
    for attribute in ("weight_momentums", "bias_momentums", "weight_cache", "bias_cache"):
        part, _, slot = attribute.partition("_")
        expected = arrays.get(f"opt_{name}_final_{part}_{slot}")
        assert hasattr(layer, attribute) == (expected is not None)
        if expected is not None:
            found = getattr(layer, attribute)
            np.testing.assert_allclose(found, expected.reshape(found.shape), 1e-5, 1e-6)


@pytest.mark.parametrize("optimizer", [Optimizer_Adagrad, Optimizer_RMSprop, Optimizer_SGD])
def test_rules_and_decay_by_their_formulas(backend, optimizer, rng) -> None:
    layer = dense_of(rng.normal(size=(3, 2)), rng.normal(size=(1, 2)), "float64")
    made = optimizer(0.1, decay=0.5)
    w, c = layer.weights.copy(), np.zeros((3, 2))
    for step in range(4):
        g = rng.normal(size=(3, 2))
        layer.dweights, layer.dbiases = g, np.zeros(2)
        made.pre_update_params()
        made.update_params(layer)
        made.post_update_params()
        lr = 0.1 / (1 + 0.5 * step)
        assert made.current_learning_rate == pytest.approx(lr)
        if optimizer is Optimizer_Adagrad:
            c += g**2
        elif optimizer is Optimizer_RMSprop:
            c = 0.9 * c + 0.1 * g**2
        w -= lr * g / (np.sqrt(c) + 1e-7 if optimizer is not Optimizer_SGD else 1)
        np.testing.assert_allclose(layer.weights, w, rtol=1e-10)


def test_penalties_and_their_slopes(backend) -> None:
    """The slope of |w| is 1 at 0."""
    weights, biases = np.array([[1.0, -2.0], [0.0, 0.5]]), np.array([[0.0, -1.0]])
    layer = Layer_Dense(2, 2, 0.1, 0.01, 0.2, 0.02)
    layer.weights, layer.biases = weights, biases
    loss = Loss_MeanSquaredError()
    expected = 0.1 * 3.5 + 0.01 * 5.25 + 0.2 * 1 + 0.02 * 1
    assert loss.regularization_loss(layer) == pytest.approx(expected)
    loss.remember_trainable_layers([layer, layer])
    _, both = loss.calculate(np.ones((1, 2)), np.ones((1, 2)), include_regularization=True)
    assert both == pytest.approx(2 * expected)
    layer.forward(np.zeros((3, 2)))
    layer.backward(np.zeros((3, 2)))
    slope = np.where(weights < 0, -1, 1)
    np.testing.assert_allclose(layer.dweights, 0.1 * slope + 0.02 * weights)
    np.testing.assert_allclose(layer.dbiases, 0.2 * np.where(biases < 0, -1, 1) + 0.04 * biases)


def test_weights_may_be_changed_in_place_or_replaced(backend, rng) -> None:
    x, layer = rng.normal(size=(4, 3)), Layer_Dense(3, 2)
    for change in ("in place", "replaced", "set"):
        new = rng.normal(size=(3, 2))
        if change == "in place":
            layer.weights[...] = 0
            layer.weights += new
        elif change == "replaced":
            layer.weights = new
        else:
            layer.set_parameters(new, np.zeros((1, 2)))
        layer.forward(x)
        np.testing.assert_allclose(layer.output, x @ new, rtol=1e-12)
        layer.backward(np.ones((4, 2)))
        np.testing.assert_allclose(layer.dinputs, np.ones((4, 2)) @ new.T, rtol=1e-12)


@pytest.mark.parametrize(
    "inputs",
    [
        [[1, 2, 3], [4, 5, 6]],
        np.arange(6).reshape(2, 3),
        np.arange(12.0).reshape(2, 6)[:, ::2],
        np.arange(6.0).reshape(3, 2).T,
        np.arange(6, dtype=np.float32).reshape(2, 3),
    ],
    ids=["lists", "integers", "strided", "transposed", "float32"],
)
def test_inputs_of_every_kind(backend, inputs) -> None:
    layer = Layer_Dense(3, 2)
    layer.forward(inputs)
    expected = np.asarray(inputs, float) @ layer.weights
    np.testing.assert_allclose(layer.output, expected, rtol=1e-5)
    layer.backward([[1, 0], [0, 1]])
    np.testing.assert_allclose(layer.dweights, np.asarray(inputs, float).T, rtol=1e-5)


def test_shapes_that_do_not_fit_are_both_said(backend) -> None:
    layer = Layer_Dense(3, 2)
    with pytest.raises(nn.ShapeError, match=r"weights \(3, 2\).*received \(5, 4\)"):
        layer.forward(np.ones((5, 4)))
    with pytest.raises(nn.ShapeError, match=r"\(3, 2\); received \(2, 3\)"):
        layer.weights = np.ones((2, 3))
    layer.forward(np.ones((5, 3)))
    with pytest.raises(nn.ShapeError, match=r"\(5, 2\); received \(5, 3\)"):
        layer.backward(np.ones((5, 3)))


def test_accuracies_over_batches() -> None:
    accuracy = Accuracy_Categorical()
    assert accuracy.calculate(np.array([0, 1, 2]), np.eye(3)[[0, 2, 2]]) == pytest.approx(2 / 3)
    accuracy.new_pass()
    accuracy.calculate(np.array([0, 1]), np.array([0, 1]))
    accuracy.calculate(np.array([0]), np.array([1]))
    assert accuracy.calculate_accumulated() == pytest.approx(2 / 3)
    binary = Accuracy_Categorical(binary=True)
    assert binary.calculate(np.array([[0], [1]]), np.array([[0], [0]])) == 0.5


# -- habits of scripts ----------------------------------------------------------------------------


def test_gradients_that_a_script_keeps_stay_as_they_are(backend, rng) -> None:
    """It may add up those of several batches."""
    layer, x, dy = Layer_Dense(3, 2), rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    kept = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        layer.forward(x[rows])
        layer.backward(dy[rows])
        kept.append((layer.dweights, layer.dbiases[0], layer.output, layer.dinputs))
    np.testing.assert_allclose(sum(dw for dw, *_ in kept), x.T @ dy, rtol=1e-12)
    np.testing.assert_allclose(sum(db for _, db, *_ in kept), dy.sum(axis=0), rtol=1e-12)
    for (_, _, output, dx), rows in zip(kept, (slice(0, 2), slice(2, 4)), strict=False):
        np.testing.assert_allclose(output, x[rows] @ layer.weights, rtol=1e-12)
        np.testing.assert_allclose(dx, dy[rows] @ layer.weights.T, rtol=1e-12)
    layer.dweights *= 0.5
    np.testing.assert_allclose(layer.dweights, 0.5 * x[4:].T @ dy[4:], rtol=1e-12)


def test_weights_that_a_script_keeps_stay_as_they_are(backend) -> None:
    layer = Layer_Dense(3, 2)
    best = layer.weights
    before = best.copy()
    layer.weights = np.zeros((3, 2), np.float32)
    np.testing.assert_array_equal(best, before)
    assert layer.weights.dtype == np.float32
    layer.forward(np.ones((1, 3), np.float32))
    assert layer.output.dtype == np.float32
    layer.weights = best
    layer.forward(np.ones((1, 3)))
    np.testing.assert_allclose(layer.output, before.sum(axis=0)[None])


def test_a_copy_has_the_gradients_and_the_optimizers_vectors(backend, rng) -> None:
    layer, optimizer = Layer_Dense(3, 2), Optimizer_Adam()
    layer.forward(rng.normal(size=(4, 3)))
    layer.backward(rng.normal(size=(4, 2)))
    optimizer.update_params(layer)
    other = copy.deepcopy(layer)
    for name in ("weights", "biases", "dweights", "dbiases", "weight_momentums", "bias_cache"):
        np.testing.assert_array_equal(getattr(other, name), getattr(layer, name))
    optimizer.update_params(other)
    assert (other.weights != layer.weights).all()


@pytest.mark.parametrize("how", ["deleted", "assigned"])
def test_an_optimizer_can_be_made_to_begin_anew(backend, rng, how: str) -> None:
    layer = Layer_Dense(3, 2)
    optimizer = Optimizer_Adam(0.1)
    g = rng.normal(size=(3, 2))
    for _ in range(3):
        layer.dweights, layer.dbiases = 100 * g, np.zeros(2)
        optimizer.update_params(layer)
        optimizer.post_update_params()
    if how == "deleted":
        for name in ("weight_momentums", "weight_cache", "bias_momentums", "bias_cache"):
            if hasattr(layer, name):
                delattr(layer, name)
        assert not hasattr(layer, "weight_cache")
    else:
        layer.weight_momentums = np.zeros_like(layer.weights)
        layer.weight_cache = np.zeros_like(layer.weights)
    before, fresh = layer.weights.copy(), Optimizer_Adam(0.1)
    layer.dweights = g
    fresh.update_params(layer)
    np.testing.assert_allclose(layer.weights - before, -0.1 * np.sign(g), rtol=1e-4)


class Typed:
    """A layer as a script has it."""

    def __init__(self, inputs: int, neurons: int) -> None:
        self.weights, self.biases = np.ones((inputs, neurons)), np.zeros((1, neurons))


class He(Layer_Dense):
    """Makes its own weights, as one would with the book's class."""

    def __init__(self, inputs: int, neurons: int) -> None:
        self.weights = np.random.randn(inputs, neurons) * np.sqrt(2 / inputs)
        self.biases = np.full((1, neurons), 0.5)


@pytest.mark.parametrize("optimizer", [Optimizer_SGD, Optimizer_Adagrad, Optimizer_Adam])
def test_a_scripts_own_layers_can_be_updated(backend, rng, optimizer) -> None:
    typed, ours = Typed(3, 2), Layer_Dense(3, 2)
    ours.weights = typed.weights
    pair = optimizer(0.1), optimizer(0.1)
    for _ in range(3):
        dw, db = rng.normal(size=(3, 2)), rng.normal(size=(1, 2))
        for layer, own in zip((typed, ours), pair, strict=True):
            layer.dweights, layer.dbiases = dw, db
            own.update_params(layer)
            own.post_update_params()
    np.testing.assert_allclose(typed.weights, ours.weights, rtol=1e-12)
    np.testing.assert_allclose(typed.biases, ours.biases, rtol=1e-12)
    assert hasattr(typed, "weight_cache") == (optimizer is not Optimizer_SGD)


def test_a_scripts_own_layer_may_have_more_biases_than_weights(backend, rng) -> None:
    layer, gradient = Typed(1, 1), rng.normal(size=(1, 5))
    layer.biases, layer.dweights, layer.dbiases = np.ones((1, 5)), np.ones((1, 1)), gradient
    Optimizer_Adagrad(0.1).update_params(layer)
    expected = 1 - 0.1 * gradient / (np.abs(gradient) + 1e-7)
    np.testing.assert_allclose(layer.biases, expected, rtol=1e-12)


def test_a_subclass_may_make_its_own_weights(backend) -> None:
    layer = He(4, 3)
    layer.forward(np.ones((2, 4)))
    np.testing.assert_allclose(layer.output, np.ones((2, 4)) @ layer.weights + 0.5)
    layer.backward(np.ones((2, 3)))
    assert layer.weight_regularizer_l2 == 0


def test_inputs_and_outputs_that_a_script_changed(backend, rng) -> None:
    layer, other = Layer_Dense(3, 2), rng.normal(size=(4, 3))
    layer.forward(rng.normal(size=(4, 3)))
    layer.inputs = other
    layer.backward(np.ones((4, 2)))
    np.testing.assert_allclose(layer.dweights, other.T @ np.ones((4, 2)))
    relu = Activation_ReLU()
    relu.forward(np.array([[1.0, -1.0]]))
    relu.output *= 0
    relu.backward(np.array([[3.0, 3.0]]))
    np.testing.assert_array_equal(relu.dinputs, [[3, 0]])


def test_targets_of_small_integers(dtype: str) -> None:
    p, onehot = np.array([[0.8, 0.2]], dtype), np.array([[1, 0]], np.uint8)
    loss = Loss_CategoricalCrossentropy()
    loss.backward(p, onehot)
    np.testing.assert_allclose(loss.dinputs, [[-1.25, 0]], rtol=1e-6)
    with pytest.raises(nn.ShapeError, match="samples, classes"):
        Activation_Softmax().forward(np.ones(3))


def test_subclasses_of_losses_and_accuracies() -> None:
    class Squares(Loss):
        def forward(self, y_pred, y_true):
            return (y_pred - y_true) ** 2

    class Near(Accuracy):
        def compare(self, predictions, y):
            return [abs(p - t) < 1 for p, t in zip(predictions, y, strict=True)]

    assert Squares().calculate(np.array([[1.0, 3.0], [0, 2]]), np.zeros((2, 2))) == 3.5
    assert Near().calculate([0.0, 5.0], [0.5, 0.0]) == 0.5
