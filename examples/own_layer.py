"""A layer of one's own: outputs scaled and shifted by learnt factors, its gradient checked."""

import numpy as np

import nnbackend as nn
from nnbackend.testing import check_layer_gradients


class Affine(nn.Layer):
    """y = x * factor + shift, one of each for every column."""

    factor = nn.Parameter()
    shift = nn.Parameter()

    def __init__(self, width, dtype="float32"):
        super().__init__(width, width, dtype=dtype)
        self.add_parameter("factor", (width,), "ones")
        self.add_parameter("shift", (width,), "zeros", kind="bias")

    def forward(self, x, training=False):
        self.x = x
        return x * self.factor + self.shift

    def backward(self, dy):
        self.factor_grad = (dy * self.x).sum(axis=0)
        self.shift_grad = dy.sum(axis=0)
        return dy * self.factor

    def config(self):  # so that a model with this layer can be saved
        return {"width": self.n_inputs}


rng = np.random.default_rng(0)
check_layer_gradients(Affine(4, dtype="float64"), rng.normal(size=(6, 4)), rng)
print("the gradient is right")

x, y = nn.datasets.digits()
model = nn.Sequential([Affine(64), nn.Dense(64, 32, "relu"), nn.Dense(32, 10)], seed=0)
model.compile("softmax_cross_entropy", nn.Adam(3e-3), ["accuracy"])
history = model.fit(x, y, epochs=10, validation_split=0.2, verbose=0)
print(f"validation accuracy {history['val_accuracy'][-1]:.4f}")

model.save("own_layer.safetensors")
same = nn.load("own_layer.safetensors", custom_objects={"Affine": Affine})
print("loaded:", np.array_equal(same.predict(x), model.predict(x)))
