"""Curves and decision regions that a notebook redraws while ``fit`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nnbackend import plot
from nnbackend._checks import check_number
from nnbackend._notebook import Area, in_notebook
from nnbackend._plot_checks import check_labels, check_rows
from nnbackend.errors import DataError
from nnbackend.training.callback import Callback, Figures
from nnbackend.training.history import History

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential


class LiveCurves(Callback):
    """Redraw the curves of all epochs so far, and what the network makes of the plane, while a
    notebook's cell runs.

    Needs matplotlib: ``pip install "nnbackend[plot]"``.

    Args:
        data: (x, y) to draw the decision regions of, for a classifier with two inputs.
        seconds: from one picture to the next, at least; the last epoch is always drawn.
        show: function that is given each figure; None shows it in the cell's output.
    """

    on_rank_zero = True

    def __init__(
        self,
        data: tuple[Any, Any] | None = None,
        seconds: float = 0.5,
        show: Callable[[Any], object] | None = None,
    ) -> None:
        self.data, self.show = data, show
        self.seconds = check_number("LiveCurves.seconds", seconds, 0.0)
        self._shown = float("-inf")
        self._area: Area | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_area": None}

    def on_fit_begin(self, model: Sequential) -> None:
        plot.require_matplotlib()
        if self.show is None and not in_notebook():
            raise DataError(
                "LiveCurves draws in a notebook. Elsewhere, give it a function that is passed each "
                "figure: LiveCurves(show=lambda figure: figure.savefig('curves.png'))"
            )
        if self.data is not None:  # said now, not after an epoch
            if model.n_inputs != 2:
                raise DataError(
                    f"decision regions need a network with two inputs; this one has "
                    f"{model.n_inputs}"
                )
            x, y = self.data
            check_labels("data's y", y, len(check_rows("data's x", x, 2)))
        self._area, self._shown = Area(), float("-inf")

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        if time.perf_counter() - self._shown >= self.seconds:
            self._draw(model, history)
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        if history.epochs:
            self._draw(model, history)

    def _draw(self, model: Sequential, history: History) -> None:
        width = 5.0 if self.data is None else 9.5
        figure = plot.new_figure(width, 3.6)
        axes = figure.subplots(1, 1 if self.data is None else 2, squeeze=False)[0]
        plot.history(history, ax=axes[0])
        if self.data is not None:
            plot.decision_regions(model, *self.data, ax=axes[1])
        if self.show is not None:
            self.show(figure)
        elif self._area is not None:
            self._area.show(_picture(figure))
        self._shown = time.perf_counter()


def _picture(figure: Any) -> Any:
    """What a notebook shows: IPython knows figures of pyplot only."""
    import io

    from IPython.display import Image

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return Image(data=png.getvalue())
