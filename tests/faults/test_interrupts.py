"""Ctrl-C at random moments, once and twice: the model stands at an epoch's end, and goes on to the
same bits as one that nobody disturbed."""

from __future__ import annotations

import json
import signal

import pytest
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
    if not nn.available_backends()[name].ok:
        pytest.skip(f"{name} cannot run here")
    done = run_python(SOURCE, argv=[name, str(strikes), str(tmp_path / "m.safetensors")])
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["same"], figures
    assert figures["epochs"] > 0
    assert figures["interrupted"] > 0
    assert figures["left"] == []
