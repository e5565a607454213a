"""Arguments of the wrong kind: an error of ours that says so, and nothing else happens."""

import datetime
import decimal
import fractions

import numpy as np
import pytest
from sample_models import data

import nnbackend as nn

HUGE = 10**400
NO_NUMBER = [
    None, "0.5", b"1", [0.5], {}, object(), 1j, np.array([0.5]), np.array(["a"]), len,
    decimal.Decimal(1), datetime.timedelta(1), np.timedelta64(1, "s"), float("nan"), HUGE, -HUGE,
    10**5000, fractions.Fraction(HUGE),
]  # fmt: skip
NO_SIZE = [*NO_NUMBER, 0, -3, 2.0, True, np.float32(2), 1 << 63]
NO_NAME = [None, 3, b"relu", ["relu"], {"relu"}, {}, np.array(["relu", "tanh"]), 10**5000, ""]
NO_FLAG = [
    None,
    "yes",
    "",
    2,
    -1,
    0.5,
    [],
    np.timedelta64(1, "s"),
    np.array([True, False]),
    np.array([]),
    HUGE,
    object(),
]
NO_LIST = [3, 1.5, object(), len, np.array(1.0), HUGE]
NO_PATH = [None, 3, 1.5, b"x", ["x"], np.array(["x"]), object(), "", "a\0b", "\ud800", 10**5000]
NO_ARRAY = [None, "text", {}, object(), [[1.0], [1.0, 2.0]], [[1j]], [[None]], [["a"]], HUGE, 5]
NO_DTYPE = [None, "float16", "int", "", 3, [], np.array([1, 2]), object(), HUGE, "f4,f4", complex]


def each(*cases):
    """``(name, call, values)`` as one test for each value."""
    return [
        pytest.param(call, value, id=f"{name}-{number}")
        for name, call, values in cases
        for number, value in enumerate(values)
    ]


def small() -> nn.Sequential:
    model = nn.Sequential([nn.Dense(4, 8, "tanh"), nn.Dense(8, 3)], seed=0)
    model.compile("softmax_cross_entropy", "adam")
    return model


def without(values, *left_out):
    return [value for value in values if not any(value is other for other in left_out)]


