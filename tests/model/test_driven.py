"""Models driven from outside: forward, backward, apply_gradients; the parameters as one vector."""

import copy
from functools import partial

import numpy as np
import pytest
from sample_models import Scale, data, squared, weights

import nnbackend as nn
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.errors import DeviceError

LAYERS = {
    "dense": lambda: [nn.Dense(4, 8, "gelu"), nn.Dense(8, 3)],
    "penalties": lambda: [nn.Dense(4, 8, "tanh", weight_l2=1e-2), nn.Dense(8, 3, bias_l1=1e-2)],
    "norms": lambda: [nn.BatchNorm(4), nn.Dense(4, 8, "relu"), nn.LayerNorm(8), nn.Dense(8, 6),
                      nn.BatchNorm(6), nn.Tanh(), nn.Dense(6, 3)],
    "dropout": lambda: [nn.Dense(4, 8, "relu"), nn.Dropout(0.4), nn.Dense(8, 3)],
    "frozen": lambda: [nn.Dense(4, 8, "tanh", trainable=False), nn.ReLU(), nn.Dense(8, 3)],
    "own layer": lambda: [nn.Dense(4, 8, "tanh"), nn.BatchNorm(8), Scale(8), nn.Dense(8, 3)],
    "own layer first": lambda: [Scale(4), nn.BatchNorm(4), nn.Dense(4, 3)],
    "own layer last": lambda: [nn.Dense(4, 3, "sigmoid"), Scale(3)],
}  # fmt: skip


def make(kind: str = "dense", optimizer=None, loss="mean_squared_error") -> nn.Sequential:
    model = nn.Sequential(LAYERS[kind](), seed=3, dtype="float64")
    model.compile(loss, optimizer or nn.Adam(0.01))
    return model


@pytest.fixture
def xy(rng) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(21, 4)), rng.normal(size=(21, 3))


def step(model, x, y) -> None:
    """One step on the mean squared error, from outside."""
    y_pred = model.backend.to_numpy(model.forward(x))
    model.backward(2 * (y_pred - y) / y_pred.size, input_gradient=False)
    model.apply_gradients()


