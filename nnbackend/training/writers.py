"""Callbacks that write files: the model itself, and its figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from nnbackend._checks import check_path, check_size
from nnbackend._files import check_writable, write_atomically
from nnbackend._types import PathLike
from nnbackend.errors import DataError, unknown_name
from nnbackend.training.callback import Callback, Figures
from nnbackend.training.history import History
from nnbackend.training.monitor import Mode, Monitor

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential


class ModelCheckpoint(Callback):
    """Save the model after epochs, to resume training or to keep the best model.

    Args:
        path: the file. ``{epoch}`` in it is replaced by the epoch's number and ``{val_loss}``, for
            example, by that curve's value, written as in a format string:
            ``"e{epoch:03d}-{val_loss:.4f}.safetensors"``. A brace itself is written twice.
        monitor: a curve's name, to save only when it is better than at the last save; None always
            saves.
        every: number of epochs from one save to the next.
        mode: see ``EarlyStopping``.
    """

    runs_last = True
    on_rank_zero = True

    def __init__(
        self,
        path: PathLike,
        monitor: str | None = None,
        every: int = 1,
        mode: Mode = "auto",
    ) -> None:
        self.path = check_path("ModelCheckpoint.path", path)
        self._fields = _fields(self.path)
        self.monitor = None if monitor is None else Monitor(monitor, mode)
        self.every = check_size("ModelCheckpoint.every", every)

    def on_fit_begin(self, model: Sequential) -> None:
        example = self._path(model.epoch + 1, dict.fromkeys(self._fields, 0.0))
        folder = Path(example).absolute().parent
        if not folder.is_dir():
            raise DataError(f"the folder {folder} for checkpoints does not exist; make it first")
        try:
            check_writable(example)
        except OSError as error:
            raise DataError(f"checkpoints cannot be written: {error}") from error

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        if self.monitor is not None:
            self.monitor.value(figures)
        # what is not saved is not compared with
        if epoch % self.every == 0 and (self.monitor is None or self.monitor.improved(figures)):
            model.save(self._path(epoch, figures))
        return None

    def _path(self, epoch: int, figures: Figures) -> str:
        values: dict[str, Any] = {**figures, "epoch": epoch}
        for name in self._fields:
            if name not in values:
                raise unknown_name("a name in the checkpoint's path", name, values)
        try:
            return self.path.format(**values)
        except ValueError as error:
            raise DataError(f"the checkpoint's path {self.path!r}: {error}") from error

    def state(self) -> dict[str, Any]:
        return {} if self.monitor is None else self.monitor.state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        if self.monitor is not None and "best" in state and self.monitor.follows(state):
            self.monitor.set_state(state)


def _fields(path: str) -> list[str]:
    """Names that are replaced in a path."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(path) if name is not None]
    except ValueError as error:
        raise DataError(
            f"the checkpoint's path {path!r}: {error}; write a brace itself twice, {{{{ or }}}}"
        ) from error
    for name in names:
        if not name.isidentifier():
            raise DataError(
                f"the checkpoint's path {path!r} may have the names of curves and epoch in braces; "
                f"received {name!r}"
            )
    return names


class CSVLogger(Callback):
    """Write the figures after each epoch, a line each, in columns by their names.

    Figures that come later, such as those of validation in a second ``fit``, get columns of their
    own, which are empty in the lines before.

    Args:
        path: the file. Resumed training goes on after its line of the last epoch; new training
            overwrites it.
    """

    on_rank_zero = True

    def __init__(self, path: PathLike) -> None:
        self.path = Path(check_path("CSVLogger.path", path))
        self._columns: list[str] = []

    def on_fit_begin(self, model: Sequential) -> None:
        self._columns = []  # a file is looked at anew: others may have written to it
        try:
            check_writable(self.path)
        except OSError as error:
            raise DataError(f"the log cannot be written: {error}") from error
        self._lines(model.epoch + 1)

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        line = {"epoch": epoch, **figures}
        if line.keys() <= {*self._columns}:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(line)
            return None
        columns, before = self._lines(epoch)
        self._columns = [*columns, *(name for name in line if name not in columns)]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows([*before, line])
        write_atomically(self.path, text.getvalue().encode())
        return None

    def _lines(self, epoch: int) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and lines of the epochs before this one, from the file."""
        if epoch == 1 or not self.path.is_file():
            return [], []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                lines = list(reader)
                columns = list(reader.fieldnames or ())
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path} is no log of CSVLogger: {error}") from error
        if columns[:1] != ["epoch"]:
            raise DataError(f"{self.path} is no log of CSVLogger: its first column must be epoch")
        kept = [line for line in lines if _before(line["epoch"], epoch)]
        return columns, [{name: line[name] or "" for name in columns} for line in kept]


def _before(text: str, epoch: int) -> bool:
    return text.isdecimal() and int(text) < epoch