SETTINGS = each(
    ("LayerNorm.n", nn.LayerNorm, NO_SIZE),
    ("Standardize.n", nn.Standardize, NO_SIZE),
    ("Standardize.skip", lambda v: nn.Standardize(4, skip=v), without(NO_SIZE, 0)),
    ("Adam.eps", lambda v: nn.Adam(eps=v), [nn.CosineDecay(0.1), *NO_NUMBER]),
    ("SGD.momentum", lambda v: nn.SGD(momentum=v), [nn.CosineDecay(0.1), *NO_NUMBER]),
    ("Uniform", nn.initializers.Uniform, [1e308, *NO_NUMBER]),
    ("Constant", nn.initializers.Constant, [1e308, *NO_NUMBER]),
    ("seed", lambda v: nn.Sequential([nn.Dense(1, 1)], v), [np.timedelta64(1, "s"), "x", -1]),
    ("History", nn.History, [5, "x", [1]]),
    ("register_backend", lambda v: nn.register_backend("some_name", v), [None, 3, int, object]),
    ("spiral.samples", nn.datasets.spiral, [*NO_SIZE, 1 << 62]),
    ("spiral.classes", lambda v: nn.datasets.spiral(1, v), [*NO_SIZE, 1 << 31]),
    ("moons.noise", lambda v: nn.datasets.moons(noise=v), [1e308, *NO_NUMBER]),
    ("sine.samples", nn.datasets.sine, [*NO_SIZE, (1 << 63) - 1]),
    ("Dense.n_inputs", lambda v: nn.Dense(v, 2), without(NO_SIZE, None)),
    ("BatchNorm.n", nn.BatchNorm, without(NO_SIZE, None)),
    ("Dense.weight_l2", lambda v: nn.Dense(2, 2, weight_l2=v), NO_NUMBER),
    ("Dense.bias", lambda v: nn.Dense(2, 2, bias=v), NO_FLAG),
    ("Dense.trainable", lambda v: nn.Dense(2, 2, trainable=v), NO_FLAG),
    ("Dense.dtype", lambda v: nn.Dense(2, 2, dtype=v), NO_DTYPE),
    ("Dense.activation", lambda v: nn.Dense(2, 2, v), without(NO_NAME, None)),
    ("Dense.weight_init", lambda v: nn.Dense(2, 2, weight_init=v), [None, object(), {}, "no"]),
    ("Dropout.rate", nn.Dropout, NO_NUMBER),
    ("ELU", nn.ELU, NO_NUMBER),
    ("LayerNorm.eps", lambda v: nn.LayerNorm(3, eps=v), NO_NUMBER),
    ("SGD.lr", nn.SGD, NO_NUMBER),
    ("SGD.nesterov", lambda v: nn.SGD(momentum=0.9, nesterov=v), NO_FLAG),
    ("Adam.beta1", lambda v: nn.Adam(beta1=v), NO_NUMBER),
    ("Adam.clip_norm", lambda v: nn.Adam(clip_norm=v), without(NO_NUMBER, None)),
    ("StepDecay.every", lambda v: nn.StepDecay(0.1, every=v), NO_SIZE),
    ("CosineDecay.warmup", lambda v: nn.CosineDecay(0.1, 9, warmup=v), NO_NUMBER),
    ("CosineDecay.steps", lambda v: nn.CosineDecay(0.1, v), NO_SIZE),
    ("Huber.delta", nn.losses.Huber, NO_NUMBER),
    ("TopKAccuracy.k", nn.metrics.TopKAccuracy, NO_SIZE),
    ("Normal.std", nn.initializers.Normal, NO_NUMBER),
    ("EarlyStopping.monitor", nn.EarlyStopping, without(NO_NAME, "")),
    ("EarlyStopping.mode", lambda v: nn.EarlyStopping(mode=v), NO_NAME),
    ("EarlyStopping.patience", lambda v: nn.EarlyStopping(patience=v), NO_SIZE),
    ("EarlyStopping.restore_best", lambda v: nn.EarlyStopping(restore_best=v), NO_FLAG),
    ("ModelCheckpoint.path", nn.ModelCheckpoint, NO_PATH),
    ("CSVLogger.path", nn.CSVLogger, NO_PATH),
    ("TimeLimit.seconds", nn.TimeLimit, NO_NUMBER),
    ("LearningRateScheduler", nn.LearningRateScheduler, without(NO_LIST, len)),
    ("register_backend", lambda v: nn.register_backend(v, "a:b"), NO_NAME),
    ("get_backend", nn.get_backend, without(NO_NAME, None)),
    ("set_num_threads", nn.set_num_threads, without(NO_SIZE, True)),
    ("load", nn.load, NO_PATH),
    ("Sequential.layers", nn.Sequential, [*NO_LIST, "ab", [None], [3]]),
    ("Sequential.dtype", lambda v: nn.Sequential([nn.Dense(2, 2)], dtype=v), NO_DTYPE),
    ("Sequential.precision", lambda v: nn.Sequential([nn.Dense(2, 2)], precision=v), NO_NAME),
    ("read_csv", nn.datasets.read_csv, NO_PATH),
)  # fmt: skip


@pytest.mark.parametrize(("call", "value"), SETTINGS)
def test_a_setting_of_the_wrong_kind_is_refused(call, value) -> None:
    with pytest.raises(nn.NNBackendError, match="."):
        call(value)


