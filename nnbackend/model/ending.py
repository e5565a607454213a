"""How a model ends, and whether that fits its loss and its metrics."""

from __future__ import annotations

from collections.abc import Sequence

from nnbackend._output import warn
from nnbackend.backends.types import LINEAR, Activation
from nnbackend.errors import DataError, DTypeError, shown
from nnbackend.layers.base import Layer
from nnbackend.layers.native import NativeLayer
from nnbackend.losses import Loss, LossFunction
from nnbackend.metrics import AnyMetric, ClassMetric
from nnbackend.model.stack import LayerStack

#: A loss from logits applies one of these itself; a loss over probabilities wants it before.
_OVER_PROBABILITIES = {
    "categorical_cross_entropy": ("softmax", "softmax_cross_entropy"),
    "binary_cross_entropy": ("sigmoid", "sigmoid_cross_entropy"),
}


def check_ending(layers: Sequence[Layer], loss: Loss | LossFunction | None) -> None:
    """Refuse a loss from logits after a softmax or sigmoid; warn if a loss over probabilities
    follows outputs that are not probabilities, and of a softmax over one output."""
    activation = last_activation(layers)
    if activation.name == "softmax" and n_outputs_of(layers) == 1:
        warn(
            "a softmax over one output is always 1, so that nothing can be learnt. For yes or no "
            "use one output without activation and loss='sigmoid_cross_entropy'"
        )
    if not isinstance(loss, Loss):
        return
    if loss.from_logits and activation.name in ("softmax", "sigmoid"):
        remedy = {link: name for name, (link, _) in _OVER_PROBABILITIES.items()}[activation.name]
        raise DataError(
            f"{loss.name} works on logits and applies {loss.link} itself, but the model ends with "
            f"{activation.name}. Remove that activation (predict_proba still gives "
            f"probabilities), or keep it and use loss={remedy!r}"
        )
    wanted = _OVER_PROBABILITIES.get(loss.name)
    own_layer = layers[-1].declaration is None
    if wanted and not own_layer and activation.name not in ("softmax", "sigmoid"):
        link, logits = wanted
        warn(
            f"{loss.name} takes probabilities, but the model's outputs, after "
            f"{activation.name!r}, need not lie in [0, 1] and will be clipped. Use "
            f"loss={logits!r}, or end the model with activation={link!r}",
        )


def check_no_layers(*functions: object) -> None:
    """Refuse layers and models, which can be called, where a loss or a metric belongs."""
    for function in functions:
        if isinstance(function, Layer | LayerStack):
            raise DTypeError(
                f"a loss is a name such as 'softmax_cross_entropy', a metric one such as "
                f"'accuracy', or either a function; received {shown(function)}"
            )


def last_activation(layers: Sequence[Layer]) -> Activation:
    """The activation of the outputs, skipping layers of any width that have no activation."""
    for layer in reversed(layers):
        activation = layer.activation if isinstance(layer, NativeLayer) else LINEAR
        if activation != LINEAR or layer.n_inputs is not None:
            return activation
    return LINEAR


def n_outputs_of(layers: Sequence[Layer]) -> int | None:
    """Width of the last layer that has one of its own."""
    return next((layer.n_outputs for layer in reversed(layers) if layer.n_outputs), None)


def fitted(
    metric: AnyMetric, loss: object, layers: Sequence[Layer], usual: float | None = None
) -> AnyMetric:
    """A metric of one output beside a loss function, which says nothing of what is yes: from 0.5 on
    after a sigmoid; elsewhere from ``usual`` on, if it is given."""
    if not isinstance(metric, ClassMetric) or metric.threshold is not None:
        return metric
    if not callable(loss) or isinstance(loss, Loss) or n_outputs_of(layers) != 1:
        return metric
    threshold = 0.5 if last_activation(layers).name == "sigmoid" else usual
    return metric if threshold is None else type(metric)(threshold=threshold)
