"""What all tests of the book's classes share."""

from collections.abc import Iterator

import numpy as np
import pytest

from nnbackend.nnfs import init


@pytest.fixture(autouse=True)
def _numpy_as_it_was() -> Iterator[None]:
    """The global generator, which the book's code draws from, and the dtype of what is drawn."""
    state = np.random.get_state()
    yield
    init("float64", None)
    np.random.set_state(state)
