"""Memory that is used up: an error of ours, and a model that goes on."""

import subprocess
import sys

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
