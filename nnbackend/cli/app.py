"""The command line: train, evaluate, predict, summary, info, warmup, bench."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import nnbackend as nn
from nnbackend._files import write_atomically
from nnbackend.benchmark import report as bench_report
from nnbackend.benchmark.cases import CASES, OPERATIONS, choose
from nnbackend.cli import train_job as job
from nnbackend.errors import DataError, NNBackendError
from nnbackend.training.progress import figures_text

app = typer.Typer(
    name="nnbackend",
    help="Train dense neural networks and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
DEFAULTS = job.Settings()
KEYS = ", ".join(field.name for field in fields(job.Settings))
PICTURES = (".png", ".pdf", ".svg")
DATA_HELP = (
    f"a data set ({', '.join(job.BUILT_IN)}), a .csv, an .npz, an IDX file or folder (MNIST), "
    f"or a folder of PNG images in one folder for each class"
)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="a file written by train --save")]
BackendOption = Annotated[
    str | None,
    typer.Option(help="a name that nnbackend info lists, or auto; by default the best CPU backend"),
]


@contextmanager
def user_errors() -> Iterator[None]:
    """One clear message and exit code 1 for an error of the user's, 130 for Ctrl-C."""
    try:
        yield
    except (NNBackendError, OSError, ImportError, UnicodeError, MemoryError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None


@app.callback()
def _root() -> None:
    """Train dense neural networks and use them."""


def _default(name: str) -> Any:
    value = getattr(DEFAULTS, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@app.command()
def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    target: Annotated[
        str | None,
        typer.Option(help="the CSV's target column, by name or number", show_default="the last"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification, regression, or auto: text, and whole numbers with at most 20 "
            "distinct values, are classes",
            show_default=_default("task"),
        ),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="widths of the hidden layers, such as 128 or 128,64; 0 for none",
            show_default=_default("hidden"),
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="of the hidden layers", show_default=_default("activation")),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="passes over the data", show_default=_default("epochs")),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows of a step", show_default=_default("batch_size"))
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="highest learning rate", show_default="what suits the optimizer"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="of the learning rate: cosine (falls to 0) or constant",
            show_default=_default("schedule"),
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help=", ".join(job.LEARNING_RATES), show_default=_default("optimizer")),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="rate after each hidden layer", show_default=_default("dropout")),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="share of rows kept for validation", show_default=_default("validation")),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="same seed, same run", show_default=_default("seed"))
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 or float64", show_default=_default("dtype")),
    ] = None,
    backend: BackendOption = None,
    config: Annotated[
        Path | None,
        typer.Option(help=f"a TOML file of settings; the command line wins. Keys: {KEYS}"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="go on with this model up to --epochs in all; more epochs than at first "
            "stretch the cosine of the learning rate"
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="write the model here (.safetensors)")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture here (.png, .pdf)")] = None,
) -> None:
    """Train a network and say how good it is.

    Ctrl-C stops after the last finished epoch and still writes the model;
    --resume goes on from there as if nothing had happened.

    [bold]Examples[/bold]

      nnbackend train digits --save digits.safetensors --plot digits.png

      nnbackend train wine.csv --target quality --hidden 64,64 --epochs 100 --save wine.safetensors

      nnbackend train wine.csv --resume wine.safetensors --epochs 200 --save wine.safetensors

      nnbackend train spiral --hidden 64,64 --epochs 500 --lr 0.02

      nnbackend train sine --hidden 64,64 --activation tanh --epochs 200

      nnbackend train mnist/ --hidden 256 --dropout 0.2 --epochs 10
    """
    given = {
        "target": target, "task": task, "activation": activation, "epochs": epochs,
        "batch_size": batch_size, "lr": lr, "schedule": schedule, "optimizer": optimizer,
        "dropout": dropout, "validation": validation, "seed": seed, "dtype": dtype,
    }  # fmt: skip
    with user_errors():
        chosen = {} if config is None else job.read_config(config)
        chosen |= {name: value for name, value in given.items() if value is not None}
        if hidden is not None:
            chosen["hidden"] = job.parse_widths(hidden)
        settings = job.Settings(**chosen)
        _check_targets(save, plot)
        _check_picture(plot)
        if resume is None:
            dataset = job.load_data(data, settings.seed, settings.target, settings.task)
            model = job.build_model(settings, dataset, backend)
        else:
            settings, model = job.resume(resume, chosen, backend)
            dataset = job.load_data(data, settings.seed, settings.target, settings.task)
            dataset = job.check_resumed_data(model, dataset, resume)
        typer.echo(job.describe(dataset, settings.validation))
        model.summary()
        history = job.train(settings, model, dataset)
        typer.echo(job.result_text(history))
        if save is not None:
            model.save(save)
            typer.echo(f"model   {save}")
        if plot is not None and model.history.epochs:
            _save_picture(job.picture(model, dataset), plot)
            typer.echo(f"picture {plot}")
        if history.stopped == "interrupted":
            raise typer.Exit(130)


