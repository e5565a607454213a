# /// script
# dependencies = ["nox>=2024.10"]
# ///
"""Tasks for contributors: ``nox`` runs style, types and fast tests, ``nox -l`` lists the rest."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "none"
#: of the environment that CONTRIBUTING.md makes
PYTHON = sys.executable


@nox.session
def style(session: nox.Session) -> None:
    """Ruff's checks and formatting."""
    session.run(PYTHON, "-m", "ruff", "check", ".")
    session.run(PYTHON, "-m", "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, once for the package and once for the kernels beside it."""
    session.run(PYTHON, "-m", "mypy")
    session.run(PYTHON, "-m", "mypy", "--strict", "kernels")


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests; arguments after -- go to pytest."""
    session.run(PYTHON, "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation as a site, in the folder ``site``; a warning is an error."""
    session.run(PYTHON, "-m", "pip", "install", "-q", "-e", ".[docs,numba,sklearn]")
    session.run(PYTHON, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "site")


@nox.session(default=False)
def slow(session: nox.Session) -> None:
    """All tests that need no GPU, with coverage."""
    session.run(PYTHON, "-m", "pytest", "-n", "auto", "-m", "not gpu", "--cov", "--cov-report=term")


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Write .ci/lock.txt: what CI installs today, from an empty environment."""
    with TemporaryDirectory() as folder:
        session.run(PYTHON, "-m", "venv", folder, external=True)
        own = f"{folder}/bin/python"
        wanted = (".[test,docs,mlflow,numba,plot,images,tables,tensorboard]", "build", "setuptools")
        torch = ("torch", "array-api-compat")
        session.run(own, "-m", "pip", "install", "-q", *wanted, *torch, external=True)
        found = session.run(own, "-m", "pip", "freeze", "--all", external=True, silent=True)
    lines = [line for line in found.splitlines() if not line.startswith(("nnbackend", "pip="))]
    versions = [line.partition("+")[0] for line in lines]  # one's own build of PyTorch
    Path(".ci/lock.txt").write_text("\n".join(versions) + "\n")


@nox.session(default=False)
def ci(session: nox.Session) -> None:
    """Everything that CI runs, in environments of its own."""
    session.run("bash", ".ci/run", external=True)


if __name__ == "__main__":
    nox.main()
