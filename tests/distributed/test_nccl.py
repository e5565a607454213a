"""Ranks on GPUs: two stand-in devices in two threads, and a stand-in for NCCL between them."""

from __future__ import annotations

import fake_nccl
import numpy as np
import pytest
from crew import together
from cuda_stand_in import StandInBackend, compiler
from shared_networks import (
    NETWORKS,
    WEIGHT,
    X,
    Y,
    coupled,
    divided,
    make,
    normalised,
    plain,
    row_by_row,
)

import nnbackend as nn
from nnbackend.data.sources import make_source
from nnbackend.distributed.nccl import NcclCommunicator
from nnbackend.errors import DeviceError
from nnbackend.executor.base import Run

pytestmark = pytest.mark.skipif(compiler() == "", reason="the stand-in needs a C++ compiler")


def train(layers, comm, backend, weight=None, batch_size=40):
    model = make(layers, backend)
    settings = {"epochs": 3, "batch_size": batch_size, "verbose": 0}
    history = model.fit(X[:200], Y[:200], sample_weight=weight, comm=comm, **settings)
    return np.array(history["loss"]), model.backend.to_numpy(model.get_flat())


@pytest.mark.parametrize("weight", [None, WEIGHT[:200]], ids=["equal", "weighted"])
@pytest.mark.parametrize("layers", NETWORKS)
def test_two_devices_train_what_one_process_does(layers, weight):
    curves, parameters = train(layers, None, "numpy", weight)

    def work(comm):
        backend = StandInBackend()
        return train(layers, NcclCommunicator(comm, backend, fake_nccl), backend, weight)

    ranks = together(2, work)
    for own in ranks:
        np.testing.assert_allclose(own[0], curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own[1], parameters, rtol=0, atol=1e-10)
    assert np.array_equal(ranks[0][1], ranks[1][1])


def unequal() -> list[nn.Layer]:
    return [nn.Dense(7, 12), nn.SiLU(), nn.Dropout(0.3), nn.Dense(12, 3)]


@pytest.mark.parametrize("weight", [None, WEIGHT[:200]], ids=["equal", "weighted"])
@pytest.mark.parametrize("layers", [*NETWORKS, unequal, coupled])
@pytest.mark.parametrize("batch_size", [40, 84])
def test_the_sum_over_ranks_is_part_of_the_captured_step(layers, weight, batch_size):
    """Of batches of 84 one rank has 44 rows, the other 40, and 12 and 20 of the last one."""
    curves, parameters = train(layers, None, "numpy", weight, batch_size)

    def work(comm):
        backend = StandInBackend()
        ranks = NcclCommunicator(comm, backend, fake_nccl)
        found = train(layers, ranks, backend, weight, batch_size)
        return *found, backend.gpu.replays, ranks._comm.operations

    ranks = together(2, work)
    assert np.array_equal(ranks[0][0], ranks[1][0])
    for own_curves, own_parameters, replays, operations in ranks:
        np.testing.assert_allclose(own_curves, curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_parameters, parameters, rtol=0, atol=1e-10)
        # all steps but the first of each size
        assert replays == (14 if batch_size == 40 else 7)
        assert operations >= (15 if batch_size == 40 else 9)


def batches_of(first, last, size, weight=None):
    """Batches of rows first ... last of every ``size`` rows."""
    arrays = [X[:200], Y[:200]] if weight is None else [X[:200], Y[:200], weight]
    starts = range(0, 200, size)
    return [tuple(a[start : start + size][first:last] for a in arrays) for start in starts]


@pytest.mark.parametrize("weight", [None, WEIGHT[:200]], ids=["equal", "weighted"])
@pytest.mark.parametrize("layers", [divided, plain, row_by_row, coupled, unequal])
def test_steps_over_each_ranks_own_rows_are_captured_when_they_come_again(layers, weight):
    def trained(batches, backend, **settings):
        model = make(layers, backend)
        history = model.fit(batches, epochs=3, verbose=0, **settings)
        return np.array(history["loss"]), model.backend.to_numpy(model.get_flat())

    curves, parameters = trained(batches_of(0, 44, 44, weight), "numpy")

    def work(comm):
        backend = StandInBackend()
        ranks = NcclCommunicator(comm, backend, fake_nccl)
        own = batches_of(*((0, 16), (16, 44))[comm.rank], 44, weight)
        return *trained(own, backend, comm=ranks, sharded=True), backend.gpu.replays

    for own_curves, own_parameters, replays in together(2, work):
        np.testing.assert_allclose(own_curves, curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_parameters, parameters, rtol=0, atol=1e-10)
        # of batches of 44 rows, and of 24, all but the first two
        assert replays == 10 + 1