def _check_picture(path: Path | None) -> None:
    """Find out before a long job that its picture could not be made."""
    if path is None:
        return
    nn.plot.require_matplotlib()
    if path.suffix not in PICTURES:
        raise DataError(f"--plot takes a file ending in {', '.join(PICTURES)}; received {path}")


def _save_picture(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=path.suffix[1:])
    write_atomically(path, content.getvalue())


def _check_targets(*targets: Path | None) -> None:
    """Find out before a long job that its results could not be written."""
    for target in targets:
        if target is None:
            continue
        folder = target.absolute().parent
        if not folder.is_dir():
            raise DataError(
                f"the folder {folder} does not exist; make it first, or choose another file"
            )
        if target.is_dir():
            raise DataError(f"{target} is a folder; name a file in it")
        if not os.access(folder, os.W_OK):
            raise DataError(f"the folder {folder} cannot be written to; choose another one")


@app.command()
def evaluate(
    model: ModelFile,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    backend: BackendOption = None,
) -> None:
    """Loss and metrics of a trained model on data with targets.

    [bold]Example[/bold]

      nnbackend evaluate wine.safetensors wine-test.csv

    Of a folder in MNIST's layout the test images (t10k) are taken, if there are any.
    """
    with user_errors():
        trained = nn.load(model, backend)
        dataset = job.data_for(trained, data, with_target=True)
        for name, value in trained.evaluate(dataset.x, dataset.y).items():
            typer.echo(f"{name:10} {value:.6g}")
        typer.echo(f"{'rows':10} {len(dataset.x)}")
        if job.test_images(data) != data:
            typer.echo(f"{'from':10} {job.test_images(data)}")


@app.command()
def predict(
    model: ModelFile,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[Path, typer.Option(help="write predictions here, a line a row (.csv)")],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="also a column for each class")
    ] = False,
    backend: BackendOption = None,
) -> None:
    """Predictions for data, with or without targets; class names are restored.

    [bold]Examples[/bold]

      nnbackend predict wine.safetensors new-wines.csv --out predictions.csv

      nnbackend predict digits.safetensors digits --out predictions.csv --probabilities
    """
    with user_errors():
        _check_targets(out)
        trained = nn.load(model, backend)
        dataset = job.data_for(trained, data, with_target=False)
        classes = trained.info.get("class_names")
        header, columns = _predictions(trained, dataset.x, classes, probabilities)
        if dataset.row_names is not None:
            header, columns = ["file", *header], [list(dataset.row_names), *columns]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
        write_atomically(out, text.getvalue().encode())
        typer.echo(f"{len(dataset.x)} predictions written to {out}")


def _predictions(
    model: nn.Sequential, x: Any, classes: list[str] | None, probabilities: bool
) -> tuple[list[str], list[list[Any]]]:
    """Header and columns of the predictions' file."""
    name = model.info.get("target_name") or "prediction"
    if classes is None:
        if probabilities:
            raise DataError("--probabilities needs a model of classes; this one predicts numbers")
        values = model.predict(x)
        names = [name] if values.shape[1] == 1 else [f"{name}_{k}" for k in range(values.shape[1])]
        return names, [[f"{v:.8g}" for v in column] for column in values.T]
    shares = model.predict_proba(x)
    header, columns = [name], [[classes[k] for k in shares.argmax(axis=1)]]
    if probabilities:
        header += [f"p_{c}" for c in classes]
        columns += [[f"{v:.6g}" for v in column] for column in shares.T]
    return header, columns


@app.command()
def summary(model: ModelFile) -> None:
    """Layers, training and classes of a model file.

    [bold]Example[/bold]

      nnbackend summary digits.safetensors
    """
    with user_errors():
        trained = nn.load(model)
        trained.summary()
        last = trained.history.last()
        figures = figures_text(last)
        typer.echo(f"trained for {trained.epoch} epochs, {trained.step} steps, seed {trained.seed}")
        if figures:
            typer.echo(f"last epoch: {figures}")
        for key, label in (("class_names", "classes"), ("feature_names", "columns")):
            if trained.info.get(key):
                typer.echo(f"{label}: {', '.join(trained.info[key])}")


