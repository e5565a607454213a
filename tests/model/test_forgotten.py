"""What is easily forgotten or mistaken in parts of one's own is said, or does no harm."""

import copy
import functools
import json
import pickle

import numpy as np
import pytest

import nnbackend as nn


class Linear(nn.Layer):
    """y = x w, whose way back does not set the gradient."""

    weight = nn.Parameter()

    def __init__(self, n_inputs, n_outputs, **settings) -> None:
        super().__init__(n_inputs, n_outputs, **settings)
        self.add_parameter("weight", (n_inputs, n_outputs), "normal")

    def forward(self, x, training=False):
        self.x = x
        return x @ self.weight

    def backward(self, dy):
        self.dweights = self.x.T @ dy
        return dy @ self.weight.T


class Whole(Linear):
    def backward(self, dy):
        self.weight_grad = self.x.T @ dy
        return dy @ self.weight.T


def rows(rng):
    return rng.normal(size=(30, 4)), rng.integers(0, 3, 30)


class Lookup(nn.Layer):
    """A vector for each number, of which a batch uses some; the gradient of the others stays 0."""

    weight = nn.Parameter()

    def __init__(self, count, width) -> None:
        super().__init__(1, width)
        self.add_parameter("weight", (count, width), "zeros")

    def forward(self, x, training=False):
        self.rows = x[:, 0].astype(int)
        return self.weight[self.rows]

    def backward(self, dy):
        gradient = self.weight_grad
        gradient[self.rows] = 0
        np.add.at(gradient, self.rows, dy)
        return np.zeros((len(dy), 1), dy.dtype)


class Optional(Whole):
    """A bias that may be switched off."""

    bias = nn.Parameter()

    def __init__(self, n_inputs, n_outputs) -> None:
        super().__init__(n_inputs, n_outputs)
        self.add_parameter("bias", (n_outputs,), "zeros")
        self.add_parameter("nothing", (0,), "zeros")


def trained_on(layer, rng, go=lambda model, x, y: model.fit(x, y, verbose=0)):
    model = nn.Sequential([layer], seed=0, dtype="float64")
    model.compile("softmax_cross_entropy", "sgd")
    go(model, *rows(rng))
    return model


class TestGradientThatIsNotSet:
    @pytest.mark.parametrize(
        "go",
        [
            lambda model, x, y: model.fit(x, y, verbose=0),
            lambda model, x, y: model.train_step(x, y),
            lambda model, x, y: model.backward(model.forward(x)),
        ],
    )
    def test_is_said(self, backend, rng, go) -> None:
        with pytest.warns(UserWarning, match=r"Linear\.backward did not set self\.weight_grad"):
            trained_on(Linear(4, 3), rng, go)

    def test_is_no_error_where_it_is_meant(self, backend, rng) -> None:
        with pytest.warns(UserWarning, match="did not set self.bias_grad"):
            model = trained_on(Optional(4, 3), rng)
        assert not model.layers[0].bias.any()

    def test_frozen_layers_and_gradients_of_zero_are_none(self, backend, rng) -> None:
        x, y = rows(rng)
        for layer in (Linear(4, 3, trainable=False), Whole(4, 3)):
            model = nn.Sequential([layer, nn.Dense(3, 3)], seed=0)
            model.compile("softmax_cross_entropy", "sgd")
            model.fit(np.zeros_like(x), y, epochs=2, verbose=0)
            model.train_step(x, y)

    def test_looking_changes_nothing(self) -> None:
        """What a layer does not write stays as it was, for batches of each size."""
        with nn.use_backend("numpy"):
            model = nn.Sequential([Lookup(10, 3)], seed=0, dtype="float64")
        model.compile("softmax_cross_entropy", nn.Adam(0.1, eps=1e-30))
        for size in (3, 2, 3):
            model.train_step(np.arange(size, dtype=float)[:, None], np.zeros(size, int))
        gradient, weight = model.layers[0].weight_grad, model.layers[0].weight
        assert gradient[:3].any(axis=1).all()
        assert not gradient[3:].any()
        assert not weight[3:].any()


def in_place_on_predictions(t, p):
    p -= t
    return (p**2).mean(), 2 * p / p.size


def in_place_on_targets(t, p):
    t -= p
    return (t**2).mean(), -2 * t / t.size


