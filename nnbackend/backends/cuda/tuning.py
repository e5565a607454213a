"""What was found to be the fastest, kept: a program that runs again takes the same ways, so that
it finds the same bits."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from nnbackend._files import write_atomically


class TuningCache:
    """The fastest way to do a thing by a key that says what: in memory and in a file.

    Args:
        kind: what the choices hold for: the GPU and the libraries' versions.
        path: of the file, whose folder may be missing; None keeps nothing. A file that cannot be
            read or written only means that later processes measure again.
    """

    def __init__(self, kind: str, path: Path | None = None) -> None:
        self.kind, self.path = kind, path
        self._known: dict[str, str] = self._read().get(kind, {})
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def keep(self, key: str, choice: str) -> None:
        with self._lock:
            self._known[key] = choice
            if self.path is None:
                return
            everything = self._read()  # other processes may have added theirs
            self._known = {**everything.get(self.kind, {}), **self._known}
            text = json.dumps({**everything, self.kind: self._known}, indent=1, sort_keys=True)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, text.encode() + b"\n")
            except OSError:
                self.path = None

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {
            str(kind): {str(k): str(v) for k, v in choices.items()}
            for kind, choices in found.items()
            if isinstance(choices, dict)
        }
