"""What ``nnbackend train`` says and draws at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from nnbackend import plot
from nnbackend._types import HostArray
from nnbackend.backends import get_backend
from nnbackend.cli.settings import STEPS, Settings
from nnbackend.data.dataset import Dataset
from nnbackend.data.preparation import Preparation
from nnbackend.losses import Loss
from nnbackend.metrics import measure, metric_name
from nnbackend.model.sequential import Sequential
from nnbackend.training.history import History
from nnbackend.training.progress import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Figures shown at the end, whatever was computed after each epoch.
OF_CLASSES, OF_NUMBERS = ("accuracy", "f1", "auc"), ("r2", "mae")
SHARES = ("accuracy", "top_k_accuracy", "largest class")
#: Names of columns on a line.
MOST_NAMES = 6
#: Fewer steps than this are hardly enough for any network.
FEW_STEPS = 1000
#: Of the rows that were trained on: more steps would learn them by heart.
LEARNT = 0.98
#: A class with so many times its even share of the rows is a large one.
LARGE = 1.3
#: A loss that fell by this share in the last third of the epochs is still falling.
FALLING = 0.05


def show_columns(preparation: Preparation) -> None:
    """Print what is done with each column of a table; columns that stay as they are, together."""
    from rich.console import Console
    from rich.table import Table

    plain = [column for column in preparation.columns if column.is_plain]
    table = Table(box=None, pad_edge=False, show_header=False)
    if plain:
        names = ", ".join(column.name for column in plain[:MOST_NAMES])
        more = f" and {len(plain) - MOST_NAMES} more" if len(plain) > MOST_NAMES else ""
        table.add_row(names + more, "numbers" if len(plain) > 1 else "number")
    for column in preparation.columns:
        if not column.is_plain:
            table.add_row(column.name, column.kind, column.description)
    if preparation.target_offset:
        table.add_row("the target", "number", f"its distance from {preparation.target_offset:.10g}")
    Console(highlight=False, markup=False).print(table)


class Parts(NamedTuple):
    """Numbers of the rows trained on and of those held out, None if there are none."""

    training: HostArray
    validation: HostArray | None

    @classmethod
    def of(cls, settings: Settings, data: Dataset) -> Parts:
        """The rows as ``fit`` chose them."""
        rows = len(data.x)
        if not settings.validation:
            return cls(np.arange(rows), None)
        labels = None if data.class_names is None else data.y
        return cls(*settings.split(rows, labels))


# -- figures ----------------------------------------------------------------------------------


def result_text(settings: Settings, model: Sequential, data: Dataset, history: History) -> str:
    """How long it took, how good the model in its present state is, and what might help."""
    epochs = f"{history.epochs} epoch{'' if history.epochs == 1 else 's'}"
    took = f"{epochs} in {sum(history.seconds):.2f} s"
    kept = model.info.get("kept_epoch")
    if kept is not None:
        took += f"; the weights of epoch {kept} are kept, the best on the validation rows"
    parts = Parts.of(settings, data)
    outputs = model.predict(data.x)
    columns = {
        name: figures(model, outputs[rows], data.y[rows], settings.metrics)  # type: ignore[index]
        for name, rows in zip(("training", "validation"), parts, strict=True)
        if rows is not None
    }
    lines = [took, " " * 14 + "".join(f"{name:>12}" for name in columns)]
    for measured in next(iter(columns.values())):
        values = [_number(measured, column[measured]) for column in columns.values()]
        lines.append(f"{measured:14}" + "".join(f"{value:>12}" for value in values))
    return "\n".join([*lines, *_hints(settings, model, history, columns)])


def figures(
    model: Sequential, outputs: HostArray, y: HostArray, more: tuple[str, ...] = ()
) -> dict[str, float]:
    """What tells how good a model with a built-in loss is, from its outputs (N, O); for classes
    also the share of the largest one, which is right without any model."""
    loss = cast(Loss, model.loss)
    names = OF_CLASSES if loss.probabilities else OF_NUMBERS
    target = loss.target(y, model.n_outputs, model.dtype)
    wanted = dict.fromkeys((*names, *more))
    found = {name: measure(name, loss, target, outputs) for name in wanted}
    value = np.zeros(())
    loss.apply(get_backend("numpy"), outputs, target, None, None, value)
    found["loss"] = float(value)
    if loss.takes_labels or (loss.threshold is not None and model.n_outputs == 1):
        found["largest class"] = float(np.bincount(y.astype(int).ravel()).max() / len(y))
    return found


def _number(name: str, value: float) -> str:
    if name in SHARES:
        return f"{100 * value:.2f} %"
    return number_text(value)


def _hints(
    settings: Settings, model: Sequential, history: History, columns: dict[str, dict[str, float]]
) -> list[str]:
    """What the figures alone do not show a beginner."""
    judged = columns.get("validation", columns["training"])
    perfect = judged.get("accuracy", judged.get("r2", 0.0)) > 0.999
    if history.stopped is not None or perfect:
        return []
    hints = []
    share = judged.get("largest class")
    if share is not None and judged["accuracy"] < share + 0.2 * (1 - share):
        is_large = share > LARGE / max(2, model.n_outputs)
        remedy = "see f1 and auc, and try --class-weight balanced"
        remedy = remedy if is_large else "the network has not learnt much yet"
        hints.append(
            f"always predicting the largest class would be right for {100 * share:.2f} % of the "
            f"rows: {remedy}"
        )
    learnt = columns["training"].get("accuracy", columns["training"].get("r2", 0.0)) > LEARNT
    if model.step < FEW_STEPS and not learnt:
        hints.append(
            f"{model.step:,} steps are few for a network; without --epochs there are about "
            f"{STEPS:,}, or try a smaller --batch-size"
        )
    elif _is_falling(model.history, settings.epochs or 0):
        hints.append(
            f"the loss was still falling: more epochs may make it better, "
            f"--epochs {2 * (settings.epochs or 0)}"
        )
    return hints


def _is_falling(history: History, epochs: int) -> bool:
    curve = np.array(history["val_loss" if "val_loss" in history else "loss"])
    if len(curve) < max(epochs, 3):
        return False
    some = max(1, len(curve) // 20)
    start = 2 * len(curve) // 3
    before, after = curve[start : start + some].mean(), curve[-some:].mean()
    return bool(after < (1 - FALLING) * before)


# -- picture ----------------------------------------------------------------------------------


def picture(settings: Settings, model: Sequential, data: Dataset) -> Figure:
    """One page that suits the task: curves, then what the model does on held-out rows."""
    x, y = data
    training, held_out = Parts.of(settings, data)
    rows = training if held_out is None else held_out
    where = "all rows" if held_out is None else "validation rows"
    x, y = x[rows], y[rows]
    classes = data.class_names
    history = model.history
    kept = model.info.get("kept_epoch")
    panels: list[Callable[[Axes], Axes]] = [
        lambda ax: _with_kept(plot.history(history, "loss", ax), kept)
    ]
    shown = metric_name(model.metrics[0])
    if classes is None:
        panels += [
            lambda ax: _with_kept(plot.history(history, shown, ax), kept),
            lambda ax: _titled(plot.regression_fit(model, x, y, ax=ax), where),
        ]
    else:
        predicted = plot.predicted_classes(model, x)
        panels += [
            lambda ax: _with_kept(plot.history(history, shown, ax), kept),
            lambda ax: _titled(plot.confusion_matrix(y, predicted, classes, ax), where),
        ]
        if data.image_shape is not None:
            shape = data.image_shape
            panels += [
                lambda ax: plot.worst_mistakes(model, x, y, shape, 15, classes, ax),
                lambda ax: plot.neuron_patterns(model, x, shape, 28, ax),
            ]
        elif model.n_inputs == 2 and not model.program.categories:
            panels.append(
                lambda ax: _titled(
                    plot.decision_regions(model, x, y, ax, 200, classes, data.feature_names), where
                )
            )
    return plot.page(panels)


def _with_kept(ax: Axes, epoch: int | None) -> Axes:
    """A curve with a line at the epoch whose weights the model has."""
    if epoch is not None:
        ax.axvline(epoch, color="0.4", ls=":", lw=1.2, label="kept")
        ax.legend(frameon=False)
    return ax


def _titled(ax: Axes, title: str) -> Axes:
    ax.set_title(title, fontsize=9)
    return ax
