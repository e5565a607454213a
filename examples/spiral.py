"""Dense layers on spiral data: the points, an untrained layer's outputs, a trained network.

Writes spiral.png, or where the first argument says: the points uncoloured, coloured by class,
and the regions that the trained network gives to each class.
"""

import sys

import numpy as np

import nnbackend as nn

x, y = nn.datasets.spiral(samples=100, classes=3, seed=0)


def small_normal(shape, rng):
    """The tutorial's weights: 0.01 times standard normal numbers of the legacy generator."""
    return 0.01 * np.random.RandomState(0).randn(*shape)


layer = nn.Dense(2, 3, weight_init=small_normal)
print("first five outputs of an untrained layer:")
print(layer.backend.to_numpy(layer.forward(x))[:5])

model = nn.Sequential(
    [nn.Dense(2, 64, "relu", weight_init="he_normal"), nn.Dense(64, 64, "relu"), nn.Dense(64, 3)],
    seed=0,
)
model.compile("softmax_cross_entropy", nn.Adam(nn.CosineDecay(0.02, steps=3000)), ["accuracy"])
history = model.fit(x, y, epochs=1000, batch_size=100, verbose=0)
print(f"accuracy after 1000 epochs: {history['accuracy'][-1]:.3f}")

path = sys.argv[1] if len(sys.argv) > 1 else "spiral.png"
figure = nn.plot.new_figure(13, 4)
plain, coloured, regions = figure.subplots(1, 3)
plain.scatter(x[:, 0], x[:, 1], s=12, color="black")
plain.set_title("without classes")
coloured.scatter(x[:, 0], x[:, 1], s=12, c=y, cmap="cividis")
coloured.set_title("with classes")
nn.plot.decision_regions(model, x, y, regions)
regions.set_title("trained network")
figure.savefig(path)
print("picture:", path)
