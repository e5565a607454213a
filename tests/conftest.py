"""What all tests share: the backends under test, and the golden numbers.

``NN_TEST_BACKENDS=numpy,numba`` names the backends; one that is named and cannot load fails.
Without it every backend that can run here is tested, and the CUDA backend on a stand-in device
(``cuda_stand_in.py``) where there is a C++ compiler to build it.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator

# processes that test side by side share the processors: NumPy's products have one each
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from cuda_stand_in import STAND_IN, StandInBackend, compiler

import nnbackend as nn

nn.register_backend(STAND_IN, StandInBackend)
NAMED = [name for name in os.environ.get("NN_TEST_BACKENDS", "").split(",") if name]
OURS = ("numpy", "numba", "cuda", STAND_IN)  # plug-ins have tests of their own
FOUND = nn.available_backends()
HERE = [name for name in OURS if FOUND[name].ok]
BACKENDS = NAMED or [name for name in HERE if name != STAND_IN or shutil.which(compiler())]

# a shell's background jobs ignore Ctrl-C, and so would the processes that test it
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``NN_TEST_BACKENDS=cuda pytest -m gpu``: what every backend has to pass, too."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        where = {STAND_IN: "slow_on_stand_in", "numpy": "slow_on_numpy"}.get(
            parameters.get("backend", "")
        )
        if where is not None and item.get_closest_marker(where):
            item.add_marker(pytest.mark.slow)
    if config.option.markexpr != "gpu":
        return
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("backend") == "cuda" and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.gpu)


def pytest_collection_finish() -> None:
    """The collector of garbage is not to look through thousands of tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[nn.Backend]:
    """Each backend under test, current for the test's duration."""
    with nn.use_backend(request.param) as current:
        yield current


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240117)
