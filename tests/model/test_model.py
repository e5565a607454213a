"""Sequential: what compile, fit, evaluate and predict promise."""

import copy
import functools
import pickle
import sys
import threading

import numpy as np
import pytest
from sample_models import data, small, weights

import nnbackend as nn
from nnbackend.data.split import split_rows
from nnbackend.kernels.codes import Op


class TestSameSeedSameRun:
    def test_training_repeats_bit_for_bit(
        self, backend: nn.Backend, dtype: str, rng: np.random.Generator
    ) -> None:
        x, y = data(rng)
        runs = []
        for _ in range(2):
            model = small(seed=7, dtype=dtype)
            history = model.fit(x, y, epochs=5, batch_size=16, verbose=0)
            runs.append((weights(model), history.to_dict()))
        np.testing.assert_array_equal(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]

    def test_seeds_differ_and_an_unset_seed_is_recorded(
        self, backend: nn.Backend, rng: np.random.Generator
    ) -> None:
        assert not np.array_equal(weights(small(1)), weights(small(2)))
        drawn = nn.Sequential([nn.Dense(4, 3)])
        assert drawn.seed != nn.Sequential([nn.Dense(4, 3)]).seed
        again = nn.Sequential([nn.Dense(4, 3)], seed=drawn.seed)
        np.testing.assert_array_equal(weights(drawn), weights(again))

    def test_a_layers_own_seed_or_values_win(self, backend: nn.Backend) -> None:
        layer = nn.Dense(4, 3, seed=11)
        expected = backend.to_numpy(nn.Dense(4, 3, seed=11).weight)
        model = nn.Sequential([layer], seed=0)
        np.testing.assert_array_equal(backend.to_numpy(model.layers[0].weight), expected)
        used = nn.Dense(4, 3)
        used.weight = np.full((4, 3), 0.5)
        nn.Sequential([used], seed=0)
        np.testing.assert_array_equal(backend.to_numpy(used.weight), np.full((4, 3), 0.5))


