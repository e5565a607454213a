"""``NumpyBackend`` under the name by which plug-ins import it."""

from nnbackend.backends.numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
