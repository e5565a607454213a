"""Files of compiled code, each with a digest of what it holds.

Code that is read is run. So the folders must be such that nobody else can write to them (see
``nnbackend.backends.numba.cache``), and a file that is cut off or damaged counts as none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nnbackend._files import write_atomically
from nnbackend._output import write_note

_DIGEST_BYTES = hashlib.sha256().digest_size


def _digest(name: str, content: bytes) -> bytes:
    """Of the name, too: pieces that have been exchanged are none."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


class Store:
    """Named pieces of code, in some folders and in memory.

    Args:
        folders: to read from, in this order.
        kept_in: the folder to write to, one of them; None to keep pieces in this process only.
    """

    def __init__(self, folders: Sequence[Path], kept_in: Path | None) -> None:
        self.folders, self.kept_in = tuple(folders), kept_in
        self._in_memory: dict[str, bytes] = {}
        self._told = False

    def has(self, name: str) -> bool:
        """Whether there is a piece, which may still turn out to be damaged."""
        return name in self._in_memory or any((f / name).is_file() for f in self.folders)

    def read(self, name: str) -> bytes | None:
        """A piece that is whole; None if there is none."""
        if name in self._in_memory:
            return self._in_memory[name]
        for folder in self.folders:
            try:
                stored = (folder / name).read_bytes()
            except OSError:
                continue
            digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
            if content and _digest(name, content) == digest:
                return content
        return None

    def write(self, name: str, content: bytes) -> None:
        """Keep a piece. Where that fails it lasts as long as the process, which is said once."""
        reason: object = "no folder is there that nobody else can write to"
        if self.kept_in is not None:
            try:
                write_atomically(self.kept_in / name, _digest(name, content) + content)
                return
            except OSError as error:
                reason = error
        self._in_memory[name] = content
        if not self._told:
            self._told = True
            write_note(f"nnbackend: compiled kernels could not be kept: {reason}\n")
