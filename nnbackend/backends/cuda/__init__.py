"""The CUDA backend: see docs/cuda.md for what is in which file."""
