"""A backend over any library of the array API standard: see ``ArrayApiBackend``."""

from nnbackend.backends.array_api.backend import ArrayApiBackend

__all__ = ["ArrayApiBackend"]
