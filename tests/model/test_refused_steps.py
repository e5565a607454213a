"""A step, or a way back, that is refused: what it has touched is as it was before."""

import numpy as np
import pytest
from sample_models import Scale

import nnbackend as nn
from nnbackend.backends.cuda.backend import CudaBackend

LAYERS = {
    "embedding": lambda: [nn.Embedding(4, 5, 3), nn.Dense(6, 8), nn.BatchNorm(8), nn.Dense(8, 1)],
    "norm": lambda: [nn.Dense(4, 8), nn.BatchNorm(8), nn.Dense(8, 1)],
    "own layer": lambda: [nn.Dense(4, 8), Scale(8), nn.BatchNorm(8), nn.Dense(8, 1)],
}


@pytest.fixture
def refuses(backend) -> None:
    if isinstance(backend, CudaBackend):
        pytest.skip("a GPU returns the loss without waiting for it")


def trained(kind: str, x, y, dtype: str = "float32") -> nn.Sequential:
    model = nn.Sequential(LAYERS[kind](), seed=0, dtype=dtype)
    model.compile("mean_squared_error")
    for _ in range(3):  # the second one takes the short cut
        model.train_step(x, y)
    return model


@pytest.fixture
def batch(rng) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(12, 4)).astype(np.float32)
    x[:, 0] = rng.integers(0, 5, 12)
    return x, rng.normal(size=(12, 1)).astype(np.float32)


def assert_unchanged(model: nn.Sequential, before: dict[str, np.ndarray], x) -> None:
    for name, values in model.arrays().items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    assert np.isfinite(model.predict(x)).all()


@pytest.mark.parametrize("wrong", [5, -1, np.nan])
def test_a_category_that_is_none_is_named_and_changes_nothing(refuses, batch, wrong) -> None:
    x, y = batch
    model = trained("embedding", x, y)
    before = model.arrays()
    bad = x.copy()
    bad[7, 0] = wrong
    for call in (model.train_step, model.gradient):
        with pytest.raises(nn.DataError, match="row 7"):
            call(bad, y)
        assert_unchanged(model, before, x)
    model.train_step(x, y)


def with_row(array: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row] = value
    return changed


@pytest.mark.parametrize("kind", ["norm", "own layer"])
@pytest.mark.parametrize(
    "spoil",
    [lambda x, y: (x, with_row(y, 3, 1e30)), lambda x, y: (with_row(x, 0, 1e25), y)],
    ids=["the loss", "statistics, of a loss that may be finite"],
)
def test_what_overflows_refuses_the_step_and_moves_no_running_statistics(
    refuses, batch, kind, spoil
) -> None:
    x, y = batch
    model = trained(kind, x, y)
    before = model.arrays()
    with pytest.raises(nn.NonFiniteLossError):
        model.train_step(*spoil(x, y))
    assert_unchanged(model, before, x)