@pytest.mark.parametrize("loss", [in_place_on_predictions, in_place_on_targets])
@pytest.mark.parametrize("activation", [None, "sigmoid", "gelu"])
def test_a_loss_that_works_in_place_spoils_nothing(backend, rng, loss, activation) -> None:
    x, y = rng.normal(size=(30, 4)), rng.uniform(size=(30, 2))
    results = []
    for each in (loss, lambda t, p: (((p - t) ** 2).mean(), 2 * (p - t) / p.size)):
        layers = [nn.Dense(4, 5, "tanh"), nn.Dense(5, 2, activation)]
        model = nn.Sequential(layers, seed=0, dtype="float64")
        model.compile(each, nn.SGD(0.5))
        curve = model.fit(x, y, epochs=3, batch_size=30, shuffle=False, verbose=0)["loss"]
        results.append([*curve, float(model.evaluate(x, y)["loss"]), float(model.train_step(x, y))])
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_an_optimizer_that_returns_something_else_than_param_is_refused(backend, rng) -> None:
    class InPlace(nn.Optimizer):
        def update(self, backend, param, grad, slots, lr, weight_decay, step, scratch):
            param -= lr * grad
            return param

    class Returning(nn.Optimizer):
        def update(self, backend, param, grad, slots, lr, weight_decay, step, scratch):
            return param - lr * grad

    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy", InPlace(0.1))
    model.fit(*rows(rng), verbose=0)
    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy", Returning(0.1))
    with pytest.raises(nn.DTypeError, match=r"Returning\.update changes param in place"):
        model.fit(*rows(rng), verbose=0)


def wrapped(function):
    """As decorators make it: what takes two arguments looks as if it took one."""

    @functools.wraps(function)
    def inner(first, second):
        return function(first)

    return inner


@pytest.mark.parametrize(
    ("make", "called"),
    [
        (lambda: nn.Sequential([nn.Dense(2, 3)]).compile("softmax_cross_entropy", type(
            "Own", (nn.Optimizer,), {"update": lambda self, param, grad: None})()),
         r"Own\.update is called with \(backend, param, grad, slots, lr, weight_decay, step, "),
        (lambda: nn.LearningRateScheduler(lambda epoch: 0.1), r"called with \(epoch, lr\)"),
        (lambda: nn.Dense(2, 3, weight_init=lambda shape: shape), r"called with \(shape, rng\)"),
    ],
)  # fmt: skip
def test_a_function_with_other_arguments_is_refused_at_once(make, called) -> None:
    with pytest.raises(nn.UnknownArgumentError, match=called):
        make()
    nn.LearningRateScheduler(wrapped(lambda epoch: 0.1))
    nn.Dense(2, 3, weight_init=wrapped(np.ones))


def test_a_layer_whose_base_was_not_made_says_so() -> None:
    class Careless(Whole):
        def __init__(self, n) -> None:
            self.n = n

    with pytest.raises(AttributeError, match=r"Careless\.__init__ must first call super\(\)"):
        nn.Sequential([Careless(3)])


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Dense(3, 1, "softmax")],
        lambda: [nn.Dense(3, 1), nn.Softmax()],
        lambda: [nn.Dense(3, 1, "softmax"), nn.Dropout(0.1)],
    ],
)
def test_a_softmax_over_one_output_is_warned_of(layers) -> None:
    model = nn.Sequential(layers())
    for loss in ("binary_cross_entropy", "mean_squared_error", in_place_on_targets):
        with pytest.warns(UserWarning, match="always 1.*sigmoid_cross_entropy"):
            model.compile(loss)


def test_a_history_is_a_dict_of_curves(rng) -> None:
    pandas = pytest.importorskip("pandas")
    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy", "sgd", ["accuracy"])
    history = model.fit(*rows(rng), epochs=3, verbose=0)
    assert list(pandas.DataFrame(history).columns) == ["loss", "accuracy", "lr"]
    assert json.loads(json.dumps(history))["loss"] == history["loss"]
    assert history.curves is history
    old = {"curves": {"loss": [1.0]}, "seconds": [0.5], "stopped": None}  # as once pickled
    again = nn.History.__new__(nn.History)
    again.__setstate__(old)
    assert (again, again.seconds) == ({"loss": [1.0]}, [0.5])
    for copied in (copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
        assert (copied, copied.seconds) == (history, history.seconds)
    with pytest.raises(AttributeError, match=r"history\['loss'\]"):
        _ = history.history
    with pytest.raises(KeyError, match="'accuracy'"):
        _ = history["acc"]


@pytest.mark.parametrize(
    ("y", "loss", "hint"),
    [
        (np.array([1.0, 2.0], object), "mean_squared_error", r"np\.array\(y, float\)"),
        (np.array(["1", "2"]), "mean_squared_error", r"np\.array\(y, float\)"),
        (np.array([0, 2], object), "softmax_cross_entropy", r"np\.array\(y, int\)"),
        (np.array(["cat", "dog"]), "softmax_cross_entropy", r"np\.unique"),
        (np.array(["no", "yes"]), "sigmoid_cross_entropy", r"np\.unique"),
    ],
)
def test_targets_of_another_kind_are_answered_by_what_the_loss_needs(y, loss, hint) -> None:
    model = nn.Sequential([nn.Dense(2, 1 if loss == "mean_squared_error" else 3)])
    model.compile(loss)
    with pytest.raises(nn.DTypeError, match=hint):
        model.train_step(np.ones((2, 2)), y)