def test_three_ranks_capture_a_step_together():
    """Rank 0 has as many rows of both kinds of batches, which are as large: the others capture a
    step at the second kind, and so must rank 0."""
    counts = [(8, 12, 4)] * 4 + [(8, 4, 12)] * 4 + [(8, 12, 4)] * 2

    def batches(rank=None):
        taken = []
        for k, count in enumerate(counts):
            first = 24 * (k % 8) + sum(count[: rank or 0])
            size = sum(count) if rank is None else count[rank]
            taken.append((X[first : first + size], Y[first : first + size]))
        return taken

    def train_on(batches, backend, **settings):
        model = make(plain, backend)
        history = model.fit(batches, epochs=2, verbose=0, **settings)
        return np.array(history["loss"]), model.backend.to_numpy(model.get_flat())

    curves, parameters = train_on(batches(), "numpy")

    def work(comm):
        backend = StandInBackend()
        ranks = NcclCommunicator(comm, backend, fake_nccl)
        return *train_on(batches(comm.rank), backend, comm=ranks, sharded=True), backend.gpu.replays

    for own_curves, own_parameters, replays in together(3, work):
        np.testing.assert_allclose(own_curves, curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_parameters, parameters, rtol=0, atol=1e-10)
        assert replays > 10


def test_memory_that_ends_at_a_step_between_ranks_is_an_error(monkeypatch):
    """Graphs are not forgotten by one rank alone: the others would replay what it captures."""
    model = make(plain, StandInBackend())
    data = make_source(model.program, X[:40], Y[:40]).data
    run = Run(data, None, 40, model.program.rates(0, 1), 0)
    model.executor.run_shared([(run, 80)], lambda array: None)
    kept = dict(model.executor._steps)
    assert len(kept) == 1

    def fail(*args):
        raise nn.OutOfMemoryError("no memory")

    monkeypatch.setattr("nnbackend.backends.cuda.executor.GraphSteps", fail)
    with pytest.raises(nn.OutOfMemoryError):
        model.executor.run_shared([(run, 60)], lambda array: None)
    assert model.executor._steps == kept


def test_steps_of_ever_new_sizes_are_not_captured():
    def work(comm):
        backend = StandInBackend()
        model, ranks = make(plain, backend), NcclCommunicator(comm, backend, fake_nccl)
        own = [(X[:size], Y[:size]) for size in range(8, 20)]
        model.fit(own, verbose=0, comm=ranks, sharded=True)
        return backend.gpu.replays, len(model.executor._steps)

    assert together(2, work) == [(0, 0), (0, 0)]


@pytest.mark.parametrize("layers", [plain, normalised])
def test_a_batch_of_which_a_rank_has_no_row(layers):
    curves, parameters = train(layers, None, "numpy", batch_size=66)  # the last batch has two rows

    def work(comm):
        backend = StandInBackend()
        return train(layers, NcclCommunicator(comm, backend, fake_nccl), backend, batch_size=66)

    for own_curves, own_parameters in together(2, work):
        np.testing.assert_allclose(own_curves, curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_parameters, parameters, rtol=0, atol=1e-10)


def test_an_array_that_is_elsewhere():
    def work(comm):
        ranks = NcclCommunicator(comm, StandInBackend(), fake_nccl)
        with pytest.raises(DeviceError, match="moves arrays on cuda"):
            ranks.all_reduce(np.zeros(3))

    together(2, work)


def test_models_on_cpu_and_gpu_are_told_apart():
    def work(comm):
        backend = StandInBackend() if comm.rank else "numpy"
        make(divided, backend).fit(X, Y, verbose=0, comm=comm)

    with pytest.raises(
        nn.RankError, match="rank 1 has backend 'cuda_stand_in', rank 0 has 'numpy'"
    ):
        together(2, work)
