"""Sigmoid neurons: one, four in a 2-2-1 network, and that network trained on four people.

Inputs are weight less 135 pounds and height less 66 inches; the output says 1 for women.
"""

import numpy as np

import nnbackend as nn

# one neuron: sigmoid(0 * 2 + 1 * 3 + 4)
neuron = nn.Dense(2, 1, activation="sigmoid", dtype="float64")
neuron.weight, neuron.bias = [[0.0], [1.0]], [4.0]
print("neuron:", neuron.backend.to_numpy(neuron.forward([[2.0, 3.0]]))[0, 0])

# a 2-2-1 network in which every neuron has the weights (0, 1) and the bias 0
network = nn.Sequential(
    [
        nn.Dense(2, 2, "sigmoid", weight_init=[[0.0, 0.0], [1.0, 1.0]]),
        nn.Dense(2, 1, "sigmoid", weight_init=[[0.0], [1.0]]),
    ],
    dtype="float64",
)
print("feedforward:", network.predict([[2.0, 3.0]])[0, 0])

# trained: one person at a time, in order, by gradient descent on the squared error
people = np.array([[-2.0, -1], [25, 6], [17, 4], [-15, -6]])  # Alice, Bob, Charlie, Diana
is_woman = np.array([1.0, 0, 0, 1])
rng = np.random.RandomState(0)
w1, w2, w3, w4, w5, w6, b1, b2, b3 = (rng.normal() for _ in range(9))
model = nn.Sequential(
    [
        nn.Dense(2, 2, "sigmoid", weight_init=[[w1, w3], [w2, w4]], bias_init=[b1, b2]),
        nn.Dense(2, 1, "sigmoid", weight_init=[[w5], [w6]], bias_init=[b3]),
    ],
    dtype="float64",
)
model.compile(loss="mean_squared_error", optimizer=nn.SGD(lr=0.1))
history = model.fit(people, is_woman, epochs=1000, batch_size=1, shuffle=False, verbose=0)
for epoch in (1, 11, 51, 101, 501, 991):
    print(f"epoch {epoch:4}  loss {history['loss'][epoch - 1]:.4f}")

emily, frank = model.predict([[-7.0, -3.0], [20.0, 2.0]])[:, 0]
print(f"Emily: {emily:.6f}")
print(f"Frank: {frank:.6f}")
