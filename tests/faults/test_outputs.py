"""Outputs that are not there: as in a window's program, behind a closed pipe, on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from needs import need_backend

import nnbackend as nn

SOURCE = """
import sys
import nnbackend as nn
model = nn.Sequential([nn.Dense(2, 3)], seed=0, backend="numba")
model.compile("softmax_cross_entropy")
model.fit(*nn.datasets.spiral(10, 3, seed=0), epochs=1)
model.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "full", "closed pipe"])
def test_kernels_are_compiled_without_a_word(tmp_path, how) -> None:
    need_backend("numba")
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    command, path = [sys.executable, "-c", SOURCE], str(tmp_path / "m.safetensors")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    if how == "none":
        command = ["sh", "-c", 'exec "$@" 2>&- >&-', "sh", *command]
        done = subprocess.run([*command, path], env=environment, check=False, timeout=240)
    elif how == "full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, path], env=environment, stdout=full, stderr=full, check=False,
                timeout=240,
            )  # fmt: skip
    else:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*command, path], env=environment, stdout=write, stderr=write, check=False, timeout=240
        )
        os.close(write)
    assert nn.load(path).epoch == 1, done