class TestSteps:
    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize(
        "optimizer", [nn.SGD(0.1), nn.AdamW(0.01, clip_norm=0.1), nn.SGD(0.05, 0.9, True)]
    )
    def test_they_equal_train_step(self, backend, xy, kind, optimizer) -> None:
        x, y = xy
        driven, trained = make(kind, optimizer), make(kind, optimizer)
        for rows in (21, 21, 8, 21):
            step(driven, x[:rows], y[:rows])
            trained.train_step(x[:rows], y[:rows])
        assert driven.step == 4
        for name, values in trained.arrays().items():
            np.testing.assert_allclose(driven.arrays()[name], values, atol=1e-12)

    @pytest.mark.parametrize("kind", LAYERS)
    def test_gradients_by_parameters_and_input(self, backend, xy, rng, kind) -> None:
        """Against differences, in a random direction, of sum(dy y) + penalties."""
        x, dy = xy

        def value(shift: float, x_shift: float) -> float:
            model = make(kind)
            model.set_flat(flat + shift * direction)
            y = backend.to_numpy(model.forward(x + x_shift * x_direction))
            terms = model.program.penalties
            w = weights(model)
            penalty = sum(
                t.l1 * np.abs(w[t.offset : t.offset + t.size]).sum()
                + t.l2 * (w[t.offset : t.offset + t.size] ** 2).sum()
                for t in terms
            )
            return float((dy * y).sum() + penalty)

        model = make(kind)
        flat = backend.to_numpy(model.get_flat()) + 0.01 * rng.normal(size=model.n_parameters)
        x_direction = rng.normal(size=x.shape)
        model.set_flat(flat)
        model.forward(x)
        dx = backend.to_numpy(model.backward(dy))
        gradient = backend.to_numpy(model.flat_gradient)
        # frozen parameters have no gradient
        direction = rng.normal(size=flat.shape) * (1 if kind != "frozen" else gradient != 0)
        e = 1e-6
        found = (value(e, 0) - value(-e, 0)) / (2 * e)
        assert gradient @ direction == pytest.approx(found, rel=1e-5, abs=1e-7)
        found = (value(0, e) - value(0, -e)) / (2 * e)
        assert (dx * x_direction).sum() == pytest.approx(found, rel=1e-5, abs=1e-7)

    @pytest.mark.parametrize("kind", ["norms", "own layer", "penalties"])
    def test_accumulated_passes_add_up(self, backend, xy, rng, kind) -> None:
        x, dy = xy
        model = make(kind)
        penalties = make(kind)
        penalties.forward(x)
        penalties.backward(np.zeros_like(dy))
        model.forward(x)
        model.backward(dy)
        once = backend.to_numpy(model.flat_gradient)
        model.backward(2 * dy, accumulate=True)
        thrice = backend.to_numpy(model.flat_gradient)
        of_penalties = backend.to_numpy(penalties.flat_gradient)
        np.testing.assert_allclose(thrice, 3 * once - 2 * of_penalties, atol=1e-12)

    def test_two_batches_accumulate_to_one(self, backend, xy) -> None:
        x, dy = xy
        whole, parts = make("dense"), make("dense")
        whole.forward(x)
        whole.backward(dy)
        for k, rows in enumerate((slice(0, 10), slice(10, 21))):
            parts.forward(x[rows])
            parts.backward(dy[rows], accumulate=k > 0)
        np.testing.assert_allclose(
            backend.to_numpy(parts.flat_gradient), backend.to_numpy(whole.flat_gradient), atol=1e-12
        )

    def test_dropout_masks_differ_between_passes_and_repeat_with_the_seed(self, backend) -> None:
        x = np.ones((30, 4))
        first, second = make("dropout"), make("dropout")
        y = [backend.to_numpy(m.forward(x)) for m in (first, first, second, second)]
        assert not np.array_equal(y[0], y[1])
        np.testing.assert_array_equal(y[0], y[2])
        np.testing.assert_array_equal(y[1], y[3])

    def test_inference_moves_nothing(self, backend, xy) -> None:
        model = make("norms")
        before = model.arrays()
        y = model.forward(xy[0], training=False)
        np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(model(xy[0])))
        for name, values in before.items():
            np.testing.assert_array_equal(model.arrays()[name], values)

    def test_outputs_are_the_callers_own(self, backend, xy) -> None:
        model = make()
        first = model.forward(xy[0])
        kept = backend.to_numpy(first).copy()
        model.forward(2 * xy[0])
        np.testing.assert_array_equal(backend.to_numpy(first), kept)

    def test_without_a_loss(self, backend, xy, tmp_path) -> None:
        x, y = xy
        model, trained = make(loss=None), make()
        for _ in range(3):
            step(model, x, y)
            trained.train_step(x, y)
        np.testing.assert_allclose(weights(model), weights(trained), atol=1e-12)
        for call in (model.fit, model.train_step, model.evaluate, model.gradient):
            with pytest.raises(nn.DataError, match="has no loss"):
                call(x, y)
        model.save(tmp_path / "m")
        again = nn.load(tmp_path / "m")
        step(again, x, y)
        step(model, x, y)
        np.testing.assert_array_equal(weights(again), weights(model))
        with pytest.raises(nn.DataError, match="need a loss"):
            model.compile(None, metrics=["accuracy"])

    def test_float32_and_other_inputs(self, backend, xy) -> None:
        model = nn.Sequential([nn.Dense(4, 3)], seed=0)
        model.compile(None)
        y = model.forward(xy[0][:, ::-1])
        assert backend.to_numpy(y).dtype == np.float32
        dx = model.backward(np.asfortranarray(xy[1]).tolist())
        assert backend.to_numpy(dx).shape == (21, 4)


