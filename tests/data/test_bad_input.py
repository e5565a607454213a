"""Bad input is refused with the rule and what was received, before the model is touched."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.data.sources import make_source


def classifier(**settings) -> nn.Sequential:
    model = nn.Sequential([nn.Standardize(3), nn.Dense(3, 4)], seed=0)
    model.compile("softmax_cross_entropy", **settings)
    return model


GOOD_X = np.arange(30, dtype="float32").reshape(10, 3)
GOOD_Y = np.arange(10) % 4


def with_value(value: float, row: int = 7, column: int = 2) -> np.ndarray:
    x = GOOD_X.copy()
    x[row, column] = value
    return x


class Sparse:
    """As SciPy's matrices look."""

    shape, dtype = (10, 3), np.dtype("float32")

    def toarray(self) -> np.ndarray:
        return GOOD_X


BAD_DATA = [
    (Sparse(), GOOD_Y, nn.DTypeError, r"sparse matrix: pass x.toarray\(\)"),
    (GOOD_X[:, 0], GOOD_Y, nn.ShapeError, r"shape \(rows, 3\); received \(10,\).*x\[:, None\]"),
    (GOOD_X[:, :2], GOOD_Y, nn.ShapeError, r"\(rows, 3\); received \(10, 2\)"),
    (GOOD_X.reshape(10, 1, 3), GOOD_Y, nn.ShapeError, r"x.reshape\(len\(x\), -1\)"),
    (GOOD_X[:0], GOOD_Y[:0], nn.DataError, "at least one row; received none"),
    (GOOD_X, GOOD_Y[:9], nn.ShapeError, "received 10 rows of x and 9 of y"),
    (GOOD_X, GOOD_Y + 1, nn.DataError, r"0 ... 3.*received 4 in row 3"),
    (GOOD_X, GOOD_Y - 1, nn.DataError, "received -1 in row 0"),
    (GOOD_X, GOOD_Y + 0.5, nn.DataError, "whole numbers; received 0.5 in row 0"),
    (GOOD_X, np.zeros((10, 3)), nn.ShapeError, r"\(N,\) or rows of shape \(N, 4\); received"),
    (GOOD_X, -np.ones((10, 4)), nn.DataError, "at least 0; received -1.0 in row 0, column 0"),
    (GOOD_X, np.array(["a"] * 10), nn.DTypeError, "np.unique"),
    (GOOD_X, np.full(10, np.nan), nn.DataError, "received nan in row 0"),
    (GOOD_X, 3, nn.ShapeError, "one entry for each row"),
    (with_value(np.nan), GOOD_Y, nn.DataError, "received nan in row 7, column 2"),
    (GOOD_X * np.float64(1e39), GOOD_Y, nn.DataError, "finite in float32; received 1e.39 in row 0"),
    (np.ma.masked_array(GOOD_X), GOOD_Y, nn.DTypeError, "x must not be a masked array"),
    (GOOD_X, np.ma.masked_array(GOOD_Y), nn.DTypeError, "targets must not be a masked array"),
    (with_value(-np.inf), GOOD_Y, nn.DataError, "received -inf in row 7, column 2"),
    (GOOD_X.astype(object), GOOD_Y, nn.DTypeError, "received dtype object"),
    (GOOD_X.astype(complex), GOOD_Y, nn.DTypeError, "received dtype complex"),
    ([["a", "b", "c"]], [0], nn.DTypeError, "real numbers"),
    (GOOD_X, None, nn.DataError, "needs its targets"),
    (7, None, nn.DataError, "y is missing"),
]


@pytest.mark.parametrize(("x", "y", "error", "message"), BAD_DATA)
@pytest.mark.parametrize("how", ["fit", "train_step", "evaluate", "batches", "validation"])
def test_bad_data(backend, how, x, y, error, message) -> None:
    model = classifier()
    before = backend.to_numpy(model.storage.parameters).copy()
    if y is None and how != "fit":
        return
    calls = {
        "fit": lambda: model.fit(x, y, verbose=0),
        "train_step": lambda: model.train_step(x, y),
        "evaluate": lambda: (model.layers[0].adapt(GOOD_X), model.evaluate(x, y)),
        "batches": lambda: (model.layers[0].adapt(GOOD_X), model.fit([(x, y)], verbose=0)),
        "validation": lambda: model.fit(GOOD_X, GOOD_Y, validation_data=(x, y), verbose=0),
    }
    with pytest.raises(error, match=message):
        calls[how]()
    np.testing.assert_array_equal(backend.to_numpy(model.storage.parameters), before)
    assert (model.step, model.epoch) == (0, 0)
    if how not in ("evaluate", "batches"):
        assert not model.layers[0].adapted


