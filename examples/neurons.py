"""A neuron adds up weighted inputs and a bias; a layer is several neurons side by side."""

import numpy as np

import nnbackend as nn

# one neuron, three inputs
neuron = nn.Dense(3, 1)
neuron.weight = [[0.2], [0.8], [-0.5]]
neuron.bias = [2.0]
print("three inputs:", neuron.backend.to_numpy(neuron.forward([[1.0, 2.0, 3.0]]))[0, 0])

# one neuron, four inputs
neuron = nn.Dense(4, 1)
neuron.weight = [[0.2], [0.8], [-0.5], [1.0]]
neuron.bias = [2.0]
print("four inputs:", neuron.backend.to_numpy(neuron.forward([[1.0, 2.0, 3.0, 2.5]]))[0, 0])

# three neurons: a column of weights for each, so rows of neurons are transposed
layer = nn.Dense(4, 3)
rows_are_neurons = np.array(
    [[0.2, 0.8, -0.5, 1.0], [0.5, -0.91, 0.26, -0.5], [-0.26, -0.27, 0.17, 0.87]]
)
layer.weight = rows_are_neurons.T
layer.bias = [2.0, 3.0, 0.5]
print("three neurons:", layer.backend.to_numpy(layer.forward([[1.0, 2.0, 3.0, 2.5]]))[0])