class TestViews:
    def test_layers_see_and_change_the_models_vectors(
        self, backend: nn.Backend, rng: np.random.Generator
    ) -> None:
        x, y = data(rng)
        layer = nn.Dense(4, 3)
        earlier = layer.weight
        model = nn.Sequential([layer], seed=0)
        model.compile("softmax_cross_entropy")
        view = layer.weight
        before = backend.to_numpy(view).copy()
        model.fit(x, y, verbose=0)
        assert not np.array_equal(backend.to_numpy(view), before)
        layer.weight = np.zeros((4, 3))
        layer.bias = [1.0, 2.0, 3.0]
        np.testing.assert_array_equal(model.predict(x[:2]), [[1, 2, 3]] * 2)
        # the view from before the model stays readable, and is no longer linked
        np.testing.assert_array_equal(backend.to_numpy(earlier), before)

    def test_a_layer_belongs_to_one_model(self) -> None:
        layer = nn.Dense(4, 4)
        model = nn.Sequential([layer])
        with pytest.raises(nn.DataError, match="belongs to another model"):
            nn.Sequential([layer])
        nn.Sequential([copy.deepcopy(layer)])
        del model
        nn.Sequential([layer])  # nobody has the first one any longer
        twice = nn.Dense(4, 4)
        with pytest.raises(nn.DataError, match="only once"):
            nn.Sequential([twice, twice])
        nn.Sequential([twice])

    def test_frozen_layers_stay(self, backend: nn.Backend, rng: np.random.Generator) -> None:
        x, y = data(rng)
        model = nn.Sequential(
            [nn.Dense(4, 5, "relu"), nn.Dense(5, 5, "relu", trainable=False), nn.Dense(5, 3)],
            seed=0,
        )
        model.compile("softmax_cross_entropy")
        before = [backend.to_numpy(layer.weight).copy() for layer in model.layers]
        model.fit(x, y, epochs=2, verbose=0)
        changed = [
            not np.array_equal(backend.to_numpy(layer.weight), old)
            for layer, old in zip(model.layers, before, strict=True)
        ]
        assert changed == [True, False, True]

    @pytest.mark.parametrize("make_layer", [lambda: nn.Dense(5, 5), lambda: nn.BatchNorm(5),
                                            lambda: nn.LayerNorm(5)])  # fmt: skip
    def test_freezing_and_thawing_act_at_once_and_are_saved(
        self, backend, rng, tmp_path, make_layer
    ) -> None:
        x, y = data(rng)
        layer = make_layer()
        model = nn.Sequential([nn.Dense(4, 5, "relu"), layer, nn.Dense(5, 3)], seed=0)
        model.compile("softmax_cross_entropy", nn.Adam(lr=0.01))
        name = layer.parameter_names[0]
        model.fit(x, y, verbose=0)
        others = {k: v for k, v in model.optimizer_state().items() if "layers.1." not in k}
        layer.trainable = False
        assert model.optimizer_state().keys() == others.keys()
        for key, value in others.items():
            np.testing.assert_array_equal(model.optimizer_state()[key], value)
        before = backend.to_numpy(layer.array(name)).copy()
        model.fit(x, y, verbose=0)
        np.testing.assert_array_equal(backend.to_numpy(layer.array(name)), before)
        model.save(tmp_path / "m")
        loaded = nn.load(tmp_path / "m")
        assert not loaded.layers[1].trainable
        np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
        layer.trainable = True
        model.fit(x, y, verbose=0)
        assert not np.array_equal(backend.to_numpy(layer.array(name)), before)

    def test_a_wholly_frozen_model_trains_nothing_and_reports_its_loss(
        self, backend: nn.Backend, rng: np.random.Generator
    ) -> None:
        x, y = data(rng)
        model = nn.Sequential([nn.Dense(4, 3, trainable=False)], seed=0)
        model.compile("softmax_cross_entropy")
        history = model.fit(x, y, epochs=2, verbose=0)
        assert history["loss"][0] == pytest.approx(history["loss"][1])