def test_the_scan_finds_a_value_far_into_the_data_and_spares_large_finite_ones(backend) -> None:
    model = nn.Sequential([nn.Dense(3, 4)], seed=0)
    model.compile("softmax_cross_entropy")
    x = np.zeros((700_000, 3), "float32")
    y = np.zeros(len(x), np.int64)
    x[::2] = np.finfo("float32").max
    make_source(model.program, x, y)  # the sum overflows, no value is infinite
    x[:] = 0
    x[654_321, 1] = np.nan
    with pytest.raises(nn.DataError, match="received nan in row 654321, column 1"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": 0}, nn.ShapeError, "epochs must be at least 1; received 0"),
        ({"batch_size": -5}, nn.ShapeError, "batch_size must be at least 1; received -5"),
        ({"batch_size": 2.5}, nn.DTypeError, "batch_size must be a whole number"),
        ({"validation_split": 1.0}, nn.DataError, r"in \[0, 1\); received 1"),
        ({"validation_split": 0.01}, nn.DataError, "leaves no rows on one side"),
        (
            {"validation_split": 0.5, "validation_data": (GOOD_X, GOOD_Y)},
            nn.DataError,
            "not both",
        ),
        ({"sample_weight": np.ones(9)}, nn.ShapeError, r"shape \(10,\); received \(9,\)"),
        ({"sample_weight": -np.ones(10)}, nn.DataError, "received -1.0 in row 0"),
        ({"sample_weight": np.full(10, np.nan)}, nn.DataError, "received nan in row 0"),
        ({"sample_weight": np.zeros(10)}, nn.DataError, "not all be 0"),
        ({"sample_weight": ["a"] * 10}, nn.DTypeError, "weights must hold real numbers"),
        (
            {"class_weight": {0: -1.0}},
            nn.DataError,
            r"class_weight\[0\] must be at least 0; received -1",
        ),
        ({"class_weight": "balance"}, nn.DataError, "received 'balance'"),
        ({"class_weight": [1, 2, 3]}, nn.DTypeError, "must be a dict.*received list"),
        ({"class_weight": {"a": 1}}, nn.DTypeError, "whole numbers; received 'a'"),
        ({"class_weight": {0.5: 1}}, nn.DTypeError, "whole numbers; received 0.5"),
        ({"class_weight": {9: 1}}, nn.DataError, "lie in 0 ... 3; received 9"),
        ({"class_weight": {0: "x"}}, nn.DTypeError, "must be a number; received 'x'"),
        ({"class_weight": {0: 0, 1: 0, 2: 0, 3: 0}}, nn.DataError, "not all be 0"),
        ({"sample_weight": np.ones((10, 4))}, nn.ShapeError, r"received \(10, 4\)"),
        ({"sample_weight": np.full(10, 1e39)}, nn.DataError, "received 1e\\+39 in row 0"),
        ({"callbacks": [print]}, nn.DTypeError, "nn.Callback objects"),
        ({"validation_data": (GOOD_X, GOOD_Y[:3])}, nn.ShapeError, "validation_data: x and y"),
        ({"validation_data": [with_value(np.nan), GOOD_Y]}, nn.DataError, "validation_data: x"),
    ],
)
def test_bad_settings_of_fit(backend, settings, error, message) -> None:
    model = classifier()
    with pytest.raises(error, match=message):
        model.fit(GOOD_X, GOOD_Y, verbose=0, **settings)
    assert model.step == 0
    assert not model.layers[0].adapted


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Sequential([]), nn.ShapeError, "at least one layer"),
        (lambda: nn.Sequential(nn.Dense(3, 4), nn.Dense(4, 2)), nn.DTypeError, "come in a list"),
        (lambda: nn.Sequential(["relu"]), nn.DTypeError, "nn.Layer objects.*received 'relu'"),
        (lambda: nn.Sequential([nn.ReLU()]), nn.DataError, "fixes its width"),
        (
            lambda: nn.Sequential([nn.Dense(3, 4), nn.ReLU(), nn.Dense(5, 2)]),
            nn.ShapeError,
            r"layer 2, Dense\(5, 2\), takes 5 inputs, but layer 0, Dense\(3, 4\), gives 4",
        ),
        (lambda: nn.Sequential([nn.Dense(3, 4)], dtype="int8"), nn.DTypeError, "received 'int8'"),
        (lambda: nn.Sequential([nn.Dense(3, 4)], seed=-1), nn.DataError, "received -1"),
        (lambda: nn.Sequential([nn.Dense(3, 4)], backend="gpu"), nn.UnknownNameError, "'gpu'"),
    ],
)
def test_bad_models(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"loss": "mse"},
            nn.UnknownNameError,
            "loss must be one of.*received 'mse'. Did you mean 'mean_squared_error'",
        ),
        ({"loss": "huber", "optimizer": "adm"}, nn.UnknownNameError, "Did you mean 'adam'"),
        ({"loss": "huber", "metrics": ["acuracy"]}, nn.UnknownNameError, "mean 'accuracy'"),
        ({"loss": "huber", "metrics": ["accuracy"]}, nn.DataError, "use the metrics mae, mse"),
        (
            {"loss": "softmax_cross_entropy", "metrics": ["r2"]},
            nn.DataError,
            "use accuracy",
        ),
        ({"loss": "huber", "metrics": ["mae", "mae"]}, nn.DataError, "names of their own"),
        (
            {"loss": "softmax_cross_entropy", "metrics": ["top_k_accuracy"]},
            nn.ShapeError,
            "more than 5 classes; the model has 4",
        ),
        (
            {"loss": "sigmoid_cross_entropy", "metrics": [nn.metrics.TopKAccuracy(2)]},
            nn.DataError,
            "loss over classes",
        ),
    ],
)
def test_bad_compile_settings_leave_the_model_as_it_was(settings, error, message) -> None:
    model = nn.Sequential([nn.Dense(3, 4)], seed=0)
    model.compile("mean_squared_error", "sgd", ["mae"])
    with pytest.raises(error, match=message):
        model.compile(**settings)
    assert model.loss.name == "mean_squared_error"
    assert model.fit(GOOD_X, np.ones((10, 4)), verbose=0)["mae"]


