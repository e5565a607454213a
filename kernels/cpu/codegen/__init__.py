"""How kernels are compiled, kept and called, and the instructions that Numba does not offer."""
