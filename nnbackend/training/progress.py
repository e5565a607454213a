"""What ``fit`` shows while it runs: a bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from html import escape
from types import TracebackType
from typing import Any, Self

from nnbackend._checks import is_whole
from nnbackend._notebook import Area, Html, in_notebook
from nnbackend._output import write_line
from nnbackend.errors import DataError, shown

#: Without a terminal a line is printed for about this many epochs, and after this many seconds.
PLAIN_LINES = 20
PLAIN_SECONDS = 5.0
#: A bar is drawn anew after this many seconds at the earliest.
REDRAW_SECONDS = 0.125
BAR_WIDTH = 12


def figures_text(figures: Mapping[str, float]) -> str:
    """ "loss 0.1234  accuracy 0.9750", the learning rate left out."""
    return "  ".join(
        f"{name} {number_text(value)}"
        for name, value in figures.items()
        if name not in ("lr", "data_loss")
    )


def number_text(value: float) -> str:
    """Four decimals where they are useful, else four significant digits."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


class Progress:
    """Silent; the base of the others.

    Used as a context: ``advance`` after each chunk of work, ``epoch_end`` after each epoch.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def advance(self, rows: int) -> None:
        """``rows`` more rows were trained on."""

    def epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Epoch number ``epoch``, counted from 1, is complete."""

    def stopped(self, epoch: int, reason: str) -> None:
        """Training ended early, after ``epoch`` epochs; called outside the context."""


class PlainProgress(Progress):
    """A line now and then, for logs and pipes."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.every = epochs, max(1, epochs // PLAIN_LINES)
        self.rows = 0
        self.rows_time = self.last_line = time.perf_counter()

    def __enter__(self) -> Self:
        self.rows_time = self.last_line = time.perf_counter()
        return self

    def advance(self, rows: int) -> None:
        self.rows += rows

    def epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        now = time.perf_counter()
        due = now - self.last_line > PLAIN_SECONDS
        if not (due or epoch == 1 or epoch == self.epochs or epoch % self.every == 0):
            return
        rate = self.rows / max(now - self.rows_time, 1e-9)
        width = len(str(self.epochs))
        write_line(
            f"epoch {epoch:{width}d}/{self.epochs}  {figures_text(figures)}  {rate:,.0f} samples/s"
        )
        self.rows, self.rows_time, self.last_line = 0, now, now

    def stopped(self, epoch: int, reason: str) -> None:
        write_line(stopped_text(epoch, reason))


class _BarProgress(Progress):
    """A bar, drawn anew now and then.

    Args:
        first_epoch, epochs: total epochs before and after this training.
        rows_per_epoch: None if that is not known.
    """

    def __init__(self, first_epoch: int, epochs: int, rows_per_epoch: int | None) -> None:
        self.epochs = epochs
        self.total = None if rows_per_epoch is None else (epochs - first_epoch) * rows_per_epoch
        self.rows, self.start = 0, time.perf_counter()

    def stopped(self, epoch: int, reason: str) -> None:
        write_line(stopped_text(epoch, reason))

    def _speed(self) -> str:
        """Time left and samples/s so far."""
        rate = self.rows / max(time.perf_counter() - self.start, 1e-9)
        left = None if self.total is None or not rate else (self.total - self.rows) / rate
        return _speed_text(rate, left)


class LiveProgress(_BarProgress):
    """A line on a terminal: the epoch, a bar, loss and metrics, time left and samples/s. Where it
    is too narrow for all of it, the figures stay longest."""

    def __init__(self, first_epoch: int, epochs: int, rows_per_epoch: int | None) -> None:
        from rich import get_console
        from rich.live import Live

        super().__init__(first_epoch, epochs, rows_per_epoch)
        self.epoch, self.figures, self.shown = first_epoch, "", self.start
        self.console = get_console()
        # to refresh by itself it takes a thread, which cannot be had everywhere
        self.live = Live(console=self.console, get_renderable=self._line, auto_refresh=False)

    def __enter__(self) -> Self:
        self.start = self.shown = time.perf_counter()
        self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def advance(self, rows: int) -> None:
        self.rows += rows
        self._draw()

    def epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.epoch, self.figures = epoch, figures_text(figures)
        self._draw()

    def _draw(self) -> None:
        """Draw the line anew, unless that was done a moment ago."""
        now = time.perf_counter()
        if now - self.shown >= REDRAW_SECONDS:
            self.shown = now
            self.live.refresh()

    def _line(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        count = f"epoch {self.epoch:{len(str(self.epochs))}}/{self.epochs}"
        bar = ProgressBar(self.total, self.rows, width=BAR_WIDTH, pulse=self.total is None)
        left = self.console.width - len(count) - len(self.figures) - 1
        parts: list[Any] = [Text(self.figures)]
        if left > BAR_WIDTH:
            parts.insert(0, bar)
            left -= BAR_WIDTH + 1
        speed = self._speed()
        if len(speed) >= left:
            speed = speed.partition(", ")[0]  # the time left alone
        if len(speed) < left:
            parts.append(Text(speed, style="dim"))
        line = Table.grid(padding=(0, 1), pad_edge=False)
        line.add_row(Text(count, no_wrap=True), *parts)
        return line


class NotebookProgress(_BarProgress):
    """A bar in the output of a notebook's cell."""

    def __init__(self, first_epoch: int, epochs: int, rows_per_epoch: int | None) -> None:
        super().__init__(first_epoch, epochs, rows_per_epoch)
        self.epoch, self.figures, self.shown = first_epoch, "", 0.0
        self.area = Area()

    def __enter__(self) -> Self:
        self.start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show()

    def advance(self, rows: int) -> None:
        self.rows += rows
        if time.perf_counter() - self.shown >= REDRAW_SECONDS:
            self._show()

    def epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.epoch, self.figures = epoch, figures_text(figures)

    def _show(self) -> None:
        self.shown = time.perf_counter()
        text = f"epoch {self.epoch}/{self.epochs}  {self._speed()}  {self.figures}"
        share = 0 if self.total is None else self.rows
        bar = f'<progress value="{share}" max="{self.total or 1}" style="width: 8em"></progress>'
        self.area.show(Html(f"<code>{bar} {escape(text)}</code>", text))


def stopped_text(epoch: int, reason: str) -> str:
    """Why training ended before its last epoch."""
    return f"stopped after epoch {epoch}: {reason}"


def _speed_text(rate: float, left: float | None) -> str:
    """ "0:42 left, 120,000 samples/s"; without the first part if the end is not known."""
    speed = f"{rate:,.0f} samples/s"
    if left is None:
        return speed
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{clock} left, {speed}"


def check_verbose(verbose: object) -> int:
    if not (isinstance(verbose, bool) or is_whole(verbose)) or verbose not in (0, 1, 2):
        raise DataError(f"verbose must be 0, 1 or 2; received {shown(verbose)}")
    return int(verbose)


def make_progress(
    verbose: int, first_epoch: int, epochs: int, rows_per_epoch: int | None
) -> Progress:
    """0: silent. 1: a bar on a terminal and in a notebook, lines elsewhere. 2: lines everywhere.

    Args:
        first_epoch, epochs: total epochs before and after this training.
    """
    if not verbose:
        return Progress()
    if verbose == 1 and in_notebook():
        return NotebookProgress(first_epoch, epochs, rows_per_epoch)
    if verbose == 1 and sys.stdout is not None and sys.stdout.isatty():
        return LiveProgress(first_epoch, epochs, rows_per_epoch)
    return PlainProgress(epochs)
