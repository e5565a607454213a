"""Mutation testing: one operator of the code is changed at a time, and the tests have to notice.

    python tests/mutation/run.py optimizers --sample 100
    python tests/mutation/run.py optimizers --again       # after tests have been added

Python is changed by cosmic-ray's operators, the CUDA kernels by those of ``cu_mutants``. Each
mutant is tested in a copy of the checkout; a test that fails, or does not end, kills it.
``results.json`` keeps how many of each group there were and which survived.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
CONFORMANCE = "tests/backends/test_conformance.py"
#: The quickest first, to kill most mutants early.
PYTHON_TESTS = [
    CONFORMANCE, "tests/layers", "tests/model/test_golden.py", "tests/test_parts.py",
    "tests/test_arguments.py", "tests/model", "tests/training", "tests/test_metrics.py",
    "tests/data/test_bad_input.py",
]  # fmt: skip


class Group(NamedTuple):
    """Files that are mutated, the tests that should notice, and the backend that these run on."""

    files: tuple[str, ...]
    tests: list[str]
    backend: str


GROUPS = {
    "optimizers": Group(
        ("nnbackend/optimizers.py", "nnbackend/schedules.py",
         "nnbackend/backends/numpy/updates.py"),
        PYTHON_TESTS, "numpy",
    ),
    "losses": Group(
        ("nnbackend/losses.py", "nnbackend/backends/numpy/losses.py"), PYTHON_TESTS, "numpy"
    ),
    "activations": Group(
        ("nnbackend/layers/activations.py", "nnbackend/backends/numpy/activations.py"),
        PYTHON_TESTS, "numpy",
    ),
    "norms": Group(
        ("nnbackend/layers/normalization.py", "nnbackend/layers/standardize.py"),
        PYTHON_TESTS, "numpy",
    ),
    "program": Group(
        ("nnbackend/program/lowering.py", "nnbackend/program/storage.py",
         "nnbackend/program/table.py"),
        PYTHON_TESTS, "numpy",
    ),
    "cpu kernels": Group(
        ("kernels/cpu/ops/activations.py", "kernels/cpu/ops/losses.py", "kernels/cpu/ops/norms.py",
         "kernels/cpu/ops/updates.py", "kernels/cpu/ops/embedding.py"),
        [CONFORMANCE], "numba",
    ),
    "cpu functions": Group(
        ("kernels/cpu/codegen/math_float32.py", "kernels/cpu/codegen/math_float64.py"),
        ["tests/kernels/test_cpu_math.py"], "numba",
    ),
    "cuda kernels": Group(
        ("kernels/cuda/activations.cu", "kernels/cuda/losses.cu", "kernels/cuda/norms.cu",
         "kernels/cuda/updates.cu", "kernels/cuda/embedding.cu", "kernels/cuda/metrics.cu"),
        [CONFORMANCE, "tests/backends/cuda/test_cuda_kernels.py"], "cuda_stand_in",
    ),
}  # fmt: skip


class Mutant(NamedTuple):
    path: str
    operator: str
    code: str

    def diff(self) -> str:
        """The changed lines."""
        return "\n".join(line for line in self._diff() if line[:3] not in ("---", "+++", "@@ "))

    @property
    def line(self) -> int:
        """Number of the first changed line."""
        place = next(line for line in self._diff() if line.startswith("@@ "))
        return int(place.split()[1].strip("-").partition(",")[0])

    def _diff(self) -> list[str]:
        before = (ROOT / self.path).read_text().splitlines()
        return list(difflib.unified_diff(before, self.code.splitlines(), lineterm="", n=0))


# -- mutants ------------------------------------------------------------------------------------


def python_mutants(path: str) -> Iterator[Mutant]:
    """By cosmic-ray; one for each place and operator, without those that mean the same."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / path).read_text()
    meaning = _meaning(source)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or re.search(r"Shift|BitXor|FloorDiv|Mod", name):
            continue
        occurrence = 0
        while (code := mutate_code(source, operator(), occurrence)) is not None:
            occurrence += 1
            try:
                if _meaning(code) != meaning:
                    yield Mutant(path, name.rpartition("/")[2], code)
            except SyntaxError:
                pass


