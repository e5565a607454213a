"""The NumPy executor against the same training step written out by hand in NumPy.

    python benchmarks/hand_written_step.py

mnist-sized: 128 x (784-128-128-10), ReLU, softmax + cross-entropy, Adam, float32. Both take
the same weights and batches; rounds alternate; medians of microseconds a step and their ratio.
The losses are compared first: a fast wrong step does not count.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np

import nnbackend as nn

BATCH, WIDTHS = 128, (784, 128, 128, 10)
LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-7
ROUNDS, STEPS = 41, 20


class HandWritten:
    """What a careful person writes: every array made once, every operation in place."""

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray]) -> None:
        self.w, self.b, self.t = weights, biases, 0
        shapes = [*weights, *biases]
        self.m = [np.zeros_like(p) for p in shapes]
        self.v = [np.zeros_like(p) for p in shapes]
        self.g = [np.zeros_like(p) for p in shapes]
        self.s = [np.zeros_like(p) for p in shapes]
        self.y = [np.empty((BATCH, n), np.float32) for n in WIDTHS[1:]]
        self.d = [np.empty((BATCH, n), np.float32) for n in WIDTHS[1:]]
        self.mask = [np.empty((BATCH, n), bool) for n in WIDTHS[1:]]
        self.rows = np.arange(BATCH)

    def step(self, x: np.ndarray, labels: np.ndarray) -> float:
        w, b, y, d, layers = self.w, self.b, self.y, self.d, len(self.w)
        inputs = [x, *y[:-1]]
        for k in range(layers):
            np.matmul(inputs[k], w[k], out=y[k])
            y[k] += b[k]
            if k < layers - 1:
                np.maximum(y[k], 0, out=y[k])
        z = y[-1]
        z -= z.max(axis=1, keepdims=True)
        right = z[self.rows, labels]
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - right).mean())
        np.divide(z, total, out=d[-1])
        d[-1][self.rows, labels] -= 1
        d[-1] /= BATCH
        for k in range(layers - 1, -1, -1):
            np.matmul(inputs[k].T, d[k], out=self.g[k])
            np.add.reduce(d[k], axis=0, out=self.g[layers + k])
            if k:
                np.matmul(d[k], w[k].T, out=d[k - 1])
                np.greater(y[k - 1], 0, out=self.mask[k - 1])
                d[k - 1] *= self.mask[k - 1]
        self.t += 1
        rate = LR * (1 - BETA2**self.t) ** 0.5 / (1 - BETA1**self.t)
        eps = EPS * (1 - BETA2**self.t) ** 0.5
        for p, g, m, v, s in zip([*w, *b], self.g, self.m, self.v, self.s, strict=True):
            np.multiply(g, 1 - BETA1, out=s)
            m *= BETA1
            m += s
            np.multiply(g, g, out=s)
            s *= 1 - BETA2
            v *= BETA2
            v += s
            np.sqrt(v, out=s)
            s += eps
            np.divide(m, s, out=s)
            s *= rate
            p -= s
        return loss


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rng = np.random.default_rng(0)
    pairs = list(itertools.pairwise(WIDTHS))
    layers = [nn.Dense(i, o, "relu" if k < len(pairs) - 1 else None)
              for k, (i, o) in enumerate(pairs)]  # fmt: skip
    model = nn.Sequential(layers, seed=0, backend="numpy")
    model.compile("softmax_cross_entropy", nn.Adam(LR, BETA1, BETA2, EPS))
    hand = HandWritten([layer.weight.copy() for layer in layers],
                       [layer.bias.copy() for layer in layers])  # fmt: skip
    # fresh batches: a network that knows its batch by heart makes subnormal numbers
    x = rng.normal(size=(64 * BATCH, WIDTHS[0])).astype(np.float32)
    labels = rng.integers(0, WIDTHS[-1], len(x))
    batches = [(x[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    for k in range(3):
        ours, theirs = float(model.train_step(*batches[k])), hand.step(*batches[k])
        if abs(ours - theirs) > 1e-4 * theirs:
            raise SystemExit(f"the losses differ at step {k}: {ours} and {theirs}")

    def timed(step: Callable[[np.ndarray, np.ndarray], object], first: int) -> float:
        start = time.perf_counter()
        for k in range(STEPS):
            step(*batches[(first + k) % len(batches)])
        return (time.perf_counter() - start) / STEPS * 1e6

    times: dict[str, list[float]] = {"nnbackend": [], "by hand": []}
    for r in range(ROUNDS):
        times["nnbackend"].append(timed(model.train_step, r * STEPS))
        times["by hand"].append(timed(hand.step, r * STEPS))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:10} {value:8.1f} us a step")
    ratios = [a / b for a, b in zip(times["nnbackend"], times["by hand"], strict=True)]
    print(f"ratio {statistics.median(ratios):.3f} (median of {ROUNDS} rounds)")


if __name__ == "__main__":
    main()
