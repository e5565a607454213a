"""Losses, metrics, optimizers, schedules, initializers, data sets: by themselves."""

from functools import partial

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.initializers import INITIALIZERS, draw, initializer_config, resolve_initializer
from nnbackend.losses import LOSSES, function_target, resolve_loss
from nnbackend.metrics import METRICS, resolve_metric
from nnbackend.optimizers import OPTIMIZERS, resolve_optimizer
from nnbackend.schedules import SCHEDULES, schedule_from_config


class TestLosses:
    @pytest.mark.parametrize("name", LOSSES)
    def test_names_classes_and_configurations_resolve(self, name: str) -> None:
        loss = resolve_loss(name)
        assert type(resolve_loss(type(loss))) is type(loss)
        assert resolve_loss(loss) is loss
        assert resolve_loss(loss.config()).config() == loss.config()

    def test_a_loss_is_called_like_a_users_own(self, backend) -> None:
        loss, dpred = nn.losses.MeanSquaredError()([1.0, 2.0], np.array([[2.0], [2.0]]))
        assert loss == 0.5
        np.testing.assert_allclose(backend.to_numpy(dpred), [[1.0], [0.0]])
        with pytest.raises(nn.ShapeError, match="as many rows; received 1 and 2"):
            nn.losses.MeanSquaredError()([1.0], np.ones((2, 1)))
        with pytest.raises(nn.ShapeError, match=r"\(batch, outputs\); received \(2,\)"):
            nn.losses.MeanSquaredError()([1.0], np.ones(2))

    def test_labels_columns_and_one_hot_rows_are_the_same(self, backend, rng) -> None:
        logits, labels = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
        loss = nn.losses.SoftmaxCrossEntropy()
        values = [loss(t, logits)[0] for t in (labels, labels[:, None], np.eye(4)[labels],
                                               labels.astype(float))]  # fmt: skip
        np.testing.assert_allclose(values, values[0], rtol=1e-14)

    def test_sum_squared_error_sums_over_batches_and_rows(self, backend, rng) -> None:
        x, y = rng.normal(size=(2500, 3)), rng.normal(size=(2500, 2))
        model = nn.Sequential([nn.Dense(3, 2)], seed=0, dtype="float64")
        model.compile("sum_squared_error", nn.SGD(lr=0.0))
        expected = ((model.predict(x) - y) ** 2).sum()
        assert model.evaluate(x, y)["loss"] == pytest.approx(expected)
        assert model.fit(x, y, verbose=0)["loss"][0] == pytest.approx(expected)


