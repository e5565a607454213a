"""Every operation of every benchmark case on every backend, for pytest-benchmark.

    pytest benchmarks --benchmark-only
    pytest benchmarks --benchmark-only -k "digits and step"
    NN_TEST_BACKENDS=numpy,numba pytest benchmarks --benchmark-only -k mnist

The table is grouped by case. ``extra_info`` (in ``--benchmark-json``) holds samples_per_second
and gflop_per_second; a time is that of one step or call, of an epoch that of ``steps`` steps.
"""

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import nnbackend as nn
from nnbackend.benchmark.cases import CASES
from nnbackend.benchmark.operations import OPERATIONS, repetitions

NAMED = [name for name in os.environ.get("NN_TEST_BACKENDS", "").split(",") if name]
BACKENDS = NAMED or [name for name, found in nn.available_backends().items() if found.ok]
#: Of one call of fit, where fewer epochs would show its beginning and end.
FIT_SECONDS = 0.05


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_throughput(backend: str, case, operation: str, benchmark: BenchmarkFixture) -> None:
    trial = OPERATIONS[operation](case, case.model(backend))
    count = repetitions(trial, FIT_SECONDS) if operation == "epoch" else 1
    benchmark.group = f"{case.name}  {case.shape}"
    trial.reset()
    benchmark(trial.repeat, count)
    steps = count * trial.steps
    benchmark.extra_info["steps"] = steps
    if benchmark.stats is not None:  # not with --benchmark-disable
        seconds = benchmark.stats.stats.median / steps
        benchmark.extra_info["samples_per_second"] = trial.rows / seconds
        benchmark.extra_info["gflop_per_second"] = trial.flops / seconds / 1e9
