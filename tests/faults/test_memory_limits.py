"""A limit on the process's memory, from loose to tight: our error, and a model that goes on."""

from __future__ import annotations

import json
import sys

import pytest
from needs import need_backend
from python_process import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")

#: Each call may fail for want of memory; without the limit it has to work afterwards.
SOURCE = """
import json, resource, sys
import numpy as np
import nnbackend as nn

nn.set_backend(sys.argv[1])
rng = np.random.default_rng(0)
x, y = rng.normal(size=(60_000, 40)), rng.integers(0, 10, 60_000)
model = nn.Sequential([nn.Dense(40, 128, "tanh"), nn.BatchNorm(128), nn.Dense(128, 10)], seed=0)
model.compile("softmax_cross_entropy", nn.Adam(1e-3), ["accuracy"])
batch = 16
calls = {
    "fit": lambda: model.fit(x, y, epochs=1, batch_size=batch, verbose=0),
    "train_step": lambda: model.train_step(x[:batch], y[:batch]),
    "evaluate": lambda: model.evaluate(x, y),
    "predict": lambda: model.predict(x),
}
small = x[:300], y[:300]
for call in calls.values():  # whatever is loaded or compiled once
    x, y = small
    call()
x, y = rng.normal(size=(60_000, 40)), rng.integers(0, 10, 60_000)
failed = {name: 0 for name in calls}
for call in calls:
    for spare in (0, 1, 3, 10, 30, 100, 300):
        batch += 4000  # new buffers each time
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        before, epoch = model.arrays(), model.epoch
        resource.setrlimit(resource.RLIMIT_AS, (used + spare * 1_000_000, -1))
        try:
            calls[call]()
        except nn.OutOfMemoryError as error:
            failed[call] += 1
            assert str(error), "no text"
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
            assert model.epoch == epoch
            for name, array in model.arrays().items():
                np.testing.assert_array_equal(array, before[name])
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    batch = 16
    x, y = small
    calls[call]()
    x, y = rng.normal(size=(60_000, 40)), rng.integers(0, 10, 60_000)
print(json.dumps(failed))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_without_memory_calls_fail_and_work_again_when_there_is_some(name) -> None:
    need_backend(name)
    done = run_python(SOURCE, argv=[name], NN_NUM_THREADS="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    failed = json.loads(done.stdout)
    assert min(failed["fit"], failed["predict"]) > 0


COMPILING = """
import resource
import numpy as np
import nnbackend as nn

model = nn.Sequential([nn.Dense(4, 3)], seed=0, backend="numba")
model.compile("softmax_cross_entropy", "adam")
x, y = np.ones((8, 4), "float32"), np.arange(8) % 3
steps = BEFORE
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, -1))
try:
    model.train_step(x, y)
except nn.OutOfMemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
model.train_step(x, y)
print(model.step)
"""


def is_said(refused: str, spare: int, reason: str) -> bool:
    """Whether an error names the reason; with very little, something else may fail before."""
    return (reason in refused and "nnbackend warmup" in refused) or (
        spare < 100 and "memory is used up" in refused
    )


@pytest.mark.slow
@pytest.mark.parametrize("spare", [60, 150, 290])
def test_too_little_memory_to_compile_is_said_before_llvm_ends_the_process(tmp_path, spare) -> None:
    need_backend("numba")
    source = COMPILING.replace("SPARE", str(spare << 20)).replace("BEFORE", "0")
    done = run_python(source, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    refused, steps = done.stdout.splitlines()
    assert is_said(refused, spare, "compiling the kernels takes about 300 MB of memory")
    assert steps == "1"


@pytest.mark.parametrize("spare", [1, 20, 60, 100, 140])
def test_so_is_too_little_for_an_entry_to_the_kernels(tmp_path, spare) -> None:
    need_backend("numba")
    # the first step comes from the checked way, the second through an entry
    source = COMPILING.replace("SPARE", str(spare << 20)).replace(
        "BEFORE", "model.train_step(x, y)"
    )
    forget = (
        "from nnbackend.kernels.cpu.codegen.store import Store\n"
        "read = Store.read\n"
        "Store.read = lambda self, name: None if name.endswith('.driver') else read(self, name)\n"
    )
    done = run_python(forget + source)
    assert done.returncode == 0, done.stderr[-3000:]
    refused, steps = done.stdout.splitlines()
    assert is_said(refused, spare, "compiling an entry to the kernels takes about 150 MB of memory")
    assert steps == "2"
