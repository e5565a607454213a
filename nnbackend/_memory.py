"""How much memory of the host there is to work with."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from nnbackend.errors import OutOfMemoryError

#: Data that must be copied or mapped are kept whole up to this size, in bytes, whatever else there
#: is.
RESIDENT_BYTES = 1 << 28


def resident_bytes() -> int:
    """Up to this size data are kept whole, converted or mapped; larger ones are read in blocks."""
    return max(RESIDENT_BYTES, available_bytes() // 4)


def available_bytes() -> int:
    """Memory that this process may still take, as far as the system says; a cautious guess where it
    does not."""
    sizes = (_free_on_machine(), *_free_in_groups(), *_free_in_limits())
    found = [size for size in sizes if size is not None]
    return max(0, min(found, default=1 << 30))


def _free_on_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def check_limits(what: str, needed: int, remedy: str) -> None:
    """Refuse what needs more memory than the limits of this process leave, where to try it would
    end the process.

    Raises:
        OutOfMemoryError: with the remedy.
    """
    left = min(_free_in_limits(), default=needed)
    if left < needed:
        raise OutOfMemoryError(
            f"{what} takes about {needed >> 20} MB of memory, and the limits of this process leave "
            f"{max(0, left) >> 20} MB: raise them (ulimit -v, ulimit -d), or {remedy}"
        )


def _free_in_limits() -> list[int]:
    """What the limits of this process leave, ``ulimit -v`` and ``ulimit -d``."""
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        pages = Path("/proc/self/statm").read_text().split()
        limits = ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5]))
        return [
            resource.getrlimit(limit)[0] - int(used) * resource.getpagesize()
            for limit, used in limits
            if resource.getrlimit(limit)[0] != resource.RLIM_INFINITY
        ]
    return []


def _free_in_groups() -> list[int | None]:
    """What the control groups of a container leave: files that are cached count as free."""
    groups = Path("/sys/fs/cgroup")
    older = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return [
        _free_in_group(groups, "memory.max", "memory.current", "inactive_file"),
        _free_in_group(groups / "memory", *older),
    ]


def _free_in_group(folder: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        return most - now + sum(int(line.split()[1]) for line in lines if line.startswith(cached))
    except (OSError, ValueError, IndexError):  # no group, or "max"
        return None
