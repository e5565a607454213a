"""What is easily forgotten or mistaken in parts of one's own is said, or does no harm."""

import json

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


class TestGradientThatIsNotSet:
    @pytest.mark.parametrize(
        "go",
        [
            lambda model, x, y: model.fit(x, y, verbose=0),
            lambda model, x, y: model.train_step(x, y),
            lambda model, x, y: model.backward(model.forward(x)),
        ],
    )
    def test_is_an_error(self, backend, rng, go) -> None:
        model = nn.Sequential([Linear(4, 3)], seed=0, dtype="float64")
        model.compile("softmax_cross_entropy", "sgd")
        with pytest.raises(nn.DataError, match=r"Linear\.backward did not set self\.weight_grad"):
            go(model, *rows(rng))

    def test_frozen_layers_and_gradients_of_zero_are_none(self, backend, rng) -> None:
        x, y = rows(rng)
        for layer in (Linear(4, 3, trainable=False), Whole(4, 3)):
            model = nn.Sequential([layer, nn.Dense(3, 3)], seed=0)
            model.compile("softmax_cross_entropy", "sgd")
            model.fit(np.zeros_like(x), y, epochs=2, verbose=0)
            model.train_step(x, y)


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


def test_an_optimizer_that_returns_something_is_refused(backend, rng) -> None:
    class Returning(nn.Optimizer):
        def update(self, backend, param, grad, slots, lr, weight_decay, step, scratch):
            return param - lr * grad

    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy", Returning(0.1))
    with pytest.raises(nn.DTypeError, match=r"Returning\.update changes param in place"):
        model.fit(*rows(rng), verbose=0)


@pytest.mark.parametrize(
    ("make", "called"),
    [
        (lambda: type("Own", (nn.Optimizer,), {"update": lambda self, param, grad: None}),
         r"update\(backend, param, grad, slots, lr, weight_decay, step, scratch\)"),
        (lambda: nn.LearningRateScheduler(lambda epoch: 0.1), r"function\(epoch, lr\)"),
        (lambda: nn.Dense(2, 3, weight_init=lambda shape: shape), r"function\(shape, rng\)"),
    ],
)  # fmt: skip
def test_a_function_with_other_arguments_is_refused_at_once(make, called) -> None:
    with pytest.raises(nn.UnknownArgumentError, match=called):
        make()


def test_a_layer_whose_base_was_not_made_says_so() -> None:
    class Careless(Whole):
        def __init__(self, n) -> None:
            self.n = n

    with pytest.raises(AttributeError, match=r"Careless\.__init__ must first call super\(\)"):
        nn.Sequential([Careless(3)])


def test_a_softmax_over_one_output_is_refused() -> None:
    model = nn.Sequential([nn.Dense(3, 1, "softmax")])
    for loss in ("binary_cross_entropy", "mean_squared_error", in_place_on_targets):
        with pytest.raises(nn.DataError, match="always 1.*sigmoid_cross_entropy"):
            model.compile(loss)


def test_a_history_is_a_dict_of_curves(rng) -> None:
    pandas = pytest.importorskip("pandas")
    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy", "sgd", ["accuracy"])
    history = model.fit(*rows(rng), epochs=3, verbose=0)
    assert list(pandas.DataFrame(history).columns) == ["loss", "accuracy", "lr"]
    assert json.loads(json.dumps(history))["loss"] == history["loss"]
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
    ],
)
def test_targets_of_another_kind_are_answered_by_what_the_loss_needs(y, loss, hint) -> None:
    model = nn.Sequential([nn.Dense(2, 1 if loss == "mean_squared_error" else 3)])
    model.compile(loss)
    with pytest.raises(nn.DTypeError, match=hint):
        model.train_step(np.ones((2, 2)), y)
