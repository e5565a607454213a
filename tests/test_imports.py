"""Imports run down: no module of the package needs one that needs it."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Imports that stand under TYPE_CHECKING alone and close a circle: a callback is handed the model,
#: and an error the curves so far.
FOR_TYPES = {
    ("nnbackend.training.callback", "nnbackend.model.sequential"),
    ("nnbackend.training.callbacks", "nnbackend.model.sequential"),
    ("nnbackend.training.trackers", "nnbackend.model.sequential"),
    ("nnbackend.training.writers", "nnbackend.model.sequential"),
    ("nnbackend.errors", "nnbackend.training.history"),
    ("nnbackend.model.trained", "nnbackend.model.sequential"),
}
#: The rooms, each of which may use those above it, and the files beside them.
ROOMS = (
    (
        "errors",
        "_checks",
        "_frames",
        "_names",
        "_memory",
        "_files",
        "_output",
        "_notebook",
        "_settings",
        "_types",
        "_version",
    ),
    ("kernels",),
    ("backends",),
    ("initializers", "schedules"),
    ("losses", "optimizers"),
    ("metrics",),
    ("layers",),
    ("program",),
    ("executor",),
    ("data",),
    ("datasets",),
    ("distributed",),
    ("training",),
    ("model",),
    ("_plot_checks",),
    ("export", "plot", "benchmark", "testing", "sklearn", "nnfs", "live"),
    ("cli",),
)
#: A backend's executor runs programs, which are above the contract; nobody imports it by name.
EXECUTORS = ("nnbackend.backends.numba.executor", "nnbackend.backends.cuda")


def files() -> dict[str, Path]:
    """The modules by name."""
    found = {}
    for top, name in (("nnbackend", "nnbackend"), ("kernels", "nnbackend.kernels")):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((name, *parts))] = path
    return found


MODULES = files()


def imported(path: Path) -> set[str]:
    """Modules of ours that a module names in an import, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = parts & MODULES.keys()
            names |= modules
            if len(modules) < len(parts):
                names.add(node.module)
    return names & MODULES.keys()


@cache
def graph() -> dict[str, set[str]]:
    """What each module imports."""
    return {name: imported(path) for name, path in MODULES.items()}


def circles() -> list[set[str]]:
    """Modules that reach each other."""
    reach = {
        name: imports - {b for a, b in FOR_TYPES if a == name} for name, imports in graph().items()
    }
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    found: list[set[str]] = []
    for name in reach:
        if name in reach[name]:
            circle = {other for other in reach[name] if name in reach[other]}
            if circle not in found:
                found.append(circle)
    return found


def test_no_circle() -> None:
    assert circles() == []


def test_circles_for_types_are_what_is_said_of_them() -> None:
    for name, other in FOR_TYPES:
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        guarded = [
            node.module
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in block.body
            if isinstance(node, ast.ImportFrom)
        ]
        everywhere = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert guarded.count(other) == everywhere.count(other) == 1


def room(name: str) -> int:
    """The level of a module's room; the package itself is above all."""
    parts = name.split(".")
    if len(parts) == 1:
        return len(ROOMS)
    if name.startswith(EXECUTORS):
        return next(i for i, names in enumerate(ROOMS) if "executor" in names)
    return next(i for i, names in enumerate(ROOMS) if parts[1] in names)


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_imports_run_down(name: str) -> None:
    above = {
        other
        for other in graph()[name]
        if room(other) > room(name) and (name, other) not in FOR_TYPES and "." in other
    }
    assert above == set()


def test_a_program_knows_no_layer_and_the_contract_no_program() -> None:
    def all_of(name: str) -> set[str]:
        found: set[str] = set()
        todo = [name]
        while todo:
            for other in graph()[todo.pop()] - found:
                found.add(other)
                todo.append(other)
        return found

    assert not [m for m in all_of("nnbackend.program.table") if ".layers" in m]
    contract = all_of("nnbackend.backends.contract")
    assert not [m for m in contract if m.startswith(("nnbackend.program", "nnbackend.executor"))]


def test_files_can_be_held_in_the_head() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    for path in (ROOT / "kernels" / "cuda").glob("*.cu"):
        lines[path.name] = len(path.read_text().splitlines())
    assert {name: count for name, count in lines.items() if count > 400} == {}
