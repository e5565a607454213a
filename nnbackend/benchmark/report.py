"""What is made of benchmark results: tables, a picture, a JSON file that names the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import check_number, check_size
from nnbackend.backends.contract import Backend
from nnbackend.benchmark.cases import CASES, Case
from nnbackend.benchmark.operations import OPERATIONS, Result, measure
from nnbackend.plot import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

#: Packages whose versions decide how fast the backends are.
PACKAGES = ("nnbackend", "numpy", "numba", "llvmlite", "scipy", "tbb", "threadpoolctl", "cupy")
#: Environment variables that decide how many threads run, and which code of a BLAS.
SPEED_VARIABLES = (
    "NN_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_NUM_THREADS",
    "MKL_ENABLE_INSTRUCTIONS",
)  # fmt: skip
#: Times that differ by more than this factor need a logarithmic axis.
LOGARITHMIC_FROM = 12
#: Each distinct in brightness, so that bars can be told apart in grey.
COLOURS = (
    "#08306b", "#e6842a", "#9ecae1", "#4d4d4d", "#b2df8a", "#c51b7d", "#dfc27d", "#35978f",
)  # fmt: skip


# -- the machine --------------------------------------------------------------------------------


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """What a time depends on: processor, cores, Python, packages, BLAS, date."""
    settings: Any = np.show_config(mode="dicts")
    blas = settings["Build Dependencies"]["blas"]
    return {
        "cpu": cpu_model(),
        "simd": settings["SIMD Extensions"].get("found", []),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "logical_cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(packages),
        "blas": f"{blas['name']} {blas.get('version', '')}".strip(),
        "environment": {k: os.environ[k] for k in SPEED_VARIABLES if k in os.environ},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """The processor's name as the system knows it."""
    description = Path("/proc/cpuinfo")
    if description.is_file():
        for line in description.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def machine_text(description: Mapping[str, Any]) -> str:
    """One line for above a table."""
    packages = description["packages"]
    names = [f"{name} {packages[name]}" for name in ("numpy", "numba") if name in packages]
    cores = description["cores"] or description["logical_cpus"]
    python = f"Python {description['python']}"
    return ", ".join([f"{description['cpu']}, {cores} cores", python, *names])


# -- running ------------------------------------------------------------------------------------


def run(
    cases: Sequence[Case],
    operations: Sequence[str],
    backends: Sequence[Backend],
    rounds: int,
    seconds: float,
) -> list[Result]:
    """Measure, printing a table as each case is done; a bar shows how far it is."""
    check_size("rounds", rounds)
    check_number("seconds", seconds, 0.0, low_open=True)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console()
    console.print(machine_text(machine()), highlight=False)
    console.print()
    results: list[Result] = []
    # a bar that redraws itself would take time from what is measured
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(),
        console=console, transient=True, auto_refresh=False,
    )  # fmt: skip
    with progress if console.is_terminal else nullcontext():
        bar = progress.add_task("", total=len(cases) * len(operations))
        for case in cases:
            found: list[Result] = []
            for operation in operations:
                progress.update(bar, description=f"{case.name}: {operation}")
                if console.is_terminal:
                    progress.refresh()
                found += measure(case, operation, backends, rounds, seconds)
                progress.advance(bar)
            console.print(case_table(found))
            results += found
    return results


# -- text ---------------------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    """Three digits and a unit: "0.94 us", "478 us", "4.84 ms", "1.20 s"."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < 999.5 * size or unit == "s":
            break
    return f"{three_digits(seconds / size)} {unit}"


def three_digits(value: float) -> str:
    """A number above 0 in three digits, without an exponent: 0.0123, 1.23, 12.3, 1,230."""
    if value >= 99.95:
        return f"{value:,.0f}"
    places = 2 if value >= 0.995 else 2 - int(np.floor(np.log10(value)))
    return f"{value:.1f}" if value >= 9.995 else f"{value:.{min(places, 4)}f}"


