"""The parent's side: workers of which only the one that is asked runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self, cast

FOLDER = Path(__file__).resolve().parent.parent
#: How long a worker may take to end by itself.
END_SECONDS = 5.0


class Worker:
    """One worker process. It is stopped (SIGSTOP) but for the time of a request: the idle threads
    of a BLAS or an OpenMP runtime spin for tens of milliseconds and would take a core from the
    one being timed.

    Attributes:
        greeting: {"packages": versions}, {"missing": why, "install": command}, or
            {"error": why it died}.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - see close
        # a session of its own: Ctrl-C reaches the parent only, and a signal to the group reaches
        # whatever processes a compiler started
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peers.worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            cwd=FOLDER, env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
        self.input = cast(IO[str], self.process.stdin)
        self.output = cast(IO[str], self.process.stdout)
        self.greeting: dict[str, Any] = {}

    def greet(self) -> None:
        """Wait until everything is imported."""
        self.greeting = self._read()
        self._signal(signal.SIGSTOP)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request; the worker runs only meanwhile."""
        self._signal(signal.SIGCONT)
        try:
            with suppress(BrokenPipeError):  # it died: _read finds out why
                self.input.write(json.dumps(request) + "\n")
                self.input.flush()
            return self._read()
        finally:
            self._signal(signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        """An answer, or {"error": ...} with the last lines that a dead worker wrote."""
        line = self.output.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = " / ".join(self.errors.read().splitlines()[-3:])
            return {"error": f"worker ended with code {self.process.returncode}: {last}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        """End the process and whatever it started."""
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.input.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.errors.close()


class Pool:
    """Workers by name, as a context: however it is left, none stays behind.

    Attributes:
        workers: those that can run.
        missing: name -> why it cannot, with the command that mends it.
    """

    def __init__(self, names: Sequence[str], environment: Mapping[str, str]) -> None:
        self.names, self.environment = names, environment
        self.workers: dict[str, Worker] = {}
        self.missing: dict[str, str] = {}
        self.started: list[Worker] = []

    def __enter__(self) -> Self:
        self.previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            for name in self.names:
                worker = Worker(name, self.environment)
                self.started.append(worker)
                worker.greet()
                if "missing" in worker.greeting:
                    install = worker.greeting["install"]
                    hint = f" ({install})" if install else ""
                    self.missing[name] = worker.greeting["missing"] + hint
                else:
                    self.workers[name] = worker
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.started:
            worker.close()
        signal.signal(signal.SIGTERM, self.previous)

    def device(self) -> str:
        """The GPU that the workers see; empty without one."""
        found = [worker.greeting.get("device", "") for worker in self.workers.values()]
        return next(filter(None, found), "")

    def packages(self) -> dict[str, str]:
        """Versions of the packages of all systems."""
        return {
            package: version
            for worker in self.workers.values()
            for package, version in worker.greeting.get("packages", {}).items()
        }


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
