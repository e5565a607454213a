"""Two sigmoid layers without biases learn x1 xor x2; the third input is always 1.

The sum of squared errors over all four rows falls for 1500 steps of gradient descent; its curve
is written to xor.png, or where the first argument says.
"""

import sys

import numpy as np

import nnbackend as nn

x = np.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
y = np.array([0.0, 1, 1, 0])
model = nn.Sequential(
    [
        nn.Dense(3, 4, "sigmoid", bias=False, weight_init=nn.initializers.Uniform(1.0)),
        nn.Dense(4, 1, "sigmoid", bias=False, weight_init=nn.initializers.Uniform(1.0)),
    ],
    seed=1,
)
model.compile(loss="sum_squared_error", optimizer=nn.SGD(lr=1.0))
history = model.fit(x, y, epochs=1500, batch_size=4, shuffle=False, verbose=0)
print(f"loss: {history['loss'][0]:.4f} at first, {history['loss'][-1]:.6f} at last")
for row, out in zip(x, model.predict(x)[:, 0], strict=True):
    print(f"{row[0]:.0f} xor {row[1]:.0f} = {out:.3f}")

path = sys.argv[1] if len(sys.argv) > 1 else "xor.png"
ax = nn.plot.history(history, "loss")
ax.set_yscale("log")
ax.figure.savefig(path)
print("curve:", path)