def case_table(results: Sequence[Result]) -> Table:
    """The results of one case, a line for each operation and backend; the last column says how
    many times as fast as NumPy."""
    from rich import box
    from rich.table import Table

    case = CASES[results[0].case]
    table = Table(
        title=f"[bold]{case.name}[/bold]  {describe(case)}", title_justify="left",
        title_style="", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name, width in (("operation", 9), ("backend", 7)):
        table.add_column(name, min_width=width, no_wrap=True)
    for name, width in (("median", 8), ("samples/s", 11), ("GFLOP/s", 8), ("vs numpy", 8)):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    before = None
    for result in results:
        reference = _numpy_seconds(results, result)
        ratio = "-" if reference is None else f"{three_digits(reference / result.seconds)} x"
        table.add_row(
            "" if result.operation == before else result.operation,
            result.backend,
            duration_text(result.seconds),
            f"{result.samples_per_second:,.0f}",
            three_digits(result.gflop_per_second),
            ratio,
        )
        before = result.operation
    return table


def describe(case: Case) -> str:
    """One line: sizes, and what differs from ReLU, softmax cross-entropy and Adam."""
    usual = Case(case.name, case.batch, case.widths)
    parts = [case.shape]
    for name in ("activation", "loss", "optimizer", "dropout"):
        value = getattr(case, name)
        if value != getattr(usual, name):
            text = str(value).replace("_", " ")
            parts.append(f"dropout {text}" if name == "dropout" else text)
    if case.batch_norm:
        parts.append("BatchNorm")
    return ", ".join(parts)


def _numpy_seconds(results: Iterable[Result], like: Result) -> float | None:
    for result in results:
        if (result.case, result.operation, result.backend) == (like.case, like.operation, "numpy"):
            return result.seconds
    return None


def to_json(results: Sequence[Result], rounds: int, seconds: float) -> dict[str, Any]:
    """The machine, the settings and all figures, as JSON can hold them."""
    records = []
    for result in results:
        reference = _numpy_seconds(results, result)
        times_numpy = None if reference is None else reference / result.seconds
        records.append({**asdict(result), "times_numpy": times_numpy})
    return {
        "machine": machine(),
        "settings": {"rounds": rounds, "seconds_per_round": seconds, "dtype": "float32"},
        "cases": {name: asdict(CASES[name]) for name in dict.fromkeys(r.case for r in results)},
        "results": records,
    }


# -- picture --------------------------------------------------------------------------------------


def picture(results: Sequence[Result]) -> Figure:
    """Time of a step by case and backend, an Axes for each operation; shorter is better."""
    operations = [name for name in OPERATIONS if any(r.operation == name for r in results)]
    cases = list(dict.fromkeys(r.case for r in results))
    backends = list(dict.fromkeys(r.backend for r in results))
    columns = min(3, len(operations))
    rows = -(-len(operations) // columns)
    height = 1.1 + 0.16 * len(cases) * (len(backends) + 1)
    figure = new_figure(5.6 * columns, height * rows)
    found = {(r.operation, r.backend, r.case): r.seconds for r in results}
    for number, operation in enumerate(operations):
        ax = figure.add_subplot(rows, columns, number + 1)
        series = {
            backend: [found.get((operation, backend, case)) for case in cases]
            for backend in backends
        }
        bars(ax, cases, series)
        ax.set_title((OPERATIONS[operation].__doc__ or operation).strip(), fontsize=10)
    figure.supxlabel("time of a step or call; shorter is better", fontsize=9)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right",
                  ncols=len(backends), frameon=False)  # fmt: skip
    return figure


def bars(
    ax: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colours: Mapping[str, str] | None = None,
) -> Axes:
    """Horizontal bars of seconds, each with its time written beside it; the axis is logarithmic
    where the times differ much.

    Args:
        groups: from top to bottom.
        series: label -> seconds for each group; None leaves a gap.
        colours: label -> colour, where the usual ones do not suit.
    """
    thickness = 0.84 / len(series)
    known = [s for values in series.values() for s in values if s is not None]
    logarithmic = max(known) > LOGARITHMIC_FROM * min(known)
    low = min(known) / 2 if logarithmic else 0.0
    for number, (label, values) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * thickness
        colour = (colours or {}).get(label, COLOURS[number % len(COLOURS)])
        places = [k + offset for k, value in enumerate(values) if value is not None]
        times = [value for value in values if value is not None]
        ax.barh(places, [t - low for t in times], thickness * 0.92, left=low, color=colour,
                label=label)  # fmt: skip
        for place, seconds in zip(places, times, strict=True):
            ax.annotate(
                duration_text(seconds), (seconds, place), (3, 0), textcoords="offset points",
                va="center", fontsize=6.5,
            )  # fmt: skip
    # room for the time beside the longest bar
    if logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(low, max(known) * (max(known) / low) ** 0.18)
        ax.set_xlabel("logarithmic", loc="right", fontsize=7, color="0.4", labelpad=1)
    else:
        ax.set_xlim(0, max(known) * 1.18)
        ax.locator_params(axis="x", nbins=5)
    ax.set_yticks(range(len(groups)), list(groups), fontsize=8)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.xaxis.set_major_formatter(lambda seconds, _: _tick_text(seconds))
    ax.xaxis.set_minor_formatter(lambda seconds, _: "")
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x", color="0.9", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    return ax


def _tick_text(seconds: float) -> str:
    """A round time, as short as can be: "0", "20 us", "1 s"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.999 * size or unit == "us":
            break
    return f"{seconds / size:g} {unit}" if seconds else "0"
