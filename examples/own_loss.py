"""A loss and a metric of one's own: the quantile loss predicts "nine times in ten below this"."""

import numpy as np

import nnbackend as nn

QUANTILE = 0.9


def quantile_loss(y_true, y_pred):
    """Mean of max(q e, (q - 1) e), e = y_true - y_pred, and its gradient by y_pred."""
    error = y_true - y_pred
    below = error > 0  # the prediction is below the true value
    slope = below * QUANTILE + ~below * (QUANTILE - 1.0)
    return (slope * error).mean(), -slope / error.size


def share_below(y_true, y_pred):
    """How often the true value lies below the prediction; gets NumPy arrays."""
    return (y_true <= y_pred).mean()


rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, size=(4000, 1))
y = np.sin(3 * x) + 0.3 * rng.normal(size=x.shape)

model = nn.Sequential([nn.Dense(1, 32, "tanh"), nn.Dense(32, 1)], seed=0)
model.compile(quantile_loss, nn.Adam(5e-3), metrics=[share_below])
history = model.fit(x, y, epochs=30, batch_size=100, verbose=0)
print(f"loss {history['loss'][0]:.4f} -> {history['loss'][-1]:.4f}")
print(f"share below the prediction: {history['share_below'][-1]:.3f} (wanted {QUANTILE})")
