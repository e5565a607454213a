"""Layers and losses of one's own: trained like built-in ones, their answers checked."""

import copy
import warnings

import numpy as np
import pytest
from sample_models import Scale, data, squared, weights

import nnbackend as nn
from nnbackend.executor import choice
from nnbackend.executor.python import PythonExecutor
from nnbackend.kernels.codes import Op
from nnbackend.layers.native import NativeLayer


class Signs(nn.Optimizer):
    """w -= lr sign(g), and counts its updates in a slot."""

    state_names = ("count",)

    def update(self, backend, param, grad, slots, lr, weight_decay, step, scratch) -> None:
        param[...] = param - lr * ((grad > 0) * 1.0 - (grad < 0) * 1.0)
        slots[0][...] = slots[0] + 1


class Halved(nn.SGD):
    """Another update than that of the class below."""

    def update(self, backend, param, grad, slots, lr, *rest) -> None:
        super().update(backend, param, grad, slots, lr / 2, *rest)


class Warmed(nn.SGD):
    """Other rates."""

    def rates(self, first_step, count):
        return super().rates(first_step, count) / 2


class Doubled(nn.losses.MeanSquaredError):
    """A built-in loss's subclass that computes something else."""

    def apply(self, backend, pred, target, weight, dpred, loss) -> None:
        super().apply(backend, pred, target, weight, dpred, loss)
        loss[...] = 2 * loss
        if dpred is not None:
            dpred[...] = 2 * dpred


