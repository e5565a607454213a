"""Ranks on GPUs: two stand-in devices in two threads, and a stand-in for NCCL between them."""

from __future__ import annotations

import fake_nccl
import numpy as np
import pytest
from crew import together
from cuda_stand_in import StandInBackend, compiler
from shared_networks import NETWORKS, WEIGHT, X, Y, coupled, divided, make, plain, row_by_row

import nnbackend as nn
from nnbackend.distributed.nccl import NcclCommunicator
from nnbackend.errors import DeviceError

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
@pytest.mark.parametrize("layers", [divided, row_by_row, plain, unequal])
@pytest.mark.parametrize("batch_size", [40, 84])
def test_the_sum_over_ranks_is_part_of_the_captured_step(layers, weight, batch_size):
    """Of batches of 84 one rank has 44 rows, the other 40, and 12 and 20 of the last one."""
    curves, parameters = train(layers, None, "numpy", weight, batch_size)

    def work(comm):
        backend = StandInBackend()
        ranks = NcclCommunicator(comm, backend, fake_nccl)
        found = train(layers, ranks, backend, weight, batch_size)
        return *found, backend.gpu.replays, ranks._comm.operations

    for own_curves, own_parameters, replays, operations in together(2, work):
        np.testing.assert_allclose(own_curves, curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_parameters, parameters, rtol=0, atol=1e-10)
        # all steps but the first of each size
        assert replays == (14 if batch_size == 40 else 7)
        assert operations >= (15 if batch_size == 40 else 9)


def test_a_batch_of_which_a_rank_has_no_row():
    curves, parameters = train(plain, None, "numpy", batch_size=66)  # the last batch has two rows

    def work(comm):
        backend = StandInBackend()
        return train(plain, NcclCommunicator(comm, backend, fake_nccl), backend, batch_size=66)

    for own_curves, own_parameters in together(2, work):
        np.testing.assert_allclose(own_curves, curves, rtol=0, atol=1e-12)
        np.testing.assert_allclose(own_parameters, parameters, rtol=0, atol=1e-10)


def test_an_array_that_is_elsewhere():
    def work(comm):
        ranks = NcclCommunicator(comm, StandInBackend(), fake_nccl)
        with pytest.raises(DeviceError, match="moves arrays on cuda"):
            ranks.all_reduce(np.zeros(3))

    together(2, work)


def test_batch_norms_meet_on_the_host():
    def work(comm):
        backend = StandInBackend()
        ranks = NcclCommunicator(comm, backend, fake_nccl)
        return train(coupled, ranks, backend)[0]

    first, second = together(2, work)
    assert np.array_equal(first, second)


def test_models_on_cpu_and_gpu_are_told_apart():
    def work(comm):
        backend = StandInBackend() if comm.rank else "numpy"
        make(divided, backend).fit(X, Y, verbose=0, comm=comm)

    with pytest.raises(
        nn.RankError, match="rank 1 has backend 'cuda_stand_in', rank 0 has 'numpy'"
    ):
        together(2, work)
