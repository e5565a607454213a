"""What lowering makes of a stack of layers."""

import numpy as np

import nnbackend as nn
from nnbackend.program.table import ABSENT, Program


def program_of(*layers: nn.Layer, **settings: object) -> Program:
    model = nn.Sequential(list(layers), seed=0, **settings)
    model.compile("softmax_cross_entropy")
    return model.program


def test_only_columns_of_the_input_hold_categories() -> None:
    first, second = nn.Embedding(4, 5, 2), nn.Embedding(5, 3, 2)
    assert program_of(nn.Standardize(4, skip=2), first, second, nn.Dense(6, 2)).categories == [5, 3]
    hidden = program_of(nn.Dense(4, 4), nn.Embedding(4, 5, 2), nn.Dense(5, 2))
    assert hidden.categories == []


def test_what_is_absent_is_no_place() -> None:
    assert ABSENT < 0
    rows = program_of(nn.Dense(4, 3, bias=False), nn.Dropout(0.1), nn.Dense(3, 2)).rows
    assert [row.parameter_0 != ABSENT for row in rows] == [True, False, True]
    assert [row.parameter_1 != ABSENT for row in rows] == [False, False, True]
    assert rows[0].parameter_0 == 0


def test_arrays_are_aligned_and_do_not_overlap() -> None:
    for dtype in ("float32", "float64"):
        storage = program_of(
            nn.Dense(3, 5), nn.BatchNorm(5), nn.Dense(5, 7, trainable=False), nn.Dense(7, 2),
            dtype=dtype,
        ).storage  # fmt: skip
        ends = 0
        for segment in storage.segments:
            assert segment.offset >= ends
            assert segment.offset * storage.dtype.itemsize % storage.backend.alignment == 0
            ends = segment.offset + segment.size
        assert ends <= storage.parameters.size
        frozen = [s for s in storage.segments if s.layer == 2]
        assert all(s.offset >= storage.trained for s in frozen)


def test_a_rate_that_is_changed_acts_and_one_that_stays_is_the_same() -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0)
    model.compile("softmax_cross_entropy", nn.SGD(0.5))
    assert [model.program.rate(step) for step in (0, 1)] == [0.5, 0.5]
    model.optimizer.lr = 0.25
    assert model.program.rate(2) == 0.25
    model.optimizer.lr = nn.StepDecay(1.0, every=1, factor=0.5)
    assert [model.program.rate(step) for step in (0, 1, 2)] == [1.0, 0.5, 0.25]
    np.testing.assert_array_equal(model.program.rates(1, 2), [0.5, 0.25])


def test_a_fixed_rate_is_looked_up_once(monkeypatch) -> None:
    """A step of a small network takes about as long as that."""
    calls = []
    rates = nn.SGD.rates
    monkeypatch.setattr(nn.SGD, "rates", lambda self, *a: calls.append(1) or rates(self, *a))
    model = nn.Sequential([nn.Dense(2, 2)], seed=0)
    model.compile("softmax_cross_entropy", nn.SGD(0.5))
    monkeypatch.setattr(type(model.optimizer), "is_built_in", True)
    assert [model.program.rate(step) for step in range(5)] == [0.5] * 5
    assert len(calls) == 1


def test_widths_are_compared_by_value() -> None:
    model = nn.Sequential([nn.Dense(2, int("300")), nn.Dense(int("300"), 2)], seed=0)
    assert model.predict(np.ones((1, 2))).shape == (1, 2)


def test_programs_are_compared_by_what_they_are() -> None:
    one, other = program_of(nn.Dense(2, 2)), program_of(nn.Dense(2, 2))
    assert one != other
    assert one.storage != other.storage
    assert len({one, other, one}) == 2
