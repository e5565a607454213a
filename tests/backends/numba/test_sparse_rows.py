"""Rows of which most numbers are zeros, trained on as they are: the same as dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.executor.base import Data, Run, SparseRows

TOLERANCE = {"float64": 1e-11, "float32": 2e-5}


def drawn(rng: np.random.Generator, rows: int, columns: int, dtype: str) -> tuple[SparseRows, Any]:
    """Rows with 0 to 6 numbers each, in any order, some in the same place; and the same dense."""
    counts = rng.integers(0, 7, rows)
    counts[rng.integers(rows)] = 0
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    where = rng.integers(0, columns, starts[-1]).astype(np.int32)
    values = rng.normal(size=starts[-1]).astype(dtype)
    dense = np.zeros((rows, columns), dtype)
    np.add.at(dense, (np.repeat(np.arange(rows), counts), where), values)
    return SparseRows(values, where, starts, columns), dense


def network(columns: int, width: int, dtype: str, clip_norm: float | None) -> nn.Sequential:
    layers = [
        nn.Dense(columns, width, "gelu", weight_l2=0.01, weight_l1=0.001),
        nn.BatchNorm(width),
        nn.Dropout(0.3),
        nn.Dense(width, 3),
    ]
    model = nn.Sequential(layers, seed=1, dtype=dtype, backend="numba")
    model.compile("softmax_cross_entropy", nn.Adam(lr=0.01, clip_norm=clip_norm))
    for layer in (layers[0], layers[-1]):
        layer.weight_grad[:] = layer.bias_grad[:] = np.nan
    return model


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of every step, however small."""
    module = "nnbackend.backends.numba.executor.table"
    monkeypatch.setattr(f"{module}.CompiledTable._parts", lambda self, work: request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize(("columns", "width"), [(1, 3), (40, 7), (300, 65), (2000, 20)])
class TestAgainstDenseRows:
    def test_steps_in_an_order(self, columns, width, clip_norm, dtype, threads, rng) -> None:
        x, dense = drawn(rng, 50, columns, dtype)
        labels = rng.integers(0, 3, 50).astype(np.int32)
        weight = rng.uniform(0.5, 2.0, 50).astype(dtype)
        order = np.stack([rng.permutation(50)[:37] for _ in range(2)])
        models, traces = [], []
        for rows in (x, dense):
            model = network(columns, width, dtype, clip_norm)
            run = Run(Data(rows, labels, weight), order, 16, np.full(6, 0.01), 0)
            traces.append(model.executor.run(run))
            models.append(model)
        self.compare(models, traces, dtype)

    def test_steps_in_the_rows_own_order(
        self, columns, width, clip_norm, dtype, threads, rng
    ) -> None:
        """Two epochs and a half; the gradient of the last step stays."""
        x, dense = drawn(rng, 21, columns, dtype)
        target = rng.integers(0, 3, 21).astype(np.int32)
        models, traces = [], []
        for rows in (x, dense):
            model = network(columns, width, dtype, clip_norm)
            run = Run(Data(rows, target), None, 8, np.full(8, 0.01), 3)
            traces.append(model.executor.run(run))
            models.append(model)
        self.compare(models, traces, dtype)

    def test_gradient(self, columns, width, clip_norm, dtype, threads, rng) -> None:
        x, dense = drawn(rng, 33, columns, dtype)
        target = rng.integers(0, 3, 33).astype(np.int32)
        models, losses = [], []
        for rows in (x, dense):
            model = network(columns, width, dtype, clip_norm)
            losses.append(model.executor.gradient(Data(rows, target), 2))
            models.append(model)
        self.compare(models, losses, dtype)

    def compare(self, models: list[nn.Sequential], figures: list[Any], dtype: str) -> None:
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        np.testing.assert_allclose(*figures, **close)
        for name in ("gradients", "parameters", "state"):
            np.testing.assert_allclose(*(getattr(m.program.storage, name) for m in models), **close)


def test_dense_rows_after_sparse_ones(rng) -> None:
    """One plan serves both, and a caller's own arrays after them."""
    x, dense = drawn(rng, 32, 40, "float64")
    target = rng.integers(0, 3, 32).astype(np.int32)
    one, other = (network(40, 5, "float64", None) for _ in range(2))
    order = np.arange(32)[None]
    for rows in (x, dense, x):
        one.executor.run(Run(Data(rows, target), order, 32, np.full(1, 0.01), 0))
        other.executor.run(Run(Data(dense, target), order, 32, np.full(1, 0.01), 0))
    for _ in range(2):
        losses = [model.train_step(dense, target) for model in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-11)
    np.testing.assert_allclose(one.get_flat(), other.get_flat(), rtol=1e-11, atol=1e-12)


def test_only_a_dense_layer_takes_them() -> None:
    first = {True: nn.Dense(4, 3), False: nn.Standardize(4)}
    for takes, layer in first.items():
        model = nn.Sequential([layer, nn.Dense(layer.n_outputs, 2)], backend="numba")
        model.compile("mean_squared_error", "sgd")
        assert model.executor.takes_sparse_rows is takes
    model = nn.Sequential([nn.Dense(4, 2)], backend="numpy")
    model.compile("mean_squared_error", "sgd")
    assert not model.executor.takes_sparse_rows


@pytest.mark.parametrize(
    ("columns", "starts"),
    [([0, 4], [0, 2]), ([0, -1], [0, 2]), ([0, 1], [0, 1]), ([0, 1], [1, 2]), ([0, 1], [0, 3, 2])],
)
def test_places_outside_are_refused(columns: list[int], starts: list[int]) -> None:
    """Compiled code reads where they point."""
    with pytest.raises(nn.DataError, match="sparse rows"):
        SparseRows(np.ones(2), np.array(columns, np.int32), np.array(starts, np.int64), 4)


def test_columns_that_would_wrap_are_refused() -> None:
    with pytest.raises(nn.DataError, match="0 to 3; received 1 to 4294967296"):
        SparseRows(np.ones(2), np.array([1, 1 << 32]), np.array([0, 2]), 4)


def test_rows_are_copies() -> None:
    """Compiled code keeps addresses; whoever has the arrays may change or free them."""
    values, columns, starts = np.ones(2), np.array([0, 3], np.int32), np.array([0, 1, 2], np.int64)
    rows = SparseRows(values, columns, starts, 4)
    for array in (values, columns, starts):
        array[:] = 1 << 30
    assert (rows.values.max(), rows.columns.max(), rows.starts.max()) == (1, 3, 2)
