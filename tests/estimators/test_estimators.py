"""MLPClassifier and MLPRegressor beside scikit-learn's, and what they have besides."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import scipy.sparse
import sklearn
import sklearn.neural_network as theirs
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nn
import nnbackend.sklearn as ours
from nnbackend.sklearn.network import DENSE_BYTES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def digits(rows: int = 450) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:rows] / 16, y[:rows]


def numbers(n_outputs: int, rows: int = 230) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 5))
    y = np.abs(np.tanh(x @ rng.normal(size=(5, n_outputs))) * 3).round(2)
    return x, y[:, 0] if n_outputs == 1 else y


def both(name: str, **settings):
    settings = {"random_state": 0, "hidden_layer_sizes": (7, 5), "max_iter": 6, **settings}
    return getattr(theirs, name)(**settings), getattr(ours, name)(**settings)


def assert_same(one, other, rtol: float = 1e-9) -> None:
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
            assert a.dtype == b.dtype
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("loss_", "best_loss_", "loss_curve_", "validation_scores_"):
        a, b = getattr(one, name, None), getattr(other, name, None)
        if a is None:
            assert b is None, name
        else:
            np.testing.assert_allclose(b, a, rtol=max(rtol, 1e-8))


SETTINGS = [
    {},
    {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.1},
    {"solver": "sgd", "momentum": 0.0, "alpha": 0.5, "batch_size": 64},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3, "learning_rate_init": 0.1},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 1,
     "max_iter": 15},
    {"solver": "lbfgs", "alpha": 0.1},
    {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 2},
    {"activation": "logistic", "shuffle": False, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3},
    {"activation": "tanh", "alpha": 1.0, "batch_size": 50},
    {"activation": "identity", "hidden_layer_sizes": 4, "tol": 0.05, "n_iter_no_change": 3,
     "max_iter": 40},
]  # fmt: skip

POISSON = [{"loss": "poisson"}, {"loss": "poisson", "solver": "lbfgs"}]
#: with weights the penalties of a batch are those of weights that are the same in every batch
WEIGHTED = [{"solver": "lbfgs"}, {"alpha": 0.0}, {"alpha": 0.0, "early_stopping": True}]


class TestSameAsScikitLearn:
    """The same random_state gives the same weights, losses and scores."""

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_classes(self, backend: nn.Backend, settings) -> None:
        for x, y in (digits(), (digits()[0], digits()[1] > 4)):
            a, b = both("MLPClassifier", **settings)
            # scikit-learn's loss is cut off where a probability is 1, which a line search meets
            rtol = 2e-4 if settings.get("solver") == "lbfgs" else 1e-9
            assert_same(a.fit(x, y), b.fit(x, y), rtol)
            np.testing.assert_allclose(b.predict_proba(x), a.predict_proba(x), atol=rtol)
            np.testing.assert_array_equal(b.predict(x), a.predict(x))

    @pytest.mark.parametrize("settings", [*SETTINGS, *POISSON], ids=str)
    @pytest.mark.parametrize("n_outputs", [1, 3])
    def test_numbers(self, backend: nn.Backend, settings, n_outputs) -> None:
        x, y = numbers(n_outputs)
        a, b = both("MLPRegressor", **settings)
        assert_same(a.fit(x, y), b.fit(x, y))
        np.testing.assert_allclose(b.predict(x), a.predict(x), atol=1e-9)

    def test_several_labels(self, backend: nn.Backend) -> None:
        x, y = make_multilabel_classification(90, 6, n_classes=4, random_state=0)
        a, b = both("MLPClassifier", batch_size=25)
        assert_same(a.fit(x, y), b.fit(x, y))

    @pytest.mark.parametrize("settings", WEIGHTED, ids=str)
    def test_weighted_rows(self, backend: nn.Backend, rng, settings) -> None:
        for name, (x, y) in (("MLPClassifier", digits()), ("MLPRegressor", numbers(2))):
            weight = rng.uniform(0.2, 3.0, len(x))
            a, b = both(name, **settings)
            assert_same(a.fit(x, y, weight), b.fit(x, y, weight))

    def test_partial_fit_and_warm_start(self, backend: nn.Backend) -> None:
        x, y = digits()
        a, b = both("MLPClassifier", batch_size=40)
        for start in (0, 150, 300):
            part = slice(start, start + 150)
            for each in (a, b):
                each.partial_fit(x[part], y[part], classes=range(10))
        assert_same(a, b)
        a, b = both("MLPRegressor", warm_start=True, solver="sgd")
        for _ in range(2):
            assert_same(a.fit(x, y), b.fit(x, y))

    def test_float32_stays_float32(self, backend: nn.Backend) -> None:
        x, y = digits()
        a, b = both("MLPClassifier")
        assert_same(a.fit(x.astype("f"), y), b.fit(x.astype("f"), y), rtol=1e-3)
        assert b.predict_proba(x.astype("f")).dtype == np.float32

    def test_sparse_rows_are_made_dense_some_at_a_time(self, backend, monkeypatch) -> None:
        x, y = digits(230)
        monkeypatch.setattr("nnbackend.sklearn.network.DENSE_BYTES", 64 * 8 * 70)
        assert DENSE_BYTES > 64 * 8 * 70
        for settings in ({"batch_size": 30}, {"solver": "lbfgs"}, {"shuffle": False}):
            for kind in (scipy.sparse.csr_matrix, scipy.sparse.csc_array):
                a, b = both("MLPClassifier", **settings)
                assert_same(a.fit(x, y), b.fit(kind(x), y))
                np.testing.assert_allclose(b.predict_proba(kind(x)), a.predict_proba(x), atol=1e-9)

    def test_what_is_printed(self, backend, capsys) -> None:
        printed = []
        for each in both("MLPClassifier", verbose=True, tol=1.0, n_iter_no_change=2):
            each.fit(*digits(100))
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] != ""


class TestWeightsOfOnesOwn:
    def test_replaced_and_changed_weights_are_used(self, backend: nn.Backend) -> None:
        x, y = digits(100)
        a, b = (each.fit(x, y) for each in both("MLPClassifier"))
        for each in (a, b):
            each.coefs_[0] = each.coefs_[0] * 0.5
            each.intercepts_[-1] = each.intercepts_[-1] + np.arange(10)
        np.testing.assert_allclose(b.predict_proba(x), a.predict_proba(x), atol=1e-9)
        for each in (a, b):
            each.coefs_[1][:] = 0
        np.testing.assert_allclose(b.predict_proba(x), a.predict_proba(x), atol=1e-9)

    def test_weights_of_an_earlier_fit_stay_as_they_are(self, backend: nn.Backend) -> None:
        x, y = digits(100)
        model = both("MLPClassifier")[1].fit(x, y)
        kept, copies = model.coefs_, [coef.copy() for coef in model.coefs_]
        model.set_params(random_state=1).fit(x, y)
        for a, b in zip(kept, copies, strict=True):
            np.testing.assert_array_equal(a, b)


class TestCopies:
    def test_a_pickle_goes_on_where_it_was(self, backend: nn.Backend) -> None:
        x, y = digits(150)
        for settings in ({}, {"solver": "sgd"}):
            model = both("MLPClassifier", **settings)[1].partial_fit(x, y, classes=range(10))
            model.partial_fit(x, y)
            again = pickle.loads(pickle.dumps(model))
            for each in (model, again):
                each.partial_fit(x, y)
            assert_same(model, again, rtol=1e-12)

    def test_a_fitted_one_is_read_where_its_backend_is_not(self, tmp_path) -> None:
        x, y = digits(100)
        model = ours.MLPClassifier(max_iter=3, backend="numpy", random_state=0).fit(x, y)
        model.backend = "cuda:7"
        joblib.dump(model, tmp_path / "model")
        again = joblib.load(tmp_path / "model")
        with pytest.warns(UserWarning, match="cannot run here"):
            np.testing.assert_allclose(again.predict_proba(x), model.predict_proba(x), atol=1e-6)
        with pytest.raises(nn.BackendUnavailableError):
            again.fit(x, y)

    def test_clones_have_all_settings(self) -> None:
        model = ours.MLPClassifier(dropout=0.2, backend="numpy", class_weight="balanced")
        assert clone(model).get_params() == model.get_params()

    def test_it_goes_on_with_other_settings(self, backend: nn.Backend) -> None:
        x, y = digits(150)
        a, b = both("MLPClassifier")
        changes = ({}, {"alpha": 0.5}, {"beta_1": 0.5}, {"solver": "sgd"}, {"solver": "adam"})
        for change in changes[:3]:
            for each in (a, b):
                each.set_params(**change).partial_fit(x, y, classes=range(10))
            if "beta_1" not in change:  # which scikit-learn does not look at again
                assert_same(a, b)
        for change in changes[3:]:
            b.set_params(**change).partial_fit(x, y)
        assert np.isfinite(b.loss_)

    def test_a_failed_partial_fit_can_be_followed_by_another(self, backend: nn.Backend) -> None:
        x, y = digits(100)
        model = both("MLPRegressor", solver="sgd")[1].partial_fit(x, y)
        before = model.predict(x)
        with pytest.raises(ValueError, match="non-finite"):
            model.partial_fit(x * 1e300, y)
        np.testing.assert_array_equal(model.predict(x), before)
        assert np.isfinite(model.partial_fit(x, y).loss_)


class TestBesides:
    def test_the_backend_can_be_named(self) -> None:
        x, y = digits(100)
        model = ours.MLPClassifier(max_iter=3, backend="numpy").fit(x, y)
        assert model._network.model.backend.name == "numpy"
        with pytest.raises(nn.UnknownNameError, match="nunba"):
            ours.MLPClassifier(backend="nunba").fit(x, y)

    @pytest.mark.slow_on_stand_in
    def test_dropout_is_for_training_alone(self, backend: nn.Backend) -> None:
        x, y = digits()
        plain, dropped = (ours.MLPClassifier(random_state=0, dropout=rate, max_iter=40).fit(x, y)
                          for rate in (0.0, 0.4))  # fmt: skip
        assert dropped.loss_ > 1.5 * plain.loss_
        assert dropped.score(x, y) > 0.95
        np.testing.assert_array_equal(dropped.predict_proba(x), dropped.predict_proba(x))

    def test_class_weights_multiply_those_of_rows(self, backend: nn.Backend, rng) -> None:
        x, y = digits()
        rows = rng.uniform(0.5, 2.0, len(y))
        of_classes = {c: 1.0 + c for c in range(10)}
        for solver in ("adam", "lbfgs"):
            one = ours.MLPClassifier((7, 5), max_iter=6, random_state=0, alpha=0.0, solver=solver)
            other = clone(one).set_params(class_weight=of_classes)
            assert_same(one.fit(x, y, rows * (1.0 + y)), other.fit(x, y, rows))

    def test_balanced_classes_weigh_the_same(self, backend: nn.Backend) -> None:
        x, y = digits()
        rare = np.concatenate([np.flatnonzero(y == 3)[:6], np.flatnonzero(y == 8)])
        x, y = x[rare], y[rare]
        model = ours.MLPClassifier(max_iter=60, class_weight="balanced", random_state=0).fit(x, y)
        assert (model.predict(x[y == 3]) == 3).all()
        with pytest.raises(ValueError, match="partial_fit"):
            model.partial_fit(x, y)

    def test_callbacks_see_and_steer(self, backend: nn.Backend) -> None:
        class Steers(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                seen.append((epoch, figures, float(model.optimizer.lr)))
                model.optimizer.lr = 1e-4
                return "enough" if epoch == 4 else None

        seen: list = []
        x, y = digits(100)
        model = ours.MLPClassifier(early_stopping=True, callbacks=[Steers()], max_iter=9)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # stopping was asked for
            model.fit(x, y)
        assert model.n_iter_ == 4
        assert [lr for *_, lr in seen] == [1e-3, 1e-4, 1e-4, 1e-4]
        assert seen[0][1].keys() == {"loss", "lr", "val_score"}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dropout": 1.0}, "'dropout' parameter of MLPClassifier must be"),
            ({"dropout": 0.1, "solver": "lbfgs"}, "dropout needs solver='adam' or 'sgd'"),
            ({"callbacks": [nn.Callback()], "solver": "lbfgs"}, "callbacks needs solver="),
            ({"class_weight": "balancd"}, "'class_weight' parameter"),
            ({"alpha": -1.0}, "The 'alpha' parameter of MLPClassifier must be"),
            ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes must be > 0"),
        ],
    )
    def test_wrong_settings(self, settings, message) -> None:
        with pytest.raises(ValueError, match=message):
            ours.MLPClassifier(**settings).fit(*digits(50))

    def test_a_fit_that_fails_leaves_what_was(self, backend: nn.Backend) -> None:
        x, y = digits(100)
        fresh = ours.MLPRegressor(solver="sgd", learning_rate_init=1e20)
        with pytest.raises(ValueError, match="non-finite parameter weights"):
            fresh.fit(x, y)
        assert not hasattr(fresh, "coefs_")
        model = ours.MLPRegressor(random_state=0, max_iter=5, warm_start=True).fit(x, y)
        before = model.predict(x)
        model.set_params(solver="sgd", learning_rate_init=1e20)
        with pytest.raises(ValueError, match="non-finite"):
            model.fit(x, y)
        np.testing.assert_array_equal(model.predict(x), before)

    def test_ctrl_c_keeps_what_was_learnt(self, backend: nn.Backend) -> None:
        class Interrupts(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                if epoch == 3:
                    raise KeyboardInterrupt

        model = ours.MLPClassifier(callbacks=[Interrupts()])
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            model.fit(*digits(100))
        assert model.n_iter_ == 3
        assert model.predict(digits(100)[0]).shape == (100,)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (None, ["begin", "end"]),
            (KeyboardInterrupt, ["begin", "end interrupted"]),
            (ZeroDivisionError, ["begin", "failed ZeroDivisionError"]),
        ],
    )
    def test_callbacks_are_told_how_it_ended(self, error, expected) -> None:
        class Listens(nn.Callback):
            def on_fit_begin(self, model):
                seen.append("begin")

            def on_epoch_end(self, model, epoch, figures, history):
                if epoch == 2 and error is not None:
                    raise error

            def on_fit_end(self, model, history):
                seen.append(f"end {history.stopped or ''}".strip())

            def on_fit_failed(self, model, error):
                seen.append(f"failed {type(error).__name__}")

        seen: list[str] = []
        model = ours.MLPClassifier(callbacks=[Listens()], max_iter=3)
        other = error is not None and not issubclass(error, KeyboardInterrupt)
        with pytest.raises(error) if other else warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(*digits(100))
        assert seen == expected

    def test_one_class_is_always_right(self, rng) -> None:
        x, y = rng.normal(size=(80, 4)), np.full(80, "only")
        settings = {"early_stopping": True, "random_state": 0, "max_iter": 30}
        fitted = [module.MLPClassifier(**settings).fit(x, y) for module in (theirs, ours)]
        assert fitted[0].validation_scores_ == fitted[1].validation_scores_
        assert (fitted[1].predict(x) == "only").all()

    @pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
    def test_negative_weights_are_refused(self, rng, solver) -> None:
        x, y = rng.normal(size=(20, 4)), rng.normal(size=20)
        with pytest.raises(ValueError, match=r"must not be negative; received -1\.0"):
            ours.MLPRegressor(solver=solver).fit(x, y, sample_weight=np.r_[-1.0, np.ones(19)])


class TestCompany:
    """Other parts of scikit-learn take the estimators for what they are."""

    @pytest.mark.parametrize("kind", ["loky", "threading"])
    def test_searches_in_parallel(self, kind) -> None:
        x, y = digits(200)
        search = GridSearchCV(
            ours.MLPClassifier(max_iter=5, random_state=0, backend="numpy"),
            {"alpha": [1e-4, 1.0], "dropout": [0.0, 0.2]}, n_jobs=2, cv=2,
        )  # fmt: skip
        with joblib.parallel_config(kind), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.fit(x, y)
        alone = clone(search).set_params(n_jobs=None).fit(x, y)
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
        )

    def test_fits_at_once_use_one_thread_each(self, backend: nn.Backend) -> None:
        x, y = digits()
        alone = ours.MLPClassifier((90,), max_iter=4, random_state=0).fit(x, y)
        with ThreadPoolExecutor(2) as pool, nn.use_backend(backend):
            models = [clone(alone).set_params(backend=backend.device) for _ in range(2)]
            for model in pool.map(lambda each: each.fit(x, y), models):
                assert_same(alone, model)
                executor = model._network.model.executor
                if backend.name == "numba":
                    assert executor._plan(200).parts == 1

    def test_pipelines_calibration_and_tables(self, backend: nn.Backend) -> None:
        pandas = pytest.importorskip("pandas")
        x, y = load_iris(return_X_y=True, as_frame=True)
        model = make_pipeline(StandardScaler(), ours.MLPClassifier(max_iter=100, random_state=0))
        model.set_output(transform="pandas").fit(x, y)
        assert list(model[-1].feature_names_in_) == list(x.columns)
        assert model.score(x, y) > 0.9
        with pytest.raises(ValueError, match="feature names"):
            model[-1].predict(pandas.DataFrame(x.to_numpy(), columns=list("abcd")))
        calibrated = CalibratedClassifierCV(model, cv=2).fit(x, y)
        assert calibrated.predict_proba(x).shape == (150, 3)

    def test_weights_of_rows_are_routed(self, backend: nn.Backend) -> None:
        x, y = digits(100)
        with sklearn.config_context(enable_metadata_routing=True):
            model = ours.MLPClassifier(max_iter=3).set_fit_request(sample_weight=True)
            model.set_score_request(sample_weight=True)
            found = cross_validate(model, x, y, cv=2, params={"sample_weight": np.ones(100)})
        assert len(found["test_score"]) == 2

    def test_it_is_one_of_scikit_learn_s(self) -> None:
        assert issubclass(ours.MLPClassifier, theirs.MLPClassifier)
        assert issubclass(ours.MLPRegressor, theirs.MLPRegressor)

    def test_convergence_is_warned_of(self, backend: nn.Backend) -> None:
        with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
            ours.MLPClassifier(max_iter=2).fit(*digits(50))
