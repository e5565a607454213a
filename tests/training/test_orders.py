"""Orders of rows: what they depend on, and that they are random."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends.orders import draw_orders
from nnbackend.training.orders import Orders

ROWS = 50


def seeded(seed: int = 7) -> Orders:
    return Orders.seeded(np.random.SeedSequence(seed))


@pytest.mark.parametrize("cut", [(1, 1, 1, 1, 1, 1), (2, 4), (5, 1), (6,)])
def test_orders_do_not_depend_on_how_many_are_drawn_at_once(backend, cut) -> None:
    expected = seeded().take(nn.get_backend("numpy"), 6, ROWS)
    own, orders = nn.get_backend(backend), seeded()
    found = [own.to_numpy(orders.take(own, count, ROWS)) for count in cut]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert orders == Orders(seeded().key, 6 * 13)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 1000, (1 << 20) + 1])
def test_each_is_a_permutation_of_all_rows(backend, rows) -> None:
    own = nn.get_backend(backend)
    for order in own.to_numpy(seeded().take(own, 2, rows)):
        np.testing.assert_array_equal(np.sort(order), np.arange(rows))


@pytest.mark.parametrize(("count", "rows"), [(300, 131), (2, 40_000), (1, (1 << 20) + 3)])
def test_many_rows_get_the_same_orders_on_every_backend(backend, count, rows) -> None:
    own, expected = nn.get_backend(backend), np.empty((count, rows), np.int64)
    orders = seeded()
    draw_orders(expected, orders.key, 0)
    np.testing.assert_array_equal(own.to_numpy(orders.take(own, count, rows)), expected)


def test_every_row_is_as_likely_at_every_place() -> None:
    count, rows = 7000, 7
    orders = seeded().take(nn.get_backend("numpy"), count, rows)
    table = np.array([np.bincount(orders[:, place], minlength=rows) for place in range(rows)])
    deviation = (table - count / rows) / np.sqrt(count / rows * (1 - 1 / rows))
    assert np.abs(deviation).max() < 4.5
    after = np.bincount((orders[:, 1:] - orders[:, :-1]).ravel() + rows, minlength=2 * rows)
    likely = count * np.array([max(0, rows - abs(step)) for step in range(-rows, rows)]) / rows
    likely[rows] = 0
    assert np.abs(after - likely).max() < 5 * np.sqrt(likely.max())


def test_other_seeds_give_other_orders() -> None:
    own = nn.get_backend("numpy")
    firsts = {tuple(seeded(seed).take(own, 1, 20)[0]) for seed in range(50)}
    assert len(firsts) == 50
