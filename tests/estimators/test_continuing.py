"""Estimators that go on from weights that are there: what does not fit, what a user holds."""

import copy
import warnings

import numpy as np
import pytest
import scipy.sparse
import sklearn.neural_network as theirs
from sklearn.base import clone

import nnbackend as nn
import nnbackend.sklearn as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 3))
    return x, np.tanh(x @ rng.normal(size=(3, 3)))


def regressor(**settings):
    return ours.MLPRegressor(
        **{"hidden_layer_sizes": (4,), "random_state": 0, "max_iter": 3, **settings}
    )


def targets(y: np.ndarray, width: int) -> np.ndarray:
    return y[:, 0] if width == 1 else y[:, :width]


class TestWhatDoesNotFit:
    """Compiled code reads as many numbers as the network has inputs and outputs."""

    @pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
    @pytest.mark.parametrize(("first", "then"), [(3, 1), (1, 3), (3, 2)])
    def test_targets_of_another_width(self, rows, solver, first, then) -> None:
        x, y = rows
        model = regressor(solver=solver, warm_start=True).fit(x, targets(y, first))
        before = copy.deepcopy(model.coefs_)
        with pytest.raises(ValueError, match=f"fitted network is 3-4-{first}, .* 3-4-{then}"):
            model.fit(x, targets(y, then))
        if solver != "lbfgs":
            with pytest.raises(ValueError, match="fitted network is"):
                model.partial_fit(x, targets(y, then))
        for a, b in zip(model.coefs_, before, strict=True):
            np.testing.assert_array_equal(a, b)
        assert model.predict(x).shape == (len(x), first) if first > 1 else (len(x),)

    @pytest.mark.parametrize("solver", ["adam", "lbfgs"])
    def test_other_hidden_layers(self, rows, solver) -> None:
        x, y = rows
        model = regressor(solver=solver, warm_start=True).fit(x, y)
        for sizes in ((10,), (4, 4), ()):
            with pytest.raises(ValueError, match="hidden_layer_sizes and y ask for"):
                clone_with(model, hidden_layer_sizes=sizes).fit(x, y)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.coefs_.__setitem__(0, np.ones((500_000, 4))),
            lambda m: m.coefs_.__setitem__(1, m.coefs_[1][:1]),
            lambda m: m.intercepts_.__setitem__(0, np.zeros(1)),
            lambda m: m.intercepts_.pop(),
            lambda m: m.coefs_.__setitem__(0, np.ones(4)),
        ],
        ids=["inputs", "rows", "bias", "no bias", "vector"],
    )
    def test_weights_that_are_no_networks(self, rows, change) -> None:
        x, y = rows
        model = regressor(warm_start=True).fit(x, y)
        change(model)
        for call in (lambda: model.fit(x, y), lambda: model.partial_fit(x, y)):
            with pytest.raises(ValueError, match=r"are no network's|fitted network is"):
                call()
        with pytest.raises(ValueError, match=r"are no network's|the model takes x"):
            model.predict(x)

    @pytest.mark.parametrize("kind", ["M8[s]", "m8[s]", "U"])
    def test_targets_that_are_no_numbers(self, rows, kind) -> None:
        x, y = rows
        with pytest.raises(ValueError, match="y must be numbers"):
            regressor().fit(x, (y[:, 0] * 100).astype(int).astype(kind))


def clone_with(model, **settings):
    other = copy.deepcopy(model)
    return other.set_params(**settings)


class TestArraysThatAUserHolds:
    """They are what the network computes with, until others take their place."""

    def test_others_for_a_while(self, rows) -> None:
        x, y = rows
        model, same = (regressor().fit(x, y) for _ in range(2))
        own, expected = model.coefs_[0], model.predict(x)
        model.coefs_[0] = np.round(own, 1)
        rounded = model.predict(x)
        model.coefs_[0] = own
        np.testing.assert_array_equal(own, same.coefs_[0])
        np.testing.assert_array_equal(model.predict(x), expected)
        assert not np.array_equal(rounded, expected)

    def test_all_of_them(self, rows) -> None:
        x, y = rows
        model = regressor().fit(x, y)
        saved = model.coefs_
        model.coefs_ = [0 * coef for coef in saved]
        model.predict(x)
        model.partial_fit(x, y)
        model.coefs_ = saved
        assert saved[0].any()

    def test_swapped_between_two(self, rows) -> None:
        x, y = rows
        one, other = regressor().fit(x, y), regressor(random_state=1).fit(x, y)
        first, second = one.predict(x), other.predict(x)
        for name in ("coefs_", "intercepts_"):
            a, b = getattr(one, name), getattr(other, name)
            setattr(one, name, b)
            setattr(other, name, a)
        for _ in range(2):
            np.testing.assert_array_equal(one.predict(x), second)
            np.testing.assert_array_equal(other.predict(x), first)

    def test_a_view_of_them(self, rows) -> None:
        x, y = rows
        model = regressor().fit(x, y)
        model.coefs_[0] = model.coefs_[0][:, ::-1]
        first = model.predict(x)
        np.testing.assert_array_equal(model.predict(x), first)

    def test_changes_in_place_are_seen(self, rows) -> None:
        x, y = rows
        model = regressor().fit(x, y)
        before = model.predict(x)
        model.coefs_[0][:] = 0
        changed = model.predict(x)
        assert not np.array_equal(changed, before)
        given = np.ones((3, 4))
        model.coefs_[0] = given
        model.predict(x)
        given[:] = 0
        np.testing.assert_array_equal(model.predict(x), changed)


