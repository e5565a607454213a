"""What is installed, what importing it costs, and that the README's example works."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from inspect import ismodule
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import nnbackend as nn

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


def test_importing_is_light() -> None:
    heavy = ("numba", "cupy", "matplotlib", "rich", "typer", "scipy", "safetensors")
    code = f"import nnbackend, sys; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"


def test_training_without_a_terminal_needs_no_rich() -> None:
    code = (
        "import nnbackend as nn, sys; x, y = nn.datasets.sine(10);"
        "m = nn.Sequential([nn.Dense(1, 1)]); m.compile('huber'); m.fit(x, y, verbose=0);"
        "print('rich' in sys.modules)"
    )
    assert python(code) == "False"


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("nnbackend", "kernels")
        for path in (ROOT / top).rglob("*.py")
    }
    packages = {name.replace("kernels", "nnbackend.kernels") for name in folders}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == packages


def test_version_is_said_once_more_in_the_package() -> None:
    import nnbackend

    assert nnbackend.__version__ == SETTINGS["project"]["version"]


def test_core_dependencies_stay_few() -> None:
    names = {re.split(r"[<>=]", need)[0] for need in SETTINGS["project"]["dependencies"]}
    assert names == {"numpy", "safetensors", "typer", "rich"}


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


SNIPPETS = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
PAGES += [f"docs/decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("*.md")]


#: Pages whose examples are tests of a backend themselves.
SLOW_PAGES = ("docs/own-backend.md",)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW_PAGES))
        for page in PAGES
        if blocks_of(page, "python")
    ],
)
def test_examples_in_the_documentation_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another: what a page has imported and made, its later examples use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    others = ("keras", "mlflow", "notebook", "tensorboardX", "torch")
    there = {name: None if find_spec(name) is None else name for name in others}
    there["notebook"] = None  # an example that draws in one
    document = SNIPPETS.parse(ROOT / page)
    document.namespace.update(there)
    examples = list(document.examples())
    assert len(examples) >= len(blocks_of(page, "python"))
    left_out = set()
    for example in examples:
        try:
            example.evaluate()
        except SkipTest as reason:
            left_out.add(str(reason) or "another example")
    if left_out:
        pytest.skip(f"all but {len(left_out)} of its examples ran; {', '.join(left_out)}")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_in_the_documentation_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    gone = [link for link in links if not ((ROOT / page).parent / link).exists()]
    named = re.findall(r"`((?:nnbackend|kernels|benchmarks|tests|examples|docs)/[\w./-]+)`", text)
    gone += [path for path in named if not (ROOT / path).exists()]
    assert gone == []


def test_every_layer_has_its_name_in_the_package_and_in_the_documentation() -> None:
    import nnbackend as nn
    from nnbackend.kernels.codes import ACTIVATIONS
    from nnbackend.layers import LAYERS

    assert set(LAYERS) <= set(nn.__all__)
    text = (ROOT / "docs" / "using.md").read_text()
    listed = re.search(r"^\| activations \| (.*) \|$", text, flags=re.M)
    assert listed is not None
    assert set(listed[1].split(", ")) == set(ACTIVATIONS)


def test_ci_calls_the_readmes_test_command() -> None:
    commands = [block.strip() for block in blocks_of("README.md", "sh")]
    tests = [command for command in commands if "pytest" in command]
    assert tests
    assert tests[0] in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", [n for n in nn.__all__ if not ismodule(getattr(nn, n))])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert re.search(rf"^\.\. auto(class|function|exception):: nnbackend\.{name}$", text, re.M)
