"""A training loop of one's own: batches, the learning rate and the stop are yours to decide."""

import numpy as np

import nnbackend as nn

x, y = nn.datasets.moons(samples=500, noise=0.15, seed=0)
model = nn.Sequential([nn.Dense(2, 32, "tanh"), nn.Dense(32, 2)], seed=0)
model.compile("softmax_cross_entropy", nn.Adam(lr=0.01), ["accuracy"])
rng = np.random.default_rng(0)

for step in range(1, 2001):
    rows = rng.integers(0, len(x), 64)
    loss = model.train_step(x[rows], y[rows])
    if step % 200 == 0:
        # reading the loss waits for the device, so it is done now and then only
        figures = model.evaluate(x, y)
        print(f"step {step:4}  batch loss {float(loss):.4f}  accuracy {figures['accuracy']:.4f}")
        if figures["accuracy"] > 0.995:
            break
        model.optimizer.lr *= 0.8

print(f"accuracy {model.evaluate(x, y)['accuracy']:.4f} after {model.step} steps")
