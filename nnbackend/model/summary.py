"""The table that ``model.summary()`` prints."""

from __future__ import annotations

from nnbackend.backends.types import LINEAR
from nnbackend.layers.base import NativeLayer
from nnbackend.losses import loss_name
from nnbackend.model.stack import LayerStack


def summary_text(model: LayerStack) -> str:
    """The table that ``summary`` prints."""
    lines = [("", "layer", "output", "parameters")]
    for row, layer in zip(model.program.rows, model.layers, strict=True):
        name = type(layer).__name__
        if layer.specs and isinstance(layer, NativeLayer) and layer.activation != LINEAR:
            name += f" + {layer.activation.name}"
        if not layer.trainable:
            name += " (frozen)"
        lines.append((str(row.layer), name, str(row.n_outputs), f"{layer.n_parameters:,}"))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    table = [
        f"{a:>{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in lines
    ]
    rule = "-" * len(table[0])
    how = type(model.executor).__name__
    if model.program.python_parts:
        how += f" (because of {', '.join(model.program.python_parts)})"
    frozen = sum(layer.n_parameters for layer in model.layers if not layer.trainable)
    total = f"{model.n_parameters:,} parameters" + (f", {frozen:,} frozen" if frozen else "")
    loss = "not compiled" if model.loss is None else loss_name(model.loss)
    return "\n".join(
        [
            table[0], rule, *table[1:], rule,
            f"{model.n_inputs} inputs, {total}, {model.dtype}, loss: {loss}",
            f"runs on {model.backend.device} by {how}",
        ]
    )  # fmt: skip
