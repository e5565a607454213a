"""The Numba backend, and how many threads it uses; importing this does not import Numba."""

from __future__ import annotations


def set_num_threads(count: int) -> None:
    """Let compiled kernels use at most ``count`` threads, from the next step on.

    Small work takes one thread in any case: see docs/threads.md. The environment variable
    ``NN_NUM_THREADS`` does the same from outside. The NumPy backend's threads are those of
    NumPy's BLAS (``OPENBLAS_NUM_THREADS``).

    Raises:
        DataError: more than the processors that this process may use.
        BackendUnavailableError: the Numba backend cannot run here.
    """
    from nnbackend.backends.numba.runtime import threads

    threads().set(count)


def get_num_threads() -> int:
    """How many threads compiled kernels may use.

    Raises:
        BackendUnavailableError: the Numba backend cannot run here.
    """
    from nnbackend.backends.numba.runtime import threads

    return threads().count
