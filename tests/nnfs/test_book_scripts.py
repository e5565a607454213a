"""Scripts in the book's style, on every backend, beside the golden numbers of its own code."""

import io
import re
from contextlib import redirect_stdout

import numpy as np
import pytest
from cuda_stand_in import STAND_IN
from goldens import golden_arrays, golden_index

import nnbackend as nn
from nnbackend.nnfs import (
    Accuracy_Categorical,
    Accuracy_Regression,
    Activation_Linear,
    Activation_ReLU,
    Activation_Sigmoid,
    Activation_Softmax,
    Activation_Softmax_Loss_CategoricalCrossentropy,
    Layer_Dense,
    Layer_Dropout,
    Loss_BinaryCrossentropy,
    Loss_CategoricalCrossentropy,
    Loss_MeanSquaredError,
    Model,
    Optimizer_Adam,
    Optimizer_SGD,
    init,
    sine_data,
    spiral_data,
    vertical_data,
)

INDEX = golden_index()


def spiral_classifier(optimizer, epochs: int, dtype: str, arrays: dict) -> list:
    """Chapter 10: loss, accuracy and rate of each epoch."""
    init(dtype)
    X, y = spiral_data(samples=100, classes=3)
    dense1 = Layer_Dense(2, 64)
    activation1 = Activation_ReLU()
    dense2 = Layer_Dense(64, 3)
    loss_activation = Activation_Softmax_Loss_CategoricalCrossentropy()
    # the golden numbers in float64 begin with the float32 data and weights
    X = arrays["X"].astype(dtype)
    dense1.weights, dense2.weights = (arrays[name].astype(dtype) for name in ("W0", "W1"))
    found = []
    for _ in range(epochs + 1):
        dense1.forward(X)
        activation1.forward(dense1.output)
        dense2.forward(activation1.output)
        loss = loss_activation.forward(dense2.output, y)
        predictions = np.argmax(loss_activation.output, axis=1)
        accuracy = np.mean(predictions == y)
        found.append((loss, accuracy, 0.0, optimizer.current_learning_rate))
        loss_activation.backward(loss_activation.output, y)
        dense2.backward(loss_activation.dinputs)
        activation1.backward(dense2.dinputs)
        dense1.backward(activation1.dinputs)
        optimizer.pre_update_params()
        optimizer.update_params(dense1)
        optimizer.update_params(dense2)
        optimizer.post_update_params()
    return found


def binary_classifier(optimizer, epochs: int, dtype: str, arrays: dict) -> list:
    """Chapter 16."""
    init(dtype)
    X, y = spiral_data(samples=100, classes=2)
    y = y.reshape(-1, 1)
    dense1 = Layer_Dense(2, 64, weight_regularizer_l2=5e-4, bias_regularizer_l2=5e-4)
    activation1 = Activation_ReLU()
    dense2 = Layer_Dense(64, 1)
    activation2 = Activation_Sigmoid()
    loss_function = Loss_BinaryCrossentropy()
    X = arrays["X"].astype(dtype)
    dense1.weights, dense2.weights = (arrays[name].astype(dtype) for name in ("W0", "W1"))
    found = []
    for _ in range(epochs + 1):
        dense1.forward(X)
        activation1.forward(dense1.output)
        dense2.forward(activation1.output)
        activation2.forward(dense2.output)
        data_loss = loss_function.calculate(activation2.output, y)
        regularization_loss = loss_function.regularization_loss(
            dense1
        ) + loss_function.regularization_loss(dense2)
        predictions = (activation2.output > 0.5) * 1
        accuracy = np.mean(predictions == y)
        found.append((data_loss, accuracy, regularization_loss, optimizer.current_learning_rate))
        loss_function.backward(activation2.output, y)
        activation2.backward(loss_function.dinputs)
        dense2.backward(activation2.dinputs)
        activation1.backward(dense2.dinputs)
        dense1.backward(activation1.dinputs)
        optimizer.pre_update_params()
        optimizer.update_params(dense1)
        optimizer.update_params(dense2)
        optimizer.post_update_params()
    return found