class TestFit:
    @pytest.mark.slow_on_stand_in
    def test_learns_digits(self, backend: nn.Backend) -> None:
        x, y = nn.datasets.digits()
        model = nn.Sequential([nn.Dense(64, 64, "relu"), nn.Dense(64, 10)], seed=0)
        model.compile("softmax_cross_entropy", nn.Adam(lr=3e-3), ["accuracy", "f1"])
        history = model.fit(x, y, epochs=12, validation_split=0.2, verbose=0)
        assert history["val_accuracy"][-1] > 0.93
        assert history["val_f1"][-1] == pytest.approx(history["val_accuracy"][-1], abs=0.03)
        assert history.epochs == 12
        assert history.stopped is None

    def test_history_matches_evaluate_where_nothing_is_random(
        self, backend: nn.Backend, rng: np.random.Generator
    ) -> None:
        x, y = data(rng, 50)
        model = nn.Sequential([nn.Dense(4, 3, weight_l2=0.1)], seed=0, dtype="float64")
        model.compile("softmax_cross_entropy", nn.SGD(lr=0.0), ["accuracy", "recall"])
        result = model.evaluate(x, y)
        history = model.fit(x, y, batch_size=16, verbose=0)
        assert history.last().keys() == {*result, "lr"}
        for name, value in result.items():
            assert history[name][0] == pytest.approx(value, rel=1e-12)
        assert result["loss"] > result["data_loss"]

    def test_last_partial_batch_is_averaged_over_its_own_rows(
        self, backend: nn.Backend, rng: np.random.Generator
    ) -> None:
        x, y = rng.normal(size=(7, 4)), rng.normal(size=(7, 2))
        whole = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype="float64")
        parts = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype="float64")
        for model in (whole, parts):
            model.compile("mean_squared_error", nn.SGD(lr=0.1))
        whole.fit(x, y, batch_size=5, shuffle=False, verbose=0)
        for rows in (slice(0, 5), slice(5, 7)):
            parts.train_step(x[rows], y[rows])
        np.testing.assert_array_equal(weights(whole), weights(parts))

    def test_weight_zero_is_as_if_the_row_were_not_there(
        self, backend: nn.Backend, rng: np.random.Generator
    ) -> None:
        x, y = data(rng, 20)
        weight = np.ones(20)
        weight[15:] = 0
        with_zeros, without = (nn.Sequential([nn.Dense(4, 3)], seed=0, dtype="float64")
                               for _ in range(2))  # fmt: skip
        for model in (with_zeros, without):
            model.compile("softmax_cross_entropy", nn.SGD(lr=0.1), ["accuracy"])
        a = with_zeros.fit(x, y, batch_size=20, shuffle=False, sample_weight=weight, verbose=0)
        b = without.fit(x[:15], y[:15], batch_size=20, shuffle=False, verbose=0)
        np.testing.assert_allclose(weights(with_zeros), weights(without), atol=1e-14)
        for name in ("loss", "accuracy"):
            assert a[name] == pytest.approx(b[name])

    def test_class_weights_multiply(self, backend: nn.Backend, rng: np.random.Generator) -> None:
        x, y = data(rng, 30)
        explicit = np.array([1.0, 2.0, 0.5])[y]
        balanced = (30 / (3 * np.bincount(y)))[y]
        results = []
        for settings in (
            {"class_weight": {1: 2.0, 2: 0.5}},
            {"sample_weight": explicit},
            {"class_weight": "balanced"},
            {"sample_weight": balanced},
        ):
            model = nn.Sequential([nn.Dense(4, 3)], seed=0, dtype="float64")
            model.compile("softmax_cross_entropy")
            model.fit(x, y, verbose=0, **settings)
            results.append(weights(model))
        np.testing.assert_allclose(results[0], results[1], atol=1e-15)
        np.testing.assert_allclose(results[2], results[3], atol=1e-12)
        assert not np.allclose(results[0], results[2])

    def test_validation_split_is_random_disjoint_and_the_same_for_a_seed(
        self, backend: nn.Backend
    ) -> None:
        x = np.arange(100.0).reshape(100, 1)
        seen = []
        for _ in range(2):
            model = nn.Sequential([nn.Dense(1, 1)], seed=3)
            model.compile("mean_squared_error", nn.SGD(lr=0.0), [lambda t, p: float(t.sum())])
            model.fit(x, x[:, 0], validation_split=0.25, verbose=0)
            history = model.history
            key = next(name for name in history if "lambda" in name and "val" not in name)
            seen.append((history[key][0], history[f"val_{key}"][0]))
        assert seen[0] == seen[1]
        assert sum(seen[0]) == x.sum()
        assert seen[0][1] != x[75:].sum()

    def test_lr_changed_between_fits_acts(self, backend: nn.Backend, rng) -> None:
        x, y = data(rng)
        model = small()
        model.fit(x, y, verbose=0)
        model.optimizer.lr = 0.0
        before = weights(model)
        history = model.fit(x, y, verbose=0)
        np.testing.assert_array_equal(weights(model), before)
        assert history["lr"] == [0.0]
        assert model.history.epochs == 2

    def test_clip_norm_limits_the_step(self, backend: nn.Backend, rng) -> None:
        x, y = data(rng)
        model = nn.Sequential([nn.Dense(4, 3)], seed=0, dtype="float64")
        model.compile("softmax_cross_entropy", nn.SGD(lr=1.0, clip_norm=1e-3))
        before = weights(model)
        model.train_step(100 * x, y)
        assert np.linalg.norm(weights(model) - before) == pytest.approx(1e-3)

    def test_adamw_spares_biases_and_norms(self, backend: nn.Backend, rng) -> None:
        x = np.zeros((8, 4))
        model = nn.Sequential([nn.Dense(4, 3, bias_init="ones"), nn.LayerNorm(3),
                               nn.Dense(3, 1, bias=False)], seed=0, dtype="float64")  # fmt: skip
        model.compile("mean_squared_error", nn.AdamW(lr=0.1, weight_decay=0.5))
        first, norm, _ = model.layers
        before = backend.to_numpy(first.weight).copy()
        model.train_step(x, np.zeros(8))
        # x is 0, so the weight has no gradient: only decay moves it
        np.testing.assert_allclose(backend.to_numpy(first.weight), before * (1 - 0.1 * 0.5))
        assert model.storage.decayed < model.storage.trained
        np.testing.assert_allclose(backend.to_numpy(first.bias), 1.0, atol=1e-5)
        np.testing.assert_array_equal(backend.to_numpy(norm.gamma), np.ones(3))