class TestMetrics:
    @pytest.fixture
    def model(self, backend) -> nn.Sequential:
        return nn.Sequential([nn.Dense(3, 3, bias=False, weight_init=np.eye(3))], dtype="float64")

    def test_figures_from_a_confusion_matrix(self, model) -> None:
        # true 0: taken for 0, 0, 1; true 1: for 1; class 2 never occurs and is guessed once
        x = np.eye(3)[[0, 0, 1, 1, 2]]
        y = [0, 0, 0, 1, 1]
        model.compile("softmax_cross_entropy", metrics=["accuracy", "precision", "recall", "f1"])
        result = model.evaluate(x, y)
        assert result["accuracy"] == pytest.approx(3 / 5)
        assert result["precision"] == pytest.approx((1 + 1 / 2 + 0) / 3)
        assert result["recall"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
        assert result["f1"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)

    def test_numbers(self, model, rng) -> None:
        x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
        w = rng.uniform(size=40)
        model.compile("huber", metrics=["mae", "mse", "r2"])
        result = model.evaluate(x, y, w)
        assert result["mae"] == pytest.approx(np.average(np.abs(x - y).mean(axis=1), weights=w))
        assert result["mse"] == pytest.approx(np.average(((x - y) ** 2).mean(axis=1), weights=w))
        mean = np.average(y, axis=0, weights=w)
        spread = (w[:, None] * (y - mean) ** 2).sum(axis=0)
        residual = (w[:, None] * (y - x) ** 2).sum(axis=0)
        assert result["r2"] == pytest.approx((1 - residual / spread).mean())

    def test_r2_of_constant_targets(self, model) -> None:
        model.compile("huber", metrics=["r2"])
        same = np.ones((5, 3))
        assert model.evaluate(same, same)["r2"] == 1
        assert model.evaluate(2 * same, same)["r2"] == 0

    def test_top_k(self, model) -> None:
        model.compile("softmax_cross_entropy", metrics=[nn.metrics.TopKAccuracy(2)])
        assert model.evaluate([[3.0, 2, 1]] * 3, [0, 1, 2])["top_k_accuracy"] == pytest.approx(
            2 / 3
        )

    def test_yes_or_no_outputs(self, model) -> None:
        logits = np.array([[1.0, -1, -1], [1, 1, -1]])
        y = np.array([[1.0, 0, 1], [0, 1, 0]])
        model.compile("sigmoid_cross_entropy", metrics=["accuracy", "precision"])
        result = model.evaluate(logits, y)
        assert result["accuracy"] == pytest.approx(4 / 6)
        assert result["precision"] == pytest.approx((1 / 2 + 1 + 0) / 3)
        with pytest.warns(UserWarning, match="need not lie in .*loss='sigmoid_cross_entropy'"):
            model.compile("binary_cross_entropy", metrics=["accuracy"])
        # as probabilities the border is 1/2
        assert model.evaluate(0.5 + 0.4 * logits, y)["accuracy"] == pytest.approx(4 / 6)

    @pytest.mark.parametrize("name", METRICS)
    def test_names_classes_and_configurations_resolve(self, name: str) -> None:
        metric = resolve_metric(name)
        assert type(resolve_metric(type(metric))) is type(metric)
        assert resolve_metric(metric.config()).config() == metric.config()


class TestOptimizers:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_names_and_configurations_resolve(self, name: str) -> None:
        optimizer = resolve_optimizer(name)
        assert resolve_optimizer(optimizer.config()) == optimizer
        optimizer.lr = nn.StepDecay(0.1, every=5)
        assert resolve_optimizer(optimizer.config()) == optimizer

    @pytest.mark.parametrize(
        "optimizer",
        [nn.SGD(0.1), nn.SGD(0.05, 0.9), nn.SGD(0.05, 0.9, True), nn.AdaGrad(0.5),
         nn.RMSprop(0.05), nn.Adam(0.1), nn.AdamW(0.1)],
    )  # fmt: skip
    def test_each_minimises_a_least_squares_problem(self, backend, rng, optimizer) -> None:
        x = rng.normal(size=(64, 3))
        y = x @ np.array([1.0, -2.0, 0.5]) + 0.3
        model = nn.Sequential([nn.Dense(3, 1)], seed=0, dtype="float64")
        model.compile("mean_squared_error", optimizer)
        history = model.fit(x, y, epochs=80, batch_size=64, verbose=0)
        assert history["loss"][-1] < 1e-2 * history["loss"][0]


class TestSchedules:
    def test_formulas(self) -> None:
        steps = np.arange(0, 50, 7)
        for schedule, expected in (
            (nn.InverseTimeDecay(0.1, 0.5), 0.1 / (1 + 0.5 * steps)),
            (nn.StepDecay(0.1, every=10, factor=0.5), 0.1 * 0.5 ** (steps // 10)),
            (nn.ExponentialDecay(0.1, 0.9, every=5), 0.1 * 0.9 ** (steps / 5)),
        ):
            np.testing.assert_allclose(schedule.rates(steps), expected, rtol=1e-14)
            assert schedule(7) == pytest.approx(expected[1])

    def test_cosine_warms_up_falls_and_stays(self) -> None:
        schedule = nn.CosineDecay(1.0, steps=110, warmup=10, final=0.1)
        assert [schedule(t) for t in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert schedule(10) == pytest.approx(1.0)
        assert schedule(60) == pytest.approx(0.55)
        assert schedule(110) == schedule(10**6) == pytest.approx(0.1)

    def test_the_rate_of_every_update_is_used(self, backend, rng) -> None:
        x, y = rng.normal(size=(10, 2)), rng.normal(size=10)
        model = nn.Sequential([nn.Dense(2, 1)], seed=0)
        model.compile("mean_squared_error", nn.SGD(nn.StepDecay(0.1, every=3, factor=0.5)))
        history = model.fit(x, y, epochs=4, batch_size=5, verbose=0)
        assert history["lr"] == pytest.approx([0.1, 0.05, 0.05, 0.025])

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_configurations_resolve(self, name: str) -> None:
        schedule = SCHEDULES[name](0.1)
        assert schedule_from_config(schedule.config()) == schedule


class TestInitializers:
    @pytest.mark.parametrize(
        ("name", "variance"),
        [("glorot_uniform", 2 / 500), ("glorot_normal", 2 / 500), ("he_uniform", 2 / 200),
         ("he_normal", 2 / 200), ("lecun_uniform", 1 / 200), ("lecun_normal", 1 / 200),
         ("normal", 0.05**2), ("uniform", 0.05**2 / 3)],
    )  # fmt: skip
    def test_variances(self, rng, name: str, variance: float) -> None:
        values = draw(name, "w", (200, 300), rng)
        assert values.var() == pytest.approx(variance, rel=0.03)
        assert abs(values.mean()) < 4 * (variance / values.size) ** 0.5
        if "uniform" in name:
            assert np.abs(values).max() <= (3 * variance) ** 0.5

    @pytest.mark.parametrize("shape", [(5, 8), (8, 5), (4, 4)])
    def test_orthogonal(self, rng, shape) -> None:
        q = draw("orthogonal", "w", shape, rng)
        product = q @ q.T if shape[0] < shape[1] else q.T @ q
        np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-12)
        with pytest.raises(nn.ShapeError, match="matrices"):
            draw("orthogonal", "b", (3,), rng)

    def test_constants_arrays_and_callables(self, rng) -> None:
        np.testing.assert_array_equal(draw(nn.initializers.Constant(2), "w", (2,), rng), [2, 2])
        np.testing.assert_array_equal(draw([[1, 2]], "w", (2,), rng), [1, 2])
        np.testing.assert_array_equal(draw(lambda s, r: np.ones(s), "w", (1, 2), rng), [[1, 1]])

    @pytest.mark.parametrize("name", INITIALIZERS)
    def test_names_and_configurations_resolve(self, rng, name: str) -> None:
        assert draw(name, "w", (3, 4), rng).shape == (3, 4)
        config = initializer_config(INITIALIZERS[name] if name == "normal" else name)
        resolve_initializer(config)
        with pytest.raises(nn.UnknownNameError):
            resolve_initializer({"name": name + "x"})


class TestDatasets:
    def test_digits(self) -> None:
        x, y = nn.datasets.digits()
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 64), np.float32, (1797,), np.int64)
        assert (x.min(), x.max()) == (0, 1)
        assert list(np.unique(y)) == list(range(10))
        np.testing.assert_array_equal(16 * x[0, :8], [0, 0, 5, 13, 9, 1, 0, 0])

    def test_generators_without_a_seed_differ(self) -> None:
        a, b = nn.datasets.spiral()[0], nn.datasets.spiral()[0]
        assert not np.array_equal(a, b)


def test_history_is_a_mapping_of_curves() -> None:
    history = nn.History({"loss": [2.0, 1.0]})
    assert (dict(history), len(history), "loss" in history) == ({"loss": [2.0, 1.0]}, 1, True)
    assert repr(history) == "<History of 2 epochs: loss=1>"
    with pytest.raises(KeyError, match="curve must be one of loss; received 'lost'"):
        history["lost"]
    assert "interrupted" not in repr(nn.History())


#: What code written without a setting counts on: a change is one of the public surface.
DEFAULTS = {
    nn.SGD: {"lr": 0.01, "momentum": 0.0, "nesterov": False, "clip_norm": None},
    nn.AdaGrad: {"lr": 0.01, "eps": 1e-7},
    nn.RMSprop: {"lr": 1e-3, "rho": 0.9, "eps": 1e-7},
    nn.Adam: {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-7, "eps_hat": 0.0},
    nn.AdamW: {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-7, "weight_decay": 0.01},
    partial(nn.InverseTimeDecay, 0.1): {"decay": 0.0},
    partial(nn.StepDecay, 0.1): {"every": 1000, "factor": 0.1},
    partial(nn.ExponentialDecay, 0.1): {"every": 1, "factor": 0.96},
    partial(nn.CosineDecay, 0.1): {"steps": 1000, "warmup": 0, "final": 0.0},
    nn.losses.Huber: {"delta": 1.0},
    partial(nn.BatchNorm, 3): {"momentum": 0.1, "eps": 1e-5, "trainable": True},
    partial(nn.LayerNorm, 3): {"eps": 1e-5, "trainable": True},
    partial(nn.Standardize, 3): {"skip": 0},
}


@pytest.mark.parametrize("made", DEFAULTS)
def test_defaults_stay_what_they_are(made) -> None:
    part = made()
    assert {name: getattr(part, name) for name in DEFAULTS[made]} == DEFAULTS[made]


@pytest.mark.parametrize("kind", [nn.StepDecay, nn.ExponentialDecay])
def test_factors_lie_in_0_to_1(kind) -> None:
    for factor in (-0.5, 0.0, 1.5):
        with pytest.raises(nn.DataError, match="factor must be in"):
            kind(0.1, factor=factor)
    assert kind(0.1, factor=1.0).factor == 1.0


@pytest.mark.parametrize(
    ("y", "n_outputs", "shape", "dtype"),
    [
        (np.arange(6) % 3, 3, (6,), "int32"),  # labels stay labels
        (np.linspace(0, 1, 6), 3, (6,), "float32"),
        (np.linspace(0, 1, 6), 1, (6, 1), "float32"),
        (np.arange(6), 1, (6, 1), "float32"),
        (np.ones((6, 3)), 3, (6, 3), "float32"),
        ([True, False], 2, (2,), "int32"),
    ],
)
def test_targets_that_a_loss_of_ones_own_is_given(y, n_outputs, shape, dtype) -> None:
    found = function_target(y, n_outputs, np.dtype("float32"))
    assert (found.shape, found.dtype) == (shape, dtype)
    np.testing.assert_array_equal(found.ravel(), np.ravel(np.asarray(y, "float32")))


@pytest.mark.parametrize("y", [["a", "b"], np.array(["a", None], object)])
def test_targets_of_text_say_how_to_number_them(y) -> None:
    with pytest.raises(nn.DTypeError, match=r"np\.unique"):
        function_target(y, 2, np.dtype("float32"))
