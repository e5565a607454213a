"""Kernels of the Numba backend."""
