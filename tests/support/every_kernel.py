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
from nnbackend.backends.cuda.sums import SharedBatch, SharedNorm
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


def a_part_of_a_batch_is_normalised_as_the_batch_is(backend, dtype: str) -> None:
    """Where other ranks have the rest of it, whose sums are added."""
    rows, width, real = 50, 37, np.dtype(dtype)
    rng, numpy = np.random.default_rng(7), nn.get_backend("numpy")
    x, dy = rng.normal(1.0, 2.0, size=(2, rows, width)).astype(real)
    gamma, beta = rng.normal(size=(2, width)).astype(real)
    wanted = {name: np.empty_like(x) for name in ("out", "dx")}
    moved, saved, sums = np.ones((2, width), real), np.empty((2, width), real), np.empty((2, width))
    numpy.batch_norm_forward(x, gamma, beta, *moved, 0.1, 1e-5, wanted["out"], saved)
    numpy.batch_norm_backward(dy, x, gamma, saved, sums[0], sums[1], wanted["dx"])
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    given = [backend.asarray(array, real) for array in (gamma, beta)]
    for own in (slice(0, 20), slice(20, rows)):
        rest = np.delete(np.arange(rows), own)
        normal = (x[rest] - saved[0]) * saved[1]
        others = iter([
            x[rest].sum(axis=0), ((x[rest] - x.mean(axis=0)) ** 2).sum(axis=0),
            np.stack([dy[rest].sum(axis=0), (dy[rest] * normal).sum(axis=0)]),
        ])  # fmt: skip

        def add(array, others=others) -> None:
            total = backend.to_numpy(array) + next(others)
            array[...] = backend.asarray(total, np.dtype(np.float64))

        shared = SharedNorm(
            SharedBatch(rows, (), add), backend.zeros((2, width), np.dtype(np.float64))
        )
        own_x, own_dy = (backend.asarray(array[own], real) for array in (x, dy))
        out, dx = (backend.zeros(own_x.shape, real) for _ in range(2))
        running, kept, gradients = (backend.zeros((2, width), real) for _ in range(3))
        running[...] = backend.asarray(np.ones((2, width)), real)
        backend.batch_norm_forward(
            own_x, *given, running[0], running[1], 0.1, 1e-5, out, kept, shared=shared
        )
        backend.batch_norm_backward(
            own_dy, own_x, given[0], kept, gradients[0], gradients[1], dx, shared=shared
        )
        for found, expected in (
            (out, wanted["out"][own]), (dx, wanted["dx"][own]), (kept, saved), (running, moved),
            (gradients[1], dy[own].sum(axis=0)),
        ):  # fmt: skip
            found = backend.to_numpy(found)
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


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
    checks = (
        steps_equal_those_of_numpy, a_part_of_a_batch_is_normalised_as_the_batch_is,
        numbers_round_to_even,
    )  # fmt: skip
    extra = {check.__name__: check for check in checks}
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
