"""What a test cannot run without."""

import pytest

import nnbackend as nn


def need_backend(name: str) -> None:
    """Skip the test where a backend cannot run."""
    found = nn.available_backends().get(name)
    if found is None or not found.ok:
        pytest.skip(f"{name} cannot run here")