class TestPredict:
    def test_predict_call_and_single_rows_agree(self, backend: nn.Backend, rng) -> None:
        x, y = data(rng, 3000)
        model = small()
        model.fit(x, y, verbose=0)
        out = model.predict(x)
        assert isinstance(out, np.ndarray)
        np.testing.assert_allclose(backend.to_numpy(model(x)), out)
        np.testing.assert_allclose(model.predict(x[5:6])[0], out[5], rtol=1e-12)
        assert backend.owns(model(x[:1]))

    def test_predict_proba_applies_the_link(self, backend: nn.Backend, rng) -> None:
        x, _ = data(rng)
        soft = small()
        np.testing.assert_allclose(soft.predict_proba(x).sum(axis=1), 1)
        yes = nn.Sequential([nn.Dense(4, 1)], seed=0, dtype="float64")
        yes.compile("sigmoid_cross_entropy")
        np.testing.assert_allclose(yes.predict_proba(x), 1 / (1 + np.exp(-yes.predict(x))))
        given = nn.Sequential([nn.Dense(4, 3, "softmax")], seed=0)
        given.compile("categorical_cross_entropy")
        np.testing.assert_array_equal(given.predict_proba(x), given.predict(x))
        numbers = nn.Sequential([nn.Dense(4, 1)], seed=0)
        numbers.compile("huber")
        with pytest.raises(nn.DataError, match="compiled with huber"):
            numbers.predict_proba(x)

    def test_many_threads_may_predict(self, backend: nn.Backend, rng) -> None:
        x, _ = data(rng, 500)
        model = small()
        expected = model.predict(x)
        wrong: list[int] = []

        def work(k: int) -> None:
            for _ in range(20):
                if not np.array_equal(model.predict(x), expected):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_results_do_not_share_memory(self, backend: nn.Backend, rng) -> None:
        x, _ = data(rng)
        model = small()
        first = model(x)
        kept = backend.to_numpy(first).copy()
        model(x + 1)
        np.testing.assert_array_equal(backend.to_numpy(first), kept)


class TestCopies:
    @pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_continue_exactly_and_share_nothing(self, backend, rng, how) -> None:
        x, y = data(rng)
        model = small()
        model.fit(x, y, epochs=2, verbose=0)
        other = how(model)
        before = weights(model)
        other.fit(x, y, epochs=2, verbose=0)
        np.testing.assert_array_equal(weights(model), before)
        model.fit(x, y, epochs=2, verbose=0)
        np.testing.assert_array_equal(weights(model), weights(other))
        assert other.layers[0].owner is other

    def test_to_another_backend_keeps_everything(self, backend, rng) -> None:
        from nnbackend.backends.numpy.backend import NumpyBackend

        x, y = data(rng)
        stays, moves = small(), small()
        for model in (stays, moves):
            model.fit(x, y, epochs=2, verbose=0)
        view = moves.layers[0].weight
        assert moves.to(NumpyBackend()) is moves
        assert moves.backend is not stays.backend
        for model in (stays, moves):
            model.fit(x, y, epochs=2, verbose=0)
        moved = moves.arrays()
        for name, array in stays.arrays().items():
            np.testing.assert_allclose(array, moved[name], rtol=1e-10)
        assert backend.to_numpy(view).shape == (4, 8)
        assert moves.to(moves.backend) is moves


