"""Machine code in files: what one process compiled, another one loads and runs."""

import ctypes

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import types

from nnbackend.kernels.cpu_intrinsics import vector_at
from nnbackend.kernels.cpu_objects import Objects

SIGNATURE = types.void(types.int64, types.int64)


def halve(address: int, n: int) -> None:
    """Halves of n float64."""
    x = vector_at(address, 0, n, 0.0)
    for i in range(n):
        x[i] /= 2


def call(address: int) -> np.ndarray:
    x = np.array([2.0, 3.0, np.inf])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
    kind(address)(x.ctypes.data, x.size)
    return x


def test_a_function_is_loaded_from_the_file_that_compiling_it_left(tmp_path) -> None:
    assert not Objects(tmp_path).has("halve")
    assert Objects(tmp_path).load("halve") is None
    first = Objects(tmp_path).compile(halve, SIGNATURE)
    later = Objects(tmp_path)
    assert later.has("halve")
    second = later.load("halve")
    assert second not in (None, first)
    for address in (first, second):
        np.testing.assert_array_equal(call(address), [1.0, 1.5, np.inf])


@pytest.mark.parametrize("damage", [lambda code: code[:-1], lambda code: b"x" + code[1:]])
def test_a_damaged_file_is_not_run(tmp_path, damage) -> None:
    Objects(tmp_path).compile(halve, SIGNATURE)
    path = tmp_path / "halve.o"
    path.write_bytes(damage(path.read_bytes()))
    assert Objects(tmp_path).load("halve") is None
    Objects(tmp_path).compile(halve, SIGNATURE)
    np.testing.assert_array_equal(call(Objects(tmp_path).load("halve")), [1.0, 1.5, np.inf])


def test_what_cannot_be_kept_still_runs(tmp_path, capsys) -> None:
    gone = tmp_path / "gone"
    address = Objects(gone).compile(halve, SIGNATURE)
    np.testing.assert_array_equal(call(address), [1.0, 1.5, np.inf])
    assert "could not be kept" in capsys.readouterr().err


def test_nothing_else_is_left_in_the_folder(tmp_path) -> None:
    Objects(tmp_path).compile(halve, SIGNATURE)
    assert [path.name for path in tmp_path.iterdir()] == ["halve.o"]