@pytest.mark.parametrize(
    ("last", "loss", "remedy"),
    [
        (nn.Dense(4, 2, "softmax"), "softmax_cross_entropy", "categorical_cross_entropy"),
        (nn.Softmax(), "softmax_cross_entropy", "categorical_cross_entropy"),
        (nn.Sigmoid(), "sigmoid_cross_entropy", "binary_cross_entropy"),
    ],
)
def test_a_loss_from_logits_after_its_link_is_an_error_with_the_remedy(last, loss, remedy) -> None:
    model = nn.Sequential([nn.Dense(3, 4), last, nn.Dropout(0.1)])
    with pytest.raises(nn.DataError, match=f"works on logits.*use loss='{remedy}'"):
        model.compile(loss)
    model.compile(remedy)
    nn.Sequential([nn.Softmax(), nn.Dense(3, 4)]).compile(loss)


@pytest.mark.parametrize(
    "call", ["fit", "train_step", "evaluate", "gradient", "predict_proba", "optimizer"]
)
def test_an_uncompiled_model_says_so(call) -> None:
    model = nn.Sequential([nn.Dense(3, 4)])
    arguments = [GOOD_X] if call == "predict_proba" else [GOOD_X, GOOD_Y]
    with pytest.raises(nn.DataError, match=r"call model.compile\(loss="):
        getattr(model, call)(*arguments)
    model.predict(GOOD_X)


def test_losses_say_which_outputs_and_targets_they_take(backend) -> None:
    one = nn.Sequential([nn.Dense(3, 1)], seed=0)
    one.compile("softmax_cross_entropy")
    with pytest.raises(nn.ShapeError, match="use sigmoid_cross_entropy"):
        one.fit(GOOD_X, np.zeros(10, int), verbose=0)
    one.compile("sigmoid_cross_entropy")
    with pytest.raises(nn.DataError, match=r"in \[0, 1\]; received 2.0 in row 2"):
        one.fit(GOOD_X, GOOD_Y.astype(float), verbose=0)
    one.compile("poisson")
    with pytest.raises(nn.DataError, match="at least 0; received -1.0"):
        one.fit(GOOD_X, -np.ones(10), verbose=0)
    one.compile("huber")
    with pytest.raises(nn.ShapeError, match=r"\(N,\) or \(N, 1\).*received \(10, 2\)"):
        one.fit(GOOD_X, np.ones((10, 2)), verbose=0)