class TestPythonParts:
    @pytest.mark.parametrize("optimizer", [Halved, Warmed])
    def test_own_optimizer_is_not_taken_for_its_base(self, backend, rng, optimizer) -> None:
        x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
        models = []
        for each in (optimizer(0.1), nn.SGD(0.05)):
            model = nn.Sequential([nn.Dense(4, 3, "tanh"), nn.Dense(3, 2)], seed=0, dtype="float64")
            model.compile("mean_squared_error", each)
            model.fit(x, y, epochs=3, batch_size=8, verbose=0)
            model.train_step(x, y)
            model.forward(x)
            model.backward(0.1 * y)
            model.apply_gradients()
            models.append(model)
        np.testing.assert_allclose(weights(models[0]), weights(models[1]), atol=1e-12)

    def test_own_optimizer_does_what_it_says(self, backend, rng) -> None:
        x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
        model = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype="float64")
        model.compile("mean_squared_error", Signs(0.01))
        before = backend.to_numpy(model.layers[0].weight).copy()
        model.fit(x, y, epochs=2, batch_size=10, verbose=0)
        moved = np.abs(backend.to_numpy(model.layers[0].weight) - before) / 0.01
        np.testing.assert_allclose(moved, np.round(moved), atol=1e-9)
        assert np.round(moved).max() <= 6
        assert all((count == 6).all() for count in model.optimizer_state().values())

    def test_own_loss_class_is_not_taken_for_its_base(self, backend, rng) -> None:
        x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
        models = []
        for loss, rate in ((Doubled(), 0.05), ("mean_squared_error", 0.1)):
            model = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype="float64")
            model.compile(loss, nn.SGD(rate))
            model.fit(x, y, epochs=3, batch_size=8, verbose=0)
            models.append(model)
        np.testing.assert_allclose(weights(models[0]), weights(models[1]), atol=1e-12)
        np.testing.assert_allclose(
            models[0].history["loss"], 2 * np.array(models[1].history["loss"]), rtol=1e-9
        )

    def test_subclasses_that_change_no_formula_stay_compiled(self, backend) -> None:
        class Slow(nn.Adam):
            lr: float = 1e-5

        model = nn.Sequential([nn.Dense(4, 2)], seed=0)
        model.compile("mean_squared_error", Slow())
        assert model.program.python_parts == []

    def test_own_layer_trains_like_a_built_in(self, backend, rng) -> None:
        x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
        model = nn.Sequential([nn.Dense(4, 3, "tanh"), Scale(3), nn.Dense(3, 2)], seed=0,
                              dtype="float64")  # fmt: skip
        model.compile("mean_squared_error", nn.Adam(lr=0.05))
        before = backend.to_numpy(model.layers[1].factor).copy()
        history = model.fit(x, y, epochs=20, verbose=0)
        assert history["loss"][-1] < 0.7 * history["loss"][0]
        assert not np.array_equal(backend.to_numpy(model.layers[1].factor), before)
        assert isinstance(model.executor, PythonExecutor)
        from nnbackend.testing import gradient_error

        assert gradient_error(model, x, y, rng) < 1e-6

    def test_own_loss_equals_the_built_in(self, backend, rng) -> None:
        x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
        models = []
        for loss in ("mean_squared_error", squared):
            model = nn.Sequential([nn.Dense(4, 2)], seed=0, dtype="float64")
            model.compile(loss, metrics=["mse"])
            history = model.fit(x, y, epochs=3, verbose=0)
            models.append((weights(model), history["loss"], model.evaluate(x, y)["mse"]))
        np.testing.assert_allclose(models[0][0], models[1][0], atol=1e-13)
        np.testing.assert_allclose(models[0][1], models[1][1])

    def test_arrays_that_own_parts_return_are_not_written_to(self, backend, rng) -> None:
        y = rng.normal(size=(30, 2))
        seen = []

        def loss(y_true, y_pred):
            seen.append(np.array(backend.to_numpy(y_true)))
            return (y_true * y_pred).sum(), y_true

        class Keeps(Scale):
            def backward(self, dy):
                super().backward(dy)
                return self.kept

        keeps = Keeps(3)
        keeps.kept = np.ones((30, 3))
        model = nn.Sequential([nn.Dense(4, 3, "tanh"), keeps, nn.Dense(3, 2, "tanh")], seed=0,
                              dtype="float64")  # fmt: skip
        model.compile(loss, nn.SGD(lr=1e-3))
        model.fit(rng.normal(size=(30, 4)), y, epochs=3, shuffle=False, batch_size=30, verbose=0)
        for target in seen:
            np.testing.assert_array_equal(target, y)
        np.testing.assert_array_equal(keeps.kept, np.ones((30, 3)))

    def test_penalties_of_a_subclass_of_dense_count(self, backend, rng) -> None:
        class Loud(nn.Dense):
            def forward(self, x, training=False):
                return super().forward(x, training)

        x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
        results = []
        for kind in (nn.Dense, Loud):
            model = nn.Sequential([kind(4, 2, weight_l2=1.0)], seed=0, dtype="float64")
            model.compile("mean_squared_error")
            results.append((model.gradient(x, y), backend.to_numpy(model.layers[0].weight_grad)))
        assert results[0][0] == pytest.approx(results[1][0])
        np.testing.assert_allclose(results[0][1], results[1][1])

    def test_gradients_of_the_wrong_shape_are_refused(self, backend, rng) -> None:
        class Typo(Scale):
            def backward(self, dy):
                self.factor_grad = (dy * self.x).sum()
                return dy

        model = nn.Sequential([Typo(4), nn.Dense(4, 3)], seed=0)
        model.compile("softmax_cross_entropy")
        with pytest.raises(
            nn.ShapeError, match=r"Typo.factor_grad has shape \(4,\); received \(\)"
        ):
            model.train_step(*data(rng))

    def test_private_attributes_of_own_layers_are_copied(self, backend, rng) -> None:
        class Private(Scale):
            def __init__(self, width):
                super().__init__(width)
                self._k = 3.0

            def forward(self, x, training=False):
                return super().forward(x, training) * self._k

        model = nn.Sequential([Private(4), nn.Dense(4, 3)], seed=0)
        x, _ = data(rng)
        np.testing.assert_array_equal(copy.deepcopy(model).predict(x), model.predict(x))

    def test_own_loss_sees_labels_as_integers(self, backend, rng) -> None:
        kinds = []

        def look(y_true, y_pred):
            kinds.append(y_true.dtype)
            return 0.0, 0 * y_pred

        model = nn.Sequential([nn.Dense(4, 3)], seed=0)
        model.compile(look)
        model.train_step(*data(rng))
        assert kinds == [np.int32]

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (lambda t, p: 1.0, nn.DTypeError, "returns .loss, dpred.; received float"),
            (lambda t, p: (1.0, p[:1]), nn.ShapeError, "of the shape of y_pred"),
            (lambda t, p: (1.0, None), nn.ShapeError, "received NoneType"),
            (lambda t, p: (None, p), nn.ShapeError, "a single number; received None"),
            (lambda t, p: (p[:, 0], p), nn.ShapeError, "a single number; received shape"),
        ],
    )
    def test_answers_of_a_loss_are_checked(self, backend, rng, answer, error, message) -> None:
        model = nn.Sequential([nn.Dense(4, 3)], seed=0)
        model.compile(answer)
        with pytest.raises(error, match=message):
            model.train_step(*data(rng))

    def test_weights_and_own_losses_do_not_go_together(self, backend, rng) -> None:
        model = nn.Sequential([nn.Dense(4, 2)], seed=0)
        model.compile(squared)
        with pytest.raises(nn.DataError, match="sees no weights"):
            model.train_step(rng.normal(size=(5, 4)), rng.normal(size=(5, 2)), np.ones(5))

    def test_answers_of_a_layer_are_checked(self, backend, rng) -> None:
        class Narrow(Scale):
            def forward(self, x, training=False):
                return x[:, :1]

        model = nn.Sequential([Narrow(4), nn.Dense(4, 3)], seed=0)
        model.compile("softmax_cross_entropy")
        with pytest.raises(nn.ShapeError, match=r"Narrow.forward must return shape \(2, 4\)"):
            model.predict(np.ones((2, 4)))
        with pytest.raises(nn.ShapeError, match=r"Narrow.forward must return shape \(60, 4\)"):
            model.train_step(*data(rng))

    def test_a_subclass_that_keeps_the_methods_stays_native(self) -> None:
        class Wide(nn.Dense):
            def __init__(self):
                super().__init__(4, 16)

        class Loud(nn.Dense):
            def forward(self, x, training=False):
                return super().forward(x, training)

        model = nn.Sequential([Wide(), Loud(16, 2)])
        assert [row.op for row in model.program.rows] == [Op.DENSE, Op.PYTHON]
        assert issubclass(Wide, NativeLayer)

    def test_a_kind_of_row_that_the_compiled_executor_lacks_is_interpreted(
        self, monkeypatch, rng
    ) -> None:
        """It would be passed over: whatever is in its output's memory goes on."""
        numba = pytest.importorskip("nnbackend.backends.numba.executor")

        def trained() -> nn.Sequential:
            layers = [nn.Dense(4, 4), nn.LayerNorm(4), nn.Dense(4, 3)]
            model = nn.Sequential(layers, seed=0, dtype="float64", backend="numba")
            model.compile("softmax_cross_entropy")
            model.fit(*data(np.random.default_rng(0)), epochs=2, verbose=0)
            return model

        expected = trained()
        known = numba.CompiledExecutor.ops - {Op.LAYER_NORM}
        monkeypatch.setattr(numba.CompiledExecutor, "ops", known)
        monkeypatch.setattr(numba.MixedExecutor, "ops", known)
        model = trained()
        assert isinstance(model.executor, numba.MixedExecutor)
        np.testing.assert_allclose(weights(model), weights(expected), atol=1e-12)
        x = rng.normal(size=(30, 4))
        np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-12)

    def test_a_declared_layer_with_too_many_arrays_is_refused(self) -> None:
        class Three(nn.LayerNorm):
            def __init__(self, n: int) -> None:
                super().__init__(n)
                self.add_parameter("third", (n,), "ones")

        with pytest.raises(nn.ShapeError, match="places for two parameters.*Three"):
            nn.Sequential([Three(4), nn.Dense(4, 3)])

    def test_leaving_a_compiled_executor_is_announced_once(self, monkeypatch, capsys) -> None:
        from nnbackend.backends.numpy.backend import NumpyBackend

        numba = pytest.importorskip("nnbackend.backends.numba.executor")
        monkeypatch.setattr(numba.CompiledExecutor, "mixed", None)

        class Compiled(NumpyBackend):
            executor = "nnbackend.backends.numba.executor:CompiledExecutor"

        monkeypatch.setattr(choice, "_announced", set())
        with pytest.warns(UserWarning, match="Scale is written in Python"):
            model = nn.Sequential([Scale(4), nn.Dense(4, 3)], backend=Compiled())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.compile("softmax_cross_entropy")
        model.summary()
        assert "because of Scale" in capsys.readouterr().out
