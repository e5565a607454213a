"""The Numba backend where threads cannot be made, and where processes fork."""

import os
import sys
import threading
import time

import pytest
from python_process import run_python

import nnbackend as nn

pytest.importorskip("numba")
if not nn.available_backends()["numba"].ok:
    pytest.skip("the numba backend cannot run here", allow_module_level=True)

from nnbackend.backends.numba.threads import Threads, can_start_threads
from nnbackend.kernels.locks import COMPILING, OPENING

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
LIMITS = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")


@LIMITS
@pytest.mark.skipif(nn.get_num_threads() < 2, reason="needs two processors")
def test_where_no_thread_can_be_made_one_thread_trains_and_says_so() -> None:
    run_python("import nnbackend as nn; nn.get_backend('numba').compile_ahead(('float32',))")
    done = run_python(
        """
        import os, resource, warnings
        import numpy as np
        import nnbackend as nn

        def model(width):
            model = nn.Sequential([nn.Dense(width, width, "relu"), nn.Dense(width, 4)], seed=0,
                                  backend="numba")
            model.compile("softmax_cross_entropy")
            x = np.random.default_rng(0).normal(size=(2048, width)).astype("float32")
            return model, x, np.arange(2048) % 4

        small, x, y = model(3)
        small.fit(x[:9], y[:9], verbose=0)  # all is loaded that other users may not read
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        if os.getuid() == 0:  # whom no limit holds
            os.setgid(65534)
            os.setuid(65534)
        assert nn.get_num_threads() > 1
        large, x, y = model(200)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            large.fit(x, y, batch_size=512, verbose=0)
            large.predict(x)
        print(nn.get_num_threads(), len(said), said[0].message)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 1 this process cannot start more threads")


def test_threads_are_tried_out_once_and_left_again(monkeypatch) -> None:
    before = threading.active_count()
    assert can_start_threads(3)
    assert threading.active_count() == before
    tried: list[int] = []
    monkeypatch.setattr(
        "nnbackend.backends.numba.threads.can_start_threads", lambda n: not tried.append(n)
    )
    threads = Threads()
    threads.layer, threads.most, threads.count = "tbb", 4, 4
    assert [threads.parts(work) for work in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert tried == [3]


def test_threads_that_fail_half_way_are_ended(monkeypatch) -> None:
    before, start, started = threading.active_count(), threading.Thread.start, []

    def fails(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    assert not can_start_threads(5)
    assert threading.active_count() == before


@FORKS
@pytest.mark.parametrize("lock", [OPENING, COMPILING], ids=["opening", "compiling"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a process with threads forks
def test_a_fork_waits_until_another_thread_has_compiled(lock) -> None:
    held = threading.Event()

    def compiles() -> None:
        with lock:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=compiles)
    thread.start()
    held.wait()
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        # a lock that is shut here would stay so for good
        os._exit(0 if OPENING.acquire(timeout=5) and COMPILING.acquire(timeout=5) else 1)
    waited = time.perf_counter() - start
    _, status = os.waitpid(child, 0)
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert waited > 0.1
    with OPENING, COMPILING:
        pass


@FORKS
@pytest.mark.slow  # compiles
@pytest.mark.parametrize("delay", [0.0, 0.3, 2.0])
def test_a_child_forked_while_another_thread_compiles_trains(tmp_path, delay) -> None:
    done = run_python(
        f"""
        import os, sys, threading, time
        import numpy as np
        import nnbackend as nn

        def train():
            model = nn.Sequential([nn.Dense(3, 3, "relu"), nn.Dense(3, 2)], backend="numba")
            model.compile("softmax_cross_entropy")
            model.train_step(np.ones((4, 3), "float32"), np.array([0, 1, 0, 1]))

        thread = threading.Thread(target=train)
        thread.start()
        time.sleep({delay})
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            thread.join()
            sys.exit(os.waitstatus_to_exitcode(status))
        train()
        os._exit(0)
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
