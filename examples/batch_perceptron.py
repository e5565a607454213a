"""A batch of three samples through two neurons, then ReLU."""

import numpy as np

import nnbackend as nn

inputs = np.array([[-0.9, -0.4, -0.7], [-0.8, -0.5, -0.6], [-0.5, -0.8, -0.2]])
layer = nn.Dense(3, 2)
layer.weight = [[0.8, 0.7], [-0.4, -0.6], [0.0, 0.2]]
layer.bias = [0.5, 0.5]
sums = layer.forward(inputs)
print("weighted sums:")
print(layer.backend.to_numpy(sums))
print("after ReLU:")
print(layer.backend.to_numpy(nn.ReLU().forward(sums)))
