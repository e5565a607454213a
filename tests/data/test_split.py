"""Which rows are held out for validation."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.data.split import labels_for_split, split_rows


@pytest.mark.parametrize("how", ["auto", "stratified", "random", "last"])
@pytest.mark.parametrize(("n_rows", "share"), [(2, 0.5), (40, 0.1), (1001, 0.33), (57, 0.9)])
def test_every_row_is_on_one_side(how, n_rows, share, rng) -> None:
    labels = rng.integers(0, 3, n_rows)
    if n_rows == 2:
        labels[:] = 1
    train, held_out = split_rows(n_rows, share, 4, how, labels)
    assert sorted([*train, *held_out]) == list(range(n_rows))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    if how in ("random", "last") or share < 0.9:
        assert len(held_out) == round(n_rows * share)
    again = split_rows(n_rows, share, 4, how, labels)
    np.testing.assert_array_equal(again[1], held_out)


@pytest.mark.parametrize("names", [np.array([0, 1, 2]), np.array([-7, 3, 900])])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_gives_its_share(names, seed) -> None:
    labels = np.repeat(names, [1000, 90, 10])
    np.random.default_rng(seed).shuffle(labels)
    for how in ("auto", "stratified"):
        _, held_out = split_rows(1100, 0.2, seed, how, labels)
        counts = [int((labels[held_out] == name).sum()) for name in names]
        assert counts == [200, 18, 2]
    taken = split_rows(1100, 0.2, seed, "random", labels)[1]
    assert [int((labels[taken] == name).sum()) for name in names] != [200, 18, 2]


def test_sizes_that_no_share_fits_are_off_by_less_than_one(rng) -> None:
    labels = rng.integers(0, 7, 113)
    for share in (0.05, 0.21, 0.5, 0.77):
        held_out = split_rows(113, share, 0, labels=labels)[1]
        exact = np.bincount(labels) * (round(113 * share) / 113)
        assert (np.abs(np.bincount(labels[held_out], minlength=7) - exact) < 1).all()


def test_a_class_of_one_row_is_trained_on() -> None:
    labels = np.array([0] * 30 + [1])
    train, held_out = split_rows(31, 0.5, 0, labels=labels)
    assert 30 in train
    assert len(held_out) == 15


def test_classes_of_one_row_each_leave_nothing_to_hold_out() -> None:
    with pytest.raises(nn.DataError, match="validation_rows='random'"):
        split_rows(5, 0.4, 0, labels=np.arange(5))


@pytest.mark.parametrize(
    ("target", "takes_labels", "expected"),
    [
        (np.array([2, 0, 1], np.int32), True, [2, 0, 1]),
        (np.array([[0.9, 0.1], [0.2, 0.8]]), True, [0, 1]),
        (np.array([[1.0], [0.0]]), False, [1, 0]),
        (np.array([[0.5], [0.0]]), False, None),
        (np.array([[1.0, 0.0], [1.0, 1.0]]), False, None),
        (np.array([0.0, 1.5]), False, None),
    ],
)
def test_what_counts_as_classes(target, takes_labels, expected) -> None:
    labels = labels_for_split(target, takes_labels)
    assert (None if labels is None else list(labels)) == expected


class TestFit:
    def seen(self, x, y, loss="softmax_cross_entropy", outputs=4, **settings):
        """First columns of the rows trained on and held out."""
        seen = []
        model = nn.Sequential([nn.Dense(x.shape[1], outputs)], seed=3, dtype="float64")
        model.compile(loss, nn.SGD(lr=0.0), [lambda t, p: float(seen.append(t.copy()) or 0)])
        model.fit(x, y, verbose=0, **settings)
        return seen[0], seen[1]

    def test_rows_of_each_class(self, backend, rng) -> None:
        x, y = rng.normal(size=(200, 2)), np.repeat([0, 1, 2, 3], [100, 60, 20, 20])
        train, held_out = self.seen(x, y, validation_split=0.25)
        assert np.bincount(held_out).tolist() == [25, 15, 5, 5]
        assert np.bincount(train).tolist() == [75, 45, 15, 15]

    def test_one_hot_and_0_or_1(self, backend, rng) -> None:
        x, y = rng.normal(size=(200, 2)), np.repeat([0, 1], [160, 40])
        settings = {"validation_split": 0.25, "validation_rows": "stratified"}
        _, held_out = self.seen(x, np.eye(2)[y], outputs=2, **settings)
        assert held_out.sum(axis=0).tolist() == [40, 10]
        _, held_out = self.seen(x, y, "sigmoid_cross_entropy", 1, **settings)
        assert held_out.sum() == 10

    def test_the_last_rows(self, backend, rng) -> None:
        x, y = rng.normal(size=(20, 2)), np.arange(20.0)
        train, held_out = self.seen(
            x, y, "mean_squared_error", 1, validation_split=0.25, validation_rows="last"
        )
        assert train.ravel().tolist() == list(range(15))
        assert held_out.ravel().tolist() == list(range(15, 20))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("stratified", "needs one class a row"),
            ("first", "one of auto, last, random, stratified"),
            (3, "validation_rows"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, rows, message) -> None:
        x = np.arange(16.0).reshape(8, 2)
        with pytest.raises(nn.NNBackendError, match=message):
            self.seen(
                x, x[:, 0], "mean_squared_error", 1, validation_split=0.5, validation_rows=rows
            )