@pytest.mark.parametrize("kind", ["norm", "own layer"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
def test_a_forward_pass_of_what_is_not_finite_is_refused(refuses, batch, kind, value) -> None:
    x, y = batch
    model = trained(kind, x, y)
    model.forward(x)
    before = model.arrays()
    bad = x.copy()
    bad[5, 2] = value
    with pytest.raises(nn.DataError, match="row 5, column 2" if value != 1e25 else "too large"):
        model.forward(bad)
    assert_unchanged(model, before, x)


class TestBetweenForwardAndBackward:
    """Layers written in Python keep what they need of their last pass."""

    @pytest.mark.parametrize(
        "use",
        [
            lambda m, x: m(x),
            lambda m, x: m.predict(x[:1]),
            lambda m, x: m.forward(x, training=False),
            lambda m, x: m.evaluate(x, x[:, :1]),
        ],
        ids=["call", "predict", "forward", "evaluate"],
    )
    def test_an_own_layer_that_was_used_meanwhile_refuses_the_way_back(
        self, backend, batch, use
    ) -> None:
        x, y = batch
        model = trained("own layer", x, y)
        dy = np.ones((12, 1), np.float32)
        model.forward(x)
        use(model, 2 * x)
        with pytest.raises(nn.DataError, match="came between forward and backward"):
            model.backward(dy)
        model.forward(x)  # and another way there can be gone back
        model.backward(dy)
        expected = np.array(model.backend.to_numpy(model.flat_gradient))
        use(model, x)
        model.forward(x)
        model.backward(dy)
        np.testing.assert_allclose(model.backend.to_numpy(model.flat_gradient), expected)

    def test_layers_of_ours_keep_it_apart(self, backend, batch) -> None:
        x, y = batch
        one, other = (trained("norm", x, y, "float64") for _ in range(2))
        for model in (one, other):
            model.forward(x)
            if model is other:
                model(3 * x)
                model.predict(x[:1])
            model.backward(np.ones((12, 1)))
        np.testing.assert_array_equal(one.flat_gradient, other.flat_gradient)


class TestFrozen:
    @pytest.mark.parametrize(
        "layer", [lambda: nn.BatchNorm(8), lambda: nn.LayerNorm(8), lambda: Scale(8)]
    )
    def test_their_part_of_the_gradient_is_zero(self, backend, batch, layer) -> None:
        x, y = batch
        model = nn.Sequential([nn.Dense(4, 8, "tanh"), layer(), nn.Dense(8, 1)], seed=0)
        model.compile("mean_squared_error")
        model.layers[1].trainable = False
        model.gradient(x, y)
        step = np.array(model.flat_gradient)
        before = model.arrays()
        model.set_flat(model.get_flat() - 0.1 * step)
        for name, values in model.arrays().items():
            frozen = name.startswith("layers.1.")
            assert np.array_equal(values, before[name]) == frozen, name

    def test_their_optimizer_state_waits_until_they_are_trained_again(self, backend, batch) -> None:
        x, y = batch
        model = trained("norm", x, y)
        before = model.optimizer_state()
        for _ in range(2):
            model.layers[0].trainable = False
            model.layers[2].trainable = False
            model.layers[0].trainable = True
            model.layers[2].trainable = True
        for name, values in model.optimizer_state().items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)
        model.compile("mean_squared_error")
        assert not any(values.any() for values in model.optimizer_state().values())

    def test_in_a_file_it_waits_too(self, backend, batch, tmp_path) -> None:
        x, y = batch
        models = [trained("norm", x, y) for _ in range(2)]
        for model in models:
            model.layers[0].trainable = False
            model.train_step(x, y)
        models[1].save(tmp_path / "m")
        models[1] = nn.load(tmp_path / "m")
        for model in models:
            model.layers[0].trainable = True
            model.train_step(x, y)
        first, second = (model.optimizer_state() for model in models)
        assert first["m.layers.0.weight"].any()
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name], err_msg=name)

    def test_another_optimizer_has_none_of_it(self, backend, batch) -> None:
        x, y = batch
        model = trained("norm", x, y)
        model.layers[0].trainable = False
        model.compile("mean_squared_error")
        model.layers[0].trainable = True
        assert not any(values.any() for values in model.optimizer_state().values())


class Residual(nn.Layer):
    """Has its layer as it is, or among others."""

    def __init__(self, where) -> None:
        super().__init__(4, 4)
        self.inner = where(nn.Dense(4, 4, seed=1))

    def forward(self, x, training=False):
        return x

    def backward(self, dy):
        return dy


@pytest.mark.parametrize(
    "where",
    [
        lambda layer: layer,
        lambda layer: [nn.ReLU(), layer],
        lambda layer: {"a": layer},
        lambda layer: [{"a": (layer,)}],
        lambda layer: {layer},
    ],
)
def test_a_layer_inside_another_one_is_refused(backend, where) -> None:
    """Nothing would train or save it."""
    with pytest.raises(nn.DataError, match=r"Residual\.inner holds a layer with arrays"):
        nn.Sequential([Residual(where), nn.Dense(4, 1)])
    nn.Sequential([Residual(lambda layer: nn.ReLU()), nn.Dense(4, 1)])
    itself: list = []
    itself.append(itself)
    nn.Sequential([Residual(lambda layer: itself), nn.Dense(4, 1)])


def test_a_layer_may_know_another_one_of_its_model(backend, rng) -> None:
    """As a decoder whose weights are its encoder's does."""
    encoder = nn.Dense(4, 4)
    model = nn.Sequential([encoder, Residual(lambda layer: encoder), nn.Dense(4, 1)], seed=0)
    assert model.layers[1].inner is model.layers[0]


def test_a_loss_that_fails_moves_no_running_statistics(refuses, batch) -> None:
    x, y = batch
    model = trained("norm", x, y)

    def fails(y_true, y_pred):
        raise RuntimeError("of a user")

    model.compile(fails)
    before = model.arrays()
    with pytest.raises(RuntimeError, match="of a user"):
        model.train_step(x, y)
    assert_unchanged(model, before, x)