def test_summary_shows_layers_parameters_and_backend(backend, capsys) -> None:
    model = nn.Sequential([nn.Dense(4, 8, "relu", trainable=False), nn.Dense(8, 3)])
    model.summary()
    out = capsys.readouterr().out
    assert "Dense + relu (frozen)" in out
    assert "67 parameters, 40 frozen" in out
    assert f"runs on {backend.device}" in out
    assert "not compiled" in out
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    assert out == lines[0] + "\n"
    first = "Dense(4, 8, activation='relu', trainable=False)"
    assert repr(model) == f"Sequential([{first}, Dense(8, 3)])"


def test_whatever_is_stored_can_be_shown() -> None:
    ones = np.ones(3)

    class Own(nn.Callback):
        def __init__(self, scale=ones, *, path="p", other=1) -> None:
            self.scale, self.path = scale, path

    assert repr(Own(path="q")) == "Own(scale=array([1., 1., 1.]), path='q')"
    assert repr(nn.CSVLogger("a.csv")) == "CSVLogger('a.csv')"


def test_a_method_may_be_decorated() -> None:
    def plain(function):
        @functools.wraps(function)
        def forward(self, x, training=False):
            return function(self, x)

        return forward

    class Own(nn.Layer):
        @plain
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy

    assert Own(2, 2).forward(np.ones((1, 2))).shape == (1, 2)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: nn.Dense(2, 3, "relu", bias=False, weight_l2=1e-3),
         "Dense(2, 3, activation='relu', bias=False, weight_l2=0.001)"),
        (lambda: nn.Dense(2, 3, weight_init=np.ones((2, 3))), "Dense(2, 3)"),
        (lambda: nn.Dropout(0.5), "Dropout(0.5)"),
        (lambda: nn.BatchNorm(3), "BatchNorm(3)"),
        (lambda: nn.LeakyReLU(0.3), "LeakyReLU(slope=0.3)"),
        (lambda: nn.Embedding(3, 5, 2), "Embedding(3, 5, 2)"),
        (nn.losses.MeanSquaredError, "MeanSquaredError()"),
        (nn.metrics.AUC, "AUC()"),
        (lambda: nn.EarlyStopping("loss", 9), "EarlyStopping(monitor='loss', patience=9)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_objects_are_shown_as_they_are_made(made, text: str) -> None:
    assert repr(made()) == text


def test_program_rows_describe_the_network() -> None:
    model = small()
    rows = model.program.rows
    assert [row.op for row in rows] == [Op.DENSE, Op.DROPOUT, Op.BATCH_NORM, Op.DENSE]
    assert [row.phase for row in rows] == [0, 0, 1, 1]  # BatchNorm needs the whole batch
    assert [row.needs_dx for row in rows] == [0, 1, 1, 1]
    assert model.program.table.shape == (4, len(rows[0]))
    step = 64 // 8
    assert all(s.offset % step == 0 for s in model.storage.segments)


def test_only_one_thread_trains_a_model(backend, rng) -> None:
    x, y = data(rng)
    model = small()
    inside, go_on = threading.Event(), threading.Event()

    class Wait(nn.Callback):
        def on_epoch_end(self, model, epoch, figures, history):
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=lambda: model.fit(x, y, callbacks=[Wait()], verbose=0))
    thread.start()
    assert inside.wait(10)
    try:
        with pytest.raises(nn.ModelBusyError, match="another thread"):
            model.fit(x, y, verbose=0)
        with pytest.raises(RuntimeError, match="another thread"):
            model.train_step(x, y)
        model.predict(x)
    finally:
        go_on.set()
        thread.join()
    model.train_step(x, y)