X, Y = data(np.random.default_rng(0))
CALLS = each(
    ("compile.loss", lambda m, v: m.compile(v), without(NO_NAME, None)),
    ("compile.optimizer", lambda m, v: m.compile("huber", v), NO_NAME),
    ("compile.metrics", lambda m, v: m.compile("huber", metrics=v), without(NO_LIST, len)),
    ("compile.metric", lambda m, v: m.compile("huber", metrics=[v]), NO_NAME),
    ("fit.epochs", lambda m, v: m.fit(X, Y, epochs=v), NO_SIZE[:-1]),
    ("fit.validation_split", lambda m, v: m.fit(X, Y, validation_split=v), NO_NUMBER),
    ("fit.validation_data", lambda m, v: m.fit(X, Y, validation_data=v), [3, int, {}, HUGE]),
    ("fit.batches", lambda m, v: m.fit(v), [3, dict, lambda: 1, lambda: None, HUGE]),
    ("fit.callbacks", lambda m, v: m.fit(X, Y, callbacks=v), [*NO_LIST, "ab", [None]]),
    ("fit.verbose", lambda m, v: m.fit(X, Y, verbose=v), [*NO_FLAG[:2], 3, *NO_FLAG[4:]]),
    ("fit.shuffle", lambda m, v: m.fit(X, Y, verbose=0, shuffle=v), NO_FLAG),
    ("fit.class_weight", lambda m, v: m.fit(X, Y, class_weight=v), ["x", 3, {"a": 1}, {HUGE: 1}]),
    ("train_step.x", lambda m, v: m.train_step(v, Y), NO_ARRAY),
    ("train_step.y", lambda m, v: m.train_step(X, v), NO_ARRAY),
    ("train_step.weight", lambda m, v: m.train_step(X, Y, v), without(NO_ARRAY, None)),
    ("predict", lambda m, v: m.predict(v), NO_ARRAY),
    ("call", lambda m, v: m(v), NO_ARRAY),
    ("forward", lambda m, v: m.layers[0].forward(v), NO_ARRAY),
    ("weight", lambda m, v: setattr(m.layers[0], "weight", v), NO_ARRAY),
    ("weight_grad", lambda m, v: setattr(m.layers[0], "weight_grad", v), NO_ARRAY),
    ("trainable", lambda m, v: setattr(m.layers[0], "trainable", v), NO_FLAG),
    ("lr", lambda m, v: setattr(m.optimizer, "lr", v), NO_NUMBER),
    ("set_arrays", lambda m, v: m.set_arrays(v), [*NO_LIST, {"x": 1}, {3: 1}, {"layers.0.no": 1}]),
    ("set_arrays.value", lambda m, v: m.set_arrays({"layers.0.bias": v}), NO_ARRAY),
    ("set_optimizer_state", lambda m, v: m.set_optimizer_state(v), [*NO_LIST, {"x": 1}, {3: 1}]),
    ("save", lambda m, v: m.save(v), NO_PATH),
    ("load_weights", lambda m, v: m.load_weights(v), NO_PATH),
    ("to", lambda m, v: m.to(v), without(NO_NAME, None)),
)  # fmt: skip


@pytest.mark.parametrize(("call", "value"), CALLS)
def test_an_argument_of_the_wrong_kind_changes_nothing(call, value) -> None:
    with nn.use_backend("numpy"):
        model = small()
        before = {**model.arrays(), **model.optimizer_state()}
        with pytest.raises(nn.NNBackendError, match="."):
            call(model, value)
        for name, array in {**model.arrays(), **model.optimizer_state()}.items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        assert model.epoch == model.step == 0


def test_an_array_that_does_not_fit_leaves_the_others_alone(backend) -> None:
    model = small()
    before = model.arrays()
    given = {"layers.0.weight": np.zeros((4, 8)), "layers.1.bias": np.zeros(4)}
    with pytest.raises(nn.ShapeError, match=r"Dense.bias has shape \(3,\); received \(4,\)"):
        model.set_arrays(given)
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    "number", [np.longdouble(0.25), fractions.Fraction(1, 4), np.float16(0.25)]
)
def test_numbers_of_other_types_are_saved_as_plain_numbers(tmp_path, number) -> None:
    model = nn.Sequential(
        [nn.Dense(4, 3, weight_init=nn.initializers.Normal(number))], seed=0, backend="numpy"
    )
    schedule = nn.CosineDecay(number, np.int64(9), warmup=number, final=number)
    model.compile(nn.losses.Huber(number), nn.Adam(schedule, eps=number))
    model.save(tmp_path / "m")
    loaded = nn.load(tmp_path / "m", backend="numpy")
    assert loaded.optimizer.lr == nn.CosineDecay(0.25, 9, warmup=0.25, final=0.25)
    assert loaded.loss.delta == 0.25


