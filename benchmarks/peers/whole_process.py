"""Whole processes, imports included: ``nnbackend train digits`` and the same job in PyTorch."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nnbackend
from peers import CPU
from peers.measuring import Cell
from peers.verdicts import PROCESS

#: The systems that have the job.
SYSTEMS = (*CPU.ours, "torch")
EPOCHS = 30
OUR_JOB = [sys.executable, "-m", "nnbackend.cli", "train", "digits", "--epochs", str(EPOCHS)]
TORCH_JOB = [
    sys.executable,
    str(Path(__file__).with_name("torch_digits.py")),
    str(Path(nnbackend.__file__).with_name("data") / "digits.npz"),
]


def run_once(system: str) -> tuple[float, str]:
    """Seconds of one process, and the last line of its complaint if it failed."""
    ours = system in CPU.ours
    environment = {**os.environ, **({"NN_BACKEND": system} if ours else {})}
    # an installed package's bytecode is kept, that of a checkout too unless this forbids it
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    done = subprocess.run(
        OUR_JOB if ours else TORCH_JOB, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return seconds, "" if done.returncode == 0 else lines[-1]


def measure_processes(
    systems: Sequence[str], missing: Sequence[str], rounds: int, show: Callable[[str], None]
) -> list[Cell]:
    """Alternating runs of those systems that have the job; a first run of each fills the caches
    and does not count."""
    cells = [Cell(PROCESS, "digits", name) for name in SYSTEMS if name in systems]
    for cell in cells:
        if cell.system in missing:
            cell.problem = "not installed"
            continue
        show(f"{cell.system} fills its caches")
        _, cell.problem = run_once(cell.system)
        cell.failed = bool(cell.problem)
    timed = [cell for cell in cells if not cell.problem]
    for number in range(rounds):
        show(f"round {number + 1} of {rounds}")
        for cell in timed:
            cell.rounds.append(run_once(cell.system)[0])
    for cell in timed:
        cell.seconds = statistics.median(cell.rounds)
    return cells
