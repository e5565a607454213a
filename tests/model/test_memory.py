"""Memory that is used up: an error of ours, and a model that goes on."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
from sample_models import data, weights

import nnbackend as nn
from nnbackend.backends.numpy.backend import NumpyBackend


def test_a_batch_that_does_not_fit_leaves_the_model_usable(backend, rng, monkeypatch) -> None:
    x, y = data(rng)
    model = nn.Sequential([nn.Dense(4, 8, "tanh"), nn.Dense(8, 3)], seed=0)
    model.compile("softmax_cross_entropy")
    model.train_step(x[:8], y[:8])
    zeros = type(model.backend).zeros

    def scarce(self, shape, dtype):
        if np.prod(shape) * np.dtype(dtype).itemsize > 8000:
            raise nn.OutOfMemoryError("used up")
        return zeros(self, shape, dtype)

    many = np.tile(x, (40, 1)), np.tile(y, 40)
    before = weights(model)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.backend), "zeros", scarce)
        with pytest.raises(nn.OutOfMemoryError):
            model.train_step(*many)
    np.testing.assert_array_equal(weights(model), before)
    model.train_step(x[:8], y[:8])
    model.train_step(*many)


@pytest.mark.parametrize("call", ["fit", "train_step", "gradient", "predict", "evaluate"])
def test_a_plain_memory_error_becomes_ours(rng, monkeypatch, call) -> None:
    x, y = data(rng)
    model = nn.Sequential([nn.Dense(4, 3)], seed=0, backend=NumpyBackend())
    model.compile("softmax_cross_entropy")

    def none(*_):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(NumpyBackend, "dense_forward", none)
    arguments = (x,) if call == "predict" else (x, y)
    settings = {"verbose": 0} if call == "fit" else {}
    with pytest.raises(nn.OutOfMemoryError, match="Unable to allocate 9 TiB.*smaller batches"):
        getattr(model, call)(*arguments, **settings)
    assert isinstance(nn.OutOfMemoryError("x"), MemoryError)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.slow
def test_save_without_memory_is_an_error_not_the_end(tmp_path) -> None:
    source = f"""
import resource, nnbackend as nn
nn.set_backend("numpy")
model = nn.Sequential([nn.Dense(3000, 3000)], seed=0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 90_000_000, -1))
try:
    model.save({str(tmp_path / "m.safetensors")!r})
except nn.OutOfMemoryError:
    print("ours")
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip() == "ours", done.stderr
    assert list(tmp_path.iterdir()) == []


USES = {
    "fit": lambda m, x, y: m.fit(x, y, epochs=1, validation_split=0.2, verbose=0),
    "callbacks": lambda m, x, y: m.fit(x, y, verbose=0, callbacks=[nn.EarlyStopping("loss")]),
    "steps": lambda m, x, y: m.train_step(x[:8], y[:8]),
    "driven": lambda m, x, y: (m.forward(x[:8]), m.backward(np.ones((8, 3)))),
    "predict": lambda m, x, y: (m.predict(x), m(x[:2].astype("f4")), m.evaluate(x, y)),
    "there and back": lambda m, x, y: m.to("numpy").to(nn.get_backend()),
}


@pytest.mark.parametrize("use", USES)
def test_a_model_that_nobody_uses_gives_its_memory_back_at_once(backend, rng, use) -> None:
    """Not when Python looks for cycles, which many small objects decide, and no large array."""
    x, y = data(rng)
    gc.disable()
    try:
        model = nn.Sequential([nn.Dense(4, 8, "tanh"), nn.BatchNorm(8), nn.Dense(8, 3)], seed=0)
        model.compile("softmax_cross_entropy", "adam", ["accuracy"])
        USES[use](model, x, y)
        parts = [weakref.ref(part) for part in (model, model.executor, model.storage)]
        layer = model.layers[0]
        del model
        assert [part() for part in parts] == [None, None, None]
    finally:
        gc.enable()
    assert layer.owner is None
    nn.Sequential([layer, nn.Dense(8, 3)], seed=0).predict(x)
