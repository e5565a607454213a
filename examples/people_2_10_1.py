"""A 2-10-1 network, a sigmoid layer and a linear one, on the people of sigmoid_network.py."""

import numpy as np

import nnbackend as nn

people = np.array([[-2.0, -1], [25, 6], [17, 4], [-15, -6]])
is_woman = np.array([1.0, 0, 0, 1])
model = nn.Sequential([nn.Dense(2, 10, "sigmoid"), nn.Dense(10, 1)], seed=0)
model.compile(loss="mean_squared_error", optimizer=nn.SGD(lr=0.1))
history = model.fit(people, is_woman, epochs=1000, batch_size=1, shuffle=False, verbose=0)
print(f"loss: {history['loss'][0]:.4f} at first, {history['loss'][-1]:.6f} at last")

emily, frank = model.predict([[-7.0, -3.0], [20.0, 2.0]])[:, 0]
print(f"Emily: {emily:.4f}")
print(f"Frank: {frank:.4f}")
