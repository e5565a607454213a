"""Object files: what one process compiled, another one loads and runs."""

import ctypes
import secrets

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit, types

from nnbackend.kernels.cpu.codegen.intrinsics import linked, symbol_of, vector_at
from nnbackend.kernels.cpu.codegen.objects import Objects
from nnbackend.kernels.cpu.codegen.store import Store

SIGNATURE = types.void(types.int64, types.int64)
#: Names are the process's, so that each run of the tests takes its own.
OWN = secrets.token_hex(4)
HALVE = symbol_of(f"halve{OWN}", "float64")


def halve(address: int, n: int) -> None:
    """Halves of n float64."""
    x = vector_at(address, 0, n, 0.0)
    for i in range(n):
        x[i] /= 2


linked_halve = linked(f"halve{OWN}")


def quarter(address: int, n: int) -> None:
    """By a function of another file, twice."""
    for _ in range(2):
        linked_halve(address, n, 0.0)


FUNCTIONS = {HALVE: (halve, SIGNATURE)}


def call(address: int) -> np.ndarray:
    x = np.array([2.0, 3.0, np.inf])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
    kind(address)(x.ctypes.data, x.size)
    return x


def test_a_function_is_loaded_from_the_file_that_compiling_it_left(tmp_path) -> None:
    assert not Objects(Store([tmp_path], tmp_path)).has("some")
    assert Objects(Store([tmp_path], tmp_path)).load("some") is None
    Objects(Store([tmp_path], tmp_path)).compile("some", FUNCTIONS)
    objects = Objects(Store([tmp_path], tmp_path))
    assert objects.has("some")
    addresses = objects.load("some")
    assert list(addresses) == [HALVE]
    np.testing.assert_array_equal(call(addresses[HALVE]), [1.0, 1.5, np.inf])


def test_a_file_offers_several_functions_and_calls_those_of_others(tmp_path) -> None:
    objects = Objects(Store([tmp_path], tmp_path))
    functions = {"quarter": (quarter, SIGNATURE), "again": (halve, SIGNATURE)}
    objects.compile("others", functions)
    objects.compile("some", FUNCTIONS)
    assert objects.load("some")
    addresses = objects.load("others")
    np.testing.assert_array_equal(call(addresses["quarter"]), [0.5, 0.75, np.inf])
    np.testing.assert_array_equal(call(addresses["again"]), [1.0, 1.5, np.inf])


def test_functions_that_call_each_other_may_share_a_file(tmp_path) -> None:
    objects = Objects(Store([tmp_path], tmp_path))
    objects.compile("both", {**FUNCTIONS, "quarter": (quarter, SIGNATURE)})
    np.testing.assert_array_equal(call(objects.load("both")["quarter"]), [0.5, 0.75, np.inf])


def test_a_part_of_an_object_file_can_be_used_by_a_function_of_ones_own(tmp_path) -> None:
    inner = njit(halve)

    def outer(address: int, n: int) -> None:
        inner(address, n)

    objects = Objects(Store([tmp_path], tmp_path))
    objects.compile("some", {"outer": (outer, SIGNATURE)})
    x = np.array([2.0, 3.0, np.inf])
    njit(outer)(x.ctypes.data, 3)  # the compiled part is there already
    np.testing.assert_array_equal(x, [1.0, 1.5, np.inf])


@pytest.mark.parametrize(
    "damage", [lambda code: code[:-1], lambda code: bytes([code[0] ^ 1]) + code[1:]]
)
def test_a_damaged_file_is_not_run(tmp_path, damage) -> None:
    Objects(Store([tmp_path], tmp_path)).compile("some", FUNCTIONS)
    path = tmp_path / "some.o"
    path.write_bytes(damage(path.read_bytes()))
    assert Objects(Store([tmp_path], tmp_path)).load("some") is None
    Objects(Store([tmp_path], tmp_path)).compile("some", FUNCTIONS)
    np.testing.assert_array_equal(
        call(Objects(Store([tmp_path], tmp_path)).load("some")[HALVE]), [1.0, 1.5, np.inf]
    )


def test_what_cannot_be_kept_still_runs(tmp_path, capsys) -> None:
    objects = Objects(Store([], tmp_path / "gone"))
    objects.compile("some", FUNCTIONS)
    assert objects.has("some")
    np.testing.assert_array_equal(call(objects.load("some")[HALVE]), [1.0, 1.5, np.inf])
    assert "could not be kept" in capsys.readouterr().err


def test_nothing_else_is_left_in_the_folder(tmp_path) -> None:
    Objects(Store([tmp_path], tmp_path)).compile("some", FUNCTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["some.o"]