class TestBadInput:
    def check(self, model, call, error, message) -> None:
        before = weights(model)
        with pytest.raises(error, match=message):
            call()
        np.testing.assert_array_equal(weights(model), before)

    def test_backward_without_forward(self, backend, xy) -> None:
        model = make()
        self.check(model, lambda: model.backward(xy[1]), nn.DataError, "needs a forward pass")
        model.forward(xy[0])
        model.train_step(*xy)
        self.check(model, lambda: model.backward(xy[1]), nn.DataError, "needs a forward pass")
        model.forward(xy[0], training=False)
        self.check(model, lambda: model.backward(xy[1]), nn.DataError, "needs a forward pass")

    @pytest.mark.parametrize("shape", [(21, 4), (20, 3), (21,), (21, 3, 1)])
    def test_dy_of_another_shape(self, backend, xy, shape) -> None:
        model = make()
        model.forward(xy[0])
        call = lambda: model.backward(np.ones(shape))  # noqa: E731
        self.check(model, call, nn.ShapeError, r"dy must have shape \(21, 3\); received")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_dy_that_is_not_finite(self, backend, xy, value) -> None:
        if isinstance(backend, CudaBackend):
            pytest.skip("a GPU is not waited for")
        model, dy = make(), xy[1].copy()
        dy[5, 2] = value
        model.forward(xy[0])
        call = lambda: model.backward(dy)  # noqa: E731
        self.check(model, call, nn.DataError, f"dy must be finite; received {value} in row 5, col")
        assert not model._has_gradient

    def test_dy_whose_square_overflows_is_finite(self, backend, xy) -> None:
        model = make()
        model.forward(xy[0])
        model.backward(np.full((21, 3), 1e200))
        model.flat_gradient  # noqa: B018

    @pytest.mark.parametrize("dy", ["text", np.ones((21, 3), complex), [[1.0], [1.0, 2.0]]])
    def test_dy_of_another_kind(self, backend, xy, dy) -> None:
        model = make()
        model.forward(xy[0])
        with pytest.raises(nn.NNBackendError):
            model.backward(dy)

    def test_apply_without_a_gradient(self, backend, xy) -> None:
        model = make()
        message = "there is no gradient to apply"
        self.check(model, model.apply_gradients, nn.DataError, message)
        step(model, *xy)
        self.check(model, model.apply_gradients, nn.DataError, message)
        for trains in (model.train_step, partial(model.fit, verbose=0)):
            model.gradient(*xy)
            trains(*xy)
            self.check(model, model.apply_gradients, nn.DataError, message)
        model.forward(xy[0])
        with pytest.raises(nn.DataError, match="there is none yet"):
            model.backward(xy[1], accumulate=True)

    def test_a_gradient_that_is_not_finite_is_not_applied(self, backend, xy) -> None:
        if isinstance(backend, CudaBackend):
            pytest.skip("a GPU is not waited for")
        model = make()
        model.forward(xy[0])
        model.backward(np.full((21, 3), 1e300))
        model.storage.gradients[3] = np.inf
        self.check(model, model.apply_gradients, nn.NonFiniteLossError, "nothing was updated")
        assert model.step == 0

    @pytest.mark.parametrize("optimizer", [nn.SGD(1.0, clip_norm=1.0), nn.Adam(1e-3)])
    def test_a_gradient_whose_square_is_no_number_is_not_applied(
        self, backend, xy, optimizer
    ) -> None:
        if isinstance(backend, CudaBackend):
            pytest.skip("a GPU is not waited for")
        model = make(optimizer=optimizer)
        model.forward(xy[0])
        model.backward(np.full((21, 3), 1e160))
        assert np.isfinite(backend.to_numpy(model.flat_gradient)).all()
        message = "infinite, or so large that its square is; nothing was updated"
        self.check(model, model.apply_gradients, nn.NonFiniteLossError, message)

    def test_wrong_inputs(self, backend, xy) -> None:
        model = make("norms")
        with pytest.raises(nn.ShapeError):
            model.forward(np.ones((3, 5)))
        with pytest.raises(nn.DataError, match="at least one row"):
            model.forward(np.ones((0, 4)))
        with pytest.raises(nn.ShapeError, match="at least 2 rows"):
            model.forward(np.ones((1, 4)))
        with pytest.raises(nn.DTypeError, match="training must be True or False"):
            model.forward(xy[0], training="yes")

    def test_nothing_compiled(self, backend, xy) -> None:
        model = nn.Sequential([nn.Dense(4, 3)])
        model.forward(xy[0])
        model.backward(xy[1])
        with pytest.raises(nn.DataError, match="has no loss"):
            model.apply_gradients()