def test_gradient_does_not_disturb_predictions_of_other_threads(backend, rng) -> None:
    x, y = data(rng)
    model = small()
    model.fit(x, y, verbose=0)
    expected, wrong, stop = model.predict(x), [], threading.Event()

    def work() -> None:
        while not stop.is_set():
            if not np.array_equal(model.predict(x), expected):
                wrong.append(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # the threads take turns more often
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(30):
            model.gradient(100 * x, y)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert wrong == []


def test_compile_inside_fit_is_refused(backend, rng) -> None:
    class Compiles(nn.Callback):
        def on_epoch_end(self, model, epoch, figures, history):
            model.compile("softmax_cross_entropy")

    with pytest.raises(nn.ModelBusyError, match="by the call that this comes from"):
        small().fit(*data(rng), callbacks=[Compiles()], verbose=0)


def test_a_construction_or_move_that_fails_leaves_everything_as_it_was(backend, rng) -> None:
    from nnbackend.backends.numpy.backend import NumpyBackend

    class Full(NumpyBackend):
        def zeros(self, shape, dtype):
            raise nn.OutOfMemoryError("full")

    layer = nn.Dense(4, 3)
    with pytest.raises(MemoryError, match="full"):
        nn.Sequential([layer], backend=Full())
    model = nn.Sequential([layer], seed=0)
    x, _ = data(rng)
    before = model.predict(x)
    with pytest.raises(nn.OutOfMemoryError):
        model.to(Full())
    np.testing.assert_array_equal(model.predict(x), before)
    assert model.backend is backend


def test_optimizer_state_is_checked_before_anything_is_written(backend, rng) -> None:
    model = small()
    model.fit(*data(rng), verbose=0)
    good = model.optimizer_state()
    key = "m.layers.0.weight"
    for state, error, message in (
        ({"m.layers.9.weight": good[key]}, nn.DataError, "no state .m.layers.9.weight"),
        ({key: good[key].T}, nn.ShapeError, r"shape \(4, 8\); received \(8, 4\)"),
        ({**good, key: np.full((4, 8), np.nan)}, nn.DataError, "must hold finite"),
        ({**good, key: np.full((4, 8), "a")}, nn.DTypeError, "real numbers"),
        ({**good, key: [[1.0], [1.0, 2.0]]}, nn.ShapeError, "rows of one length"),
    ):
        with pytest.raises(error, match=message):
            model.set_optimizer_state({"v.layers.0.weight": np.ones((4, 8)), **state})
    for name, value in model.optimizer_state().items():
        np.testing.assert_array_equal(value, good[name])


def test_class_weights_leave_validation_figures_alone(backend, rng) -> None:
    x, y = data(rng)
    model = small()
    history = model.fit(x, y, validation_split=0.25, class_weight={0: 0, 1: 0}, verbose=0)
    _, held_out = split_rows(len(x), 0.25, model.seed, labels=y)
    expected = model.evaluate(x[held_out], y[held_out])
    assert history["val_accuracy"][-1] == pytest.approx(expected["accuracy"])


def test_curves_that_begin_later_stand_at_their_epochs(backend, rng) -> None:
    x, y = data(rng)
    model = small()
    model.fit(x, y, epochs=2, verbose=0)
    model.fit(x, y, epochs=1, validation_data=(x, y), verbose=0)
    assert np.isnan(model.history["val_loss"][:2]).all()
    assert np.isfinite(model.history["val_loss"][2])


def test_r2_with_a_large_offset(backend, rng) -> None:
    x = 1e6 + rng.normal(size=(500, 1))
    model = nn.Sequential([nn.Dense(1, 1, weight_init="ones")], dtype="float64")
    model.compile("huber", metrics=["r2"])
    assert model.evaluate(x, x + 0.01 * rng.normal(size=x.shape))["r2"] == pytest.approx(
        1, abs=1e-3
    )