class TestRates:
    @pytest.mark.parametrize("outputs", [1, 3])
    @pytest.mark.parametrize("solver", ["adam", "sgd"])
    def test_callbacks_see_them_in_scikit_learns_terms(self, rows, solver, outputs) -> None:
        x, y = rows
        seen = []

        def keep(epoch: int, rate: float) -> float:
            seen.append(rate)
            return rate

        settings = {"solver": solver, "learning_rate_init": 0.01, "max_iter": 5}
        plain = regressor(**settings).fit(x, targets(y, outputs))
        watched = regressor(**settings, callbacks=[nn.LearningRateScheduler(keep)])
        watched.fit(x, targets(y, outputs))
        assert set(seen) == {0.01}
        assert watched.loss_curve_ == plain.loss_curve_

    def test_the_first_epoch_has_the_schedulers_too(self, rows) -> None:
        x, y = rows
        rates = [0.5, 0.25, 0.125]

        class Keep(nn.Callback):
            def __init__(self) -> None:
                self.seen: list[float] = []

            def on_epoch_end(self, model, epoch, figures, history):
                self.seen.append(figures["lr"])

        keep = Keep()
        scheduler = nn.LearningRateScheduler(lambda epoch, lr: [*rates, 1.0][epoch - 1])
        model = regressor(callbacks=[keep, scheduler]).fit(x, y)
        assert keep.seen == rates
        assert model.loss_curve_ != regressor().fit(x, y).loss_curve_


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_refused_batch_costs_no_optimizer_state(rows, solver) -> None:
    x, y = rows
    one, other = (regressor(solver=solver) for _ in range(2))
    bad = np.where(np.arange(3) == 1, np.nan, x)
    for batch in range(12):
        for model in (one, other):
            model.partial_fit(x, y)
        if batch % 4 == 3:
            with pytest.raises(ValueError, match="NaN"):
                one.partial_fit(bad, y)
            with pytest.raises(ValueError, match="fitted network is"):
                one.partial_fit(x, y[:, 0])
    assert one.loss_ == other.loss_
    np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])


def test_the_dtype_of_the_first_batch_stays(rows) -> None:
    x, y = rows
    model = regressor().partial_fit(x, y)
    model.partial_fit(x.astype(np.float32), y)
    assert model.coefs_[0].dtype == np.float64


class TestWeights:
    def test_classes_that_a_dict_leaves_out(self, rows) -> None:
        x, y = rows
        labels = (y[:, 0] > 0).astype(int) * 2 + 3
        model = ours.MLPClassifier(class_weight={5: 4.0}, random_state=0, max_iter=2)
        model.partial_fit(x, labels, classes=[3, 5])
        model.partial_fit(x[labels == 3], labels[labels == 3])
        same = ours.MLPClassifier(random_state=0, max_iter=2)
        same.partial_fit(x, labels, classes=[3, 5], sample_weight=np.where(labels == 5, 4.0, 1.0))
        same.partial_fit(x[labels == 3], labels[labels == 3])
        np.testing.assert_array_equal(model.coefs_[0], same.coefs_[0])
        with pytest.raises(ValueError, match=r"classes, \[3\], are not in class_weight"):
            model.set_params(class_weight={5: 1.0, 7: 2.0}).partial_fit(x, labels)

    @pytest.mark.parametrize("unit", [1e-310, 1e-40, 1e39])
    def test_units_that_a_dtype_lacks(self, rows, unit) -> None:
        x, y = rows
        weight = np.random.default_rng(0).uniform(size=len(x))
        settings = {"alpha": 0.0, "max_iter": 4}
        plain = regressor(**settings).fit(x.astype(np.float32), y, sample_weight=weight)
        model = regressor(**settings).fit(x.astype(np.float32), y, sample_weight=weight * unit)
        np.testing.assert_allclose(model.loss_curve_, plain.loss_curve_, rtol=1e-5)

    def test_penalties_follow_the_weights_of_each_batch(self, rows) -> None:
        x, y = rows
        one = theirs.MLPRegressor(
            hidden_layer_sizes=(4,), alpha=0.5, random_state=0, batch_size=300
        )
        other = regressor(alpha=0.5, batch_size=300)
        for batch in range(6):
            weight = np.random.default_rng(batch).uniform(size=len(x)) * (batch + 1)
            for model in (one, other):
                model.partial_fit(x, y, sample_weight=weight)
        np.testing.assert_allclose(other.coefs_[0], one.coefs_[0], rtol=1e-9)


