"""Every CUDA kernel, launched and compared with NumPy: for the tests, and under a sanitizer.

    compute-sanitizer --tool memcheck python tests/support/every_kernel.py float32

There CuPy takes each array from the driver by itself: in memory of a pool nobody would see an
access beyond an array's end.
"""

import copy
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np

import nnbackend as nn
from nnbackend.backends.cuda import executor as cuda_executor
from nnbackend.backends.cuda.arrays import BF16
from nnbackend.backends.cuda.kernels import signatures
from nnbackend.testing.conformance import CHECKS, run_check


@contextmanager
def recorded(gpu) -> Iterator[Counter]:
    """How often each kernel is launched meanwhile."""
    launches, launch, prepare = Counter(), gpu.launch, gpu.prepare

    def record(what) -> None:
        launches[what.kernel] += 1
        launch(what)

    def record_prepared(what):
        launches[what.kernel] += 1
        return prepare(what)

    gpu.launch, gpu.prepare = record, record_prepared
    try:
        yield launches
    finally:
        del gpu.launch, gpu.prepare


def steps_equal_those_of_numpy(backend, dtype: str) -> None:
    """What only a step launches: the gathered batch, rates, penalties, weights, hits; as a graph,
    of a network that stays in shared memory, and in phases."""
    mixed = [
        nn.Dense(6, 9, "relu", weight_l2=1e-3), nn.Dropout(0.1), nn.Dense(9, 8), nn.Tanh(),
        nn.Dropout(0.1), nn.Dense(8, 7), nn.BatchNorm(7), nn.GELU(), nn.Dropout(0.1),
        nn.Dense(7, 4),
    ]  # fmt: skip
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(70, 6)), rng.integers(0, 4, 70)
    weight = rng.uniform(0.5, 2, 70)
    dense = [nn.Dense(6, 40, "gelu"), nn.Dense(40, 4)]
    for layers, first, left_out in (
        (mixed, cuda_executor.LAUNCHED_FIRST, ()),
        (dense, 0, ("can_take_phases",)),
        (dense, 0, ("can_stay",)),
    ):
        curves = []
        for where in (backend, "numpy"):
            model = nn.Sequential(copy.deepcopy(layers), seed=0, dtype=dtype, backend=where)
            model.compile("softmax_cross_entropy", nn.AdamW(0.01), ["accuracy"])
            with ExitStack() as patches:
                patches.enter_context(mock.patch.object(cuda_executor, "LAUNCHED_FIRST", first))
                # kernels of many steps, if there are any, are taken to be the fastest
                executor = cuda_executor.GraphExecutor
                patches.enter_context(mock.patch.object(executor, "_time_of", return_value=0.0))
                for name in left_out:
                    never = mock.patch.object(cuda_executor, name, return_value=False)
                    patches.enter_context(never)
                history = model.fit(x, y, epochs=3, batch_size=16, sample_weight=weight, verbose=0)
            curves.append(history)
        tolerance = 1e-4 if dtype == "float32" else 1e-10
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=tolerance)


def numbers_round_to_even(backend, dtype: str) -> None:
    """To bfloat16, whose seven bits of mantissa leave sixteen bits of a float32 out."""
    x = np.random.default_rng(6).normal(size=3001).astype(np.float32)
    x[:3] = np.nan, np.inf, 1 + 2.0**-8  # the last lies halfway
    out = backend.zeros(x.shape, BF16)
    backend.round_to_bf16(backend.asarray(x, np.dtype(dtype)), out)
    found = (backend.to_numpy(out).astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(found[0])
    assert (found[1], found[2]) == (np.inf, 1)
    assert np.abs(found[2:] / x[2:] - 1).max() <= 2.0**-8


def failures(backend, dtype: str) -> list[str]:
    """What is wrong with the kernels of a dtype, one line for each check that fails."""
    found = []
    extra = {f.__name__: f for f in (steps_equal_those_of_numpy, numbers_round_to_even)}
    with recorded(backend.gpu) as launches:
        for name in (*CHECKS, *extra):
            try:
                if name in extra:
                    extra[name](backend, dtype)
                else:
                    run_check(backend, name, CHECKS[name], dtype, 11)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = " ".join(str(error).split())[:300]
                found.append(f"{name}: {type(error).__name__} at {where.name}: {text}")
    missing = sorted(set(signatures()) - set(launches))
    if missing:
        found.append(f"never launched: {', '.join(missing)}")
    return found


def main() -> None:
    import cupy

    cupy.cuda.set_allocator(None)
    backend, found = nn.get_backend("cuda"), []
    for dtype in sys.argv[1:]:
        found += failures(backend, dtype)
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
