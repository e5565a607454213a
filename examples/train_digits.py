"""Train on handwritten digits: the script to start your own from.

NN_BACKEND=numpy python examples/train_digits.py
"""

import nnbackend as nn

x, y = nn.datasets.digits()
model = nn.Sequential(
    [nn.Dense(64, 128, activation="relu"), nn.Dropout(0.2), nn.Dense(128, 10)], seed=1
)
model.compile(
    loss="softmax_cross_entropy",
    optimizer=nn.Adam(lr=nn.CosineDecay(5e-3, steps=20 * 45)),
    metrics=["accuracy"],
)
model.summary()
history = model.fit(x, y, epochs=20, batch_size=32, validation_split=0.2)
print(f"validation accuracy {history['val_accuracy'][-1]:.4f} on {model.backend.device}")
model.save("digits.safetensors")
