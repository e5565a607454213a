"""How the characters of a text file are encoded, and where its lines end: what its bytes show."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import partial
from typing import IO

from nnbackend.errors import DataError

#: Bytes that are looked at together.
BLOCK = 1 << 22


def looked_through(opened: Callable[[], IO[bytes]]) -> tuple[str | None, bool]:
    """UTF-16 by its byte order mark, or UTF-8, or None; and whether lines end in several ways."""
    returns = feeds = both = 0
    with opened() as file:
        start = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16", False
        file.seek(0)
        decoder, plain, is_utf8, last = codecs.getincrementaldecoder("utf-8")(), True, True, b""
        while block := file.read(BLOCK):
            plain = plain and block.isascii()  # ten times as fast
            try:
                if not plain and is_utf8:
                    decoder.decode(block)
            except UnicodeDecodeError:
                is_utf8 = False
            if b"\r" in block or last == b"\r":
                both += block.count(b"\r\n") + (last + block[:1] == b"\r\n")
                returns += block.count(b"\r")
                feeds += block.count(b"\n")
            else:
                feeds += b"\n" in block  # that there are any is enough
            last = block[-1:]
    try:
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        is_utf8 = False
    mixed = returns > 0 and feeds > 0 and not returns == feeds == both
    return "utf-8" if is_utf8 else None, mixed


def old_encoding(opened: Callable[[], IO[bytes]], shown: str) -> str:
    """Of a file that is not UTF-8: one for the languages of Western Europe."""
    good = bad = first = 0
    old: set[int] = set()
    with opened() as file:
        for number, line in enumerate(iter(partial(file.readline, BLOCK), b""), 1):
            if line.isascii():
                continue
            try:
                line.decode()
                good += 1
            except UnicodeDecodeError:
                first, bad = first or number, bad + 1
                old.update(line)
    if good >= bad:
        raise DataError(
            f"{shown}, line {first} is not UTF-8, though other lines are: correct it, or "
            f"say how the file is encoded, encoding='latin-1' for example"
        )
    # Windows has letters where latin-1 has none
    return "cp1252" if any(0x80 <= byte < 0xA0 for byte in old) else "latin-1"