class TestFlat:
    @pytest.mark.parametrize("kind", ["norms", "frozen", "own layer"])
    def test_what_is_got_can_be_set(self, backend, rng, kind) -> None:
        model = make(kind)
        flat = backend.to_numpy(model.get_flat())
        assert flat.shape == (model.n_parameters,)
        assert sorted(flat) == sorted(
            np.concatenate(
                [v.ravel() for k, v in model.arrays().items()
                 if k.split(".")[-1] in ("weight", "bias", "gamma", "beta", "factor")]
            )
        )  # fmt: skip
        other = rng.normal(size=flat.shape)
        model.set_flat(other)
        np.testing.assert_array_equal(backend.to_numpy(model.get_flat()), other)
        assert np.abs(flat).max() > 0  # a copy

    @pytest.mark.parametrize("kind", ["norms", "frozen", "own layer"])
    def test_the_model_s_own_vector_can_be_changed_in_place(self, backend, rng, kind) -> None:
        model, copied = make(kind), make(kind)
        x = rng.normal(size=(5, model.n_inputs))
        model.predict(x)
        own = model.get_flat(copy=False)
        assert own.shape[0] >= model.n_parameters
        own *= -0.5
        copied.set_flat(-0.5 * backend.to_numpy(copied.get_flat()))
        np.testing.assert_array_equal(weights(model), weights(copied))
        np.testing.assert_array_equal(model.predict(x), copied.predict(x))

    def test_numbers_between_the_arrays_belong_to_no_parameter(self, backend, xy) -> None:
        model, other = make("norms"), make("norms")
        kept = model.get_flat()
        model.get_flat(copy=False)[...] = 3.0
        model.set_flat(kept)
        for trained in (model, other):
            trained.fit(*xy, epochs=2, verbose=0, shuffle=False)
        np.testing.assert_array_equal(*(backend.to_numpy(m.get_flat()) for m in (model, other)))

    def test_a_gradient_of_ones_own(self, backend) -> None:
        model = make(optimizer=nn.SGD(0.5))
        before = backend.to_numpy(model.get_flat())
        model.flat_gradient = np.arange(model.n_parameters)
        model.apply_gradients()
        after = backend.to_numpy(model.get_flat())
        np.testing.assert_allclose(after, before - 0.5 * np.arange(model.n_parameters))

    @pytest.mark.parametrize(
        ("vector", "error", "message"),
        [
            (np.ones(3), nn.ShapeError, r"must have shape \(67,\); received \(3,\)"),
            (np.ones((67, 1)), nn.ShapeError, "must have shape"),
            (np.full(67, np.nan), nn.DataError, "must be finite"),
            (np.full(67, "a"), nn.DTypeError, "real numbers"),
            (np.ones(67, complex), nn.DTypeError, "real numbers"),
        ],
    )
    def test_other_vectors_are_refused(self, backend, vector, error, message) -> None:
        model = make()
        before = weights(model)
        with pytest.raises(error, match=message):
            model.set_flat(vector)
        with pytest.raises(error, match=message):
            model.flat_gradient = vector
        np.testing.assert_array_equal(weights(model), before)

    def test_target_networks(self, backend, xy) -> None:
        online, target = make("norms"), make("norms")
        online.fit(*xy, epochs=2, verbose=0)
        before, wanted = target.arrays(), online.arrays()
        target.soft_update(online, 0.25)
        for name, values in target.arrays().items():
            np.testing.assert_allclose(values, 0.75 * before[name] + 0.25 * wanted[name])
        target.copy_from(online)
        for name, values in target.arrays().items():
            np.testing.assert_array_equal(values, wanted[name])
        target.soft_update(online, 0)
        np.testing.assert_array_equal(weights(target), weights(online))

    def test_what_an_adapted_layer_has_learnt_is_copied(self, backend, rng) -> None:
        models = [nn.Sequential([nn.Standardize(4), nn.Dense(4, 2)], seed=s) for s in (0, 1)]
        models[0].compile("mean_squared_error")
        models[0].fit(3 + rng.normal(size=(40, 4)), rng.normal(size=(40, 2)), verbose=0)
        models[1].copy_from(models[0])
        x = rng.normal(size=(5, 4))
        np.testing.assert_array_equal(models[1].predict(x), models[0].predict(x))

    def test_other_networks_are_refused(self, backend) -> None:
        model = make()
        for other, error in (
            (make("norms"), nn.ShapeError),
            (nn.Sequential(LAYERS["dense"](), dtype="float32"), nn.ShapeError),
            (np.ones(67), nn.DTypeError),
        ):
            with pytest.raises(error):
                model.copy_from(other)
        with pytest.raises(nn.DataError, match=r"tau must be in \[0, 1\]"):
            model.soft_update(make(), 1.5)
        with nn.use_backend("numpy"):
            there = make()
        if isinstance(backend, CudaBackend):
            with pytest.raises(DeviceError, match="on one device"):
                model.copy_from(there)
        else:
            model.copy_from(there)
            assert np.array_equal(model.get_flat(), there.get_flat())


