"""The table that ``model.summary()`` prints."""

from __future__ import annotations

from html import escape

from nnbackend.backends.types import LINEAR
from nnbackend.layers.native import NativeLayer
from nnbackend.losses import loss_name
from nnbackend.model.stack import LayerStack


def summary_text(model: LayerStack) -> str:
    """The table that ``summary`` prints."""
    lines = _lines(model)
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    table = [
        f"{a:>{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in lines
    ]
    rule = "-" * len(table[0])
    return "\n".join([table[0], rule, *table[1:], rule, *_notes(model)])


def summary_html(model: LayerStack) -> str:
    """The same for a notebook."""
    head, *lines = ([escape(cell) for cell in line] for line in _lines(model))
    rows = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    rows += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines]
    notes = "".join(f"<div>{escape(note)}</div>" for note in _notes(model))
    return f"<table>{''.join(rows)}</table>{notes}"


def _lines(model: LayerStack) -> list[tuple[str, str, str, str]]:
    """A line for each layer, below the names of the columns."""
    lines = [("", "layer", "output", "parameters")]
    for row, layer in zip(model.program.rows, model.layers, strict=True):
        name = type(layer).__name__
        if layer.specs and isinstance(layer, NativeLayer) and layer.activation != LINEAR:
            name += f" + {layer.activation.name}"
        if not layer.trainable:
            name += " (frozen)"
        lines.append((str(row.layer), name, str(row.n_outputs), f"{layer.n_parameters:,}"))
    return lines


def _notes(model: LayerStack) -> list[str]:
    how = model.executor.how
    if model.program.python_parts:
        how += f" (because of {', '.join(model.program.python_parts)})"
    frozen = sum(layer.n_parameters for layer in model.layers if not layer.trainable)
    total = f"{model.n_parameters:,} parameters" + (f", {frozen:,} frozen" if frozen else "")
    loss = "not compiled" if model.loss is None else loss_name(model.loss)
    return [
        f"{model.n_inputs} inputs, {total}, {model.dtype}, loss: {loss}",
        f"runs on {model.backend.device}, {how}",
    ]
