"""The benchmark behind ``nnbackend bench`` and ``pytest benchmarks``."""
