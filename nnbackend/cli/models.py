"""Commands about models: train, evaluate, predict, summary."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import nnbackend as nn
from nnbackend._files import write_atomically
from nnbackend.cli import job_data, ranks, report
from nnbackend.cli import settings as options
from nnbackend.cli import train_job as job
from nnbackend.cli.common import (
    app,
    check_picture,
    check_targets,
    save_picture,
    user_errors,
    write_bytes,
)
from nnbackend.cli.trained import load_trained, preparation_of
from nnbackend.errors import DataError
from nnbackend.losses import Loss
from nnbackend.metrics import METRICS
from nnbackend.training.progress import figures_text

DEFAULTS = options.Settings()
KEYS = ", ".join(field.name for field in fields(options.Settings))
DATA_HELP = (
    f"a data set ({', '.join(job_data.BUILT_IN)}), a table (.csv, .parquet ..., also .gz; - for "
    f"standard input), an .npz, an IDX file or folder (MNIST), "
    f"or a folder of images in one folder for each class"
)

LAYOUT = "of a table, if it is not detected right"
SepOption = Annotated[
    str | None, typer.Option(help=f"separator {LAYOUT}; a space means any number of spaces")
]
DecimalOption = Annotated[str | None, typer.Option(help=f"decimal mark {LAYOUT}: . or ,")]
EncodingOption = Annotated[str | None, typer.Option(help=f"encoding {LAYOUT}, such as latin-1")]
HeaderOption = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help=f"whether the first line names the columns {LAYOUT}"),
]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="a file written by train --save")]
BackendOption = Annotated[
    str | None,
    typer.Option(help="a name listed by nnbackend info, or auto; by default the best CPU backend"),
]


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
    features: Annotated[
        str | None,
        typer.Option(help="columns to learn from, such as age,height", show_default="all"),
    ] = None,
    drop: Annotated[
        str | None, typer.Option(help="columns to leave out", show_default="none")
    ] = None,
    sep: SepOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="widths of the hidden layers, such as 128 or 128,64; 0 for none",
            show_default=_default("hidden"),
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="function of the hidden layers", show_default=_default("activation")),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="passes over the data", show_default=f"about {options.STEPS:,} steps"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows per step", show_default=_default("batch_size"))
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="highest learning rate", show_default="depends on optimizer and data"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="learning rate over time: cosine (falls to 0) or constant",
            show_default=_default("schedule"),
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help=", ".join(options.LEARNING_RATES),
            show_default=f"{_default('optimizer')}; {options.FOR_TABLES['optimizer']} for tables",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="pulls the weights of adam and adamw towards 0, against overfitting",
            show_default=f"0.01 for adamw, {options.FOR_TABLES['weight_decay']} for tables",
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="rate after each hidden layer", show_default=_default("dropout")),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="share of rows kept for validation", show_default=_default("validation")),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="stop after this many epochs without improvement on the validation rows",
            show_default="never",
        ),
    ] = None,
    class_weight: Annotated[
        str | None,
        typer.Option(help="balanced, or weights such as no=1,yes=30", show_default="all equal"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help=f"figures after each epoch, of {', '.join(METRICS)}",
            show_default="accuracy or r2",
        ),
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
            help="continue training this model up to --epochs in total; more epochs than "
            "before stretch the cosine of the learning rate"
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="write the model here (.safetensors)")] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture here (.png, .pdf)")] = None,
) -> None:
    """Train a network and report how good it is.

    The weights of the epoch that was best on the validation rows are kept: the
    one with the lowest loss, or the best in the first of --metrics.
    Ctrl-C stops after the last finished epoch and still writes the model;
    --resume continues from there as if nothing had happened.

    [bold]Examples[/bold]

      nnbackend train digits --save digits.safetensors --plot digits.png

      nnbackend train wine.csv --target quality --hidden 64,64 --epochs 100 --save wine.safetensors

      nnbackend train wine.csv --resume wine.safetensors --epochs 200 --save wine.safetensors

      nnbackend train fraud.csv --class-weight balanced --metrics f1,auc --patience 20

      nnbackend train sine --hidden 64,64 --activation tanh --plot sine.png

      nnbackend train mnist/ --hidden 256 --dropout 0.2 --epochs 10

      mpiexec -n 4 nnbackend train mnist/ --save mnist.safetensors
    """
    asked = dict(locals())
    with user_errors():
        chosen = {} if config is None else options.read_config(config)
        chosen |= options.from_options(asked)
        settings = options.Settings(**chosen)
        comm = ranks.communicator(backend, data)
        check_targets(save, plot, inputs=(data, config))
        check_picture(plot)
        if resume is None:
            dataset = job_data.training_data(data, settings)
            settings = settings.with_epochs(len(dataset.x))
            if dataset.kind == "csv":
                settings = settings.for_tables(chosen)
            model = job.build_model(settings, dataset, backend)
        else:
            settings, model = job.resume(resume, chosen, backend)
            dataset = job_data.training_data(data, settings, model)
            dataset = job.check_resumed_data(model, dataset, resume)
        typer.echo(job_data.describe(dataset, settings.validation))
        if dataset.preparation is not None and resume is None:
            report.show_columns(dataset.preparation)
        model.summary()
        history = job.train(settings, model, dataset, comm)
        if not ranks.is_first(comm):
            return
        failed = None if save is None else job.save(model, save)  # before anything can go wrong
        if model.history.epochs:
            typer.echo(report.result_text(settings, model, dataset, history))
        if save is not None and failed is None:
            typer.echo(f"model   {save}")
        if plot is not None and model.history.epochs:
            save_picture(report.picture(settings, model, dataset), plot)
            typer.echo(f"picture {plot}")
        if failed is not None:
            raise failed
        if history.stopped == "interrupted":
            raise typer.Exit(130)


@app.command()
def evaluate(
    model: ModelFile,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    sep: SepOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    backend: BackendOption = None,
) -> None:
    """Compute the loss and metrics of a trained model on data with targets.

    [bold]Example[/bold]

      nnbackend evaluate wine.safetensors wine-test.csv

    From a folder in MNIST's layout, the test images (t10k) are used if there are any.
    """
    with user_errors():
        comm = ranks.communicator(backend, data)
        trained = load_trained(model, backend)
        layout = {"sep": sep, "decimal": decimal, "encoding": encoding, "header": header}
        dataset = job_data.data_for(trained, data, True, layout)
        figures = trained.evaluate(dataset.x, dataset.y, comm=comm)
        if isinstance(trained.loss, Loss) and dataset.y is not None:
            more = report.figures(trained, trained.predict(dataset.x, comm=comm), dataset.y)
            figures = more | figures
        for name, value in figures.items():
            typer.echo(f"{name:13} {value:.6g}")
        typer.echo(f"{'rows':13} {len(dataset.x)}")
        if job_data.test_images(data) != data:
            typer.echo(f"{'from':13} {job_data.test_images(data)}")


@app.command()
def predict(
    model: ModelFile,
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="write predictions here, one line per row (.csv); - or nothing prints them"
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="add a column for each class")
    ] = False,
    keep: Annotated[
        str | None, typer.Option(help="columns of the table to repeat, such as id")
    ] = None,
    sep: SepOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    backend: BackendOption = None,
) -> None:
    """Predict for data with or without targets; class names are restored.

    [bold]Examples[/bold]

      nnbackend predict wine.safetensors new-wines.csv --out predictions.csv

      zcat new-wines.csv.gz | nnbackend predict wine.safetensors - --keep id

      nnbackend predict digits.safetensors digits --probabilities | head
    """
    with user_errors():
        printed = out is None or str(out) == "-"
        check_targets(None if printed else out, inputs=(model, data))
        comm = ranks.communicator(backend, data)
        trained = load_trained(model, backend)
        layout = {"sep": sep, "decimal": decimal, "encoding": encoding, "header": header}
        kept = () if keep is None else options.parse_names(keep)
        dataset = job_data.data_for(trained, data, False, layout, kept)
        classes = trained.info.get("class_names")
        names, columns = _predictions(trained, dataset.x, classes, probabilities, comm)
        if not ranks.is_first(comm):
            return
        if dataset.row_names is not None:
            names, columns = ["file", *names], [list(dataset.row_names), *columns]
        names, columns = [*dataset.kept, *names], [*dataset.kept.values(), *columns]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(zip(*columns, strict=True))
        content = text.getvalue().encode()
        if out is None or printed:
            write_bytes(content)
        else:
            write_atomically(out, content)
            typer.echo(f"{len(dataset.x)} predictions written to {out}")


def _predictions(
    model: nn.Sequential,
    x: Any,
    classes: list[str] | None,
    probabilities: bool,
    comm: nn.distributed.Communicator | None,
) -> tuple[list[str], list[list[Any]]]:
    """Header and columns of the predictions file."""
    name = model.info.get("target_name") or "prediction"
    if classes is None:
        if probabilities:
            raise DataError("--probabilities needs a model of classes; this one predicts numbers")
        values = model.predict(x, comm=comm)
        names = [name] if values.shape[1] == 1 else [f"{name}_{k}" for k in range(values.shape[1])]
        plan = preparation_of(model)
        if plan is not None and plan.target_offset:
            shifted = values.astype(np.float64) + plan.target_offset
            return names, [[f"{v:.15g}" for v in column] for column in shifted.T]
        return names, [[f"{v:.8g}" for v in column] for column in values.T]
    shares = model.predict_proba(x, comm=comm)
    header, columns = [name], [[classes[k] for k in shares.argmax(axis=1)]]
    if probabilities:
        header += [f"p_{c}" for c in classes]
        columns += [[f"{v:.6g}" for v in column] for column in shares.T]
    return header, columns


@app.command()
def summary(model: ModelFile) -> None:
    """Show the layers, training and classes of a model file.

    [bold]Example[/bold]

      nnbackend summary digits.safetensors
    """
    with user_errors():
        trained = load_trained(model)
        trained.summary()
        last = trained.history.last()
        figures = figures_text(last)
        typer.echo(f"trained for {trained.epoch} epochs, {trained.step} steps, seed {trained.seed}")
        if figures:
            typer.echo(f"last epoch: {figures}")
        if trained.info.get("kept_epoch") is not None:
            typer.echo(f"the weights are those of epoch {trained.info['kept_epoch']}, the best one")
        for key, label in (("class_names", "classes"), ("feature_names", "columns")):
            if trained.info.get(key):
                typer.echo(f"{label}: {', '.join(trained.info[key])}")
