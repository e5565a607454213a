"""Steps in phases: products in tiles of every size, gradients in parts, and what fits."""

import shutil
from itertools import pairwise

import numpy as np
import nvrtc
import pytest
from cuda_stand_in import DESCENDING, RANDOM, StandInBackend, compiler

import nnbackend as nn
from nnbackend.backends.cuda import executor as cuda_executor
from nnbackend.backends.cuda import phased
from nnbackend.backends.cuda.kernels import TILES, source
from nnbackend.backends.cuda.phased import MOST_LAYERS, PhasedSteps, can_take_phases

pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
#: Bytes of shared memory of a block on consumers' GPUs, an A100 and an H100.
SHARED = {"sm_120": 99 << 10, "sm_80": 163 << 10, "sm_90": 227 << 10}


@pytest.fixture(autouse=True)
def _in_phases_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 0)
    monkeypatch.setattr(cuda_executor, "can_stay", lambda *program: False)


def trained(backend, widths, dtype="float64", rows=130, batch=45, epochs=2, **fit):
    """A network after some steps, and its losses."""
    rng = np.random.default_rng(3)
    layers = [nn.Dense(*pair, "relu") for pair in pairwise(widths[:-1])]
    layers += [nn.Dense(*widths[-2:])]
    model = nn.Sequential(layers, seed=1, dtype=dtype, backend=backend)
    model.compile("softmax_cross_entropy", nn.AdamW(0.01), ["accuracy"])
    x, y = rng.normal(size=(rows, widths[0])), rng.integers(0, widths[-1], rows)
    history = model.fit(x, y, epochs=epochs, batch_size=batch, verbose=0, **fit)
    if backend != "numpy":
        kernels = model.executor._kernels.values()
        assert [type(steps) for steps in kernels] == [PhasedSteps]
    return model, history


def compare(one, other, tolerance: float = 1e-9) -> None:
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(one[1][name], other[1][name], rtol=tolerance)
    arrays = other[0].arrays()
    for name, array in one[0].arrays().items():
        limits = {"rtol": 100 * tolerance, "atol": tolerance}
        np.testing.assert_allclose(array, arrays[name], err_msg=name, **limits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", range(len(TILES)), ids=map(str, TILES))
def test_products_in_tiles_of_any_size_are_those_of_numpy(monkeypatch, tile, dtype) -> None:
    """Whatever hangs over: rows of weights on whole sixteens of bytes and not, long and short."""
    found = phased.cut_into_tiles

    def cut(rows, columns, inner, blocks, parts=1):
        (tall, wide), plan = TILES[tile], found(rows, columns, inner, blocks, parts)
        units = -(-rows // tall) * -(-columns // wide) * parts
        return plan._replace(tile=tile, units=units)

    monkeypatch.setattr(phased, "cut_into_tiles", cut)
    widths = (150, 68, 37, 10)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    compare(trained(StandInBackend(), widths, dtype), trained("numpy", widths, dtype), tolerance)


@pytest.mark.parametrize("parts", [2, 5, 32])
def test_gradients_may_be_made_in_parts(monkeypatch, parts: int) -> None:
    """Of whatever rows there are; the last step leaves their sum."""
    monkeypatch.setattr(phased, "parts_of", lambda program, rows, blocks: parts)
    models = [trained(backend, (20, 33, 5)) for backend in (StandInBackend(), "numpy")]
    compare(*models)
    one, other = (model.layers[0] for model, _ in models)
    gradient = models[0][0].backend.to_numpy(one.weight_grad)
    np.testing.assert_allclose(gradient, other.weight_grad, rtol=1e-7, atol=1e-10)


def test_many_rows_of_few_outputs_take_a_lane_each() -> None:
    weight = np.random.default_rng(0).uniform(0, 2, 700)
    models = [
        trained(backend, (5, 8, 3), rows=700, batch=300, sample_weight=weight)
        for backend in (StandInBackend(), "numpy")
    ]
    compare(*models)


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
def test_bits_depend_neither_on_the_order_of_threads_nor_on_the_memory(shared: int) -> None:
    found = [
        trained(StandInBackend(order=order, shared_bytes=shared), (150, 20, 4), "float32")
        for order in (0, DESCENDING, RANDOM)
    ]
    for one in found[1:]:
        assert one[1]["loss"] == found[0][1]["loss"]


def test_the_deepest_network_has_room_in_the_table() -> None:
    widths = (4,) * (MOST_LAYERS + 1)
    compare(*(trained(backend, widths, epochs=1) for backend in (StandInBackend(), "numpy")))


def test_what_is_too_deep_or_large_or_has_no_room_is_left_to_graphs() -> None:
    def takes(widths, rows: int, **device) -> bool:
        backend = StandInBackend(**device)
        layers = [nn.Dense(*pair) for pair in pairwise(widths)]
        model = nn.Sequential(layers, seed=0, backend=backend)
        model.compile("mean_squared_error", "adam")
        return can_take_phases(model.program, backend, rows)

    assert takes((784, 512, 512, 10), 256)
    assert not takes((4,) * (MOST_LAYERS + 2), 256)
    assert not takes((1024,) * 4, 1024)
    assert not takes((8, 8), 256, shared_bytes=64 << 10)


def test_wide_layers_have_large_tiles_and_narrow_ones_many_parts() -> None:
    sizes = ((64, 64, 64), (785, 512, 256))
    small, large = (phased.cut_into_tiles(*size, blocks=132) for size in sizes)
    assert TILES[small.tile] in ((16, 8), (16, 16))
    assert TILES[large.tile] == (64, 64)
    model = nn.Sequential([nn.Dense(28, 64), nn.Dense(64, 3)], seed=0, backend=StandInBackend())
    assert phased.parts_of(model.program, 2048, 132) > 4
    assert phased.parts_of(model.program, 64, 132) == 1


@pytest.mark.skipif(nvrtc.library() is None, reason="needs the wheel nvidia-cuda-nvrtc")
@pytest.mark.parametrize("real", ["float", pytest.param("double", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "architecture",
    ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_80", "sm_120"))],
)
def test_the_kernel_compiles_without_a_warning(architecture: str, real: str) -> None:
    backend = StandInBackend(shared_bytes=SHARED[architecture])
    text = source(phased.definitions_of(backend))
    nvrtc.compile_program(text, f"-arch={architecture}", f"-DReal={real}")
