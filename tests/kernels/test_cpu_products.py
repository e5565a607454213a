"""The compiled matrix products against float64: every edge of a tile, a panel and a block."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from nnbackend.backends.numba.runtime import runtime  # noqa: E402
from nnbackend.kernels.cpu.gemm import products as cpu_products  # noqa: E402
from nnbackend.kernels.cpu.gemm import tile as cpu_tile  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def multiply() -> None:
    """Products call code of an object file, which has to be there first."""
    for dtype in ("float32", "float64"):
        runtime().unit.entry(f"products_{dtype}")


@numba.njit
def _product(a, b, c, scratch):
    cpu_products.product(a, b, c, scratch.ctypes.data)


@numba.njit
def _product_with_transposed(a, b, c, scratch):
    cpu_products.product_with_transposed(a, b, c, scratch.ctypes.data)


@numba.njit
def _transposed_product(a, first, b, c, scratch):
    cpu_products.transposed_product(a, first, b, c, scratch.ctypes.data)


LANES = cpu_tile.VECTOR_BYTES // 4
ROWS, COLUMNS = cpu_tile.TILE_ROWS, cpu_tile.TILE_VECTORS * LANES
STEPS = cpu_products.STEPS
#: (M, K, N): one, less than a tile, a tile, one more; narrow; where copies begin; several blocks.
SHAPES = [
    (1, 1, 1), (1, 300, 7), (2, 4, 2), (ROWS - 1, 3, LANES - 1), (ROWS, LANES, COLUMNS),
    (ROWS + 1, LANES + 1, COLUMNS + 1), (300, 64, 1), (300, 65, 3), (65, 300, 10), (33, 17, 12),
    (300, 2, 64), (23, 4, 5 * LANES + 3), (50, 1, LANES), (300, 3, 2), (301, LANES, 2),
    (37, 3 * LANES - 1, 4), (ROWS, 64, 3), (ROWS, 8, 160), (cpu_products.COPY_B + 1, 12, 200),
    (cpu_products.COPY_B, 50, 2 * COLUMNS + 3), (40, STEPS, 512), (67, STEPS + 1, 515),
    (cpu_products.BLOCK_TILES * ROWS + 5, 700, cpu_products.BLOCK_VECTORS * LANES + 9),
]  # fmt: skip


def draw(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng().normal(size=shape).astype(dtype)


def guarded(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A poisoned matrix, and it with the numbers before and after it, which nobody may touch."""
    whole = np.full(shape[0] * shape[1] + 128, np.nan, dtype)
    whole[:64] = whole[-64:] = 77
    return whole[64:-64].reshape(shape), whole


def scratch() -> np.ndarray:
    memory = np.full(cpu_products.SCRATCH_BYTES + 64, 0xFF, np.uint8)  # NaN, all of it
    memory[-64:] = 77
    return memory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["a b", "a b^T", "a^T b"])
def test_products_are_those_of_float64_and_write_nothing_else(
    kind: str, shape: tuple[int, int, int], dtype: str
) -> None:
    m, k, n = shape
    a, b = draw((m, k), dtype), draw((k, n), dtype)
    c, whole = guarded((m, n), dtype)
    memory = scratch()
    if kind == "a b":
        _product(a, b, c, memory)
    elif kind == "a b^T":
        _product_with_transposed(a, np.ascontiguousarray(b.T), c, memory)
    else:
        # the middle columns of a wider matrix
        wide = np.concatenate([draw((k, 5), dtype), a.T, draw((k, 2), dtype)], axis=1)
        _transposed_product(np.ascontiguousarray(wide), 5, b, c, memory)
    exact = a.astype("float64") @ b.astype("float64")
    scale = np.abs(a).astype("float64") @ np.abs(b).astype("float64")
    eps = np.finfo(dtype).eps
    assert (np.abs(c - exact) <= (4 + 0.25 * k**0.5) * eps * scale + 1e-300).all()
    assert (whole[:64] == 77).all()
    assert (whole[-64:] == 77).all()
    assert (memory[-64:] == 77).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("k", "n"), [(600, 200), (64, 3), (64, 10), (3, 2), (2, 64)], ids=str)
def test_an_element_has_the_same_bits_wherever_it_stands(k: int, n: int, dtype: str) -> None:
    a, b = draw((cpu_products.COPY_B + 40, k), dtype), draw((k, n), dtype)
    whole = np.empty((len(a), n), dtype)
    _product(a, b, whole, scratch())
    for first, last in ((0, 1), (3, 20), (20, len(a))):
        part = np.empty((last - first, n), dtype)
        _product(a[first:last].copy(), b, part, scratch())
        np.testing.assert_array_equal(part, whole[first:last])


def test_nan_and_infinity_reach_the_elements_they_belong_to_and_no_other() -> None:
    a, b = np.ones((20, 30), "float32"), np.ones((30, 40), "float32")
    a[7, 3], b[5, 33] = np.nan, np.inf
    c = np.empty((20, 40), "float32")
    _product(a, b, c, scratch())
    assert np.isnan(c[7]).all()
    others = np.delete(c, 7, axis=0)
    assert np.isinf(others[:, 33]).all()
    assert (np.delete(others, 33, axis=1) == 30).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(IndexError, match="shapes do not fit"):
        _product(
            draw((3, 4), "float32"), draw((5, 2), "float32"), draw((3, 2), "float32"), scratch()
        )


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["arm64", "x86_64"])
def test_other_processors_train_alike(machine: str, tmp_path) -> None:
    """As on a machine that leaves large products to SciPy, and on one without wide vectors."""
    source = f"""
        import numba, platform
        platform.machine = lambda: "{machine}"
        import numpy as np
        import nnbackend as nn
        from nnbackend.kernels.cpu.gemm import products as cpu_products, tile as cpu_tile
        assert cpu_products.USES_BLAS == ("{machine}" == "arm64")
        assert cpu_tile.VECTOR_BYTES == 16
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(256, 100)), rng.integers(0, 10, 256)
        losses = []
        for backend in ("numpy", "numba"):
            layers = [nn.Dense(100, 200, "tanh"), nn.Dense(200, 150, "relu"), nn.Dense(150, 10)]
            model = nn.Sequential(layers, seed=1, dtype="float64", backend=backend)
            model.compile("softmax_cross_entropy", nn.Adam(1e-3))
            history = model.fit(x, y, epochs=3, batch_size=64, verbose=0)
            losses.append(history["loss"])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
