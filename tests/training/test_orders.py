"""Orders drawn ahead are those that would have been drawn, and leave the generator the same."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cuda_stand_in
import numpy as np
import pytest
from cuda_stand_in import compiler

from nnbackend.training.orders import Orders


def generators(count: int = 2) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(7)) for _ in range(count)]


@pytest.mark.parametrize("ahead", [False, True])
def test_orders_are_permutations_one_after_another(ahead: bool) -> None:
    own, plain = generators()
    with Orders.of(own, 50, ahead) as orders:
        for taken, drawn in ((1, 1), (1, 4), (3, 2), (5, 0), (2, 8), (8, 8), (1, 0)):
            expected = [plain.permutation(50) for _ in range(taken)]
            np.testing.assert_array_equal(orders.take(taken), expected)
            assert own.bit_generator.state == plain.bit_generator.state
            orders.draw_ahead(drawn)
            assert own.bit_generator.state == plain.bit_generator.state


def test_a_generator_that_was_set_back_draws_again() -> None:
    own, plain = generators()
    begin = own.bit_generator.state
    with Orders.of(own, 20, True) as orders:
        first = orders.take(2)
        orders.draw_ahead(3)
        own.bit_generator.state = begin
        np.testing.assert_array_equal(orders.take(2), first)
        plain.permutation(20), plain.permutation(20)
        np.testing.assert_array_equal(orders.take(1), [plain.permutation(20)])


def test_they_are_drawn_by_a_thread_that_ends_at_once(monkeypatch) -> None:
    own, _ = generators()
    names, shuffled = [], Orders._shuffled

    def noted(self, generator, count):
        names.append(threading.current_thread().name)
        return shuffled(self, generator, count)

    monkeypatch.setattr(Orders, "_shuffled", noted)
    with Orders.of(own, 1000, True) as orders:
        orders.take(1)
        orders.draw_ahead(2)
        orders.take(2)
        orders.draw_ahead(5000)  # nobody waits for them
    assert names[0] == threading.current_thread().name
    assert all(name.startswith("nnbackend-orders") for name in names[1:])
    assert not any(t.name.startswith("nnbackend-orders") for t in threading.enumerate())


@pytest.mark.skipif(shutil.which(compiler()) is None, reason="the stand-in needs a C++ compiler")
def test_a_thread_may_train_on_when_the_main_one_has_ended() -> None:
    source = (
        "import threading, numpy as np, nnbackend as nn\n"
        "from cuda_stand_in import StandInBackend\n"
        "def fit():\n"
        "    threading.main_thread().join()\n"
        "    m = nn.Sequential([nn.Dense(4, 3)], seed=0, backend=StandInBackend())\n"
        "    m.compile('mean_squared_error')\n"
        "    h = m.fit(np.ones((64, 4)), np.ones((64, 3)), epochs=10, batch_size=32, verbose=0)\n"
        "    print(h.epochs)\n"
        "threading.Thread(target=fit).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True,
                          cwd=Path(cuda_stand_in.__file__).parent, check=False)  # fmt: skip
    assert (done.stdout, done.stderr) == ("10\n", "")
