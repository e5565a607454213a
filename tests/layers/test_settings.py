"""Numbers of a layer's formula may be changed at any time; what cannot be changed says so."""

import copy
import operator
import pickle
import threading

import numpy as np
import pytest
from crew import together
from needs import need_backend

import nnbackend as nn


def make(**changed: float) -> nn.Sequential:
    """A model with every number that can be changed, some given another value."""
    s = {"rate": 0.5, "momentum": 0.3, "batch_eps": 1e-3, "layer_eps": 1e-3, "l1": 0.0, "l2": 0.0,
         "b1": 0.0, "b2": 1e-3, **changed}  # fmt: skip
    layers = [
        nn.Dense(4, 8, "tanh", weight_l1=s["l1"], weight_l2=s["l2"]),
        nn.Dropout(s["rate"]),
        nn.BatchNorm(8, s["momentum"], s["batch_eps"]),
        nn.LayerNorm(8, s["layer_eps"]),
        nn.Dense(8, 3, bias_l1=s["b1"], bias_l2=s["b2"]),
    ]
    model = nn.Sequential(layers, seed=3)
    model.compile("softmax_cross_entropy", nn.Adam(0.02), ["accuracy"])
    return model


@pytest.fixture(params=["numpy", "numba"])
def backend_name(request) -> str:
    need_backend(request.param)
    return request.param


#: Each setting: of which layer, called what there, and another value.
NUMBERS = {
    "rate": (1, "rate", 0.1), "no dropout": (1, "rate", 0.0), "momentum": (2, "momentum", 0.9),
    "batch_eps": (2, "eps", 0.5), "layer_eps": (3, "eps", 0.5), "l1": (0, "weight_l1", 0.02),
    "l2": (0, "weight_l2", 0.2), "b1": (4, "bias_l1", 0.1), "b2": (4, "bias_l2", 0.0),
}  # fmt: skip


def rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(32, 4)).astype("float32"), rng.integers(0, 3, 32)


def fit(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> object:
    return model.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)["loss"]


