"""Processes and threads that work at the same time, also after a kernel has used all processors."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from needs import need_backend
from worker_jobs import network, trained, trained_further

import nnbackend as nn


@pytest.fixture
def rows(rng):
    return rng.normal(size=(3000, 4)).astype("float32"), rng.integers(0, 3, 3000)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, since 3.12
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=[pytest.mark.slow] if method == "forkserver" else [])
        for method in multiprocessing.get_all_start_methods()
    ],
)
def test_worker_processes_train_and_predict(rows, method, name) -> None:
    """After this process has trained on all its threads; models go there and back."""
    need_backend(name)
    x, y = rows
    with nn.use_backend(name):
        expected = [trained(seed, x, y) for seed in range(3)]
        model = network()
        model.fit(x, y, epochs=1, verbose=0)
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, context, initializer=nn.set_backend, initargs=(name,)) as pool:
            futures = [pool.submit(trained, seed, x, y) for seed in range(3)]
            found = [future.result(timeout=120) for future in futures]
            there = pool.submit(model.predict, x).result(timeout=120)
            back = pool.submit(trained_further, model, x, y).result(timeout=120)
    # a forked worker has one thread, whose sums are added in another order
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(there, model.predict(x), rtol=1e-5, atol=1e-6)
    assert back.epoch == 2
    model.fit(x, y, epochs=1, verbose=0)
    np.testing.assert_allclose(back.predict(x), model.predict(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow_on_stand_in
def test_ten_threads_predict_on_one_model(backend, rows) -> None:
    x, y = rows
    model = network()
    model.fit(x, y, epochs=1, verbose=0)
    parts = [x[start:] for start in range(0, 1000, 100)]
    expected = [model.predict(part) for part in parts]
    with ThreadPoolExecutor(10) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(model.predict, parts), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow_on_stand_in
def test_two_threads_train_two_models_while_ten_predict_on_a_third(backend, rows) -> None:
    x, y = rows
    expected = [trained(seed, x, y) for seed in range(2)]
    third = network(7)
    outputs, found = third.predict(x), {}
    stop = threading.Event()

    def train(seed: int) -> None:
        with nn.use_backend(backend):
            found[seed] = trained(seed, x, y)

    def predict() -> bool:
        same = True
        while not stop.is_set():
            same &= np.array_equal(third.predict(x), outputs)
        return same

    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(predict) for _ in range(10)]
        workers = [threading.Thread(target=train, args=(seed,)) for seed in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        stop.set()
        assert all(answer.result() for answer in answers)
    for seed, wanted in enumerate(expected):
        np.testing.assert_array_equal(found[seed], wanted)


AT_ONCE = """
import threading, sys
import numpy as np
import nnbackend as nn
rng = np.random.default_rng(0)
x, y = rng.normal(size=(200, 8)), rng.integers(0, 3, 200)
start, found = threading.Barrier(8), []
def train():
    start.wait()
    layers = nn.Dense(8, 16, activation="relu"), nn.Dropout(0.1), nn.BatchNorm(16), nn.Dense(16, 3)
    model = nn.Sequential(layers, seed=1, backend=sys.argv[1])
    model.compile("softmax_cross_entropy")
    model.fit(x, y, epochs=3, batch_size=50, verbose=0)
    found.append(model.predict(x).tobytes())
threads = [threading.Thread(target=train) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(found)))
"""


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_threads_may_be_the_first_to_use_the_library_all_at_once(name) -> None:
    """Each finds or makes what is made once in a process: backends, kernels, their threads."""
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, name],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "8 1\n", done.stderr


@pytest.fixture
def table(tmp_path) -> Path:
    pytest.importorskip("duckdb")
    path = tmp_path / "rows.csv"
    path.write_text("a,b,y\n" + "".join(f"{k},{k % 7},{k % 2}\n" for k in range(2000)))
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, since 3.12
def test_tables_are_read_before_and_after_a_fork_and_beside_it(table) -> None:
    expected = nn.datasets.read_csv(table, "y").x
    stop, wrong = threading.Event(), []

    def read_again_and_again() -> None:
        while not stop.is_set():
            if not np.array_equal(nn.datasets.read_csv(table, "y").x, expected):
                wrong.append("rows")

    reader = threading.Thread(target=read_again_and_again)
    reader.start()
    try:
        for _ in range(4):
            child = multiprocessing.get_context("fork").Process(
                target=_reads, args=(table, expected)
            )
            child.start()
            child.join(60)
            assert child.exitcode == 0
            np.testing.assert_array_equal(nn.datasets.read_csv(table, "y").x, expected)
    finally:
        stop.set()
        reader.join()
    assert not wrong


def _reads(path: Path, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(nn.datasets.read_csv(path, "y").x, expected)


FORKS = """
import os, sys
import nnbackend as nn
def rows():
    return nn.datasets.read_csv(sys.argv[1], "y").x.sum()
expected = rows()
child = os.fork()
assert rows() == expected
if child:
    print("child", os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_that_reads_tables_comes_to_its_end(table) -> None:
    """As any does, which a database without its threads could not."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(table)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "child 0\n", done.stderr
