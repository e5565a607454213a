"""What lies where in the shared memory of a block, for networks that stay there."""

import shutil

import nvrtc
import pytest
from cuda_stand_in import StandInBackend, compiler
from small_networks import model_of, rows_of

import nnbackend as nn
from nnbackend.backends.cuda.kernels import source
from nnbackend.backends.cuda.resident import MOST_LAYERS, can_stay, layout_of, stride, tiling
from nnbackend.data.sources import make_source

pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
SHARED_DEVICE = StandInBackend(cluster_blocks=8)


def test_few_kernels_serve_batches_of_any_size(rng) -> None:
    networks = set()
    for rows in range(1, 257):
        model = model_of("labels", SHARED_DEVICE)
        data = make_source(model.program, *rows_of(model, rng, 4)).data
        networks.add(layout_of(model.program, SHARED_DEVICE, rows, data).network)
    assert len(networks) <= 12


def test_deep_networks_would_take_long_to_compile(rng) -> None:
    model = nn.Sequential([nn.Dense(4, 4) for _ in range(MOST_LAYERS + 1)], seed=0,
                          backend=SHARED_DEVICE)  # fmt: skip
    model.compile("mean_squared_error", "adam")
    assert not can_stay(model.program, SHARED_DEVICE)


@pytest.mark.parametrize("width", range(1, 140))
def test_rows_lie_an_odd_number_of_fours_apart(width: int) -> None:
    assert stride(width) >= width
    assert stride(width) % 8 == 4


def test_few_elements_are_shared_by_lanes_and_many_are_taken_by_fours() -> None:
    assert tiling(4, 4, 64)[1] >= 3
    assert tiling(64, 64, 8)[0]
    for rows, columns, inner in ((4, 1, 1), (1, 1, 2), (300, 200, 3)):
        large, shift = tiling(rows, columns, inner)
        assert 0 <= shift <= 5
        assert isinstance(large, bool)


@pytest.mark.skipif(nvrtc.library() is None, reason="needs the wheel nvidia-cuda-nvrtc")
@pytest.mark.parametrize("real", ["float", pytest.param("double", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "architecture",
    ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_75", "sm_120"))],
)
def test_the_kernel_compiles_without_a_warning(rng, architecture: str, real: str) -> None:
    for case in ("labels", "curved"):
        dtype = "float32" if real == "float" else "float64"
        model = model_of(case, StandInBackend(cluster_blocks=8), dtype)
        data = make_source(model.program, *rows_of(model, rng)).data
        layout = layout_of(model.program, model.backend, 32, data)
        text = source(layout.network)
        nvrtc.compile_program(text, f"-arch={architecture}", f"-DReal={real}")
