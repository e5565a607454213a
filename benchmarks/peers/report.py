"""What is made of a comparison: tables, a JSON file, a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table

from nnbackend.benchmark.cases import CASES
from nnbackend.benchmark.report import bars, duration_text, machine, machine_text, three_digits
from nnbackend.plot import new_figure
from peers import TRAINING
from peers.verdicts import PROCESS, Comparison, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "step": "step: a Python call for each training step",
    "epoch": "epoch: a step inside one call of fit over many epochs of 32 batches",
    "driven": "driven: forward, back from a gradient that the caller has, and an update",
    "own-loss": "own-loss: a training step with a loss of the caller's own",
    "gradient": "gradient: the loss of a batch and its gradient",
    "inference": "inference: model(x) of one row",
    "predict": "predict: 100,000 rows",
    PROCESS: "process: nnbackend train digits, imports included",
}
#: Narrower terminals see the best peer instead of all of them.
WIDE_ENOUGH = 112
HEADINGS = {
    "cuda-products": "cuda-\nproducts", "torch-cuda": "torch",
    "torch-reduce-overhead": "torch\nreduce-\noverhead", "torch-graph": "torch\ngraph",
    "jax-cuda": "jax", "torch-compiled": "torch\ncompiled", "scikit-learn": "scikit-\nlearn",
    "onnxruntime": "onnx-\nruntime",
}  # fmt: skip
ABSENT = "\n[dim]not in-\nstalled[/dim]"
COLOURS = {
    "products": "#bdbdbd", "numba": "#08306b", "numpy": "#6baed6", "torch": "#e6842a",
    "torch-compiled": "#fdd0a2", "jax": "#35978f", "scikit-learn": "#b2df8a",
    "onnxruntime": "#c51b7d", "cuda-products": "#bdbdbd", "cuda": "#08306b",
    "torch-cuda": "#e6842a", "torch-reduce-overhead": "#fdd0a2", "torch-graph": "#b2df8a",
    "jax-cuda": "#35978f",
}  # fmt: skip

#: What systems are called in a picture, where their names do not say it.
LEGEND = {"products": "matrix products alone", "cuda-products": "matrix products alone"}
#: Characters that fit beside each other above the panels of a row.
TITLE_WIDTH = 110


def shown_systems(comparison: Comparison, kind: str) -> list[str]:
    """Systems with figures of this kind, and those that would have some were they installed."""
    return [
        name
        for name in comparison.field.systems
        if any(
            c.kind == kind and c.system == name and (c.seconds is not None or not_installed(c))
            for c in comparison.cells
        )
    ]


def not_installed(cell: Any) -> bool:
    return bool(cell.problem == "not installed")


def kind_table(comparison: Comparison, kind: str, width: int) -> Group:
    """A title, and a line for each case with the ratio of ``comparison.ours`` to the best peer."""
    cases, wide = comparison.cases(kind), width >= WIDE_ENOUGH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("case", no_wrap=True)
    columns: dict[str, list[str]] = {}
    absent = {c.system for c in comparison.cells if c.kind == kind and not_installed(c)}
    for name in shown_systems(comparison, kind):
        if wide or name == comparison.ours:
            heading = HEADINGS.get(name, name)
            heading += ABSENT if name in absent else ""
            columns[heading] = [_time(comparison.seconds(kind, case, name)) for case in cases]
    if not wide:
        columns["best peer"] = [_best_peer(comparison, kind, case) for case in cases]
    columns["ratio"] = [_ratio(comparison, kind, case) for case in cases]
    targets = [comparison.target(kind, case) for case in cases]
    columns["target"] = ["-" if target is None else f"{target:g}" for target in targets]
    columns[f"{comparison.ours} /\n{comparison.field.floor}"] = [
        _number(comparison.floors(kind, case)) for case in cases
    ]
    columns = {k: values for k, values in columns.items() if ABSENT in k or {*values} != {"-"}}
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for case, *values in zip(cases, *columns.values(), strict=True):
        table.add_row(case, *values)
    return Group(f"[bold]{TITLES[kind]}[/bold]", table)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration_text(seconds)


def _number(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


def _best_peer(comparison: Comparison, kind: str, case: str) -> str:
    peer = comparison.best_peer(kind, case)
    return "-" if peer is None else f"{peer} {_time(comparison.seconds(kind, case, peer))}"


def _ratio(comparison: Comparison, kind: str, case: str) -> str:
    """Green where the target is reached."""
    ratio, target = comparison.ratio(kind, case), comparison.target(kind, case)
    if ratio is None or target is None:
        return _number(ratio)
    reached = Verdict.at_least("", ratio, target).reached
    return f"[{'green' if reached else 'red'}]{three_digits(ratio)}[/]"


def print_summary(comparison: Comparison, missing: Mapping[str, str], console: Console) -> None:
    """What stands below the tables: what is missing or failed, and the targets."""
    if comparison.ours is None:
        console.print("None of our backends was measured, so there are no ratios.")
    else:
        console.print(
            f"ratio: the best peer's time over that of {comparison.ours}, median over the rounds; "
            "above 1 we are faster",
            style="dim",
        )
    for kind, mean in means(comparison).items():
        console.print(f"{kind}: geometric mean of all ratios {three_digits(mean)}", style="dim")
    for name, reason in missing.items():
        console.print(f"not installed: {name}: {reason}", highlight=False, markup=False)
    for cell in comparison.cells:
        if cell.failed:
            console.print(f"failed: {cell.system}, {cell.kind} {cell.case}: {cell.problem}",
                          style="red", highlight=False, markup=False)  # fmt: skip
    verdicts = comparison.verdicts()
    if verdicts and comparison.ours is not None:
        console.print(verdict_table(verdicts, comparison.ours))
        reached = sum(v.reached for v in verdicts)
        console.print(f"{reached} of {len(verdicts)} targets reached")


def means(comparison: Comparison) -> dict[str, float]:
    """Geometric means of the ratios of all cases, those without targets too."""
    found = {kind: comparison.mean(kind, comparison.cases(kind)) for kind in TRAINING}
    return {kind: mean for kind, mean in found.items() if mean is not None}


def verdict_table(verdicts: Iterable[Verdict], ours: str) -> Table:
    table = Table("", "measured", "target", "", title=f"[bold]Targets, for {ours}[/bold]",
                  title_justify="left", title_style="", box=box.SIMPLE_HEAD,
                  pad_edge=False)  # fmt: skip
    for column in (1, 2):
        table.columns[column].justify = "right"
    for verdict in verdicts:
        state = "[green]reached[/]" if verdict.reached else "[red]missed[/]"
        table.add_row(verdict.what, three_digits(verdict.measured), f"{verdict.target:g}", state)
    return table


def to_json(
    comparison: Comparison,
    packages: Mapping[str, str],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The machine, the settings, every round of every system, ratios and targets."""
    ratios = [
        {
            "kind": kind,
            "case": case,
            "best_peer": comparison.best_peer(kind, case),
            "ratio": comparison.ratio(kind, case),
            "target": comparison.target(kind, case),
            "times_products": comparison.floors(kind, case),
        }
        for kind in comparison.kinds()
        for case in comparison.cases(kind)
    ]
    return {
        "machine": {**machine(), "packages": dict(packages)},
        "settings": dict(settings),
        "not_installed": dict(missing),
        "cases": {name: asdict(case) for name, case in CASES.items()},
        "ours": comparison.ours,
        "ratios": ratios,
        "means": means(comparison),
        "targets": [asdict(verdict) for verdict in comparison.verdicts()],
        "results": [asdict(cell) for cell in comparison.cells],
    }


