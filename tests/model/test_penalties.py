"""Penalties of a batch: whole, or divided by its rows."""

import numpy as np
import pytest

import nnbackend as nn

L1, L2, ROWS, BATCH = 0.03, 0.2, 23, 10


def make(per_row: bool) -> nn.Sequential:
    layers = [
        nn.Dense(4, 3, weight_l2=L2, bias_l1=L1, weight_init=np.full((4, 3), 0.5), bias_init="ones")
    ]
    model = nn.Sequential(layers, seed=0, dtype="float64")
    model.compile("mean_squared_error", nn.SGD(0.1), penalties_per_row=per_row)
    return model


def penalty(w: np.ndarray, b: np.ndarray, rows: int) -> float:
    return (L2 * (w * w).sum() + L1 * np.abs(b).sum()) / rows


@pytest.fixture
def xy(rng) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(ROWS, 4)), rng.normal(size=(ROWS, 3))


def by_hand(x: np.ndarray, y: np.ndarray, per_row: bool, weight: np.ndarray):
    """Weights after an epoch, and the mean of its batches' penalties: what is divided by rows
    counts as the rows do."""
    w, b, penalties, counts = np.full((4, 3), 0.5), np.ones(3), [], []
    for start in range(0, len(x), BATCH):
        part = slice(start, start + BATCH)
        rows = len(x[part]) if per_row else 1
        penalties.append(penalty(w, b, rows))
        counts.append(weight[part].sum() if per_row else 1)
        scale = weight[part, None] / weight[part].sum() / 3
        e = 2 * (x[part] @ w + b - y[part]) * scale
        w, b = (w - 0.1 * (x[part].T @ e + 2 * L2 * w / rows),
                b - 0.1 * (e.sum(axis=0) + L1 * np.sign(b) / rows))  # fmt: skip
    return w, b, np.average(penalties, weights=counts)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_that_is_smaller_has_its_own_share(backend, xy, rng, per_row, weighted) -> None:
    x, y = xy
    weight = rng.uniform(0.5, 2.0, ROWS) if weighted else np.ones(ROWS)
    w, b, mean = by_hand(x, y, per_row, weight)
    given = weight if weighted else None
    fitted, stepped, driven = make(per_row), make(per_row), make(per_row)
    history = fitted.fit(
        x, y, batch_size=BATCH, shuffle=False, sample_weight=given, verbose=0
    )  # fmt: skip
    for start in range(0, ROWS, BATCH):
        part = slice(start, start + BATCH)
        stepped.train_step(x[part], y[part], None if given is None else given[part])
        e = backend.to_numpy(driven.forward(x[part])) - y[part]
        driven.backward(2 * e * weight[part, None] / weight[part].sum() / 3)
        driven.apply_gradients()
    for model in (fitted, stepped, driven):
        np.testing.assert_allclose(backend.to_numpy(model.layers[0].weight), w, rtol=1e-12)
        np.testing.assert_allclose(backend.to_numpy(model.layers[0].bias), b, rtol=1e-12)
    np.testing.assert_allclose(history["loss"][0] - history["data_loss"][0], mean, rtol=1e-9)


@pytest.mark.parametrize("per_row", [False, True])
def test_evaluate_divides_by_all_rows(backend, xy, per_row) -> None:
    model = make(per_row)
    found = model.evaluate(*xy)
    expected = penalty(np.full((4, 3), 0.5), np.ones(3), ROWS if per_row else 1)
    np.testing.assert_allclose(found["loss"] - found["data_loss"], expected, rtol=1e-9)


def test_a_file_keeps_it(backend, xy, tmp_path) -> None:
    model = make(True)
    model.save(tmp_path / "model.safetensors")
    again = nn.load(tmp_path / "model.safetensors")
    assert again.penalties_per_row
    for each in (model, again):
        each.fit(*xy, epochs=2, batch_size=BATCH, verbose=0)
    np.testing.assert_array_equal(model.predict(xy[0]), again.predict(xy[0]))


def test_compiling_again_without_it_takes_it_back(backend, xy) -> None:
    model, plain = make(True), make(False)
    model.compile("mean_squared_error", nn.SGD(0.1))
    assert model.evaluate(*xy) == plain.evaluate(*xy)
    with pytest.raises(nn.DTypeError, match="penalties_per_row must be True or False"):
        model.compile("mean_squared_error", penalties_per_row="yes")
