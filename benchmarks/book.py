"""nnbackend.nnfs beside the book's way of writing the same classes in NumPy.

    pip install -e ".[numba]" nnfs && python benchmarks/book.py

The loop is that of chapter 10: 300 points of the spiral, 2-64-3, Adam, with the line that computes
the accuracy. The classes in NumPy are written here as the book builds them, and run as there, with
``init`` of the package nnfs, which makes everything float32 and ``np.dot`` compute in float64. Each
side runs in processes of its own, by turns; medians are taken. The result goes to
benchmarks/results/book.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

RESULTS = Path(__file__).resolve().parent / "results" / "book.json"
WARM_UP, STEPS = 100, 2000


class Dense:
    def __init__(self, inputs: int, neurons: int) -> None:
        self.weights = 0.01 * np.random.randn(inputs, neurons)
        self.biases = np.zeros((1, neurons))

    def forward(self, inputs: Any) -> None:
        self.inputs = inputs
        self.output = np.dot(inputs, self.weights) + self.biases

    def backward(self, dvalues: Any) -> None:
        self.dweights = np.dot(self.inputs.T, dvalues)
        self.dbiases = np.sum(dvalues, axis=0, keepdims=True)
        self.dinputs = np.dot(dvalues, self.weights.T)


class ReLU:
    def forward(self, inputs: Any) -> None:
        self.inputs = inputs
        self.output = np.maximum(0, inputs)

    def backward(self, dvalues: Any) -> None:
        self.dinputs = dvalues.copy()
        self.dinputs[self.inputs <= 0] = 0


class SoftmaxLoss:
    def forward(self, inputs: Any, y: Any) -> Any:
        exponentials = np.exp(inputs - np.max(inputs, axis=1, keepdims=True))
        self.output = exponentials / np.sum(exponentials, axis=1, keepdims=True)
        clipped = np.clip(self.output, 1e-7, 1 - 1e-7)
        if len(y.shape) == 1:
            confidences = clipped[range(len(clipped)), y]
        else:
            confidences = np.sum(clipped * y, axis=1)
        return np.mean(-np.log(confidences))

    def backward(self, dvalues: Any, y: Any) -> None:
        samples = len(dvalues)
        if len(y.shape) == 2:
            y = np.argmax(y, axis=1)
        self.dinputs = dvalues.copy()
        self.dinputs[range(samples), y] -= 1
        self.dinputs = self.dinputs / samples


class Adam:
    def __init__(self, learning_rate: float, decay: float) -> None:
        self.learning_rate = self.current_learning_rate = learning_rate
        self.decay, self.iterations = decay, 0
        self.epsilon, self.beta_1, self.beta_2 = 1e-7, 0.9, 0.999

    def pre_update_params(self) -> None:
        if self.decay:
            self.current_learning_rate = self.learning_rate * (
                1.0 / (1.0 + self.decay * self.iterations)
            )

    def update_params(self, layer: Any) -> None:
        if not hasattr(layer, "weight_cache"):
            layer.weight_momentums = np.zeros_like(layer.weights)
            layer.weight_cache = np.zeros_like(layer.weights)
            layer.bias_momentums = np.zeros_like(layer.biases)
            layer.bias_cache = np.zeros_like(layer.biases)
        first, second = self.beta_1, self.beta_2
        layer.weight_momentums = first * layer.weight_momentums + (1 - first) * layer.dweights
        layer.bias_momentums = first * layer.bias_momentums + (1 - first) * layer.dbiases
        weight_m = layer.weight_momentums / (1 - first ** (self.iterations + 1))
        bias_m = layer.bias_momentums / (1 - first ** (self.iterations + 1))
        layer.weight_cache = second * layer.weight_cache + (1 - second) * layer.dweights**2
        layer.bias_cache = second * layer.bias_cache + (1 - second) * layer.dbiases**2
        weight_c = layer.weight_cache / (1 - second ** (self.iterations + 1))
        bias_c = layer.bias_cache / (1 - second ** (self.iterations + 1))
        rate = -self.current_learning_rate
        layer.weights += rate * weight_m / (np.sqrt(weight_c) + self.epsilon)
        layer.biases += rate * bias_m / (np.sqrt(bias_c) + self.epsilon)

    def post_update_params(self) -> None:
        self.iterations += 1


def in_numpy() -> SimpleNamespace:
    import nnfs
    from nnfs.datasets import spiral_data

    nnfs.init()
    return SimpleNamespace(Dense=Dense, ReLU=ReLU, Loss=SoftmaxLoss, Adam=Adam, data=spiral_data)


def ours() -> SimpleNamespace:
    from nnbackend import nnfs

    nnfs.init()
    return SimpleNamespace(
        Dense=nnfs.Layer_Dense,
        ReLU=nnfs.Activation_ReLU,
        Loss=nnfs.Activation_Softmax_Loss_CategoricalCrossentropy,
        Adam=nnfs.Optimizer_Adam,
        data=nnfs.spiral_data,
    )


def seconds_of_a_step(book: SimpleNamespace) -> float:
    """Of the loop as a script has it."""
    X, y = book.data(samples=100, classes=3)
    dense1, activation1 = book.Dense(2, 64), book.ReLU()
    dense2, loss_activation = book.Dense(64, 3), book.Loss()
    optimizer = book.Adam(learning_rate=0.05, decay=5e-7)
    start, accuracy = 0.0, 0.0
    for epoch in range(WARM_UP + STEPS):
        if epoch == WARM_UP:
            start = time.perf_counter()
        dense1.forward(X)
        activation1.forward(dense1.output)
        dense2.forward(activation1.output)
        loss_activation.forward(dense2.output, y)
        predictions = np.argmax(loss_activation.output, axis=1)
        if len(y.shape) == 2:
            y = np.argmax(y, axis=1)
        accuracy = np.mean(predictions == y)
        loss_activation.backward(loss_activation.output, y)
        dense2.backward(loss_activation.dinputs)
        activation1.backward(dense2.dinputs)
        dense1.backward(activation1.dinputs)
        optimizer.pre_update_params()
        optimizer.update_params(dense1)
        optimizer.update_params(dense2)
        optimizer.post_update_params()
    seconds = (time.perf_counter() - start) / STEPS
    assert accuracy > 0.8, accuracy
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    parser.add_argument("--side", choices=("numpy", "ours"), help="one process of it")
    options = parser.parse_args()
    if options.side:
        print(seconds_of_a_step(ours() if options.side == "ours" else in_numpy()))
        return
    console, rounds = Console(), []
    for _ in range(options.rounds):
        pair = [
            float(
                subprocess.run(
                    [sys.executable, __file__, "--side", side],
                    capture_output=True, text=True, check=True,
                ).stdout
            )
            for side in ("numpy", "ours")
        ]  # fmt: skip
        rounds.append(pair)
    numpy_seconds, our_seconds = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    console.print(
        f"a step: {1e6 * numpy_seconds:.0f} us as typed, {1e6 * our_seconds:.0f} us here, "
        f"{ratio:.2f} times as fast"
    )
    import nnbackend as nn
    from nnbackend._files import write_atomically
    from nnbackend.benchmark.report import machine

    document = {
        "machine": machine(), "backend": nn.get_backend().device, "numpy": numpy_seconds,
        "ours": our_seconds, "ratio": ratio, "rounds": rounds,
    }  # fmt: skip
    write_atomically(RESULTS, json.dumps(document, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
