"""A worker process: one system, asked by JSON lines on its standard input.

    python -m peers.worker NAME

A request is {"do": ...}, answered by one line: what was asked for, {"unsupported": reason} or
{"error": message}. The worker ends with its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from nnbackend.benchmark.cases import CASES
from nnbackend.benchmark.operations import Trial, repetitions, timed
from nnbackend.benchmark.report import package_versions
from nnbackend.errors import NNBackendError
from peers import DRIVEN, SYSTEMS, TRAINING
from peers.system import Material, System, UnsupportedError

PR_SET_PDEATHSIG = 1


class Desk:
    """Answers requests for one system."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.trial: Trial | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "prepare":
            return self.prepare(request["case"], request["kind"], Path(request["material"]))
        if self.trial is None:
            raise RuntimeError("nothing is prepared")
        if request["do"] == "count":
            return {"count": repetitions(self.trial, request["seconds"])}
        count = request["count"]
        if count > 1:  # caches went cold while the others ran
            timed(self.trial, max(1, count // 20))
        return {"seconds": timed(self.trial, count) / (count * self.trial.steps)}

    def prepare(self, case_name: str, kind: str, path: Path) -> dict[str, Any]:
        """Make the trial; the figures to be compared with those of the other systems."""
        case, material = CASES[case_name], Material.load(path)
        self.trial, self.system.note = None, ""  # free what the last case held
        method = kind.replace("-", "_")
        if kind in TRAINING:
            values = self.system.losses(case, material)
        elif kind in DRIVEN:
            values = getattr(self.system, f"{method}_values")(case, material)
        else:
            values = self.system.outputs(case, material).ravel().tolist()
        self.trial = getattr(self.system, method)(case, material)
        return {"values": values, "note": self.system.note}


def die_with_parent() -> None:
    """A stopped worker must not outlive a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(name: str) -> tuple[Desk | None, dict[str, Any]]:
    """The desk and its greeting; no desk where a package is missing."""
    entry = SYSTEMS[name]
    module, _, attribute = entry.place.partition(":")
    try:
        system: System = getattr(importlib.import_module(module), attribute)(*entry.arguments)
    except (ImportError, NNBackendError) as error:
        return None, {"missing": str(error), "install": entry.install}
    greeting = {"packages": package_versions(system.packages), "device": system.gpu()}
    return Desk(system), greeting


def main() -> None:
    die_with_parent()
    # whatever a library prints must not end up between the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    desk, greeting = start(sys.argv[1])
    print(json.dumps(greeting), file=answers)
    for line in sys.stdin:
        if desk is None:
            break
        try:
            answer = desk.answer(json.loads(line))
        except UnsupportedError as reason:
            answer = {"unsupported": str(reason)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