class TestOwnLoss:
    """A loss in Python leaves the network compiled."""

    @pytest.mark.parametrize("kind", LAYERS)
    @pytest.mark.parametrize("optimizer", [nn.SGD(0.1), nn.AdamW(0.01, clip_norm=0.1)])
    def test_training_equals_the_built_in(self, backend, rng, kind, optimizer) -> None:
        x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
        models = [make(kind, optimizer), make(kind, optimizer, squared)]
        for model in models:
            model.fit(x, y, epochs=2, batch_size=16, verbose=0)
            model.train_step(x, y)
        for name, values in models[0].arrays().items():
            np.testing.assert_allclose(models[1].arrays()[name], values, atol=1e-10)
        losses = [model.history["loss"] for model in models]
        np.testing.assert_allclose(losses[0], losses[1])

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("built_in", ["softmax_cross_entropy", "huber"])
    def test_bit_for_bit_where_the_formula_is_the_same(self, backend, rng, dtype, built_in) -> None:
        loss = nn.losses.LOSSES[built_in]()
        x, y = data(rng)
        if built_in == "huber":
            y = rng.normal(size=(60, 3))

        def own(y_true, y_pred):
            return loss(y_true, y_pred)

        models = []
        for each in (built_in, own):
            model = nn.Sequential(
                [nn.Dense(4, 8, "tanh"), nn.BatchNorm(8), nn.Dropout(0.3), nn.Dense(8, 3)],
                seed=1,
                dtype=dtype,
            )
            model.compile(each, nn.AdamW(0.01, clip_norm=0.5))
            model.fit(x, y, epochs=3, batch_size=16, verbose=0)
            for _ in range(2):
                model.train_step(x, y)
            models.append(model)
        # kernels of both kinds round in another order
        if isinstance(backend, CudaBackend):
            np.testing.assert_allclose(weights(models[0]), weights(models[1]), rtol=1e-5)
        else:
            np.testing.assert_array_equal(weights(models[0]), weights(models[1]))

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (lambda t, p: (0.0, np.ones((2, 2))), nn.ShapeError, "dpred of the shape of y_pred"),
            (lambda t, p: 0.0, nn.DTypeError, r"returns \(loss, dpred\)"),
            (lambda t, p: (np.nan, p), nn.NonFiniteLossError, "NaN or infinite"),
            (lambda t, p: (0.0, p * np.nan), nn.NonFiniteLossError, "NaN or infinite"),
        ],
    )
    def test_what_a_loss_may_not_return(self, backend, xy, answer, error, message) -> None:
        if isinstance(backend, CudaBackend) and error is nn.NonFiniteLossError:
            pytest.skip("a GPU is not waited for")
        model = make(loss=answer)
        before = weights(model)
        with pytest.raises(error, match=message):
            model.train_step(*xy)
        np.testing.assert_array_equal(weights(model), before)

    def test_inference_needs_no_loss_function(self, backend, xy, tmp_path) -> None:
        model = make(loss=squared)
        model.fit(*xy, verbose=0)
        model.save(tmp_path / "m")
        with pytest.raises(nn.CheckpointError, match="custom function 'squared'"):
            nn.load(tmp_path / "m")
        loaded = nn.load(tmp_path / "m", compile=False)
        np.testing.assert_array_equal(loaded.predict(xy[0]), model.predict(xy[0]))
        assert loaded.loss is None
        with pytest.raises(nn.DataError, match="has no loss"):
            loaded.fit(*xy)


def test_one_row_through_wide_layers(rng) -> None:
    """Products that wait for memory are NumPy's there; the outputs are those of many rows."""
    layers = [nn.Dense(800, 700, "gelu"), nn.LayerNorm(700), nn.Dropout(0.5), nn.Dense(700, 700),
              nn.BatchNorm(700), nn.Tanh(), nn.Dense(700, 3, "softmax")]  # fmt: skip
    for backend in nn.available_backends():
        if backend not in ("numpy", "numba") or not nn.available_backends()[backend].ok:
            continue
        model = nn.Sequential(copy.deepcopy(layers), seed=0, dtype="float64", backend=backend)
        x = rng.normal(size=(20, 800))
        expected = model.predict(x)
        for row in (0, 7):
            one = model.predict(x[row : row + 1])
            np.testing.assert_allclose(one, expected[row : row + 1], rtol=1e-12)
            np.testing.assert_array_equal(model(x[row : row + 1]), one)
