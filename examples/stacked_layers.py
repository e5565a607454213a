"""Two dense layers, the second fed with the first one's outputs."""

import numpy as np

import nnbackend as nn

x = np.array([[1.0, 2.0, 3.0, 2.5], [2.0, 5.0, -1.0, 2.0], [-1.5, 2.7, 3.3, -0.8]])

# the tutorials write a row of weights for each neuron; nnbackend a column
first = nn.Dense(4, 3)
first.weight = np.array(
    [[0.2, 0.8, -0.5, 1.0], [0.5, -0.91, 0.26, -0.5], [-0.26, -0.27, 0.17, 0.87]]
).T
first.bias = [2.0, 3.0, 0.5]

second = nn.Dense(3, 3)
second.weight = np.array([[0.1, -0.14, 0.5], [-0.5, 0.12, -0.33], [-0.44, 0.73, -0.13]]).T
second.bias = [-1.0, 2.0, -0.5]

hidden = first.forward(x)
print("first layer:")
print(first.backend.to_numpy(hidden))
print("second layer:")
print(second.backend.to_numpy(second.forward(hidden)))
