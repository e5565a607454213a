"""The command line: ``nnbackend train``, ``nnbackend info``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import nnbackend as nn
from nnbackend import job
from nnbackend.errors import DataError, NNBackendError

app = typer.Typer(
    name="nnbackend",
    help="Train dense neural networks on NumPy, Numba or CUDA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@contextmanager
def user_errors() -> Iterator[None]:
    """One clear message and exit code 1 for an error of the user's, 130 for Ctrl-C."""
    try:
        yield
    except (NNBackendError, OSError, ImportError, UnicodeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None


@app.callback()
def _root() -> None:
    """Train dense neural networks on NumPy, Numba or CUDA."""


@app.command()
def train(
    data: Annotated[str, typer.Argument(help=f"a data set: {', '.join(job.DATASETS)}")],
    hidden: Annotated[
        str, typer.Option(help="widths of the hidden layers, such as 128 or 128,64; 0 for none")
    ] = "128",
    activation: Annotated[str, typer.Option(help="of the hidden layers")] = "relu",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 30,
    batch_size: Annotated[int, typer.Option(help="rows of a step")] = 32,
    lr: Annotated[
        float | None, typer.Option(help="learning rate; by default what suits the optimizer")
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="of the learning rate: cosine (falls to 0) or constant")
    ] = "cosine",
    optimizer: Annotated[str, typer.Option(help=", ".join(job.LEARNING_RATES))] = "adam",
    dropout: Annotated[float, typer.Option(help="rate after each hidden layer")] = 0.0,
    validation: Annotated[float, typer.Option(help="share of rows kept for validation")] = 0.2,
    seed: Annotated[int, typer.Option(help="same seed, same run")] = 1,
    backend: Annotated[
        str | None, typer.Option(help="numpy, cuda, cuda:1, auto, ...; see nnbackend info")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    save: Annotated[Path | None, typer.Option(help="write the model here (.safetensors)")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture here (.png, .pdf)")] = None,
) -> None:
    """Train a network and say how good it is.

    [bold]Examples[/bold]

      nnbackend train digits --save digits.safetensors --plot digits.png

      nnbackend train spiral --hidden 64,64 --epochs 200 --lr 0.02

      nnbackend train sine --hidden 64,64 --activation tanh
    """
    with user_errors():
        settings = job.Settings(
            hidden=job.parse_widths(hidden),
            activation=activation,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule=schedule,
            optimizer=optimizer,
            dropout=dropout,
            validation=validation,
            seed=seed,
            backend=backend,
            dtype=dtype,
        )
        _check_targets(save, plot)
        x, y = job.load_data(data, seed)
        model = job.build_model(settings, x, y)
        model.summary()
        history = job.train(settings, model, x, y)
        typer.echo(job.result_text(history))
        if save is not None:
            model.save(save)
            typer.echo(f"model   {save}")
        if plot is not None:
            job.picture(history).savefig(plot, dpi=130)
            typer.echo(f"picture {plot}")
        if history.stopped == "interrupted":
            raise typer.Exit(130)


def _check_targets(save: Path | None, plot: Path | None) -> None:
    """Find out before a long training that its results could not be written."""
    if plot is not None:
        nn.plot.require_matplotlib()
    for target in (save, plot):
        if target is None:
            continue
        folder = target.absolute().parent
        if not folder.is_dir():
            raise DataError(
                f"the folder {folder} does not exist; make it first, or choose another file"
            )
        if not os.access(folder, os.W_OK):
            raise DataError(f"the folder {folder} cannot be written to; choose another one")


@app.command()
def info() -> None:
    """Show the backends: which can run here, which would be chosen, why the others can't.

    [bold]Example[/bold]

      NN_BACKEND=numpy nnbackend info
    """
    with user_errors():
        from rich.console import Console
        from rich.table import Table

        found = nn.available_backends()
        table = Table("backend", "devices", "state")
        for name, availability in found.items():
            state = "ready" if availability.ok else availability.reason
            table.add_row(name, ", ".join(availability.devices) or "-", state)
        console = Console()
        console.print(f"nnbackend {nn.__version__}, NumPy {np.__version__}, "
                      f"Python {sys.version.split()[0]}")  # fmt: skip
        console.print(table)
        console.print(f"chosen now: [bold]{nn.get_backend().device}[/bold] "
                      f"(NN_BACKEND or --backend changes that)")  # fmt: skip


def main() -> None:
    """Entry point; wrong options count as the user's error, exit code 1."""
    try:
        app()
    except SystemExit as stop:
        sys.exit(1 if stop.code == 2 else stop.code)


if __name__ == "__main__":
    main()