TRAJECTORIES = {
    "ch10_sgd_lr1": (spiral_classifier, lambda: Optimizer_SGD()),
    "ch10_sgd_decay1e-2": (spiral_classifier, lambda: Optimizer_SGD(decay=1e-2)),
    "ch10_adam_lr0.05_decay5e-7": (
        spiral_classifier, lambda: Optimizer_Adam(learning_rate=0.05, decay=5e-7),
    ),
    "ch16_binary_adam": (binary_classifier, lambda: Optimizer_Adam(decay=5e-7)),
}  # fmt: skip


def test_no_golden_trajectory_is_forgotten() -> None:
    assert {name.removeprefix("traj_") for name in INDEX if name.startswith("traj_")} == set(
        TRAJECTORIES
    )


@pytest.mark.slow_on_stand_in
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_chapters_script_prints_the_golden_numbers(backend, dtype: str, name: str) -> None:
    """Up to the epoch after which rounding decides, and the 300th."""
    script, optimizer = TRAJECTORIES[name]
    found, arrays = INDEX[f"traj_{name}"], golden_arrays(f"traj_{name}.npz")
    expected, limits = found["expected"], found["tolerance"]
    own = limits if dtype == "float32" else limits["float64"]
    most = 20 if backend.name == STAND_IN else 300
    epochs = [k for k, epoch in enumerate(expected["epochs"])
              if epoch <= most and own["comparison"][k] == "pointwise"]  # fmt: skip
    last = expected["epochs"][epochs[-1]]
    trained = script(optimizer(), last, dtype, arrays)
    for k in epochs:
        loss, accuracy, penalty, rate = trained[expected["epochs"][k]]
        assert abs(loss - expected[dtype]["data_loss"][k]) <= own["data_loss_abs"][k]
        assert abs(accuracy - expected[dtype]["acc"][k]) <= own["acc_abs"][k] + 1e-12
        if "binary" in name:
            assert abs(penalty - expected[dtype]["reg_loss"][k]) <= own["reg_loss_abs"][k]
        assert abs(rate / expected["float32"]["lr"][k] - 1) <= limits["lr_rel"]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_data_and_weights_are_drawn_as_the_book_draws_them(name: str) -> None:
    arrays = golden_arrays(f"traj_{name}.npz")
    init()
    X, y = spiral_data(100, 2 if "binary" in name else 3)
    dense1, dense2 = Layer_Dense(2, 64), Layer_Dense(64, arrays["W1"].shape[1])
    np.testing.assert_allclose(X, arrays["X"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(y, arrays["y"].reshape(-1))
    np.testing.assert_allclose(dense1.weights, arrays["W0"], rtol=1e-6)
    np.testing.assert_allclose(dense2.weights, arrays["W1"], rtol=1e-6)
    assert {X.dtype, dense1.weights.dtype, dense1.biases.dtype} == {np.dtype("float32")}


def test_the_other_data_sets() -> None:
    arrays = golden_arrays("datasets.npz")
    init()
    X, y = vertical_data(100, 3)
    np.testing.assert_allclose(X, arrays["vertical100x3_X"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(y, arrays["vertical100x3_y"])
    for received, key in zip(sine_data(), "Xy", strict=True):
        np.testing.assert_allclose(received, arrays[f"sine1000_{key}"], rtol=0, atol=1e-6)
    init("float64")
    assert sine_data(10)[0].dtype == np.float64
    with pytest.raises(nn.NNBackendError, match="classes"):
        spiral_data(10, 0)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_single_step_from_a_stored_state(backend, name: str) -> None:
    """Parameters and the optimizer's vectors in, gradients and new parameters out."""
    arrays = golden_arrays(f"traj_{name}.npz")
    binary = "binary" in name
    for step in INDEX[f"onestep_{name}"]["expected"]["steps"]:
        init("float32")
        at, limits = f"step{step['epoch']}_", step["tol"]
        penalties = (0, 5e-4, 0, 5e-4) if binary else ()
        layers = [Layer_Dense(2, 64, *penalties), Layer_Dense(64, arrays["W1"].shape[1])]
        optimizer = TRAJECTORIES[name][1]()
        optimizer.iterations = step["iterations_before"]
        for k, layer in enumerate(layers):
            layer.weights, layer.biases = arrays[f"{at}in_W{k}"], arrays[f"{at}in_b{k}"]
            for short, slot in (("m", "momentums"), ("c", "cache")):
                if f"{at}in_{short}W{k}" in arrays:
                    layer.slot(slot)
                    getattr(layer, f"weight_{slot}")[...] = arrays[f"{at}in_{short}W{k}"]
                    getattr(layer, f"bias_{slot}")[...] = arrays[f"{at}in_{short}b{k}"]
        relu, y = Activation_ReLU(), arrays["y"]
        layers[0].forward(arrays["X"])
        relu.forward(layers[0].output)
        layers[1].forward(relu.output)
        if binary:
            sigmoid, loss = Activation_Sigmoid(), Loss_BinaryCrossentropy()
            sigmoid.forward(layers[1].output)
            value = loss.calculate(sigmoid.output, y.reshape(-1, 1))
            loss.backward(sigmoid.output, y.reshape(-1, 1))
            sigmoid.backward(loss.dinputs)
            dinputs = sigmoid.dinputs
        else:
            both = Activation_Softmax_Loss_CategoricalCrossentropy()
            value = both.forward(layers[1].output, y)
            both.backward(both.output, y)
            dinputs = both.dinputs
        layers[1].backward(dinputs)
        relu.backward(layers[1].dinputs)
        layers[0].backward(relu.dinputs)
        assert abs(value - step["data_loss"]) <= limits["data_loss_abs"]
        optimizer.pre_update_params()
        assert abs(optimizer.current_learning_rate / step["lr_used"] - 1) < 1e-12
        for k, layer in enumerate(layers):
            for letter, gradient in (("W", layer.dweights), ("b", layer.dbiases)):
                expected = arrays[f"{at}grad_d{letter}{k}"]
                np.testing.assert_allclose(gradient, expected, rtol=0, atol=limits["grad_abs"])
            optimizer.update_params(layer)
            for letter, after in (("W", layer.weights), ("b", layer.biases)):
                expected = arrays[f"{at}out_{letter}{k}"]
                limit = limits["params_after_abs"]
                np.testing.assert_allclose(after, expected, rtol=0, atol=limit)


# -- the model of the last chapters ---------------------------------------------------------------


def spiral_model(dropout: float = 0.0) -> Model:
    model = Model()
    model.add(Layer_Dense(2, 32, weight_regularizer_l2=5e-4, bias_regularizer_l2=5e-4))
    model.add(Activation_ReLU())
    if dropout:
        model.add(Layer_Dropout(dropout))
    model.add(Layer_Dense(32, 3))
    model.add(Activation_Softmax())
    model.set(
        loss=Loss_CategoricalCrossentropy(),
        optimizer=Optimizer_Adam(learning_rate=0.05, decay=5e-5),
        accuracy=Accuracy_Categorical(),
    )
    model.finalize()
    return model


def printed(run) -> list[str]:
    text = io.StringIO()
    with redirect_stdout(text):
        run()
    return text.getvalue().splitlines()


LINE = re.compile(
    r"(step: \d+|training), acc: \d\.\d{3}, loss: \d+\.\d{3} "
    r"\(data_loss: \d+\.\d{3}, reg_loss: \d+\.\d{3}\), lr: 0\.0\d+"
)


def test_a_model_trains_and_prints_what_the_book_prints(backend) -> None:
    init("float64")
    X, y = spiral_data(50, 3)
    model = spiral_model()
    lines = printed(lambda: model.train(X, y, epochs=3, batch_size=64, print_every=2,
                                        validation_data=(X[:30], y[:30])))  # fmt: skip
    assert [line.split(",")[0] for line in lines] == [
        *("epoch: 1", "step: 0", "step: 2", "training", "validation"),
        *("epoch: 2", "step: 0", "step: 2", "training", "validation"),
        *("epoch: 3", "step: 0", "step: 2", "training", "validation"),
    ]
    for line in lines:
        if line.startswith(("step", "training")):
            assert LINE.fullmatch(line), line
        elif line.startswith("validation"):
            assert re.fullmatch(r"validation, acc: \d\.\d{3}, loss: \d+\.\d{3}", line)
    before = float(lines[1].split("data_loss: ")[1].split(",")[0])
    printed(lambda: model.train(X, y, epochs=150))
    evaluated = printed(lambda: model.evaluate(X, y))[0]
    assert float(evaluated.split("loss: ")[1]) < 0.8 * before
    predictions = model.predict(X, batch_size=64)
    assert type(predictions) is np.ndarray
    assert predictions.shape == (150, 3)
    np.testing.assert_allclose(predictions, model.predict(X), rtol=1e-12)


def test_one_step_of_a_model_is_a_step_by_hand(backend) -> None:
    init("float64")
    X, y = spiral_data(20, 3)
    np.random.seed(3)
    model = spiral_model(dropout=0.2)
    np.random.seed(3)
    dense1 = Layer_Dense(2, 32, weight_regularizer_l2=5e-4, bias_regularizer_l2=5e-4)
    dense2, relu, dropout = Layer_Dense(32, 3), Activation_ReLU(), Layer_Dropout(0.2)
    both = Activation_Softmax_Loss_CategoricalCrossentropy()
    optimizer = Optimizer_Adam(learning_rate=0.05, decay=5e-5)
    np.random.seed(4)
    printed(lambda: model.train(X, y, epochs=2))
    np.random.seed(4)
    for _ in range(2):
        dense1.forward(X)
        relu.forward(dense1.output)
        dropout.forward(relu.output)
        dense2.forward(dropout.output)
        both.forward(dense2.output, y)
        both.backward(both.output, y)
        dense2.backward(both.dinputs)
        dropout.backward(dense2.dinputs)
        relu.backward(dropout.dinputs)
        dense1.backward(relu.dinputs)
        optimizer.pre_update_params()
        for layer in (dense1, dense2):
            optimizer.update_params(layer)
        optimizer.post_update_params()
    for (weights, biases), layer in zip(model.get_parameters(), (dense1, dense2), strict=True):
        np.testing.assert_allclose(weights, layer.weights, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(biases, layer.biases, rtol=1e-10, atol=1e-13)


def test_regression_is_right_within_a_part_of_the_deviation(backend) -> None:
    init("float64")
    X, y = sine_data(100)
    model = Model()
    for inputs, neurons in ((1, 32), (32, 32)):
        model.add(Layer_Dense(inputs, neurons, scale=0.1))
        model.add(Activation_ReLU())
    model.add(Layer_Dense(32, 1, scale=0.1))
    model.add(Activation_Linear())
    accuracy = Accuracy_Regression()
    model.set(loss=Loss_MeanSquaredError(), optimizer=Optimizer_Adam(0.005, decay=1e-3),
              accuracy=accuracy)  # fmt: skip
    model.finalize()
    lines = printed(lambda: model.train(X, y, epochs=200, print_every=100))
    assert accuracy.precision == np.std(y) / 250
    losses = [float(line.split("data_loss: ")[1].split(",")[0]) for line in lines
              if line.startswith("training")]  # fmt: skip
    assert losses[-1] < 0.05 < losses[0]
    first = accuracy.precision
    accuracy.init(2 * y)
    assert accuracy.precision == first
    accuracy.init(2 * y, reinit=True)
    assert accuracy.precision == pytest.approx(2 * first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: Model().finalize(), "needs layers"),
        (lambda m: m.set(optimizer=Optimizer_Adam), "make one: Optimizer_Adam()"),
        (lambda m: m.train(np.ones((3, 2)), np.zeros(4, int)), "3 and 4"),
        (lambda m: m.train(np.ones((0, 2)), np.zeros(0, int)), "0 and 0"),
        (lambda m: m.set_parameters([]), "2 layers with weights"),
        (lambda m: m.train(np.ones((3, 5)), np.zeros(3, int)),
         r"weights \(2, 32\) takes inputs \(samples, 2\); received \(3, 5\)"),
    ],
)  # fmt: skip
def test_what_a_model_is_not_given(change, message: str) -> None:
    with pytest.raises(nn.NNBackendError, match=message):
        printed(lambda: change(spiral_model()))
    with pytest.raises(nn.DataError, match="finalize"):
        Model().train(np.ones((3, 2)), np.zeros(3, int))
