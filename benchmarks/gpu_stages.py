"""What only a machine with an NVIDIA GPU can show, in stages that each fit into a few minutes.

    bash benchmarks/gpu_check.sh                        # everything, in an environment of its own
    bash benchmarks/gpu_check.sh --here first           # one stage, with the Python that is there
    bash benchmarks/gpu_check.sh --here first:kernels fast:limits    # parts of stages
    bash benchmarks/gpu_check.sh --list

A stage goes on after a failure; the parts of "right" and "memory", which time nothing, run side by
side. It says in at most 100 lines what failed and the last lines of why,
and leaves benchmarks/results/gpu/STAGE.json and STAGE.txt, the latter with all that was printed.
Figures go to benchmarks/results/compare-cuda*.json and gpu-limits.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
#: Lines that a stage may print, those that a failed part may always have, and how wide they may be.
MOST_LINES, FEWEST, WIDTH = 100, 6, 300
#: Seconds between the request to end and the end.
GRACE = 5.0
PYTHON = sys.executable


@dataclass(frozen=True)
class Part:
    """A command with a time limit."""

    name: str
    seconds: float
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def script(name: str, seconds: float, *arguments: str) -> Part:
    return Part(name, seconds, (PYTHON, *arguments))


def suite(name: str, seconds: float, *arguments: str) -> Part:
    """Tests of the CUDA backend. The test that hangs is the last one that the report names."""
    options = ("-m", "gpu", "-v", "-v", "--tb=short", "-rfE", "--maxfail=8")
    options += (
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        "-o",
        f"faulthandler_timeout={seconds * 0.8:g}",
    )
    command = (PYTHON, "-m", "pytest", *options, *arguments)
    return Part(name, seconds, command, {"NN_TEST_BACKENDS": "cuda"})


def compare(name: str, seconds: float, *arguments: str) -> Part:
    options = ("--backend", "cuda", "--rounds", "7", "--seconds", "0.04", *arguments)
    return script(name, seconds, "benchmarks/compare.py", *options)


#: Of the files of a checkout, not of a backend.
PACKAGE_TESTS = "tests/test_package.py"
GPU_TESTS, GOLDEN_TESTS = "tests/backends/cuda/test_gpu.py", "tests/model/test_golden.py"
ESTIMATOR_TESTS = "tests/estimators"
CONTRACT_TESTS = ("tests/backends/test_conformance.py", "tests/layers/test_gradients.py")
STAGES: dict[str, tuple[Part, ...]] = {
    "first": (
        Part("driver", 5, ("nvidia-smi",)),
        script("info", 15, "-m", "nnbackend.cli", "info"),
        suite("kernels", 60, f"{GPU_TESTS}::TestKernels"),
        suite("products", 15, f"{GPU_TESTS}::TestProducts"),
        suite("graphs", 15, f"{GPU_TESTS}::TestGraphs"),
        suite("training", 25, f"{GPU_TESTS}::TestTraining"),
        suite("ranks", 15, f"{GPU_TESTS}::TestRanks"),
    ),
    "right": (
        suite("contract", 90, *CONTRACT_TESTS),
        suite("golden", 100, GOLDEN_TESTS),
        suite("estimators", 120, ESTIMATOR_TESTS),
        suite("models", 120, "tests", *(f"--ignore={path}" for path in
              (GPU_TESTS, GOLDEN_TESTS, ESTIMATOR_TESTS, PACKAGE_TESTS, *CONTRACT_TESTS))),
        suite("data", 60, f"{GPU_TESTS}::TestData"),
    ),
    "memory": (
        suite("growth", 60, GPU_TESTS, "-k", "memory_stays"),
        suite("memcheck", 90, GPU_TESTS, "-k", "sanitizer and memcheck"),
        suite("racecheck", 90, GPU_TESTS, "-k", "float32 and (racecheck or synccheck)"),
    ),
    "fast": (
        script("limits", 60, "benchmarks/gpu_limits.py"),
        compare("compare", 180, "--systems", "cuda-products,cuda,torch-cuda,torch-graph,jax-cuda"),
        # it takes half a minute to compile for each case
        compare("reduce-overhead", 60, "--systems", "cuda,torch-reduce-overhead", "--kinds", "step",
                "--cases", "digits", "--output", "compare-cuda-reduce-overhead"),
    ),
}  # fmt: skip
#: Stages whose parts run side by side.
SIDE_BY_SIDE = ("right", "memory")
#: What is asked for without the rest of its stage compiles kernels that a part before it would
#: have: it has so many times its limit.
ALONE = 2.0


@dataclass
class Outcome:
    """What became of a part: ``code`` is None where it was ended at its limit."""

    name: str
    command: str
    seconds: float
    code: int | None
    lines: list[str]

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def how(self) -> str:
        if self.code is None:
            return f"ENDED at its limit of {self.seconds:.0f} s"
        state = "passed" if self.passed else f"FAILED with {self.code}"
        return f"{state} in {self.seconds:.1f} s"

    def why(self, most: int) -> list[str]:
        """What failed, as pytest sums it up, then the last lines."""
        failed = [line for line in self.lines if line.startswith(("FAILED ", "ERROR "))]
        others = [line for line in self.lines if line.strip() and line not in failed]
        named = failed[: max(most // 2, most - len(others))]
        rest = most - len(named)
        return [line[:WIDTH] for line in (*named, *(others[-rest:] if rest > 0 else ()))]


def run(part: Part, folder: Path) -> Outcome:
    """Run a part; all that it prints goes to a file of its name in ``folder``."""
    command = " ".join(" ".join(part.command).split()).replace(PYTHON, "python")
    start, path = time.monotonic(), folder / part.name
    code: int | None
    with open(path, "w", encoding="utf-8") as output:
        output.write(f"\n== {part.name}: {command}\n")
        output.flush()
        try:
            process = subprocess.Popen(
                part.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=ROOT, env={**os.environ, **part.environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            output.write(f"{error}\n")
            code = 127
        else:
            try:
                code = process.wait(part.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end(process)
    seconds = time.monotonic() - start
    # where a checkout and its Python lie is nobody's business
    text = path.read_text(encoding="utf-8", errors="replace")
    text = text.replace(str(ROOT), ".").replace(PYTHON, "python")
    path.write_text(text, encoding="utf-8")
    lines = text.splitlines()[2:]
    return Outcome(part.name, command, seconds, code, lines)


def end(process: subprocess.Popen[bytes]) -> None:
    """End whatever the process started, itself first: it may have something to write."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_stage(name: str, parts: Sequence[Part], folder: Path) -> bool:
    """Run the parts, print what came of them and leave the stage's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    start, outcomes = time.monotonic(), []
    at_a_time = len(parts) if name in SIDE_BY_SIDE else 1
    with tempfile.TemporaryDirectory() as own, ThreadPoolExecutor(at_a_time) as pool:
        for outcome in pool.map(partial(run, folder=Path(own)), parts):
            outcomes.append(outcome)
            print(f"{name}:{outcome.name} {outcome.how}", flush=True)
        written = (Path(own, part.name).read_bytes() for part in parts)
        (folder / f"{name}.txt").write_bytes(b"".join(written))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    # a line for each part and each failure, and one at the end
    each = (MOST_LINES - len(outcomes) - len(failed) - 1) // max(1, len(failed))
    for outcome in failed:
        print(f"-- {name}:{outcome.name}, {outcome.command}"[:WIDTH])
        print("\n".join(outcome.why(max(FEWEST, each))))
    seconds = time.monotonic() - start
    right = len(outcomes) - len(failed)
    print(f"== {name}: {right} of {len(outcomes)} parts passed in {seconds:.0f} s", flush=True)
    content = {
        "stage": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "passed": not failed,
        "parts": [
            {
                "name": outcome.name,
                "command": outcome.command,
                "passed": outcome.passed,
                "exit_code": outcome.code,
                "seconds": round(outcome.seconds, 1),
                "last_lines": outcome.why(20),
            }
            for outcome in outcomes
        ],
    }
    text = json.dumps(content, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return not failed


def chosen(names: Sequence[str]) -> dict[str, list[Part]]:
    """The parts to run, by stage.

    Raises:
        ValueError: a name is none of a stage or a part.
    """
    found: dict[str, list[Part]] = {}
    for name in names or STAGES:
        stage, _, part_name = name.partition(":")
        if stage not in STAGES:
            raise ValueError(f"no stage {stage!r}; there are {', '.join(STAGES)}")
        parts = [part for part in STAGES[stage] if part_name in ("", part.name)]
        if not parts:
            there = ", ".join(part.name for part in STAGES[stage])
            raise ValueError(f"stage {stage!r} has no part {part_name!r}; it has {there}")
        known = found.setdefault(stage, [])
        known += [part for part in parts if part not in known]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=first, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("stages", nargs="*", help="STAGE or STAGE:PART; default all")
    parser.add_argument("--list", action="store_true", help="name the stages and their parts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default %(default)s")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="how many times each limit; default %(default)s"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for name, parts in STAGES.items():
            limits = [part.seconds for part in parts]
            most = max(limits) if name in SIDE_BY_SIDE else sum(limits)
            print(f"{name}, {most:.0f} s at most")
            for part in parts:
                print(f"  {name}:{part.name}, {part.seconds:.0f} s at most")
        return 0
    try:
        stages = chosen(options.stages)
    except ValueError as error:
        parser.error(str(error))
    for name, parts in stages.items():
        patience = options.patience * (1.0 if len(parts) == len(STAGES[name]) else ALONE)
        stages[name] = [replace(part, seconds=patience * part.seconds) for part in parts]
    passed = [run_stage(name, parts, options.output) for name, parts in stages.items()]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