def picture(comparison: Comparison, description: Mapping[str, Any]) -> Figure:
    """Times by case and system: the training kinds side by side above the others."""
    kinds = [k for k in comparison.kinds() if any(f[0] == k for f in comparison.found)]
    tall = [k for k in kinds if len(comparison.cases(k)) > 3]
    short = [k for k in kinds if k not in tall]
    heights = [_height(comparison, group) for group in (tall, short) if group]
    figure = new_figure(13.0, sum(heights) + 0.7)
    bands = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for band, group in zip(bands, [group for group in (tall, short) if group], strict=True):
        for number, kind in enumerate(group):
            ax = band.add_subplot(1, len(group), number + 1)
            draw_kind(ax, comparison, kind)
            ax.set_title(fill(TITLES[kind], TITLE_WIDTH // len(group)), fontsize=10)
    handles: dict[str, Any] = {}
    for band in bands:
        for ax in band.axes:
            handles |= {label: h for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [name for name in comparison.field.systems if name in handles]
    bands[0].legend(
        [handles[name] for name in order], [LEGEND.get(name, name) for name in order],
        loc="outside upper center", ncols=len(order), frameon=False,
    )  # fmt: skip
    where = ", ".join(filter(None, (description.get("device"), machine_text(description))))
    bands[-1].supxlabel(
        f"median time, shorter is better.   {where}",
        fontsize=9,
    )
    return figure


def _height(comparison: Comparison, kinds: Iterable[str]) -> float:
    """Inches for the largest of these panels."""
    lines = max(
        len(comparison.cases(kind)) * (len(shown_systems(comparison, kind)) + 1.2) for kind in kinds
    )
    return 1.0 + 0.115 * lines


def draw_kind(ax: Axes, comparison: Comparison, kind: str) -> None:
    cases = comparison.cases(kind)
    series = {
        name: [comparison.seconds(kind, case, name) for case in cases]
        for name in comparison.field.systems
        if any((kind, case, name) in comparison.found for case in cases)
    }
    bars(ax, cases, series, COLOURS)
