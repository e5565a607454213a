"""Rounds that alternate between the systems, after a check that they all compute the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnbackend.benchmark.cases import Case
from peers import PRECISION_VARIABLE, TRAINING
from peers.ours import driven_values_of, gradient_values_of, losses_of, model_of
from peers.pool import Pool
from peers.system import CHECKED_ROWS, Material

#: Kinds that update the parameters.
UPDATING = (*TRAINING, "driven", "own-loss")
#: Largest relative difference of a first loss or an output, and of a loss after updates, which
#: also takes in that scikit-learn adds Adam's epsilon before the bias correction.
SAME, SAME_AFTER_UPDATES = 1e-4, 1e-3
#: How many times as much where products round their numbers to ten bits of mantissa.
ROUNDED = 50.0
#: A slow case gets fewer rounds, but as many as this, once it has taken so long.
FEWEST_ROUNDS, PATIENCE_SECONDS = 9, 60.0


@dataclass
class Cell:
    """One system's figure for one case.

    Attributes:
        seconds: median of ``rounds``, each the seconds of a step or call; None without a figure.
        note: how it was done, where there was a choice.
        problem: why there is no figure.
        failed: the problem is a mistake, and not a lack.
    """

    kind: str
    case: str
    system: str
    seconds: float | None = None
    rounds: list[float] = field(default_factory=list)
    note: str = ""
    problem: str = ""
    failed: bool = False


def reference_values(kind: str, case: Case, material: Material) -> np.ndarray:
    """Losses or outputs in double precision."""
    model = model_of(case, material, "numpy", "float64", dropout=False)
    if kind in (*TRAINING, "own-loss"):  # which is the mean squared error
        return np.array(losses_of(model, case, material))
    if kind == "driven":
        return np.array(driven_values_of(model, case, material))
    if kind == "gradient":
        return np.array(gradient_values_of(model, case, material))
    return model.predict(material.x[:CHECKED_ROWS]).ravel()


def difference(
    kind: str, values: Sequence[float], expected: np.ndarray, precision: str = "fp32"
) -> str:
    """What differs from the reference; empty where nothing does."""
    if not len(values):  # the bare products compute no loss
        return ""
    if len(values) != len(expected):
        return f"{len(values)} values instead of {len(expected)}"
    for k, (value, right) in enumerate(zip(values, expected, strict=True)):
        tolerance = SAME_AFTER_UPDATES if kind in UPDATING and k else SAME
        tolerance *= 1.0 if precision == "fp32" else ROUNDED
        if not abs(value - right) <= tolerance * max(1.0, abs(right)):
            what = f"loss after {k} updates" if kind in UPDATING else f"output {k}"
            return f"{what} is {value:.6g}, not {right:.6g}"
    return ""


def measure(
    pool: Pool,
    kind: str,
    case: Case,
    folder: Path,
    rounds: int,
    seconds: float,
    show: Callable[[str], None],
) -> list[Cell]:
    """Figures of all systems for one case.

    Args:
        kind: of TRAINING, INFERENCE or DRIVEN.
        folder: where the material for the workers is left for a while.
        seconds: length of a round.
        show: told what is going on, between the rounds.
    """
    material = Material.make(case, kind)
    path = folder / "material.npz"
    material.save(path)
    expected = reference_values(kind, case, material)
    cells = [Cell(kind, case.name, name) for name in (*pool.workers, *pool.missing)]
    counts: dict[str, int] = {}
    for cell in cells:
        if cell.system in pool.missing:
            cell.problem = "not installed"
            continue
        show(f"{cell.system} gets ready")
        worker = pool.workers[cell.system]
        answer = worker.ask(do="prepare", kind=kind, case=case.name, material=str(path))
        if "values" in answer:
            cell.note = answer["note"]
            precision = pool.environment[PRECISION_VARIABLE]
            cell.problem = difference(kind, answer["values"], expected, precision)
        if not cell.problem and "values" in answer:
            answer = worker.ask(do="count", seconds=seconds)
            counts[cell.system] = answer.get("count", 0)
        cell.problem = cell.problem or answer.get("error", answer.get("unsupported", ""))
        cell.failed = bool(cell.problem) and "unsupported" not in answer
    timed = [cell for cell in cells if not cell.problem]
    start = time.monotonic()
    for number in range(rounds if timed else 0):
        if number >= FEWEST_ROUNDS and time.monotonic() - start > PATIENCE_SECONDS:
            break
        show(f"round {number + 1} of {rounds}")
        turn = number % len(timed)  # nobody always comes after the same one
        for cell in timed[turn:] + timed[:turn]:
            if not cell.failed:
                answer = pool.workers[cell.system].ask(do="round", count=counts[cell.system])
                cell.problem = answer.get("error", "")
                cell.failed = bool(cell.problem)
                cell.rounds += [answer["seconds"]] if not cell.failed else []
    for cell in [cell for cell in timed if not cell.failed]:
        cell.seconds = statistics.median(cell.rounds)
    return cells
