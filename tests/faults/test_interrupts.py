"""Ctrl-C at random moments, once and twice: the model stands at an epoch's end, and goes on to the
same bits as one that nobody disturbed."""

from __future__ import annotations

import json
import signal

import pytest
from needs import need_backend
from python_process import run_python

import nnbackend as nn

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held"
)

SOURCE = """
import json, os, random, signal, sys, threading, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in each thread, NumPy's too
import numpy as np
import nnbackend as nn

nn.set_backend(sys.argv[1])
strikes, path = int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGINT, signal.default_int_handler)
x, y = nn.datasets.spiral(40, 3, seed=0)

def fresh():
    model = nn.Sequential(
        [nn.Dense(2, 24, "relu"), nn.BatchNorm(24), nn.Dropout(0.2), nn.Dense(24, 3)],
        seed=1, dtype="float64",
    )
    model.compile("softmax_cross_entropy", nn.Adam(0.01), ["accuracy"])
    return model

def strike():
    time.sleep(random.uniform(0, 0.02))
    for _ in range(random.choice((1, 2))):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(random.uniform(0, 0.002))
    over.set()

def work(model):
    # all that people do while they wait
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    model.predict(x)
    model.evaluate(x, y)
    model.save(path)

def blocked(what):
    # a signal that arrives while this one is handled is caught, too
    while True:
        try:
            return signal.pthread_sigmask(what, {signal.SIGINT})
        except KeyboardInterrupt:
            pass

fresh().fit(x, y, epochs=1, batch_size=8, verbose=0)  # compiled now
model, interrupted = fresh(), 0
model.save(path)
for _ in range(strikes):
    over = threading.Event()
    threading.Thread(target=strike, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        while not over.is_set():
            work(model)
    except KeyboardInterrupt:
        interrupted += 1
    blocked(signal.SIG_BLOCK)
    over.wait()
    assert model.history.epochs == model.epoch
    assert nn.load(path).predict(x).shape == (120, 3)
model.fit(x, y, epochs=1, batch_size=8, verbose=0)  # on a busy machine none may have been whole
other = fresh()
other.fit(x, y, epochs=model.epoch, batch_size=8, verbose=0)
same = model.history["loss"] == other.history["loss"] and model.step == other.step
for name, array in other.arrays().items():
    same &= np.array_equal(array, model.arrays()[name])
for name, array in other.optimizer_state().items():
    same &= np.array_equal(array, model.optimizer_state()[name])
left = [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".tmp")]
print(json.dumps({"same": bool(same), "epochs": model.epoch, "left": left,
                  "interrupted": interrupted}))
"""


@pytest.mark.parametrize("strikes", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_model_that_was_interrupted_at_any_moment_goes_on(tmp_path, name, strikes) -> None:
    need_backend(name)
    done = run_python(SOURCE, argv=[name, str(strikes), str(tmp_path / "m.safetensors")])
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["same"], figures
    assert figures["epochs"] > 0
    assert figures["interrupted"] > 0
    assert figures["left"] == []


STEPS = """
import os, random, signal, sys
import numpy as np
import nnbackend as nn

nn.set_backend(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
x, y = nn.datasets.spiral(10, 3, seed=0)
model = nn.Sequential([nn.Dense(2, 8, "relu"), nn.Dense(8, 3)], seed=1)
model.compile("softmax_cross_entropy")
model.train_step(x, y)
for _ in range(int(sys.argv[2])):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 2e-3))
        while True:
            model.train_step(x, y)
            model.forward(x)
            model.backward(np.ones((30, 3)))
            model.apply_gradients()
            model.gradient(x, y)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    model.save(sys.argv[3])
print("saved")
"""


@pytest.mark.parametrize("strikes", [50, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_loop_of_steps_that_was_interrupted_leaves_the_model_free(
    tmp_path, name, strikes
) -> None:
    """Also where Ctrl-C came between taking a lock and the next instruction."""
    need_backend(name)
    done = run_python(STEPS, argv=[name, str(strikes), str(tmp_path / "m.safetensors")])
    assert done.stdout == "saved\n", done.stderr[-2000:]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_epoch_does_not_cost_the_model(tmp_path, kind) -> None:
    """The figures at the end take time; the model is written before."""
    source = """
        import os, sys
        from nnbackend.cli import report
        from nnbackend.cli.app import main

        number, path = int(sys.argv[1]), sys.argv[2]

        def slow(*_):
            os.kill(os.getpid(), number)
            return ""

        report.result_text = slow
        sys.argv = ["nnbackend", "train", "spiral", "--epochs", "2", "--backend", "numpy",
                    "--save", path]
        main()
        """
    path = tmp_path / "m.safetensors"
    done = run_python(source, argv=[str(int(kind)), str(path)])
    assert done.returncode in (130, 143)
    assert nn.load(path).epoch == 2