def steps(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> object:
    return [float(model.train_step(x[:8], y[:8])) for _ in range(3)]


def gradients(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> object:
    return [model.gradient(x, y), model.backend.to_numpy(model.flat_gradient)]


def passes(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> object:
    outputs = model.backend.to_numpy(model.forward(x)).copy()
    model.backward(model.backend.asarray(np.eye(3, dtype="float32")[y], model.dtype))
    model.apply_gradients()
    return outputs


def inference(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> object:
    one = model.backend.to_numpy(model(x[:2]))
    figures = model.evaluate(x, y)
    return [model.predict(x), one, figures["loss"], figures["accuracy"]]


WAYS = {f.__name__: f for f in (fit, steps, gradients, passes, inference)}


def is_made(setting: str) -> str:
    return "rate" if setting == "no dropout" else setting


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("setting", NUMBERS)
def test_a_changed_number_acts_as_if_the_model_had_been_made_with_it(
    backend, rng, setting, way
) -> None:
    (index, name, value), (x, y) = NUMBERS[setting], rows(rng)
    model, other = make(), make(**{is_made(setting): value})
    for each in WAYS.values():  # whatever they plan or capture holds the old number
        each(model, x, y)
    setattr(model.layers[index], name, value)
    assert getattr(model.layers[index], name) == value
    other.set_arrays(model.arrays())
    other.set_optimizer_state(model.optimizer_state())
    other.training.step = model.step
    received, expected = WAYS[way](model, x, y), WAYS[way](other, x, y)
    for one, two in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)
    for key, array in other.arrays().items():
        np.testing.assert_allclose(model.arrays()[key], array, rtol=1e-6, atol=1e-7, err_msg=key)


def test_a_callback_may_change_numbers_between_epochs(backend, rng) -> None:
    x, y = rows(rng)
    rates = (0.5, 0.3, 0.0, 0.6)

    class Anneal(nn.Callback):
        def on_epoch_end(self, model, epoch, figures, history) -> None:
            rate = [*rates, 0.0][len(history["loss"])]
            model.layers[1].rate, model.layers[0].weight_l2 = rate, rate / 10

    at_once, one_by_one = make(), make()
    at_once.layers[0].weight_l2 = 0.05
    history = at_once.fit(x, y, epochs=4, batch_size=16, callbacks=[Anneal()], verbose=0)
    for rate in rates:
        one_by_one.layers[1].rate, one_by_one.layers[0].weight_l2 = rate, rate / 10
        one_by_one.fit(x, y, epochs=1, batch_size=16, verbose=0)
    np.testing.assert_allclose(history["loss"], one_by_one.history["loss"], rtol=1e-6)
    for key, array in one_by_one.arrays().items():
        np.testing.assert_allclose(at_once.arrays()[key], array, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("exact", [True, False])
def test_ranks_take_over_what_each_changes(backend_name, rng, exact) -> None:
    x, y = rows(rng)

    def work(comm) -> tuple[list[float], np.ndarray]:
        model = make().to(backend_name)
        settings = {"batch_size": 16, "verbose": 0, "comm": comm, "exact": exact}
        for rate, eps in ((0.5, 1e-3), (0.1, 0.5), (0.0, 0.1)):
            model.layers[1].rate, model.layers[2].eps = rate, eps
            model.fit(x, y, epochs=1, **settings)
        return model.history["loss"], model.get_flat()

    (alone,) = together(1, work)
    for own in together(2, work):
        np.testing.assert_allclose(own[0], alone[0], rtol=1e-5)
        np.testing.assert_allclose(own[1], alone[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", ["fit", "steps"])
@pytest.mark.parametrize("setting", ["rate", "batch_eps", "l2"])
def test_beside_a_loss_written_in_python_numbers_change_too(backend, rng, setting, way) -> None:
    def loss(y_true, y_pred):
        return ((y_pred - y_true) ** 2).mean(), 2 * (y_pred - y_true) / y_pred.size

    (index, name, value), (x, _) = NUMBERS[setting], rows(rng)
    y = rng.normal(size=(32, 3)).astype("float32")
    model, other = make(), make(**{setting: value})
    for one in (model, other):
        one.compile(loss, nn.Adam(0.02))
    WAYS[way](model, x, y)
    setattr(model.layers[index], name, value)
    other.set_arrays(model.arrays())
    other.set_optimizer_state(model.optimizer_state())
    other.training.step = model.step
    np.testing.assert_allclose(WAYS[way](model, x, y), WAYS[way](other, x, y), rtol=1e-5)


def test_copies_pickles_and_files_have_the_number_as_it_is_now(tmp_path) -> None:
    model = make()
    model.layers[1].rate = 0.25
    model.save(tmp_path / "model")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
                  nn.load(tmp_path / "model")):  # fmt: skip
        assert other.layers[1].rate == 0.25
        other.layers[1].rate = 0.75  # each has its own
    assert model.layers[1].rate == 0.25


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("value", [None, "0.5", -0.1, 1.0, float("nan"), [0.5], 10**400])
def test_a_wrong_number_is_refused_and_the_old_one_stays(inside, value) -> None:
    layer = make().layers[1] if inside else nn.Dropout(0.5)
    with pytest.raises(nn.NNBackendError, match=r"Dropout\.rate must be"):
        layer.rate = value
    assert layer.rate == 0.5


def test_while_another_thread_trains_nothing_can_be_changed(rng) -> None:
    model, (x, y) = make(), rows(rng)
    training, done = threading.Event(), threading.Event()

    class Wait(nn.Callback):
        def on_epoch_end(self, model, epoch, figures, history) -> None:
            training.set()
            done.wait(30)

    thread = threading.Thread(
        target=model.fit, args=(x, y), kwargs={"callbacks": [Wait()], "verbose": 0}
    )
    thread.start()
    try:
        assert training.wait(30)
        with pytest.raises(nn.ModelBusyError):
            model.layers[1].rate = 0.2
        assert model.layers[1].rate == 0.5
    finally:
        done.set()
        thread.join()


MODEL, LAYER = r"model\.compile\(", "make a new layer"


@pytest.mark.parametrize(
    ("holder", "name", "value", "remedy"),
    [
        (lambda: make(), "loss", "mse", MODEL), (lambda: make(), "metrics", [], MODEL),
        (lambda: make(), "optimizer", "sgd", MODEL), (lambda: make(), "layers", [], "a new model"),
        (lambda: make(), "backend", "numpy", r"model\.to\("),
        (lambda: make(), "precision", "tf32", r"model\.to\("),
        (lambda: make(), "dtype", "float64", "dtype="), (lambda: make(), "seed", 1, "seed="),
        (lambda: make().layers[0], "activation", "relu", LAYER),
        (lambda: make().layers[0], "n_outputs", 5, LAYER),
        (lambda: make().layers[0], "weight_init", "zeros", LAYER),
        (lambda: nn.ELU(0.5), "activation", "relu", LAYER),
        (lambda: nn.Embedding(2, 5, 3), "width", 4, LAYER),
        (lambda: nn.Standardize(3), "skip", 1, LAYER),
    ],
)  # fmt: skip
def test_what_cannot_be_assigned_says_what_to_do_instead(holder, name, value, remedy) -> None:
    it = holder()
    before = getattr(it, name)
    with pytest.raises(AttributeError, match=rf"\.{name} cannot be assigned: .*{remedy}"):
        setattr(it, name, value)
    assert getattr(it, name) is before


def test_layers_and_metrics_are_lists_that_stay_as_they_are() -> None:
    model = make()
    for change in (lambda a: a.append(None), lambda a: a.extend([None]), lambda a: a.pop(),
                   lambda a: a.insert(0, None), lambda a: a.clear(), lambda a: a.remove(a[0]),
                   lambda a: a.__setitem__(0, None), lambda a: a.__delitem__(0)):  # fmt: skip
        with pytest.raises(AttributeError, match="stays as it is: make a new model"):
            change(model.layers)
        with pytest.raises(AttributeError, match=r"stays as it is: call model\.compile\("):
            change(model.metrics)
    assert len(model.layers) == 5
    other = nn.Sequential(operator.add(copy.deepcopy(model.layers[:-1]), [nn.Dense(8, 2)]))
    assert other.n_outputs == 2
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert len(again.layers) == 5
        assert model.layers[0].owner is model
        assert again.layers[0].owner is again
        with pytest.raises(AttributeError, match="stays as it is"):
            again.layers.append(None)


def test_what_would_change_nothing_may_be_assigned() -> None:
    model = make()
    model.loss, model.layers, model.seed = model.loss, model.layers, 3
    model.layers[0].n_inputs, model.layers[0].activation = 4, model.layers[0].activation


def test_a_subclass_may_set_its_attributes_before_it_is_made() -> None:
    class Net(nn.Sequential):
        def __init__(self, hidden: int) -> None:
            self.seed = 7
            self.layers = [nn.Dense(2, hidden), nn.Dense(hidden, 1)]
            super().__init__(self.layers, seed=self.seed)

    class Wide(nn.Dense):
        def __init__(self, n_inputs: int) -> None:
            self.n_inputs, self.n_outputs, self.activation = n_inputs, 2 * n_inputs, None
            super().__init__(n_inputs, 2 * n_inputs, "tanh")

    class Gentle(nn.Dropout):
        def __init__(self, rate: float = 0.1) -> None:
            self.rate = rate
            super().__init__(rate)

    assert len(Net(3).layers) == 2
    assert Net(3).seed == 7
    assert Wide(3).activation.name == "tanh"
    model = nn.Sequential([Wide(3), Gentle(0.2)], seed=0)
    model.layers[1].rate = 0.4
    assert model.program.floats[1][0] == 0.4


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_written_in_python_may_change_its_own_number(backend, rng, way) -> None:
    class Anneal(nn.Dropout):
        def forward(self, x, training=False):
            if training:
                self.rate = max(0.0, self.rate - 0.01)
            return super().forward(x, training)

    x, y = rows(rng)
    model = nn.Sequential([nn.Dense(4, 8), Anneal(0.5), nn.Dense(8, 3)], seed=0)
    model.compile("softmax_cross_entropy", "adam", ["accuracy"])
    WAYS[way](model, x, y)
    assert (model.layers[1].rate < 0.5) == (way != "inference")


def test_the_way_back_belongs_to_the_way_there_that_was_gone(backend, rng) -> None:
    x, y = rows(rng)
    dy = np.eye(3, dtype="float32")[y]
    changed, other = make(), make()
    for model in (changed, other):
        model.forward(x)
    changed.layers[1].rate = 0.1
    for model in (changed, other):
        model.backward(model.backend.asarray(dy, model.dtype))
        model.apply_gradients()
    for key, array in other.arrays().items():
        np.testing.assert_allclose(changed.arrays()[key], array, rtol=1e-6, atol=1e-7)


def test_penalties_that_end_do_not_end_the_curve_that_is_watched(backend, rng) -> None:
    class Release(nn.Callback):
        def on_epoch_end(self, model, epoch, figures, history) -> None:
            model.layers[0].weight_l2 = 0.0
            model.layers[4].bias_l2 = 0.0

    x, y = rows(rng)
    model, stop = make(l2=0.1), nn.EarlyStopping("val_data_loss", patience=9)
    history = model.fit(
        x, y, epochs=4, validation_split=0.25, callbacks=[Release(), stop], verbose=0
    )
    assert np.isfinite(history["data_loss"]).all()
    np.testing.assert_allclose(history["val_data_loss"][1:], history["val_loss"][1:], rtol=1e-6)


def test_a_layer_of_ones_own_may_assign_what_it_likes(rng) -> None:
    class Half(nn.Dense):
        def __init__(self) -> None:
            super().__init__(4, 8, "relu")
            self.n_outputs = 8
            self.activation = nn.Dense(1, 1, "tanh").activation
            self.rate = "mine"

        def forward(self, x, training=False):
            return 0.5 * super().forward(x, training)

        def backward(self, dy):
            return super().backward(0.5 * dy)

    layer = Half()
    assert layer.rate == "mine"
    assert layer.activation.name == "tanh"
    x = rng.normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(layer.forward(x), 0.5 * np.tanh(x @ layer.weight), rtol=1e-5)
