"""Plots of training and of models; each function takes and returns a matplotlib Axes.

Matplotlib is an extra (``pip install "nnbackend[plot]"``), imported when a plot is made.
Colours differ in brightness and lines in style, so that every plot can be read in greyscale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import check_size, real_array
from nnbackend._plot_checks import (
    check_axes,
    check_class_names,
    check_curves,
    check_feature_names,
    check_image_shape,
    check_labels,
    check_model,
    check_no_model,
    check_rows,
    names_of,
)
from nnbackend._types import HostArray
from nnbackend.errors import DataError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnbackend.model.sequential import Sequential

TRAIN_COLOUR, VALIDATION_COLOUR = "#08306b", "#e6842a"
MARKERS = "os^Dv<>Pp*"


def require_matplotlib() -> None:
    """Raise an error that says how to install matplotlib, if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib, which is not installed: pip install "nnbackend[plot]"'
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """A figure without a window, laid out so that labels do not overlap; sizes in inches."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(ax: Axes | None, width: float = 5.0, height: float = 3.6) -> Axes:
    if ax is None:
        return new_figure(width, height).add_subplot()
    check_axes(ax)
    return ax


def history(
    curves: Mapping[str, Sequence[float]],
    name: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """A curve over the epochs, training solid and validation dashed.

    Args:
        curves: what ``fit`` returned.
        name: "loss", "accuracy", or any other curve's name without "val_".
    """
    found = check_curves(curves, name)
    ax = _axes(ax)
    for key, label, colour, style in (
        (name, "training", TRAIN_COLOUR, "-"),
        (f"val_{name}", "validation", VALIDATION_COLOUR, "--"),
    ):
        if key in found:
            values = found[key]
            marker = "o" if len(values) < 3 else ""
            epochs = range(1, len(values) + 1)
            ax.plot(epochs, values, style, color=colour, label=label, marker=marker, lw=1.6)
    ax.set_xlabel("epoch")
    ax.set_ylabel(name.replace("_", " "))
    ax.locator_params(axis="x", integer=True)
    ax.grid(True, color="0.9", lw=0.6)
    ax.legend(frameon=False)
    return ax


def decision_regions(
    model: Sequential,
    x: Any,
    y: Any,
    ax: Axes | None = None,
    resolution: int = 200,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
) -> Axes:
    """Which class the model assigns to each point of a plane, with the data on top.

    Args:
        model: with two inputs.
        x: (N, 2).   y: (N,) class labels.
        resolution: points along each side.
    """
    if check_model(model).n_inputs != 2:
        raise ShapeError(f"regions are drawn for two inputs; the model has {model.n_inputs}")
    x = check_rows("x", x, 2).astype(np.float64)
    y = check_labels("y", y, len(x))
    resolution = check_size("resolution", resolution, 2)
    ax = _axes(ax, 4.6, 4.2)
    import matplotlib

    low, high = x.min(axis=0), x.max(axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    sides = [
        np.linspace(a, b, resolution) for a, b in zip(low - margin, high + margin, strict=True)
    ]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    labels = predicted_classes(model, grid).reshape(resolution, resolution)
    classes = max(int(labels.max()), int(y.max())) + 1
    names = check_class_names(class_names, classes)
    colours = matplotlib.colormaps["cividis"](np.linspace(0.1, 0.95, classes))
    levels = np.arange(classes + 1) - 0.5
    ax.contourf(*sides, labels, levels=levels, colors=colours, alpha=0.45)
    for c in range(classes):
        chosen = y == c
        ax.scatter(
            x[chosen, 0], x[chosen, 1], color=colours[c], marker=MARKERS[c % len(MARKERS)], s=16,
            edgecolors="black", linewidths=0.4, label=names[c],
        )  # fmt: skip
    first, second = check_feature_names(feature_names)
    ax.set_xlabel(first)
    ax.set_ylabel(second)
    if classes <= 10:
        ax.legend(title="class", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return ax


def predicted_classes(model: Sequential, x: Any) -> HostArray:
    """The class with the largest output; for one output, yes or no, from 0.5 on where neither the
    loss nor a metric says so."""
    out = model.predict(x)
    if out.shape[1] > 1:
        return np.asarray(out.argmax(axis=1))
    from nnbackend.losses import Loss

    said = [model.loss.threshold] if isinstance(model.loss, Loss) else []
    said += [getattr(metric, "threshold", None) for metric in model.metrics]
    threshold = next((value for value in said if value is not None), 0.5)
    return (out[:, 0] > threshold).astype(np.int64)


def confusion_matrix(
    y_true: Any,
    y_pred: Any,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How often each class (row) was predicted as each class (column).

    Args:
        y_true, y_pred: (N,) class labels.
    """
    check_no_model("confusion_matrix takes classes, (y_true, y_pred)", y_true)
    y_true, y_pred = check_labels("y_true", y_true), check_labels("y_pred", y_pred)
    if y_true.shape != y_pred.shape:
        raise ShapeError(
            f"y_true and y_pred must be equally long; received {len(y_true)} and {len(y_pred)}"
        )
    names = check_class_names(class_names, int(max(y_true.max(), y_pred.max())) + 1)
    classes = len(names)
    ax = _axes(ax, 4.6, 4.4)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (y_true, y_pred), 1)
    # the diagonal would outshine the mistakes: brightness goes with the square root
    shares = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if classes <= 20:
        for i, j in np.argwhere(counts):
            colour = "white" if shares[i, j] > 0.6 else "black"
            ax.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=7)
    if classes <= 40:
        # long names would leave no room for the matrix; their ends often tell them apart
        names = [name if len(name) <= 12 else f"{name[:5]}…{name[-6:]}" for name in names]
        longest = max(map(len, names))
        rotation, align = (45, "right") if longest > 3 else (0, "center")
        size = 8 if classes <= 12 else 5
        ax.set_xticks(range(classes), names, rotation=rotation, ha=align, fontsize=size)
        ax.set_yticks(range(classes), names, fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def worst_mistakes(
    model: Sequential,
    x: Any,
    y: Any,
    shape: tuple[int, int] | None = None,
    count: int = 12,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The images that the model got wrong with most confidence, as "true > predicted".

    Args:
        x: (N, height * width).   y: (N,) class labels.
        shape: (height, width); a square if None.
        count: at most this many.
    """
    x = check_rows("x", x, check_model(model).n_inputs)
    y = check_labels("y", y, len(x))
    height, width = image_shape(x.shape[1], shape)
    count = check_size("count", count)
    probabilities = model.predict_proba(x)
    if probabilities.shape[1] == 1:  # yes or no
        probabilities = np.concatenate([1 - probabilities, probabilities], axis=1)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != y)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:count]
    names = check_class_names(class_names, max(probabilities.shape[1], int(y.max()) + 1))
    texts = [f"{names[y[i]]} > {names[predicted[i]]}" for i in worst]
    ax = _axes(ax, 5.0, 3.6)
    if not len(worst):
        ax.text(0.5, 0.5, "no mistakes", ha="center", va="center", transform=ax.transAxes)
    _mosaic(ax, [x[i].reshape(height, width) for i in worst], texts, "gray_r")
    ax.set_title("worst mistakes (true > predicted)", fontsize=9)
    return ax


def first_layer_weights(
    model: Sequential,
    shape: tuple[int, int] | None = None,
    count: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """What the first dense layer's neurons look for: their weights as images.

    Args:
        shape: (height, width) of the input; a square if None.
        count: at most this many neurons, those with the largest weights.
    """
    dense: Any = check_model(model).layers[_first_dense(model)]
    count = check_size("count", count)
    weight = model.backend.to_numpy(dense.weight)
    height, width = image_shape(weight.shape[0], shape)
    strongest = np.argsort(-np.abs(weight).sum(axis=0), kind="stable")[:count]
    ax = _axes(ax, 5.0, 3.6)
    limit = float(np.abs(weight[:, strongest]).max()) or 1.0
    images = [weight[:, j].reshape(height, width) / limit for j in strongest]
    _mosaic(ax, images, [f"{j}" for j in strongest], "gray", -1.0, 1.0)
    ax.set_title("first-layer weights (by neuron; bright is positive)", fontsize=9)
    return ax


def neuron_patterns(
    model: Sequential,
    x: Any,
    shape: tuple[int, int] | None = None,
    count: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """What the first dense layer's neurons respond to, as images: the covariance of each neuron's
    output with each pixel (Haufe et al., 2014). The weights themselves look like the noise that
    they began as, wherever pixels say the same as their neighbours or nothing.

    Args:
        x: (N, height * width), some of the data.
        shape: (height, width) of the input; a square if None.
        count: at most this many neurons, those whose outputs vary most.
    """
    count = check_size("count", count)
    index = _first_dense(check_model(model))
    x = check_rows("x", x, model.n_inputs).astype(np.float64)
    height, width = image_shape(x.shape[1], shape)
    outputs: Any = x
    for layer in model.layers[: index + 1]:
        outputs = layer.forward(outputs)
    response = model.backend.to_numpy(outputs).astype(np.float64)
    response -= response.mean(axis=0)
    most = np.argsort(-response.std(axis=0), kind="stable")[:count]
    patterns = response[:, most].T @ (x - x.mean(axis=0))
    limits = np.abs(patterns).max(axis=1, keepdims=True)
    patterns /= np.where(limits > 0, limits, 1.0)
    ax = _axes(ax, 5.0, 3.6)
    images = [pattern.reshape(height, width) for pattern in patterns]
    _mosaic(ax, images, [f"{j}" for j in most], "gray", -1.0, 1.0)
    ax.set_title("what first-layer neurons respond to (bright: more with it)", fontsize=9)
    return ax


def _first_dense(model: Sequential) -> int:
    """The number of the first dense layer."""
    from nnbackend.layers import Dense

    for index, layer in enumerate(model.layers):
        if isinstance(layer, Dense):
            return index
    raise DataError("the model has no Dense layer whose neurons could be drawn")


def image_shape(width: int, shape: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of an image of ``width`` pixels."""
    if shape is None:
        side = round(width**0.5)
        shape = (side, side)
    shape = check_image_shape(shape)
    if shape[0] * shape[1] != width:
        raise ShapeError(
            f"rows of {width} values are no pictures of {shape[0]} x {shape[1]}; pass "
            f"shape=(height, width)"
        )
    return shape


def _mosaic(
    ax: Axes,
    images: Sequence[HostArray],
    texts: Sequence[str],
    colours: str,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Small images in rows, each with a line of text above it."""
    columns = max(1, int(np.ceil(np.sqrt(len(images) * 1.6))))
    rows = max(1, -(-len(images) // columns))
    for k, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(k, columns)
        box = (column + 0.08, column + 0.92, row + 0.95, row + 0.27)
        own_low = float(image.min()) if low is None else low
        own_high = float(image.max()) if high is None else high
        ax.imshow(
            image, cmap=colours, extent=box, vmin=own_low, vmax=own_high, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        ax.text(column + 0.5, row + 0.22, text, ha="center", va="bottom", fontsize=7)
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
    if len(images):
        height, width = images[0].shape
        ax.set_aspect(0.84 / 0.68 * height / width)
    ax.set_axis_off()


def regression_fit(
    model: Sequential, x: Any, y: Any, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Predictions: the curve over x for one input, else predicted against true values."""
    x, outputs = check_rows("x", x, check_model(model).n_inputs), model.n_outputs
    y = real_array("y", y)
    y = check_rows("y", y[:, None] if y.ndim == 1 else y, outputs, finite=False)
    if len(x) != len(y):
        raise ShapeError(f"x and y must have as many rows; received {len(x)} and {len(y)}")
    labels = names_of("names", names)
    if labels is not None and len(labels) < outputs:
        raise ShapeError(f"names must name all {outputs} outputs; received {len(labels)}")
    predicted = model.predict(x)
    ax = _axes(ax)
    if x.shape[1] == 1 and y.shape[1] == 1:
        order = np.argsort(x[:, 0], kind="stable")
        ax.plot(x[order, 0], y[order, 0], ".", color="0.6", ms=4, label="data")
        ax.plot(x[order, 0], predicted[order, 0], "-", color=TRAIN_COLOUR, label="model")
        ax.set_xlabel("x")
        ax.set_ylabel("y")
        ax.legend(frameon=False)
        return ax
    limits = [float(f([y.ravel(), predicted.ravel()])) for f in (np.nanmin, np.nanmax)]
    ax.plot(limits, limits, "--", color="0.6", lw=1)
    for k in range(y.shape[1]):
        label = None if labels is None else labels[k]
        marker = MARKERS[k % len(MARKERS)]
        ax.plot(y[:, k], predicted[:, k], marker, ms=3, alpha=0.6, label=label)
    if labels is not None and len(labels) > 1:
        ax.legend(frameon=False)
    ax.set_xlabel("true")
    ax.set_ylabel("predicted")
    return ax


def page(panels: Sequence[Callable[[Axes], Axes]]) -> Figure:
    """Several plots on one page, at most three in a row; each panel draws into an Axes. The last
    row's are wider if they are fewer."""
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.4 * columns, 3.9 * rows)
    in_last = len(panels) - (rows - 1) * columns
    grid = figure.add_gridspec(rows, columns * in_last)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        width = columns if row == rows - 1 else in_last
        panel(figure.add_subplot(grid[row, column * width : (column + 1) * width]))
    return figure
