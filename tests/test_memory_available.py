"""How much memory there is to work with, as machines and containers say it."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnbackend import _memory


def test_this_machine_has_some() -> None:
    assert 0 < _memory.available_bytes() < 1 << 50
    assert _memory.resident_bytes() >= _memory.RESIDENT_BYTES


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, None),
        (
            {"memory.max": "1000", "memory.current": "600", "memory.stat": "a 9\ninactive_file 50"},
            450,
        ),
        ({"memory.max": "1000", "memory.current": "600", "memory.stat": "anon"}, 400),
        ({"memory.max": "1000"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_containers_limit(tmp_path: Path, files, expected) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = _memory._free_in_group(tmp_path, "memory.max", "memory.current", "inactive_file")
    assert found == expected


@pytest.mark.parametrize(
    ("machine", "groups", "expected"),
    [(100, [None, 40], 40), (100, [None, None], 100), (None, [None], 1 << 30), (5, [-3], 0)],
)
def test_the_least_of_what_is_said_counts(monkeypatch, machine, groups, expected) -> None:
    monkeypatch.setattr(_memory, "_free_on_machine", lambda: machine)
    monkeypatch.setattr(_memory, "_free_in_groups", lambda: groups)
    assert _memory.available_bytes() == expected


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="says how much is used")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process_counts(limit) -> None:
    script = f"""
import resource
from nnbackend import _memory
resource.setrlimit(resource.{limit}, (1 << 31, -1))
left = _memory.available_bytes()
assert 1 << 20 < left < 1 << 31, left
kept = bytearray(400 << 20)
assert (300 << 20) < left - _memory.available_bytes() < (500 << 20)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