def test_batch_norm_and_single_rows(backend) -> None:
    model = nn.Sequential([nn.Dense(3, 2), nn.BatchNorm(2)], seed=0)
    model.compile("mean_squared_error")
    y = np.ones((10, 2))
    for settings in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 9}):
        with pytest.raises(nn.ShapeError, match="at least 2 rows"):
            model.fit(GOOD_X, y, verbose=0, **settings)
    with pytest.raises(nn.ShapeError, match="at least 2 rows"):
        model.train_step(GOOD_X[:1], y[:1])
    with pytest.raises(nn.ShapeError, match="at least 2 rows"):
        model.fit([(GOOD_X[:1], y[:1])], verbose=0)
    assert model.step == 0
    model.fit(GOOD_X, y, batch_size=4, verbose=0)


def test_nan_that_reaches_a_prediction_is_found(backend) -> None:
    model = nn.Sequential([nn.Dense(3, 4, "relu"), nn.Dense(4, 2)], seed=0)
    with pytest.raises(nn.DataError, match="received nan in row 7, column 2"):
        model.predict(with_value(np.nan))
    assert np.isfinite(model.predict(GOOD_X)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Adam(lr=-1), nn.DataError, "Adam.lr must be at least 0; received -1"),
        (lambda: nn.Adam(lr=None), nn.DTypeError, "lr must be a number; received None"),
        (lambda: nn.datasets.spiral(seed=1 << 32), nn.DataError, "below 2\\*\\*32"),
        (lambda: nn.Sequential([nn.Dense(2, 2)], dtype=None), nn.DTypeError, "received None"),
        (lambda: nn.Dense(10**7, 10**7).weight, nn.OutOfMemoryError, "800,000,000,000,000 bytes"),
        (lambda: nn.Adam(lr="fast"), nn.DTypeError, "number; received 'fast'"),
        (lambda: nn.Adam(beta1=1.0), nn.DataError, r"beta1 must be in \[0, 1\); received 1"),
        (lambda: nn.SGD(momentum=1.5), nn.DataError, "momentum"),
        (lambda: nn.SGD(nesterov=True), nn.DTypeError, "needs a momentum above 0"),
        (lambda: nn.Adam(clip_norm=0), nn.DataError, "clip_norm must be above 0"),
        (lambda: nn.StepDecay(0.1, every=0), nn.ShapeError, "every"),
        (lambda: nn.ExponentialDecay(0.1, factor=2), nn.DataError, "factor"),
        (lambda: nn.CosineDecay(0.1, steps=10, warmup=10), nn.DataError, "warmup"),
        (lambda: nn.CosineDecay(-0.1), nn.DataError, "lr must be above 0"),
        (lambda: nn.InverseTimeDecay(0.1, -1), nn.DataError, "decay"),
        (lambda: nn.losses.Huber(0), nn.DataError, "delta must be above 0"),
        (lambda: nn.metrics.TopKAccuracy(0), nn.ShapeError, "k must be at least 1"),
        (lambda: nn.datasets.spiral(samples=0), nn.ShapeError, "samples"),
        (lambda: nn.datasets.spiral(noise=-1), nn.DataError, "noise"),
    ],
)
def test_bad_settings_elsewhere(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_rate_assigned_later_is_checked_too() -> None:
    model = classifier()
    with pytest.raises(nn.DataError, match="Adam.lr must be at least 0; received -2"):
        model.optimizer.lr = -2
    model.optimizer.lr = 0.5
    assert model.optimizer.lr == 0.5


def test_momentum_switched_on_after_compile_is_an_error(backend) -> None:
    model = classifier(optimizer=nn.SGD())
    model.optimizer.momentum = 0.9
    with pytest.raises(nn.DataError, match="call model.compile again"):
        model.fit(GOOD_X, GOOD_Y, verbose=0)


def test_a_batch_whose_classes_all_weigh_nothing_is_a_batch(backend, rng) -> None:
    x, y = rng.normal(size=(12, 4)), np.repeat([0, 1], 6)
    losses = []
    for data in ((x, y), ([(x[:6], y[:6]), (x[6:], y[6:])],)):
        model = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype="float64")
        model.compile("softmax_cross_entropy", nn.SGD(0.1))
        history = model.fit(
            *data, batch_size=6, shuffle=False, class_weight={0: 0, 1: 1}, verbose=0
        )
        losses.append(history["loss"])
    assert losses[0] == losses[1]


