"""What every backend has to pass, on PyTorch: on its CPU, or on the device that is named."""

import os

import numpy as np
import pytest
import torch

import nnbackend as nn
from nnbackend.testing import BackendConformance

DEVICE = "torch:" + os.environ.get("NN_TORCH_DEVICE", "cpu")


@pytest.fixture
def backend():
    """By its name, which the package's entry point makes known."""
    return nn.get_backend(DEVICE)


class TestTorch(BackendConformance):
    """With that fixture."""


def test_the_entry_point_lists_its_devices() -> None:
    found = nn.available_backends()["torch"]
    assert found.ok
    assert DEVICE in found.devices


def test_tensors_are_taken_and_given_back(backend) -> None:
    model = nn.Sequential([nn.Dense(3, 2)], seed=0, backend=backend)
    x = torch.randn(4, 3, device=backend.place, requires_grad=True)
    y = model(x)
    assert isinstance(y, torch.Tensor)
    assert not y.requires_grad
    np.testing.assert_allclose(model.predict(x), y.cpu().numpy())


def test_tensors_of_another_type_are_refused_by_name(backend) -> None:
    model = nn.Sequential([nn.Dense(3, 2)], seed=0, backend=backend)
    with pytest.raises(nn.DTypeError, match="received bfloat16"):
        model(torch.ones(1, 3, dtype=torch.bfloat16, device=backend.place))


def test_a_model_moves_to_and_from_numpy(backend) -> None:
    x, y = nn.datasets.spiral(50, 3, seed=0)
    model = nn.Sequential([nn.Dense(2, 8, "tanh"), nn.Dense(8, 3)], seed=0, backend="numpy")
    model.compile("softmax_cross_entropy", nn.Adam(0.01))
    model.fit(x, y, epochs=2, verbose=0)
    before = model.predict(x)
    np.testing.assert_allclose(model.to(backend).predict(x), before, rtol=1e-5, atol=1e-6)
    model.fit(x, y, epochs=2, verbose=0)
    assert model.to("numpy").history["loss"][-1] < model.history["loss"][0]