def _meaning(source: str) -> str:
    """The code without annotations, of which nothing here is read at run time, and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            node.body = [x for x in node.body if not _is_text(x)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


#: In CUDA C++: an operator between blanks, and what it becomes.
SWAPS = {
    " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " += ": " -= ", " -= ": " += ",
    " *= ": " /= ", " < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > ", " == ": " != ",
    " != ": " == ", " && ": " || ", " || ": " && ",
}  # fmt: skip


def cu_mutants(path: str) -> Iterator[Mutant]:
    """One operator swapped, comments apart."""
    lines = (ROOT / path).read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        code = line.partition("//")[0]
        for old, new in SWAPS.items():
            for found in re.finditer(re.escape(old), code):
                changed = line[: found.start()] + new + line[found.end() :]
                text = "".join([*lines[:number], changed, *lines[number + 1 :]])
                yield Mutant(path, f"{old.strip()} to {new.strip()}", text)


def mutants_of(group: Group) -> list[Mutant]:
    made = [
        mutant
        for path in group.files
        for mutant in (cu_mutants(path) if path.endswith(".cu") else python_mutants(path))
    ]
    return list({(mutant.path, mutant.code): mutant for mutant in made}.values())


# -- tests --------------------------------------------------------------------------------------


def copy_of_the_checkout(folder: Path) -> None:
    """What the tests need, importable from the folder itself."""
    for name in ("nnbackend", "kernels", "tests", "pyproject.toml", "docs", "examples"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    (folder / "nnbackend" / "kernels").symlink_to("../kernels")


def passes(folder: Path, group: Group, limit: float) -> bool:
    """Whether all tests pass, in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *group.tests]
    environment = os.environ | {
        "NN_TEST_BACKENDS": group.backend, "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(folder / "cache"), "NN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        return not subprocess.run(
            command, cwd=folder, env=environment, timeout=limit, capture_output=True, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def sampled(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    return random.Random(seed).sample(mutants, min(size, len(mutants)))


def survivors_of(mutants: list[Mutant], before: dict[str, Any]) -> list[Mutant]:
    """Those that survived when they were tried last."""

    def is_same(mutant: Mutant, survivor: dict[str, Any]) -> bool:
        return (
            (mutant.path, mutant.operator) == (survivor["file"], survivor["operator"])
            and mutant.diff() == survivor["change"]
            and mutant.line == survivor.get("line", mutant.line)  # older results have no lines
        )

    return [m for m in mutants if any(is_same(m, survivor) for survivor in before["survivors"])]


def run(name: str, group: Group, chosen: list[Mutant], workers: int) -> list[Mutant]:
    """Try mutants; those that survive."""
    folders: Queue[Path] = Queue()
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory() as work:
        for number in range(workers):
            folder = Path(work) / str(number)
            folder.mkdir()
            copy_of_the_checkout(folder)
            folders.put(folder)
        start = time.perf_counter()
        if not passes(folder, group, 3600):
            raise SystemExit(f"the tests of {name} fail without a mutant")
        limit = 60 + 5 * (time.perf_counter() - start)
        print(f"{name}: {len(chosen)} mutants, tests of {limit / 5 - 12:.0f} s", flush=True)

        def attempt(mutant: Mutant) -> None:
            folder = folders.get()
            target = folder / mutant.path
            kept = target.read_text()
            try:
                target.write_text(mutant.code)
                killed = not passes(folder, group, limit)
            finally:
                target.write_text(kept)
                folders.put(folder)
            if killed:
                print(".", end="", flush=True)
            else:
                survivors.append(mutant)
                print(f"\n{mutant.path}: {mutant.operator}\n{mutant.diff()}", flush=True)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(attempt, chosen))
    print()
    return sorted(survivors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=", ".join(GROUPS))
    parser.add_argument("--sample", type=int, default=100, help="mutants of each group, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="only those that survived last")
    parser.add_argument("--tests", nargs="+", help="these instead of the group's")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    for name in options.groups or GROUPS:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        group = GROUPS[name]
        if options.tests:
            group = group._replace(tests=options.tests)
        mutants = mutants_of(group)
        if options.again:
            result = results[name]
            chosen = survivors_of(mutants, result)
        else:
            chosen = sampled(mutants, options.sample, options.seed)
            result = {"mutants": len(mutants), "tried": len(chosen), "seed": options.seed}
        left = run(name, group, chosen, options.workers)
        result["killed"] = result["tried"] - len(left)
        result["survivors"] = [
            {"file": m.path, "line": m.line, "operator": m.operator, "change": m.diff()}
            for m in left
        ]
        share = result["killed"] / result["tried"]
        print(f"{name}: {result['killed']} of {result['tried']} killed, {share:.1%}")
        RESULTS.write_text(json.dumps({**results, name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
