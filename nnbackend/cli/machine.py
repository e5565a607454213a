"""Commands about this machine: info, warmup, bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import nnbackend as nn
from nnbackend._files import write_atomically
from nnbackend.benchmark import report as bench_report
from nnbackend.benchmark.cases import CASES, choose
from nnbackend.benchmark.operations import OPERATIONS
from nnbackend.cli.common import app, check_picture, check_targets, save_picture, user_errors
from nnbackend.errors import DataError


@app.command()
def info() -> None:
    """Show the backends: which can run here, which would be chosen, why others cannot run.

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
    backend: Annotated[str, typer.Option(help="numba or cuda")] = "numba",
) -> None:
    """Compile a backend's kernels now, so that no later run has to.

    They are kept in the user's cache folder, or in the one that NUMBA_CACHE_DIR
    or CUPY_CACHE_DIR names. When you build a container image, run this as the
    same user, and with the same variable, as later runs. Kernels for a GPU must
    be compiled on a machine with that GPU.

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
    seconds: Annotated[float, typer.Option(help="length of each measurement")] = 0.05,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="write all figures and a description of the machine here"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture here (.png, .pdf)")] = None,
) -> None:
    """Compare the speed of the backends, on networks from tiny to wide.

    "step" is one call of train_step, "epoch" a step inside a long fit.
    Measurements alternate between the backends. Close other programs first:
    one busy core is enough to spoil the figures.

    [bold]Examples[/bold]

      nnbackend bench --cases digits,mnist-128 --operations step,epoch

      nnbackend bench --backends numpy --rounds 11 --json bench.json --plot bench.png
    """
    with user_errors():
        check_targets(json_file, plot)
        check_picture(plot)
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
            save_picture(bench_report.picture(results), plot)
            typer.echo(f"picture {plot}")
