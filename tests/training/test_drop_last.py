"""fit(drop_last=True): every step of an epoch has a whole batch."""

import copy

import numpy as np
import pytest
from sample_models import weights

import nnbackend as nn
from nnbackend import _memory
from nnbackend.data import sources

ROWS, BATCH = 103, 10


def make() -> nn.Sequential:
    layers = [nn.Dense(4, 8, "relu"), nn.Dropout(0.2), nn.BatchNorm(8), nn.Dense(8, 3)]
    model = nn.Sequential(layers, seed=5)
    model.compile("softmax_cross_entropy", nn.Adam(), ["accuracy"])
    return model


@pytest.fixture
def xy(rng) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(ROWS, 4)).astype("float32"), rng.integers(0, 3, ROWS)


def test_in_order_the_last_rows_are_left_out(backend, xy) -> None:
    x, y = xy
    one, other = make(), make()
    left_out = one.fit(x, y, 3, BATCH, shuffle=False, drop_last=True, verbose=0)
    history = other.fit(x[:100], y[:100], 3, BATCH, shuffle=False, verbose=0)
    np.testing.assert_array_equal(weights(one), weights(other))
    assert left_out["loss"] == history["loss"]
    assert one.step == 30


def test_shuffled_other_rows_are_left_out_each_epoch(backend, xy) -> None:
    x, y = xy
    one, other = make(), make()
    orders = copy.copy(other.training.orders)
    one.fit(x, y, 3, BATCH, drop_last=True, verbose=0)
    for order in orders.take(nn.get_backend("numpy"), 3, ROWS):
        for start in range(0, 100, BATCH):
            rows = order[start : start + BATCH]
            other.train_step(x[rows], y[rows])
    np.testing.assert_allclose(weights(one), weights(other), atol=1e-6)


@pytest.mark.parametrize("rows", [10, 7])
def test_a_whole_batch_or_a_single_one_stays(backend, xy, rows) -> None:
    x, y = xy[0][:rows], xy[1][:rows]
    one, other = make(), make()
    one.fit(x, y, 2, BATCH, drop_last=True, verbose=0)
    other.fit(x, y, 2, BATCH, verbose=0)
    np.testing.assert_array_equal(weights(one), weights(other))


def test_a_last_row_that_batch_norm_cannot_take_is_left_out(backend, xy) -> None:
    x, y = xy[0][:101], xy[1][:101]
    with pytest.raises(nn.NNBackendError, match="BatchNorm"):
        make().fit(x, y, 1, BATCH, verbose=0)
    assert make().fit(x, y, 1, BATCH, drop_last=True, verbose=0).epochs == 1


def test_saved_and_continued(backend, xy, tmp_path) -> None:
    whole, model = make(), make()
    whole.fit(*xy, 5, BATCH, drop_last=True, verbose=0)
    model.fit(*xy, 2, BATCH, drop_last=True, verbose=0)
    model.save(tmp_path / "m.safetensors")
    loaded = nn.load(tmp_path / "m.safetensors")
    loaded.fit(*xy, 3, BATCH, drop_last=True, verbose=0)
    np.testing.assert_array_equal(weights(loaded), weights(whole))


@pytest.mark.parametrize("looked_on", [False, True])
def test_what_fails_goes_back_and_can_continue(backend, xy, looked_on) -> None:
    x, y = xy
    whole, model = make(), make()
    whole.fit(x, y, 4, BATCH, drop_last=True, verbose=0)
    model.fit(x, y, 2, BATCH, drop_last=True, verbose=0)
    watch = [nn.Callback()] if looked_on else []
    with pytest.raises(nn.NonFiniteLossError):
        model.fit(1e38 * x, y, 9, BATCH, drop_last=True, verbose=0, callbacks=watch)
    assert model.epoch == 2
    model.fit(x, y, 2, BATCH, drop_last=True, verbose=0)
    np.testing.assert_array_equal(weights(model), weights(whole))


def test_read_in_blocks(backend, xy, tmp_path, monkeypatch) -> None:
    x, y = xy
    array = make()
    array.fit(x, y, 3, BATCH, drop_last=True, verbose=0)
    monkeypatch.setattr(_memory, "RESIDENT_BYTES", 100)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 640)
    mapped = np.memmap(tmp_path / "x.bin", x.dtype, "w+", shape=x.shape)
    mapped[:] = x
    file = make()
    file.fit(mapped, y, 3, BATCH, drop_last=True, verbose=0)
    np.testing.assert_array_equal(weights(file), weights(array))


def test_iterables_give_batches_as_they_are(xy) -> None:
    with pytest.raises(nn.DataError, match="drop_last works only with arrays"):
        make().fit([xy], drop_last=True, verbose=0)
