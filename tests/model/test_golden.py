"""The golden numbers of tests/golden, on every backend, in both dtypes (see its README)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crew import together
from cuda_stand_in import STAND_IN
from goldens import golden_arrays, golden_index

import nnbackend as nn
from nnbackend.distributed import Alone
from nnbackend.layers.activations import resolve_activation

INDEX = golden_index()
UNIT = "unit.npz"
TRAJECTORIES = [name.removeprefix("traj_") for name in INDEX if name.startswith("traj_")]
#: Each activation layer of the unit test, by its key in the file.
ACTIVATIONS = {"ReLU": "relu", "Sigmoid": "sigmoid", "Softmax": "softmax", "Linear": "linear"}


def entry(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    found = INDEX[name]
    return found["inputs"], found["expected"], found["tolerance"]


def close(received: Any, expected: Any, absolute: float, relative: float = 0.0) -> None:
    np.testing.assert_allclose(np.squeeze(received), np.squeeze(expected), relative, absolute)


def dense(weights: Any, biases: Any, dtype: str = "float32", activation: Any = None) -> nn.Dense:
    weights = np.asarray(weights, np.float64)
    layer = nn.Dense(*weights.shape, activation=activation, dtype=dtype)
    layer.weight, layer.bias = weights, np.reshape(biases, -1)
    return layer


def run(backend: nn.Backend, layers: list[nn.Layer], x: Any) -> np.ndarray:
    y = np.atleast_2d(np.asarray(x, np.float64))
    for layer in layers:
        y = layer.forward(y)
    return backend.to_numpy(y)


def tolerance(limits: dict[str, Any], dtype: str) -> tuple[float, float]:
    absolute = limits.get(f"abs_{dtype}", limits.get("abs", 0.0))
    return absolute, limits.get(f"rel_{dtype}", 0.0)


class TestTutorials:
    @pytest.mark.parametrize("name", ["tutorial1_neuron_3in", "tutorial1_neuron_4in"])
    def test_neuron(self, backend: nn.Backend, dtype: str, name: str) -> None:
        given, expected, limits = entry(name)
        layer = dense(np.reshape(given["weights"], (-1, 1)), [given["bias"]], dtype)
        close(run(backend, [layer], given["inputs"]), expected["output"], limits["abs"])

    def test_layer_of_three_neurons(self, backend: nn.Backend, dtype: str) -> None:
        given, expected, limits = entry("tutorial1_layer_3x4")
        layer = dense(np.transpose(given["weights_rows_are_neurons"]), given["biases"], dtype)
        close(run(backend, [layer], given["inputs"]), expected["output"], limits["abs"])

    def test_sigmoid_neuron(self, backend: nn.Backend, dtype: str) -> None:
        given, expected, limits = entry("tutorial2_neuron")
        layer = dense(np.reshape(given["w"], (-1, 1)), [given["b"]], dtype, "sigmoid")
        close(run(backend, [layer], given["x"]), expected["output"], limits[f"abs_{dtype}"])

    def test_feedforward(self, backend: nn.Backend, dtype: str) -> None:
        given, expected, limits = entry("tutorial2_feedforward")
        layers = [dense(given[f"W{k}"], given[f"b{k}"], dtype, "sigmoid") for k in (1, 2)]
        close(run(backend, layers, given["x"]), expected["output"], limits[f"abs_{dtype}"])

    def test_mean_squared_error(self, backend: nn.Backend) -> None:
        given, expected, _ = entry("tutorial2_mse")
        column = np.reshape(given["y_pred"], (-1, 1)).astype("float32")
        loss, _ = nn.losses.MeanSquaredError()(given["y_true"], column)
        assert loss == expected["loss"]

    def test_partial_derivative(self, backend: nn.Backend, dtype: str) -> None:
        given, expected, limits = entry("tutorial2_partial_derivative")
        layers = [nn.Dense(2, 2, "sigmoid", weight_init="ones"),
                  nn.Dense(2, 1, "sigmoid", weight_init="ones")]  # fmt: skip
        model = nn.Sequential(layers, seed=0, dtype=dtype)
        model.compile(loss="mean_squared_error")
        model.gradient([given["x"]], [given["y"]])
        limit = limits[f"abs_{dtype}"]
        close(model.predict([given["x"]]), expected["output"], limit)
        close(backend.to_numpy(layers[0].weight_grad)[0, 0], expected["dL_dw1"], limit)

    @pytest.mark.slow_on_stand_in
    def test_training_by_single_samples(self, backend: nn.Backend, dtype: str) -> None:
        _, expected, limits = entry("tutorial2_network_train")
        arrays = golden_arrays("tutorial2_network.npz")
        model = nn.Sequential(
            [dense(arrays["W0"], arrays["b0"], dtype, "sigmoid"),
             dense(arrays["W1"], arrays["b1"], dtype, "sigmoid")], dtype=dtype)  # fmt: skip
        model.compile(loss="mean_squared_error", optimizer=nn.SGD(lr=0.1))
        seen = {}
        for epoch in range(1000):
            model.fit(arrays["X"], arrays["y"], batch_size=1, shuffle=False, verbose=0)
            if str(epoch) in expected["loss_at_epochs"]:
                seen[str(epoch)] = model.evaluate(arrays["X"], arrays["y"])["loss"]
        limit = limits[f"abs_{dtype}"]
        assert seen.keys() == expected["loss_at_epochs"].keys()
        for epoch, loss in expected["loss_at_epochs"].items():
            close(seen[epoch], loss, limit)
        people = [expected["emily"], expected["frank"]]
        close(model.predict(arrays["X_query"]), people, 10 * limit)
        close(backend.to_numpy(model.layers[0].weight), arrays["final_W0"], 100 * limit)

    @pytest.mark.parametrize(
        "name",
        ["tutorial4_neuron", "tutorial4_two_neurons", "tutorial4_batch",
         "tutorial4_batch_random_bias"],
    )  # fmt: skip
    def test_perceptron(self, backend: nn.Backend, dtype: str, name: str) -> None:
        given, expected, limits = entry(name)
        if "weights" not in given:
            given = {**INDEX["tutorial4_batch"]["inputs"], **given}
        bias = given.get("bias", given.get("biases"))
        layer = dense(given["weights"], bias, dtype)
        y = run(backend, [layer], given["inputs"])
        close(y, expected["output"], limits["abs"])
        if "relu" in expected:
            close(backend.to_numpy(nn.ReLU().forward(y)), expected["relu"], limits["abs"])
        if "relu_of_negative" in expected:
            close(backend.to_numpy(nn.ReLU().forward(-y)), expected["relu_of_negative"], 0)

    def test_two_stacked_layers(self, backend: nn.Backend, dtype: str) -> None:
        given, expected, limits = entry("tutorial5_layer1")
        first = dense(np.transpose(given["weights_rows_are_neurons"]), given["biases"], dtype)
        close(run(backend, [first], given["inputs"]), expected["output"], limits["abs"])
        then, expected, limits = entry("tutorial5_layer2")
        second = dense(np.transpose(then["weights2_rows_are_neurons"]), then["biases2"], dtype)
        close(run(backend, [first, second], given["inputs"]), expected["output"], limits["abs"])

    def test_legacy_random_numbers_as_initial_weights(self, backend: nn.Backend) -> None:
        given, expected, _ = entry("tutorial5_randn")
        drawn = np.random.RandomState(given["seed"]).randn(*given["shape"]).astype("float32")
        np.testing.assert_array_equal(drawn, np.array(expected["values"], "float32"))
        given, expected, _ = entry("tutorial5_weights_init")

        def book(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
            values = np.random.RandomState(given["seed"]).randn(*shape).astype("float32")
            return np.float32(0.01) * values

        layer = nn.Dense(given["n_inputs"], given["n_neurons"], weight_init=book)
        exact = np.array(expected["weights"], "float32")
        np.testing.assert_array_equal(backend.to_numpy(layer.weight), exact)
        np.testing.assert_array_equal(backend.to_numpy(layer.bias), expected["biases"][0])


class TestChapters:
    """Chapters 3 to 9: a 2-3-3 network on spiral data."""

    @pytest.fixture
    def arrays(self) -> dict[str, np.ndarray]:
        return golden_arrays("ch3_to_ch9.npz")

    def test_dense(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        _, expected, limits = entry("ch3_dense")
        y = run(backend, [dense(arrays["W0"], arrays["b0"], dtype)], arrays["X"])
        close(y[:5], expected["first5"], limits["abs"])
        close(y, arrays["f64_dense1_output"], limits["abs"] if dtype == "float32" else 1e-15)

    def test_softmax(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        _, expected, limits = entry("ch4_softmax")
        layers = [dense(arrays["W0"], arrays["b0"], dtype, "relu"),
                  dense(arrays["W1"], arrays["b1"], dtype, "softmax")]  # fmt: skip
        y = run(backend, layers, arrays["X"])
        close(y[:5], expected["first5_printed"], limits["abs"])
        close(y, arrays["f64_softmax_output"], limits["abs"] if dtype == "float32" else 1e-15)

    def test_loss_and_backward(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        _, loss_expected, loss_limits = entry("ch5_loss")
        _, expected, limits = entry("ch9_backward")
        model = nn.Sequential(
            [dense(arrays["W0"], arrays["b0"], dtype, "relu"),
             dense(arrays["W1"], arrays["b1"], dtype)], dtype=dtype)  # fmt: skip
        model.compile(loss="softmax_cross_entropy", metrics=["accuracy"])
        loss = model.gradient(arrays["X"], arrays["y"])
        tight = dtype == "float64"
        close(loss, loss_expected["loss_float64"], 1e-13 if tight else loss_limits["abs"])
        assert model.evaluate(arrays["X"], arrays["y"])["accuracy"] == expected["acc"]
        wanted = expected["float64"] if tight else expected
        for k, layer in enumerate(model.layers):
            limit = 1e-15 if tight else limits["abs"]
            close(backend.to_numpy(layer.weight_grad), wanted[f"dW{k}"], limit)
            close(backend.to_numpy(layer.bias_grad), wanted[f"db{k}"], limit)

    def test_separate_softmax_and_cross_entropy(
        self, backend: nn.Backend, dtype: str, arrays: dict
    ) -> None:
        """The two-step way gives the same gradients."""
        _, _, limits = entry("ch9_backward")
        model = nn.Sequential(
            [dense(arrays["W0"], arrays["b0"], dtype, "relu"),
             dense(arrays["W1"], arrays["b1"], dtype, "softmax")], dtype=dtype)  # fmt: skip
        model.compile(loss="categorical_cross_entropy")
        model.gradient(arrays["X"], arrays["y"])
        limit = 1e-13 if dtype == "float64" else limits["abs"]
        close(backend.to_numpy(model.layers[0].weight_grad), arrays["f64_dW0"], limit)


class TestUnits:
    @pytest.fixture
    def arrays(self, dtype: str) -> dict[str, np.ndarray]:
        short = {"float32": "f32_", "float64": "f64_"}[dtype]
        found = golden_arrays(UNIT)
        return {
            key.removeprefix(short): value
            for key, value in found.items()
            if key.startswith(("in_", short))
        }

    def test_dense(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        layer = dense(arrays["in_dense_W"], arrays["in_dense_b"], dtype)
        limits = tolerance(INDEX["unit_dense"]["tolerance"], dtype)
        close(run(backend, [layer], arrays["in_dense_x"]), arrays["dense_output"], *limits)
        dx = backend.to_numpy(layer.backward(arrays["in_dense_dvalues"]))
        close(dx, arrays["dense_dinputs"], *limits)
        close(backend.to_numpy(layer.weight_grad), arrays["dense_dweights"], *limits)
        close(backend.to_numpy(layer.bias_grad), arrays["dense_dbiases"], *limits)

    @pytest.mark.parametrize("key", ACTIVATIONS)
    def test_activations(self, backend: nn.Backend, dtype: str, arrays: dict, key: str) -> None:
        limits = tolerance(INDEX["unit_activations"]["tolerance"], dtype)
        act = resolve_activation(ACTIVATIONS[key])
        x, dy = (backend.asarray(arrays[name].astype(dtype), np.dtype(dtype))
                 for name in ("in_act_x", "in_act_dvalues"))  # fmt: skip
        y, dx = backend.zeros(x.shape, np.dtype(dtype)), backend.zeros(x.shape, np.dtype(dtype))
        backend.activation_forward(act, x, y)
        backend.activation_backward(act, dy, y, dx)
        close(backend.to_numpy(y), arrays[f"{key}_output"], *limits)
        close(backend.to_numpy(dx), arrays[f"{key}_dinputs"], *limits)

    def test_dropout_with_a_given_mask(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        limits = tolerance(INDEX["unit_dropout_given_mask"]["tolerance"], dtype)
        kind, rate = np.dtype(dtype), float(arrays["in_drop_rate"])
        mask = backend.asarray(arrays["in_drop_keep"] / (1 - rate), kind)
        out = backend.zeros(mask.shape, kind)
        for given, expected in (("x", "train_output"), ("dvalues", "dinputs")):
            values = backend.asarray(arrays[f"in_drop_{given}"], kind)
            backend.dropout_backward(values, mask, out)  # forward and backward are one product
            close(backend.to_numpy(out), arrays[f"drop_{expected}"], *limits)
        layer = nn.Dropout(rate)
        same = backend.to_numpy(layer.forward(arrays["in_drop_x"].astype(dtype)))
        np.testing.assert_array_equal(same, arrays["drop_eval_output"])

    @pytest.mark.parametrize("target", ["sparse", "onehot"])
    def test_categorical_cross_entropy(
        self, backend: nn.Backend, dtype: str, arrays: dict, target: str
    ) -> None:
        absolute, relative = tolerance(INDEX["unit_cce"]["tolerance"], dtype)
        loss = nn.losses.CategoricalCrossEntropy()
        p, t = arrays["in_cce_p"].astype(dtype), arrays[f"in_cce_t_{target}"]
        for row, expected in enumerate(arrays[f"cce_sample_losses_{target}"]):
            value, _ = loss(t[row : row + 1], p[row : row + 1])
            # the note of the entry: 2e-6 where a probability is 0
            close(value, expected, max(absolute, 2e-6 if dtype == "float32" else 0), relative)
        value, _ = loss(t, p)
        close(value, arrays["cce_mean"], absolute, relative)
        _, dpred = loss(t[2:], p[2:])
        suffix = "_onehot" if target == "onehot" else ""
        expected = arrays[f"cce_dinputs_rows2to5{suffix}"]
        close(backend.to_numpy(dpred), expected, absolute, relative)

    @pytest.mark.parametrize("target", ["sparse", "onehot"])
    def test_softmax_cross_entropy(
        self, backend: nn.Backend, dtype: str, arrays: dict, target: str
    ) -> None:
        absolute, _ = tolerance(INDEX["unit_softmax_cce"]["tolerance"], dtype)
        z, t = arrays["in_smcce_logits"].astype(dtype), arrays[f"in_cce_t_{target}"]
        _, dpred = nn.losses.SoftmaxCrossEntropy()(t, z)
        suffix = "_onehot" if target == "onehot" else ""
        close(backend.to_numpy(dpred), arrays[f"smcce_combined_dinputs{suffix}"], absolute)
        p = backend.to_numpy(nn.Softmax().forward(z))
        close(p, arrays["smcce_probs"], absolute)

    def test_binary_cross_entropy(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        limits = tolerance(INDEX["unit_bce"]["tolerance"], dtype)
        loss = nn.losses.BinaryCrossEntropy()
        p, t = arrays["in_bce_p"].astype(dtype), arrays["in_bce_t"]
        for row, expected in enumerate(arrays["bce_sample_losses"]):
            value, _ = loss(t[row : row + 1], p[row : row + 1])
            close(value, expected, *limits)
        value, dpred = loss(t, p)
        close(value, arrays["bce_mean"], *limits)
        close(backend.to_numpy(dpred), arrays["bce_dinputs"], *limits)

    def test_mean_squared_error(self, backend: nn.Backend, dtype: str, arrays: dict) -> None:
        limits = tolerance(INDEX["unit_mse"]["tolerance"], dtype)
        p, t = arrays["in_reg_pred"].astype(dtype), arrays["in_reg_true"]
        value, dpred = nn.losses.MeanSquaredError()(t, p)
        close(value, arrays["mse_mean"], *limits)
        close(backend.to_numpy(dpred), arrays["mse_dinputs_book"], *limits)

    def optimizer_gradients(self, arrays: dict, dtype: str) -> dict[str, np.ndarray]:
        """The stored gradients are float32. The float64 run used the elements (0, 0) and
        (2, 1), scaled by 1e-8 and 1000, before their rounding; plain SGD with a rate of 1 shows
        the larger one."""
        gradients = {k: arrays[f"in_opt_G{k}"].astype(dtype) for k in "Wb"}
        if dtype == "float64":
            path = np.concatenate([arrays["in_opt_W0"][None], arrays["opt_sgd_W"]])
            gradients["W"][:, 2, 1] = path[:-1, 2, 1] - path[1:, 2, 1]
        return gradients

    @pytest.mark.parametrize(
        ("name", "optimizer"),
        [("sgd", nn.SGD(lr=1.0)), ("sgd_mom", nn.SGD(lr=0.1, momentum=0.9)), ("adam", nn.Adam())],
    )
    def test_optimizers(
        self, backend: nn.Backend, dtype: str, arrays: dict, name: str, optimizer: nn.Optimizer
    ) -> None:
        limits = tolerance(INDEX[f"unit_optimizer_{name}"]["tolerance"], dtype)
        kind = np.dtype(dtype)
        flat = np.concatenate([arrays[f"in_opt_{k}0"].reshape(-1) for k in "Wb"]).astype(kind)
        param = backend.zeros(flat.size, kind)
        param[...] = backend.asarray(flat, kind)
        slots = [backend.zeros(flat.size, kind) for _ in optimizer.slots]
        scratch = backend.zeros(backend.step_scratch_size(flat.size), kind)
        gradients = self.optimizer_gradients(arrays, dtype)
        for step in range(10):
            grad = [gradients[k][step].reshape(-1) for k in "Wb"]
            grad_ = backend.asarray(np.concatenate(grad).astype(kind), kind)
            lr = float(optimizer.rates(step, 1)[0])
            optimizer.update(backend, param, grad_, slots, lr, 0.0, step, scratch)
            expected = [arrays[f"opt_{name}_{k}"][step].reshape(-1) for k in "Wb"]
            received, wanted = backend.to_numpy(param), np.concatenate(expected)
            exact = np.ones(flat.size, bool)
            if dtype == "float64":  # elements whose stored gradient is rounded, see below
                exact[[0, 5]] = name == "sgd_mom", name != "sgd"
            close(received[exact], wanted[exact], *limits)
            close(received[~exact], wanted[~exact], 1e-10, 1e-7)
        finals = {"momentums": 0, "cache": 1}
        for key, slot in finals.items():
            if f"opt_{name}_final_weight_{key}" in arrays:
                expected = [arrays[f"opt_{name}_final_{part}_{key}"].reshape(-1)
                            for part in ("weight", "bias")]  # fmt: skip
                received = backend.to_numpy(slots[slot])
                close(received, np.concatenate(expected), limits[0] * 1e6, limits[1])


def trajectory(name: str, dtype: str) -> tuple[nn.Sequential, dict[str, np.ndarray]]:
    """The network of a trajectory with its initial parameters, compiled."""
    found = INDEX[f"traj_{name}"]
    arrays = golden_arrays(f"traj_{name}.npz")
    settings = dict(found["hyperparameters"])
    kind = settings.pop("optimizer")
    lr = settings.pop("learning_rate", {"SGD": 1.0, "Adam": 0.001}[kind])
    if "decay" in settings:
        lr = nn.InverseTimeDecay(lr, settings.pop("decay"))
    assert not settings
    binary = "binary" in name
    penalties = {"weight_l2": 5e-4, "bias_l2": 5e-4} if binary else {}
    hidden = nn.Dense(2, 64, "relu", weight_init=arrays["W0"], bias_init=arrays["b0"][0],
                      **penalties)  # fmt: skip
    output = nn.Dense(64, arrays["W1"].shape[1], "sigmoid" if binary else None,
                      weight_init=arrays["W1"], bias_init=arrays["b1"][0])  # fmt: skip
    model = nn.Sequential([hidden, output], seed=0, dtype=dtype)
    loss = "binary_cross_entropy" if binary else "softmax_cross_entropy"
    optimizer = {"SGD": nn.SGD, "Adam": nn.Adam}[kind](lr=lr)
    model.compile(loss=loss, optimizer=optimizer, metrics=["accuracy"])
    return model, arrays


def labels(arrays: dict[str, np.ndarray], key: str = "y") -> np.ndarray:
    return arrays[key] if arrays[key].ndim == 1 else arrays[key].astype("float64")


def check_trajectory(name: str, dtype: str, last_epoch: int) -> nn.Sequential:
    """Train up to ``last_epoch`` and compare every listed epoch up to it."""
    found = INDEX[f"traj_{name}"]
    expected, limits = found["expected"], found["tolerance"]
    own = limits if dtype == "float32" else limits["float64"]
    model, arrays = trajectory(name, dtype)
    history = model.fit(
        arrays["X"], labels(arrays), epochs=last_epoch + 1, batch_size=len(arrays["X"]),
        shuffle=False, verbose=0,
    )  # fmt: skip
    data_loss = history["data_loss" if "data_loss" in history else "loss"]
    band = found["band"]
    for k, epoch in enumerate(expected["epochs"]):
        if epoch > last_epoch:
            break
        loss, accuracy = data_loss[epoch], history["accuracy"][epoch]
        if own["comparison"][k] == "pointwise":
            close(loss, expected[dtype]["data_loss"][k], own["data_loss_abs"][k])
            # the entry's rule: two rows of slack where a row lies on a border
            close(accuracy, expected[dtype]["acc"][k], own["acc_abs"][k] + 1e-12)
            if "data_loss" in history:
                penalty = history["loss"][epoch] - loss
                close(penalty, expected[dtype]["reg_loss"][k], own["reg_loss_abs"][k])
        else:
            low, high = band["data_loss_min"][k], band["data_loss_max"][k]
            margin = 0.5 * (high - low) + 0.02
            assert low - margin <= loss <= high + margin, (epoch, loss, low, high)
        rate = history["lr"][max(0, epoch - 1)]
        close(rate, expected["float32"]["lr"][k], 0, limits["lr_rel"])
    return model


@pytest.mark.slow_on_stand_in
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_up_to_its_horizon(backend: nn.Backend, dtype: str, name: str) -> None:
    """All epochs for which a pointwise comparison means something, up to the 1000th; on the
    stand-in for a GPU up to the 200th."""
    most = 200 if backend.name == STAND_IN else 1000
    found = INDEX[f"traj_{name}"]
    own = found["tolerance"] if dtype == "float32" else found["tolerance"]["float64"]
    epochs = [e for e, how in zip(found["expected"]["epochs"], own["comparison"], strict=True)
              if how == "pointwise" and e <= most]  # fmt: skip
    check_trajectory(name, dtype, epochs[-1])


def check_on_ranks(name: str, device: str, most: int) -> None:
    """The curves of 2 and 4 ranks, against that of one process, as closely as the golden numbers
    are compared: to 1e-12 until rounding has grown; with ``exact``, those of any number alike."""
    found = INDEX[f"traj_{name}"]
    own = found["tolerance"]["float64"]
    listed = zip(found["expected"]["epochs"], own["comparison"], own["data_loss_abs"], strict=True)
    limits = [(e, limit) for e, how, limit in listed if how == "pointwise" and e <= most]

    def train(comm: Any, exact: bool = False, epochs: int = limits[-1][0] + 1) -> np.ndarray:
        with nn.use_backend(device):
            model, arrays = trajectory(name, "float64")
        history = model.fit(
            arrays["X"], labels(arrays), epochs=epochs, batch_size=len(arrays["X"]),
            shuffle=False, verbose=0, comm=comm, exact=exact,
        )  # fmt: skip
        return np.array(history["loss"])

    alone = train(None)
    exactly = train(Alone(), True, 20)
    for size in (2, 4):
        for curve in together(size, train):
            for epoch, limit in limits:
                close(curve[epoch], alone[epoch], limit)
        for curve in together(size, lambda comm: train(comm, True, 20)):
            assert np.array_equal(curve, exactly)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_on_ranks(name: str) -> None:
    check_on_ranks(name, "numpy", 100)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["numpy", "numba"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_on_ranks_up_to_its_horizon(name: str, device: str) -> None:
    check_on_ranks(name, device, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_whole_trajectory(backend: nn.Backend, dtype: str, name: str) -> None:
    if backend.name == STAND_IN:
        pytest.skip("takes a stand-in for a GPU too long")
    model = check_trajectory(name, dtype, 10_000)
    validation = INDEX[f"traj_{name}"]["expected"]["validation"]
    if validation is None:
        return
    arrays = golden_arrays(f"traj_{name}.npz")
    result = model.evaluate(arrays["X_test"], labels(arrays, "y_test"))
    low, high = validation["loss_band"]
    margin = 0.5 * (high - low)
    assert low - margin <= result["loss"] <= high + margin
    low, high = validation["acc_band"]
    assert low - 0.05 <= result["accuracy"] <= high + 0.05


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_single_steps(backend: nn.Backend, dtype: str, name: str) -> None:
    """Parameters and optimizer state in, gradient and new state out: immune to chaos."""
    slots = {"m": "m", "c": "v"}
    if name.startswith("ch10_sgd"):
        slots = {"m": "velocity"}
    for step in INDEX[f"onestep_{name}"]["expected"]["steps"]:
        model, arrays = trajectory(name, dtype)
        at, limits = f"step{step['epoch']}_", step["tol"]
        state = {}
        for k, layer in enumerate(model.layers):
            for letter, attribute in (("W", "weight"), ("b", "bias")):
                layer.assign(attribute, arrays[f"{at}in_{letter}{k}"])
                for short, slot in slots.items():
                    stored = arrays.get(f"{at}in_{short}{letter}{k}")
                    if stored is not None:
                        shape = layer.specs[attribute].shape
                        state[f"{slot}.layers.{k}.{attribute}"] = stored.reshape(shape)
        model.set_optimizer_state(state)
        model.training.step = step["iterations_before"]
        assert abs(model.optimizer.rates(model.step, 1)[0] / step["lr_used"] - 1) < 1e-12
        x, y = arrays["X"], labels(arrays)
        model.gradient(x, y)
        for k, layer in enumerate(model.layers):
            for letter, attribute in (("W", "weight"), ("b", "bias")):
                gradient = backend.to_numpy(layer.gradient(attribute))
                close(gradient, arrays[f"{at}grad_d{letter}{k}"], limits["grad_abs"])
                exact = arrays.get(f"{at}grad_f64_d{letter}{k}")
                if dtype == "float64" and exact is not None:
                    close(gradient, exact, 1e-12)
        total = step["data_loss"] + step["reg_loss"]
        loss = float(backend.to_numpy(model.train_step(x, y)))
        close(loss, total, limits["data_loss_abs"] + limits["reg_abs"])
        for k, layer in enumerate(model.layers):
            for letter, attribute in (("W", "weight"), ("b", "bias")):
                after = backend.to_numpy(layer.array(attribute))
                close(after, arrays[f"{at}out_{letter}{k}"], limits["params_after_abs"])


class TestDatasets:
    @pytest.mark.parametrize("name", ["spiral", "vertical"])
    def test_generators(self, name: str) -> None:
        arrays = golden_arrays("datasets.npz")
        _, expected, limits = entry(f"data_{name}100x3")
        x, y = getattr(nn.datasets, name)(100, 3, seed=0)
        np.testing.assert_allclose(
            x, arrays[f"{name}100x3_X"], rtol=0, atol=limits["abs_per_element"]
        )
        np.testing.assert_array_equal(y, arrays[f"{name}100x3_y"])
        assert list(x.shape) == expected["shape_X"]
        assert (x.dtype, y.dtype) == (np.float32, np.int64)

    def test_sine(self) -> None:
        arrays = golden_arrays("datasets.npz")
        _, _, limits = entry("data_sine1000")
        for received, key in zip(nn.datasets.sine(1000), ("X", "y"), strict=True):
            np.testing.assert_allclose(
                received, arrays[f"sine1000_{key}"], rtol=0, atol=limits["abs_per_element"]
            )


def test_every_entry_is_used() -> None:
    """A new golden entry must not be forgotten here."""
    text = Path(__file__).read_text()
    for name in INDEX:
        stem = name.replace("100x3", "").removeprefix("data_").removeprefix("traj_")
        stem = stem.removeprefix("onestep_")
        known = name in text or stem in TRAJECTORIES or stem in text
        assert known or name.startswith("unit_optimizer_"), name
