"""Callbacks that hand the figures to programs that track experiments."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnbackend._checks import check_path, check_size
from nnbackend.errors import DataError
from nnbackend.training.callback import Callback, Figures
from nnbackend.training.history import History

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential

#: Longest value of a parameter that MLflow takes.
MOST_CHARACTERS = 500


class TensorBoard(Callback):
    """Write the figures of each epoch for TensorBoard: ``tensorboard --logdir folder``.

    Needs tensorboardX: ``pip install "nnbackend[tensorboard]"``.

    Args:
        folder: for the files of this training; one for each, beside each other, can be compared.
        histograms: number of epochs from one set of histograms of all parameters to the next; None
            for none.
    """

    on_rank_zero = True

    def __init__(self, folder: str | os.PathLike[str], histograms: int | None = None) -> None:
        self.folder = check_path("TensorBoard.folder", folder)
        self.histograms = (
            None if histograms is None else check_size("TensorBoard.histograms", histograms)
        )
        self._writer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_writer": None}

    def on_fit_begin(self, model: Sequential) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'TensorBoard needs tensorboardX: pip install "nnbackend[tensorboard]"'
            ) from error
        try:
            # its own name has the time in seconds alone, and would be written over
            suffix = f".{uuid.uuid4().hex[:12]}"
            self._writer = SummaryWriter(str(self.folder), filename_suffix=suffix)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written for TensorBoard: {error}") from error

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        for name, value in figures.items():
            # "val_" curves are drawn beside their own
            kind, own = ("validation", name[4:]) if name.startswith("val_") else ("training", name)
            self._writer.add_scalar(f"{own}/{kind}", value, epoch)
        if self.histograms is not None and epoch % self.histograms == 0:
            for name, array in model.arrays().items():
                self._writer.add_histogram(name, array, epoch)
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        self._close()

    def on_fit_failed(self, model: Sequential, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class MLflow(Callback):
    """Log settings and the figures of each epoch to MLflow: to its active run, or to a new one.

    Needs MLflow: ``pip install "nnbackend[mlflow]"``.

    Args:
        run_name: of a new run.
        log_model: whether the model's file becomes an artifact of the run at the end.
    """

    on_rank_zero = True

    def __init__(self, run_name: str | None = None, log_model: bool = False) -> None:
        self.run_name, self.log_model = run_name, log_model
        #: the run that it started
        self._own_run: str | None = None

    def on_fit_begin(self, model: Sequential) -> None:
        mlflow = _mlflow()
        self._own_run = None
        if mlflow.active_run() is None:
            self._own_run = mlflow.start_run(run_name=self.run_name).info.run_id
        try:
            known = mlflow.get_run(mlflow.active_run().info.run_id).data.params
            for name, value in settings_of(model).items():
                if name not in known:  # a setting is said once
                    mlflow.log_param(name, str(value)[:MOST_CHARACTERS])
        except BaseException:
            self._end("FAILED")
            raise

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        _mlflow().log_metrics({name: float(value) for name, value in figures.items()}, step=epoch)
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        mlflow = _mlflow()
        try:
            if self.log_model:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "model.safetensors"
                    model.save(path)
                    mlflow.log_artifact(str(path))
        except BaseException:
            self._end("FAILED")
            raise
        self._end("FINISHED")

    def on_fit_failed(self, model: Sequential, error: BaseException) -> None:
        self._end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _end(self, status: str) -> None:
        mlflow = _mlflow()
        active = mlflow.active_run()
        if active is not None and active.info.run_id == self._own_run:
            mlflow.end_run(status)
        self._own_run = None


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise ImportError('MLflow is not installed: pip install "nnbackend[mlflow]"') from error
    return mlflow


def settings_of(model: Sequential) -> Mapping[str, Any]:
    """What a run is told apart by."""
    optimizer = model.optimizer.config() if model.is_compiled else {}
    settings = {f"optimizer.{name}": value for name, value in optimizer.items()}
    layers = " ".join(
        f"{type(layer).__name__}({layer.n_inputs}, {layer.n_outputs})" for layer in model.layers
    )
    return {
        "layers": layers, "n_parameters": model.n_parameters, "dtype": model.dtype,
        "seed": model.seed, "backend": model.backend.device, **settings,
    }  # fmt: skip