@app.command()
def info() -> None:
    """Show the backends: which can run here, which would be chosen, why the others can't.

    [bold]Example[/bold]

      NN_BACKEND=numpy nnbackend info
    """
    with user_errors():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        found = nn.available_backends()
        table = Table("backend", "devices", "state")
        for name, availability in found.items():
            ready = ", ".join(filter(None, ("ready", availability.detail)))
            state = ready if availability.ok else availability.reason
            # a command such as pip install "nnbackend[cuda12]" is no markup
            table.add_row(name, ", ".join(availability.devices) or "-", escape(state))
        console = Console()
        versions = f"NumPy {np.__version__}, Python {sys.version.split()[0]}"
        console.print(f"nnbackend {nn.__version__}, {versions}")
        console.print(table)
        chosen = nn.get_backend().device
        console.print(f"chosen now: [bold]{chosen}[/bold] (NN_BACKEND or --backend changes that)")


@app.command()
def warmup(
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64", show_default="both")
    ] = None,
    backend: Annotated[str, typer.Option(help="whose kernels: numba or cuda")] = "numba",
) -> None:
    """Compile a backend's kernels now, so that no later run has to.

    They are kept in a cache folder: of the user's, or where NUMBA_CACHE_DIR or
    CUPY_CACHE_DIR says. In the building of a container image, run this as the
    user, and with that variable, of later runs. Kernels for a GPU are compiled
    where that GPU is.

    [bold]Examples[/bold]

      nnbackend warmup

      NUMBA_CACHE_DIR=/opt/nnbackend nnbackend warmup --dtype float32

      nnbackend warmup --backend cuda
    """
    with user_errors():
        import time

        from nnbackend.cli.warmup import warm_up

        if dtype is not None and dtype not in ("float32", "float64"):
            raise DataError(f"--dtype is float32 or float64; received {dtype!r}")
        kept_in = nn.get_backend(backend).kept_in()
        if not kept_in:
            raise DataError(f"--backend is numba or cuda; {backend} has nothing to compile")
        start = time.perf_counter()
        warm_up(backend, ("float32", "float64") if dtype is None else (dtype,))
        typer.echo(f"ready in {time.perf_counter() - start:.1f} s; kept in {kept_in}")


@app.command()
def bench(
    backends: Annotated[
        str | None,
        typer.Option(help="such as numpy,numba", show_default="all that can run here"),
    ] = None,
    cases: Annotated[str | None, typer.Option(help=", ".join(CASES), show_default="all")] = None,
    operations: Annotated[
        str | None, typer.Option(help=", ".join(OPERATIONS), show_default="all")
    ] = None,
    rounds: Annotated[int, typer.Option(help="measurements whose median is shown")] = 5,
    seconds: Annotated[float, typer.Option(help="length of a measurement")] = 0.05,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="write all figures and the machine's description here"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture here (.png, .pdf)")] = None,
) -> None:
    """Measure the backends against each other, on networks from tiny to wide.

    "step" is one call of train_step, "epoch" a step inside a long fit.
    Measurements alternate between the backends. Close what else is running:
    one busy core is enough to spoil the figures.

    [bold]Examples[/bold]

      nnbackend bench --cases digits,mnist-128 --operations step,epoch

      nnbackend bench --backends numpy --rounds 11 --json bench.json --plot bench.png
    """
    with user_errors():
        _check_targets(json_file, plot)
        _check_picture(plot)
        ready = [name for name, found in nn.available_backends().items() if found.ok]
        results = bench_report.run(
            [CASES[name] for name in choose("case", cases, CASES)],
            choose("operation", operations, OPERATIONS),
            [nn.get_backend(name) for name in choose("backend", backends, ready, open_end=True)],
            rounds,
            seconds,
        )
        if json_file is not None:
            figures = bench_report.to_json(results, rounds, seconds)
            write_atomically(json_file, json.dumps(figures, indent=1).encode() + b"\n")
            typer.echo(f"figures {json_file}")
        if plot is not None:
            _save_picture(bench_report.picture(results), plot)
            typer.echo(f"picture {plot}")


def main() -> None:
    """Entry point; wrong options count as the user's error, exit code 1."""
    try:
        app()
    except SystemExit as stop:
        sys.exit(1 if stop.code == 2 else stop.code)


if __name__ == "__main__":
    main()
