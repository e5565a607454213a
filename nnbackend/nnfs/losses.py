"""The book's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbackend.nnfs.activations import Activation_Softmax
from nnbackend.nnfs.arrays import Array, as_wide, classes_of, labels_of, real
from nnbackend.nnfs.layers import Layer_Dense, penalties_of

#: Probabilities are clipped to [CLIP, 1 - CLIP] before a logarithm or a division.
CLIP = 1e-7
_LIMITS = {np.dtype(kind): (kind(CLIP), kind(1 - CLIP)) for kind in (np.float32, np.float64)}


class Loss:
    """What the losses have in common; a subclass writes ``forward`` and ``backward``."""

    dinputs: Array
    accumulated_sum: Any = 0
    accumulated_count: int = 0

    def forward(self, y_pred: Array, y_true: Array) -> Array:
        """The loss of each sample (B,)."""
        raise NotImplementedError

    def backward(self, dvalues: Array, y_true: Array) -> None:
        """dinputs: the gradient of the mean loss by the predictions ``dvalues``."""
        raise NotImplementedError

    def regularization_loss(self, layer: Layer_Dense | None = None) -> float:
        """l1 sum|w| + l2 sum w^2 of a layer's weights and biases; of all ``trainable_layers``
        without one."""
        layers: Sequence[Layer_Dense] = self.trainable_layers if layer is None else [layer]
        total = 0.0
        for own in layers:
            for values, l1, l2 in penalties_of(own):
                if l1 > 0:
                    total += l1 * np.sum(np.abs(values))
                if l2 > 0:
                    total += l2 * np.sum(values * values)
        return total

    def remember_trainable_layers(self, trainable_layers: Sequence[Layer_Dense]) -> None:
        self.trainable_layers = trainable_layers

    def calculate(self, output: Any, y: Any, *, include_regularization: bool = False) -> Any:
        """The mean loss; with ``include_regularization`` also the penalties' share."""
        sample_losses = np.asarray(self.forward(output, y))
        total, count = np.add.reduce(sample_losses, axis=None), len(sample_losses)
        self.accumulated_sum += total
        self.accumulated_count += count
        data_loss = total / sample_losses.size
        return (data_loss, self.regularization_loss()) if include_regularization else data_loss

    def calculate_accumulated(self, *, include_regularization: bool = False) -> Any:
        """The mean over all samples since ``new_pass``."""
        data_loss = self.accumulated_sum / self.accumulated_count
        return (data_loss, self.regularization_loss()) if include_regularization else data_loss

    def new_pass(self) -> None:
        self.accumulated_sum, self.accumulated_count = 0, 0


def _clipped(x: Any) -> Array:
    """A new array; np.clip takes three times as long for a few numbers."""
    x = real(x)
    low, high = _LIMITS[x.dtype]
    clipped = np.maximum(x, low)
    return np.asarray(np.minimum(clipped, high, out=clipped))


class Loss_CategoricalCrossentropy(Loss):
    """-sum_c t_c log p_c, of class numbers (B,) or rows (B, C)."""

    def forward(self, y_pred: Any, y_true: Any) -> Array:
        y_pred = real(y_pred)
        y_true = classes_of(y_true, y_pred)
        if y_true.ndim == 1:
            confidences = _clipped(y_pred[np.arange(len(y_pred)), y_true])
        else:
            confidences = np.sum(_clipped(y_pred) * y_true, axis=1)
        losses = np.log(confidences, out=confidences)
        return np.asarray(np.negative(losses, out=losses))

    def backward(self, dvalues: Any, y_true: Any) -> None:
        dvalues = real(dvalues)
        y_true = classes_of(y_true, dvalues)
        if y_true.ndim == 1:
            y_true = np.eye(dvalues.shape[1], dtype=dvalues.dtype)[y_true]
        # numbers without a sign would be turned round
        self.dinputs = -y_true.astype(dvalues.dtype, copy=False) / dvalues / len(dvalues)


class Activation_Softmax_Loss_CategoricalCrossentropy:
    """Softmax and cross-entropy in one, whose gradient by the softmax's inputs is p - t.

    Attributes:
        activation, loss: the two.   output: of the softmax.
    """

    def __init__(self) -> None:
        self.activation = Activation_Softmax()
        self.loss = Loss_CategoricalCrossentropy()

    def forward(self, inputs: Any, y_true: Any) -> Any:
        """The mean loss."""
        self.activation.forward(inputs)
        self.output = self.activation.output
        return self.loss.calculate(self.output, y_true)

    def backward(self, dvalues: Any, y_true: Any) -> None:
        """dinputs from the softmax's outputs ``dvalues``."""
        dinputs = np.array(real(dvalues))
        samples, labels = len(dinputs), labels_of(classes_of(y_true, dinputs))
        dinputs[np.arange(samples), labels] -= 1
        dinputs /= samples
        self.dinputs = dinputs


class Loss_BinaryCrossentropy(Loss):
    """-t log p - (1 - t) log(1 - p), the mean over a sample's outputs."""

    def forward(self, y_pred: Any, y_true: Any) -> Array:
        p = _clipped(y_pred)
        y_true = as_wide(y_true, p)
        losses: Array = -(y_true * np.log(p) + (1 - y_true) * np.log(1 - p))
        return np.asarray(np.mean(losses, axis=-1))

    def backward(self, dvalues: Any, y_true: Any) -> None:
        p = _clipped(dvalues)
        y_true = as_wide(y_true, p)
        self.dinputs = -(y_true / p - (1 - y_true) / (1 - p)) / p.shape[1] / len(p)


class Loss_MeanSquaredError(Loss):
    """(t - p)^2, the mean over a sample's outputs."""

    def forward(self, y_pred: Any, y_true: Any) -> Array:
        y_pred = real(y_pred)
        return np.asarray(np.mean((as_wide(y_true, y_pred) - y_pred) ** 2, axis=-1))

    def backward(self, dvalues: Any, y_true: Any) -> None:
        dvalues = real(dvalues)
        self.dinputs = -2 * (as_wide(y_true, dvalues) - dvalues) / dvalues.shape[1] / len(dvalues)


class Loss_MeanAbsoluteError(Loss):
    """|t - p|, the mean over a sample's outputs.

    The gradient is sign(p - t). The book's has the other sign, with which the loss grows.
    """

    def forward(self, y_pred: Any, y_true: Any) -> Array:
        y_pred = real(y_pred)
        return np.asarray(np.mean(np.abs(as_wide(y_true, y_pred) - y_pred), axis=-1))

    def backward(self, dvalues: Any, y_true: Any) -> None:
        dvalues = real(dvalues)
        self.dinputs = np.sign(dvalues - as_wide(y_true, dvalues)) / dvalues.shape[1] / len(dvalues)
