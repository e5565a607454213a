"""What only a GPU can show: ``NN_TEST_BACKENDS=cuda pytest -m gpu``.

The rest of the suite runs on it too, with ``NN_TEST_BACKENDS=cuda pytest -m "not slow"``;
``benchmarks/gpu_check.sh`` does both.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.graph_executor import GraphExecutor
from nnbackend.python_executor import PythonExecutor

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda() -> nn.Backend:
    return nn.get_backend("cuda")  # fails, and says why, where there is none


def model_on(backend, dtype: str = "float32", seed: int = 1) -> nn.Sequential:
    layers = [nn.Dense(20, 70, "gelu"), nn.BatchNorm(70), nn.Dropout(0.2), nn.Dense(70, 5)]
    model = nn.Sequential(layers, seed=seed, dtype=dtype, backend=backend)
    model.compile("softmax_cross_entropy", nn.AdamW(1e-3, clip_norm=1.0), ["accuracy"])
    return model


@pytest.fixture
def rows(rng):
    return rng.normal(size=(1000, 20)), rng.integers(0, 5, 1000)


def test_replays_equal_launches_bit_for_bit(cuda, rows, dtype) -> None:
    graph, launched = model_on(cuda, dtype), model_on(cuda, dtype)
    launched.executor = PythonExecutor(launched.program, launched.backend)
    assert isinstance(graph.executor, GraphExecutor)
    histories = [m.fit(*rows, epochs=4, batch_size=64, verbose=0) for m in (graph, launched)]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-6)


def test_runs_repeat_bit_for_bit(cuda, rows, dtype) -> None:
    models = [model_on(cuda, dtype) for _ in range(2)]
    for model in models:
        model.fit(*rows, epochs=5, batch_size=96, verbose=0)
    arrays = models[1].arrays()
    for name, array in models[0].arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


def test_training_equals_that_of_numpy(cuda, rows) -> None:
    models = [model_on(backend, "float64") for backend in (cuda, "numpy")]
    losses = [m.fit(*rows, epochs=3, batch_size=100, verbose=0)["loss"] for m in models]
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_dropout_masks_are_those_of_the_host(cuda) -> None:
    shape, host = (513, 77), nn.get_backend("numpy")
    masks = []
    for backend in (cuda, host):
        out, saved = (backend.zeros(shape, np.dtype("float32")) for _ in range(2))
        x = backend.asarray(np.ones(shape, np.float32), np.dtype("float32"))
        backend.dropout_forward(x, 0.3, 12345, 7 | 2 << 64, out, saved)
        masks.append(backend.to_numpy(saved))
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize(("precision", "rounding"), [("tf32", 2.0**-11), ("bf16", 2.0**-8)])
def test_tensor_cores_round_as_much_as_they_may(cuda, rng, precision, rounding) -> None:
    models = [nn.Sequential([nn.Dense(512, 256)], seed=0, backend=cuda, precision=p)
              for p in ("fp32", precision)]  # fmt: skip
    x = rng.normal(size=(256, 512)).astype("float32")
    exact, rounded = (model.predict(x) for model in models)
    sizes = np.abs(x) @ np.abs(models[0].arrays()["layers.0.weight"])
    assert 0 < (np.abs(exact - rounded) / sizes).max() < 2.1 * rounding


def test_arrays_of_a_gpu_are_taken_without_a_copy(cuda) -> None:
    import cupy

    x = cupy.arange(12, dtype=cupy.float32).reshape(3, 4)
    assert cuda.asarray(x, np.dtype("float32")) is x

    class Foreign:
        __cuda_array_interface__ = x.__cuda_array_interface__

    assert cuda.asarray(Foreign(), np.dtype("float32")).data.ptr == x.data.ptr


def test_memory_stays_the_same_over_many_steps(cuda, rows) -> None:
    import cupy

    model = model_on(cuda)
    model.fit(*rows, epochs=20, batch_size=100, verbose=0)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    model.fit(*rows, epochs=1000, batch_size=100, verbose=0)
    assert pool.used_bytes() <= before + (1 << 20)
    assert model.step == 10_200


def test_out_of_memory_leaves_everything_usable(cuda, rows) -> None:
    model = model_on(cuda)
    with pytest.raises(nn.OutOfMemoryError, match=r"bytes asked, .* free"):
        cuda.zeros(1 << 45, np.dtype("uint8"))
    model.fit(*rows, epochs=1, batch_size=100, verbose=0)


def test_a_process_ends_cleanly_after_training() -> None:
    source = (
        "import numpy as np, nnbackend as nn\n"
        "m = nn.Sequential([nn.Dense(4, 3)], seed=0, backend='cuda')\n"
        "m.compile('softmax_cross_entropy')\n"
        "m.fit(np.ones((64, 4)), np.zeros(64, int), epochs=40, batch_size=8, verbose=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    source = (
        "from nnbackend import get_backend\n"
        "from nnbackend.testing import check_backend\n"
        "check_backend(get_backend('cuda'), seed=1)\n"
    )
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
         sys.executable, "-c", source],
        capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
