"""Draws a model's program as it is: the rows of its table, and where their parameters lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nnbackend as nn
from nnbackend.kernels.codes import ACTIVATIONS, Op

COLUMNS = ("row", "operation", "inputs", "outputs", "activation", "weight at", "bias at", "trained")
COLOURS = ("#2f6f9f", "#d98c3f", "#5a9b67", "#a05a8c")


def example() -> nn.Sequential:
    layers = [nn.Standardize(8), nn.Dense(8, 16, "relu"), nn.Dropout(0.2), nn.Dense(16, 3)]
    model = nn.Sequential(layers, seed=0, backend="numpy")
    model.compile("softmax_cross_entropy", nn.Adam(1e-3))
    return model


def rows_of(model: nn.Sequential) -> list[list[str]]:
    """The table's rows, as text."""
    names, found = list(ACTIVATIONS), []
    for number, row in enumerate(model.program.rows):
        places = [str(place) if place >= 0 else "" for place in (row.parameter_0, row.parameter_1)]
        activation = names[row.activation] if row.op in (Op.DENSE, Op.ACTIVATION) else ""
        operation = Op(row.op).name.lower()
        found.append([str(number), operation, str(row.n_inputs), str(row.n_outputs), activation,
                      *places, "yes" if row.trainable and any(places) else ""])  # fmt: skip
    return found


def draw(path: Path) -> None:
    """A picture of ``example``; its numbers are the program's own."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    model = example()
    program = model.program
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 4), height_ratios=(3, 1.2), layout="constrained"
    )
    top.axis("off")
    top.set_title("the table: one row for each layer", loc="left", fontsize=11)
    table = top.table(rows_of(model), colLabels=COLUMNS, loc="center", cellLoc="center")
    table.scale(1, 1.6)
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (k, _), cell in table.get_celld().items():
        cell.set_edgecolor("#cccccc")
        if k == 0:
            cell.set_text_props(weight="bold")
            cell.set_facecolor("#eef2f6")
    _draw_vector(bottom, program)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_vector(axes: Any, program: Any) -> None:
    size = program.storage.parameters.size
    axes.set_title(f"the flat vector of parameters: {size} places; gradients and each of Adam's "
                   f"two moments lie in the same places", loc="left", fontsize=11)  # fmt: skip
    axes.set(xlim=(0, size), ylim=(0, 1), yticks=[])
    axes.add_patch(_rectangle(0, size, "#e4e4e4"))
    dense = [row for row in program.rows if row.op == Op.DENSE]
    for k, row in enumerate(dense):
        for start, count, shape in (
            (row.parameter_0, row.n_inputs * row.n_outputs, f"({row.n_inputs}, {row.n_outputs})"),
            (row.parameter_1, row.n_outputs, f"({row.n_outputs},)"),
        ):
            axes.add_patch(_rectangle(start, count, COLOURS[2 * k + (count == row.n_outputs)]))
            wide = count > 30
            axes.text(start + count / 2, 0.5, shape, ha="center", va="center", color="white",
                      fontsize=8, rotation=0 if wide else 90)  # fmt: skip


def _rectangle(start: int, count: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((start, 0.05), count, 0.9, facecolor=colour, edgecolor="white")


if __name__ == "__main__":
    draw(Path(__file__).parent / "program.png")