def notes(kind: str):
    """What JSON cannot hold."""
    if kind == "circle":
        circle: list = []
        circle.append(circle)
        return circle
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    return {
        "longdouble": np.longdouble(1), "object": object(), "key": {(1, 2): 3}, "deep": nested,
        "digits": 10**5000,
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["longdouble", "object", "key", "deep", "digits", "circle"])
def test_notes_that_json_cannot_hold_are_refused(tmp_path, kind) -> None:
    model = small()
    model.info["note"] = notes(kind)
    with pytest.raises(nn.NNBackendError):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_layers_without_a_setting_take_none() -> None:
    for layer in (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softmax, nn.Linear, nn.SiLU, nn.Mish):
        with pytest.raises(TypeError):
            layer("x")


def test_layers_too_large_for_any_memory() -> None:
    for sizes in ((4, 2**62), (2**40, 2**40)):
        with pytest.raises(nn.OutOfMemoryError):
            nn.Dense(*sizes).weight  # noqa: B018


@pytest.mark.parametrize("loss", [lambda t, p: ("x", p), lambda t, p: (None, p)])
def test_a_loss_that_is_no_number(loss) -> None:
    model = nn.Sequential([nn.Dense(4, 2)], seed=0)
    model.compile(loss)
    with pytest.raises(nn.ShapeError, match="the loss a single number"):
        model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)


@pytest.mark.parametrize("metric", [print, lambda t, p: np.ones(3), lambda t, p: "x"])
def test_a_metric_that_is_no_number(metric) -> None:
    model = nn.Sequential([nn.Dense(4, 2)], seed=0)
    model.compile("softmax_cross_entropy", metrics=[metric])
    with pytest.raises(nn.DTypeError, match="must return a number"):
        model.fit(np.ones((8, 4)), np.arange(8) % 2, verbose=0)


@pytest.mark.parametrize(
    "form",
    [lambda a: a[:, ::2], lambda a: a[::-1, :2], lambda a: np.broadcast_to(a[:1, :2], (8, 2))],
)
def test_gradients_of_any_form_go_back(backend, form) -> None:
    model = nn.Sequential([nn.Dense(4, 2, "tanh")], seed=0)
    model.compile("mean_squared_error")
    dy = np.random.default_rng(0).normal(size=(8, 4)).astype("f4")
    results = []
    for given in (form(dy), np.ascontiguousarray(form(dy))):
        model.forward(np.ones((8, 4), "f4"))
        results.append(backend.to_numpy(model.backward(given)))
    np.testing.assert_array_equal(*results)


def test_a_gradient_of_another_shape_is_refused_before_anything_is_compiled(backend) -> None:
    model = nn.Sequential([nn.Dense(4, 2, "tanh")], seed=0)
    model.compile("mean_squared_error")
    model.forward(np.ones((8, 4), "f4"))
    with pytest.raises((nn.ShapeError, nn.OutOfMemoryError)):
        model.backward(np.broadcast_to(np.float32(1), (2**40, 2)))


@pytest.mark.parametrize("dtype", ["deep", "repr"])
def test_dtypes_that_cannot_even_be_shown(dtype) -> None:
    class Secret:
        def __repr__(self):
            raise RuntimeError

    deep: list = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(nn.DTypeError, match="dtype must be"):
        nn.Dense(2, 2, dtype=deep if dtype == "deep" else Secret())


def test_parts_of_the_book_refuse_what_they_cannot_use() -> None:
    from nnbackend import nnfs

    for call in (
        lambda: nnfs.Layer_Dense(-1, 3), lambda: nnfs.Layer_Dense("a", 3),
        lambda: nnfs.Layer_Dense(2, 2, weight_regularizer_l2="x"), lambda: nnfs.Layer_Dropout(2),
        lambda: nnfs.Layer_Dropout("x"), lambda: nnfs.Optimizer_SGD("x"),
        lambda: nnfs.Optimizer_Adagrad(None), lambda: nnfs.Optimizer_Adam(beta_1=1.5),
        lambda: nnfs.Model.load(3), lambda: nnfs.Model.load("a\0b"),
    ):  # fmt: skip
        with pytest.raises(nn.NNBackendError):
            call()
