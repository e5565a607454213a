"""Views of parameters, and whatever was prepared or captured for earlier calls, are never stale."""

import numpy as np
import pytest
from sample_models import data

import nnbackend as nn
from nnbackend.backends.numpy_backend import NumpyBackend


def make(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential([nn.Dense(4, 8, "tanh"), nn.Dense(8, 3)], seed=seed)
    model.compile("softmax_cross_entropy", nn.Adam(0.05))
    return model


def by_hand(model: nn.Sequential, x: np.ndarray) -> np.ndarray:
    a = model.arrays()
    hidden = np.tanh(x @ a["layers.0.weight"] + a["layers.0.bias"])
    return hidden @ a["layers.1.weight"] + a["layers.1.bias"]


#: Everything that changes parameters, or what was prepared for them.
CHANGES = {
    "fit": lambda m, x, y, path: m.fit(x, y, epochs=2, batch_size=16, verbose=0),
    "fit, other batches": lambda m, x, y, path: m.fit(x, y, epochs=1, batch_size=7, verbose=0),
    "train_step": lambda m, x, y, path: m.train_step(x[:9], y[:9]),
    "load_weights": lambda m, x, y, path: m.load_weights(path),
    "set_arrays": lambda m, x, y, path: m.set_arrays({"layers.1.bias": np.arange(3.0)}),
    "assignment": lambda m, x, y, path: setattr(m.layers[0], "weight", np.full((4, 8), 0.1)),
    "in place": lambda m, x, y, path: m.layers[0].bias.__setitem__(slice(None), 0.25),
    "set_flat": lambda m, x, y, path: m.set_flat(0.9 * m.backend.to_numpy(m.get_flat())),
    "another loss": lambda m, x, y, path: m.compile("softmax_cross_entropy", nn.SGD(0.1)),
    "another rate": lambda m, x, y, path: setattr(m.optimizer, "lr", 0.02),
    "frozen": lambda m, x, y, path: setattr(m.layers[0], "trainable", False),
    "there and back": lambda m, x, y, path: m.to("numpy").to(nn.get_backend()),
}


@pytest.mark.parametrize(
    "order", [0, 1, *(pytest.param(k, marks=pytest.mark.slow) for k in range(2, 8))]
)
def test_predictions_follow_every_change_in_any_order(backend, rng, tmp_path, order) -> None:
    x, y = data(rng)
    make(5).save(tmp_path / "other")
    model, names = make(), list(CHANGES)
    np.random.default_rng(order).shuffle(names)
    for name in names:
        CHANGES[name](model, x, y, tmp_path / "other")
        for rows in (x, x[:1], x[:33]):
            np.testing.assert_allclose(
                model.predict(rows), by_hand(model, rows), rtol=1e-4, atol=1e-5, err_msg=name
            )
            out = backend.to_numpy(model(rows.astype("float32")))
            np.testing.assert_allclose(out, by_hand(model, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", CHANGES)
def test_a_step_after_a_change_is_that_of_a_model_made_so(backend, rng, tmp_path, first) -> None:
    """Nothing that was captured for the steps before is used for those after."""
    x, y = data(rng)
    make(5).save(tmp_path / "other")
    model = make()
    for _ in range(3):
        model.train_step(x[:16], y[:16])
    model.predict(x)
    CHANGES[first](model, x, y, tmp_path / "other")
    model.save(tmp_path / "after")
    fresh = nn.load(tmp_path / "after")
    for rows in (16, 9):
        one, other = (float(m.train_step(x[:rows], y[:rows])) for m in (model, fresh))
        assert one == pytest.approx(other, rel=1e-6)
    for name, array in fresh.arrays().items():
        np.testing.assert_allclose(model.arrays()[name], array, rtol=1e-5, atol=1e-6)


def test_views_show_what_training_and_loading_do(backend, rng, tmp_path) -> None:
    x, y = data(rng)
    make(5).save(tmp_path / "other")
    model = make()
    view, bias = model.layers[0].weight, model.layers[1].bias
    for change in ("fit", "load_weights", "set_arrays", "assignment", "in place", "train_step"):
        CHANGES[change](model, x, y, tmp_path / "other")
        np.testing.assert_array_equal(backend.to_numpy(view), model.arrays()["layers.0.weight"])
        np.testing.assert_array_equal(backend.to_numpy(bias), model.arrays()["layers.1.bias"])


def test_views_from_before_a_move_are_readable_and_no_longer_linked(backend, rng) -> None:
    x, y = data(rng)
    model = make()
    view = model.layers[0].weight
    before = backend.to_numpy(view).copy()
    model.to("numpy" if backend.name != "numpy" else NumpyBackend())
    model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(backend.to_numpy(view), before)
    predictions = model.predict(x)
    view[...] = 0.0
    np.testing.assert_array_equal(model.predict(x), predictions)