def test_weights_that_leave_nothing_are_refused(backend, rng) -> None:
    x, y = rng.normal(size=(12, 4)), np.repeat([0, 1], 6)
    model = nn.Sequential([nn.Dense(4, 2)], seed=0)
    model.compile("softmax_cross_entropy")
    with pytest.raises(nn.DataError, match="must not all be 0"):
        model.fit(x, y, sample_weight=1.0 - y, class_weight={0: 0, 1: 1}, verbose=0)


def test_rows_that_are_not_there_have_no_outputs(backend) -> None:
    for dtype in ("float32", "float64"):
        model = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype=dtype)
        for call in (model, model.predict):
            with pytest.raises(nn.DataError, match="at least one row"):
                call(np.zeros((0, 4), dtype))


def test_class_weights_need_classes(backend) -> None:
    for outputs, loss, y in (
        (1, "huber", np.ones(10)),
        (3, "sigmoid_cross_entropy", np.ones((10, 3))),
        (1, "sigmoid_cross_entropy", np.full(10, 0.5)),
    ):
        model = nn.Sequential([nn.Dense(3, outputs)], seed=0)
        model.compile(loss)
        with pytest.raises(nn.DataError, match="class_weight needs one class a row"):
            model.fit(GOOD_X, y, class_weight={0: 2.0}, verbose=0)
    model = nn.Sequential([nn.Dense(3, 4)], seed=0)
    model.compile("softmax_cross_entropy")
    with pytest.raises(nn.DataError, match="an iterable does not show"):
        model.fit([(GOOD_X, GOOD_Y)], class_weight="balanced", verbose=0)
    with pytest.raises(nn.DataError, match="must not all be 0"):
        model.fit([(GOOD_X, GOOD_Y)], class_weight=dict.fromkeys(range(4), 0.0), verbose=0)
    model.fit([(GOOD_X, GOOD_Y)], class_weight={0: 2.0}, verbose=0)
    # a batch without weight teaches nothing, and is no error
    before = backend.to_numpy(model.layers[0].weight).copy()
    model.compile("softmax_cross_entropy", nn.SGD())
    model.fit([(GOOD_X, GOOD_Y, np.zeros(10))], verbose=0)
    np.testing.assert_array_equal(backend.to_numpy(model.layers[0].weight), before)
    yes = nn.Sequential([nn.Dense(3, 1)], seed=0)
    yes.compile("sigmoid_cross_entropy")
    yes.fit(GOOD_X, GOOD_Y % 2, class_weight="balanced", verbose=0)


def test_single_objects_and_none_are_taken_where_lists_are() -> None:
    model = nn.Sequential([nn.Dense(3, 4)], seed=0)
    for metrics, names in (("accuracy", ["accuracy"]), (nn.metrics.F1(), ["f1"]), (None, [])):
        model.compile("softmax_cross_entropy", nn.SGD, metrics)
        assert [m.name for m in model.metrics] == names
    model.fit(GOOD_X, GOOD_Y, callbacks=None, verbose=0)
    model.fit(GOOD_X, GOOD_Y, validation_data=[GOOD_X, GOOD_Y], verbose=0)
    assert "val_loss" in model.history


def test_numbers_that_overflow_in_the_models_dtype(backend) -> None:
    model = nn.Sequential([nn.Dense(3, 1)], seed=0)
    model.compile("mean_squared_error")
    with pytest.raises(nn.DataError, match="targets must be finite in float32; received 1e"):
        model.fit(GOOD_X, np.full(10, 1e39), verbose=0)
    with pytest.raises(nn.DataError, match=r"finite in float32; received 3e\+40"):
        model.predict(np.full((2, 3), 3e40))
    model.train_step(GOOD_X, np.ones(10), np.full(10, 1e-41))
    assert np.isfinite(model.predict(GOOD_X)).all()


def test_metrics_of_numbers_with_targets_of_another_shape(backend) -> None:
    def loss(y_true, y_pred):
        return 0.0, 0 * y_pred

    model = nn.Sequential([nn.Dense(3, 4)], seed=0)
    model.compile(loss, metrics=["mae"])
    with pytest.raises(nn.ShapeError, match=r"compare outputs of shape \(rows, 4\)"):
        model.fit(GOOD_X, GOOD_Y, verbose=0)
    model.compile(loss)
    model.fit(GOOD_X, np.ones(10), verbose=0)  # targets of any shape, as the loss wants them
