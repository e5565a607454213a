"""The shared numerical kernels against references of their own."""

import math

import numpy as np
import pytest

from nnbackend.kernels.erf import erf, erfc
from nnbackend.kernels.philox import philox_words


def ulp_error(value: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(value - exact) / np.spacing(np.abs(exact))).max())


def test_erf_is_accurate_to_float64_rounding(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.uniform(-6, 6, 200_000), rng.normal(size=50_000) * 1e-3])
    assert ulp_error(erf(np, x), np.array([math.erf(v) for v in x])) <= 2


def test_erfc_keeps_relative_accuracy_in_the_tail(rng: np.random.Generator) -> None:
    x = rng.uniform(-6, 26, 200_000)
    assert ulp_error(erfc(np, x), np.array([math.erfc(v) for v in x])) <= 8


def test_erf_of_special_values() -> None:
    special = erf(np, np.array([0.0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(special, [0.0, -0.0, 1.0, -1.0, np.nan])
    assert math.copysign(1.0, special[1]) == -1.0
    np.testing.assert_array_equal(erfc(np, np.array([np.inf, -np.inf])), [0.0, 2.0])


# Known answers published with Random123, the authors' library.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple, key: tuple, words: tuple) -> None:
    first = np.array([counter[0]], np.uint64)
    stream = counter[1] | counter[2] << 32 | counter[3] << 64
    received = philox_words(np, first, stream, key[0] | key[1] << 32)
    assert tuple(int(w[0]) for w in received) == words