class TestSparse:
    @pytest.mark.parametrize("share", [0.03, 0.4])
    @pytest.mark.parametrize("form", ["csr", "csc"])
    @pytest.mark.parametrize("solver", ["adam", "lbfgs"])
    def test_rows_give_what_dense_ones_do(self, backend, share, form, solver) -> None:
        """However many of their numbers are not zero: few are multiplied as they are."""
        rng = np.random.default_rng(0)
        x = scipy.sparse.random(120, 200, share, format=form, random_state=0)
        y = rng.integers(0, 3, 120)
        fitted = [
            ours.MLPClassifier((5,), solver=solver, random_state=0, max_iter=4).fit(given, y)
            for given in (x, x.toarray())
        ]
        for model in fitted:
            for given in (x, x.toarray()):
                np.testing.assert_allclose(
                    model.predict_proba(given), fitted[0].predict_proba(x), rtol=1e-7
                )

    def test_a_matrix_that_is_tidied_up_meanwhile(self) -> None:
        """SciPy adds up numbers of the same place when it is asked for a maximum."""
        rng = np.random.default_rng(3)
        places = np.repeat(np.arange(100), 20), rng.integers(0, 300, 2000)
        x = scipy.sparse.csr_array((rng.normal(size=2000), places), (100, 300))
        x = scipy.sparse.csr_array((x.data, x.indices, x.indptr), x.shape)
        y = rng.integers(0, 2, 100)

        class Asks(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                x.max()

        fitted = [
            ours.MLPClassifier((4,), random_state=0, max_iter=6, callbacks=calls).fit(x.copy(), y)
            for calls in (None, None)
        ]
        fitted.append(
            ours.MLPClassifier((4,), random_state=0, max_iter=6, callbacks=[Asks()]).fit(x, y)
        )
        for model in fitted[1:]:
            np.testing.assert_allclose(model.coefs_[0], fitted[0].coefs_[0], rtol=1e-9)

    @pytest.mark.parametrize("solver", ["adam", "lbfgs"])
    def test_numbers_behind_the_last_row_are_passed_over(self, solver) -> None:
        rng = np.random.default_rng(4)
        x, y = (
            scipy.sparse.random(60, 90, 0.05, format="csr", random_state=0),
            rng.integers(0, 2, 60),
        )
        longer = x.copy()
        longer.data = np.append(x.data, [1.0, 2.0])
        longer.indices = np.append(x.indices, [3, 4]).astype(x.indices.dtype)
        one, other = (
            ours.MLPClassifier((4,), solver=solver, random_state=0, max_iter=4).fit(rows, y)
            for rows in (x, longer)
        )
        np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])

    @pytest.mark.parametrize("settings", [{"solver": "sgd"}, {"shuffle": False}, {"alpha": 0.1}])
    def test_counts_of_words_train_as_in_scikit_learn(self, backend, settings) -> None:
        """Whole numbers, rows without any, the same place twice; fitted, and then gone on with."""
        rng = np.random.default_rng(1)
        places = rng.integers(0, 150, 700), rng.integers(0, 900, 700)
        x = scipy.sparse.csr_array((rng.integers(1, 5, 700), places), (160, 900))
        y = rng.integers(0, 3, 160)
        both = []
        for kind in (theirs.MLPClassifier, ours.MLPClassifier):
            model = kind((6,), random_state=0, max_iter=4, batch_size=32, **settings)
            model.fit(x, y)
            model.partial_fit(x[40:100], y[40:100])
            both.append(model)
        a, b = both
        np.testing.assert_allclose(b.loss_curve_, a.loss_curve_, rtol=1e-9)
        for theirs_, ours_ in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
            np.testing.assert_allclose(ours_, theirs_, rtol=1e-8, atol=1e-12)


def test_a_backend_object_is_cloned_and_pickled(backend, rows) -> None:
    x, y = rows
    model = clone(regressor(backend=backend)).fit(x, y)
    assert clone(model).backend is backend
    assert copy.deepcopy(model).backend is backend


def test_large_numbers_are_no_reason_to_warn(rows) -> None:
    x, y = rows
    model = regressor().fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(np.full((3, 3), 1e308))
