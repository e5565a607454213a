# /// script
# dependencies = ["nox>=2024.10"]
# ///
"""Tasks for contributors: ``nox`` runs style, types and fast tests, ``nox -l`` lists the rest."""

import sys

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
    session.run(PYTHON, "-m", "pytest", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation as a site, in the folder ``site``; a warning is an error."""
    session.run(PYTHON, "-m", "pip", "install", "-q", "-e", ".[docs,numba,sklearn]")
    session.run(PYTHON, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "site")


@nox.session(default=False)
def slow(session: nox.Session) -> None:
    """All tests that need no GPU, with coverage."""
    session.run(PYTHON, "-m", "pytest", "-m", "not gpu", "--cov", "--cov-report=term")


@nox.session(default=False)
def ci(session: nox.Session) -> None:
    """Everything that CI runs, in environments of its own."""
    session.run("bash", ".ci/run", external=True)


if __name__ == "__main__":
    nox.main()
