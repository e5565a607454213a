"""Does a network that has learnt its batch by heart slow down?

Its gradients, and Adam's averages of them, fade into subnormal numbers, which cost a processor a
hundred cycles each unless they are flushed to zero. Times the same step with ordinary values and
with gradients and averages of about 1e-39.

    python benchmarks/subnormals.py
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import numpy as np

import nnbackend as nn

ROUNDS, STEPS = 21, 50
BATCH, WIDTHS = 128, (784, 128, 128, 10)


def fresh_model(backend: str, x: np.ndarray, y: np.ndarray, tiny: bool) -> nn.Sequential:
    pairs = list(itertools.pairwise(WIDTHS))
    layers = [nn.Dense(a, b, "relu" if b != WIDTHS[-1] else None) for a, b in pairs]
    model = nn.Sequential(layers, seed=0, backend=backend)
    model.compile("mean_squared_error", nn.Adam(lr=0.0))
    model.train_step(x, y)
    if tiny:
        # the outputs are the targets: nothing is left to learn but rounding
        y[:] = model.predict(x)
        for slot in model.program.slots:
            slot[:] = 1e-39
    return model


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rng = np.random.default_rng(0)
    for backend in ("numpy", "numba"):
        x = rng.normal(size=(BATCH, WIDTHS[0])).astype("float32")
        models = []
        for tiny in (False, True):
            y = rng.normal(size=(BATCH, WIDTHS[-1])).astype("float32")
            models.append((fresh_model(backend, x, y, tiny), y))
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for (model, y), own in zip(models, times, strict=True):
                if own is times[1]:
                    for slot in model.program.slots:
                        slot[:] = 1e-39
                start = time.perf_counter()
                for _ in range(STEPS):
                    model.train_step(x, y)
                own.append((time.perf_counter() - start) / STEPS)
        usual, subnormal = (statistics.median(own) * 1e6 for own in times)
        print(f"{backend}: a step {usual:.0f} us, with subnormals {subnormal:.0f} us, "
              f"ratio {subnormal / usual:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
