"""nnbackend against PyTorch, JAX, scikit-learn and ONNX Runtime, and against the bare products.

    python benchmarks/compare.py
    python benchmarks/compare.py --cases digits,mnist-128 --kinds step --systems numba,jax
    python benchmarks/compare.py --rounds 3 --seconds 0.05 --output quick
    python benchmarks/compare.py --backend cuda            # training, on a GPU

Each system runs in a worker process of its own; rounds alternate between them, and every worker
but the timed one is stopped. First all systems have to compute the same losses (or outputs) from
the same weights and batches; one that does not is no competitor, and the exit code is then 1.
The table, with every round, goes to benchmarks/results/ as JSON and as a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peers import CPU, FIELDS, PRECISION_VARIABLE, report
from peers.measuring import Cell, measure
from peers.pool import Pool
from peers.verdicts import PROCESS, Comparison
from peers.whole_process import SYSTEMS as PROCESS_SYSTEMS
from peers.whole_process import measure_processes
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from nnbackend._files import write_atomically
from nnbackend.benchmark.cases import CASES, choose
from nnbackend.benchmark.report import machine, machine_text
from nnbackend.errors import NNBackendError

RESULTS = Path(__file__).resolve().parent / "results"
#: What is measured, and of which cases.
KINDS: dict[str, tuple[str, ...]] = {
    "step": tuple(CASES),
    "epoch": tuple(CASES),
    "driven": tuple(CASES),
    "own-loss": ("tanh-mse", "control"),
    "gradient": ("chain-200", "chain-10k", "control"),
    "inference": ("digits", "mnist-128"),
    "predict": ("mnist-128",),
    PROCESS: (),
}
GPU_KINDS = ("step", "epoch")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}; default all")
    parser.add_argument(
        "--backend", choices=FIELDS, default="cpu", help="what to measure on, default %(default)s"
    )
    systems = "; ".join(f"{name}: {', '.join(field.systems)}" for name, field in FIELDS.items())
    parser.add_argument("--systems", help=f"of {systems}; default all")
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32"),
        default="fp32",
        help="of products on a GPU, the same for all systems, default %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="length of a round, default %(default)s"
    )
    parser.add_argument(
        "--process",
        action="store_true",
        help=f"measure whole processes only, the same as --kinds {PROCESS}",
    )
    parser.add_argument("--output", help="name in results/, default compare or compare-cuda")
    options = parser.parse_args(arguments)
    field = options.field = FIELDS[options.backend]
    try:
        options.cases = choose("case", options.cases, CASES)
        kinds = KINDS if field is CPU else GPU_KINDS
        options.kinds = choose("kind", PROCESS if options.process else options.kinds, kinds)
        options.systems = choose("system", options.systems, field.systems)
    except NNBackendError as error:
        parser.error(str(error))
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be at least 1, --seconds above 0")
    if field is CPU and options.precision != "fp32":
        parser.error("--precision is for --backend cuda")
    options.output = options.output or ("compare" if field is CPU else f"compare-{field.device}")
    return options


def needed_systems(options: argparse.Namespace) -> list[str]:
    """Those that have a part in one of the kinds."""
    if options.kinds == [PROCESS]:
        return [name for name in options.systems if name in PROCESS_SYSTEMS]
    return list(options.systems)


class Status:
    """One line of what is going on. It never redraws itself: that would take time from what is
    being measured."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"), TimeElapsedColumn(),
            console=console, transient=True, auto_refresh=False,
        )  # fmt: skip
        self.task = self.bar.add_task("")

    def __enter__(self) -> Status:
        self.context: Any = self.bar if self.console.is_terminal else nullcontext()
        self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)

    def show(self, text: str) -> None:
        if self.console.is_terminal:
            self.bar.update(self.task, description=text)
            self.bar.refresh()


def compare(options: argparse.Namespace, pool: Pool, console: Console) -> list[Cell]:
    """All cells that the options ask for; a table is printed when its kind is done, and what was
    found is written after each case, so that it is not lost if there is no time for the others."""
    cells: list[Cell] = []
    with Status(console) as status, tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            found: list[Cell] = []
            if kind == PROCESS:
                found = measure_processes(
                    options.systems, list(pool.missing), options.rounds,
                    lambda text: status.show(f"{PROCESS}: {text}"),
                )  # fmt: skip
            for name in KINDS[kind]:
                if name in options.cases:
                    found += measure(
                        pool, kind, CASES[name], Path(folder), options.rounds, options.seconds,
                        lambda text, at=f"{kind} {name}": status.show(f"{at}: {text}"),
                    )  # fmt: skip
                    write_figures(options, Comparison([*cells, *found], options.field), pool)
            cells += found
            if found:
                table = report.kind_table(Comparison(found, options.field), kind, console.width)
                console.print(table)
    return cells


def write_figures(
    options: argparse.Namespace, comparison: Comparison, pool: Pool
) -> tuple[Path, dict[str, Any]]:
    """The JSON file, and what is in it."""
    RESULTS.mkdir(exist_ok=True)
    settings = {
        "rounds": options.rounds,
        "seconds_per_round": options.seconds,
        "precision": options.precision,
    }
    content = report.to_json(comparison, pool.packages(), pool.missing, settings)
    content["machine"]["device"] = pool.device()
    path = RESULTS / f"{options.output}.json"
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")
    return path, content


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    console.print(machine_text(machine()), highlight=False)
    try:
        environment = {**options.field.environment, PRECISION_VARIABLE: options.precision}
        with Pool(needed_systems(options), environment) as pool:
            if pool.device():
                console.print(pool.device(), highlight=False)
            cells = compare(options, pool, console)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    comparison = Comparison(cells, options.field)
    report.print_summary(comparison, pool.missing, console)
    if not comparison.found:
        return 1  # nothing was measured that could be written
    path, content = write_figures(options, comparison, pool)
    picture = path.with_suffix(".png")
    report.picture(comparison, content["machine"]).savefig(picture, dpi=110)
    for written in (path, picture):
        console.print(f"written {written}", highlight=False)
    return 1 if any(cell.failed for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
