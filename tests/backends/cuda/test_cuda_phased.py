"""Steps in phases: products in tiles of every size, gradients in parts, and what fits."""

import shutil
from itertools import pairwise

import numpy as np
import nvrtc
import pytest
from cuda_stand_in import DESCENDING, RANDOM, StandInBackend, compiler

import nnbackend as nn
from nnbackend.backends.cuda import executor as cuda_executor
from nnbackend.backends.cuda import kernels, phase_plan
from nnbackend.backends.cuda.kernels import TILES, source
from nnbackend.backends.cuda.phase_plan import Layer
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


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
@pytest.mark.parametrize(
    "tile",
    [pytest.param(k, id=str(tile), marks=() if k in (1, 3) else pytest.mark.slow)
     for k, tile in enumerate(TILES)],
)  # fmt: skip
def test_products_in_tiles_of_any_size_are_those_of_numpy(monkeypatch, tile, dtype) -> None:
    """Whatever hangs over: rows of weights on whole sixteens of bytes and not, long and short."""
    monkeypatch.setattr(phase_plan.Product, "tiles", lambda product: [tile])
    widths = (150, 68, 37, 5)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    compare(trained(StandInBackend(), widths, dtype), trained("numpy", widths, dtype), tolerance)


@pytest.mark.parametrize("parts", [2, 5, 32])
def test_gradients_may_be_made_in_parts(monkeypatch, parts: int) -> None:
    """Of whatever rows there are; the last step leaves their sum."""
    monkeypatch.setattr(phase_plan, "PARTS", (parts,))
    monkeypatch.setattr(phase_plan, "FEWEST_ROWS", 1)
    models = [trained(backend, (20, 33, 5)) for backend in (StandInBackend(), "numpy")]
    compare(*models)
    one, other = (model.layers[0] for model, _ in models)
    gradient = models[0][0].backend.to_numpy(one.weight_grad)
    np.testing.assert_allclose(gradient, other.weight_grad, rtol=1e-7, atol=1e-10)


def test_losses_of_many_outputs_are_a_phase_of_their_own() -> None:
    weight = np.random.default_rng(0).uniform(0, 2, 130)
    models = [
        trained(backend, (5, 8, 70), sample_weight=weight)
        for backend in (StandInBackend(), "numpy")
    ]
    compare(*models)


def test_only_the_last_layer_may_be_trained() -> None:
    """Whether the loss is finite is known before anything is updated."""
    models = []
    for backend in (StandInBackend(), "numpy"):
        layers = [nn.Dense(6, 9, "relu", trainable=False), nn.Dense(9, 3)]
        model = nn.Sequential(layers, seed=1, dtype="float64", backend=backend)
        model.compile("softmax_cross_entropy", "adam")
        x, y = np.random.default_rng(1).normal(size=(40, 6)), np.arange(40) % 3
        model.fit(x, y, epochs=2, batch_size=12, verbose=0)
        models.append(model)
    for name, array in models[0].arrays().items():
        np.testing.assert_allclose(array, models[1].arrays()[name], rtol=1e-9, atol=1e-12)


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


@pytest.mark.slow
def test_a_block_may_fetch_many_rows_of_odd_width() -> None:
    """More numbers than float32 counts: one multiprocessor takes the whole batch."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9000, 999)).astype("float32"), rng.integers(0, 2, 9000)
    biases = []
    for backend in (StandInBackend(multiprocessors=1), "numpy"):
        model = nn.Sequential([nn.Dense(999, 2)], seed=0, backend=backend)
        model.compile("softmax_cross_entropy", nn.SGD(0.1))
        model.fit(x, y, epochs=1, batch_size=9000, verbose=0)
        biases.append(model.arrays()["layers.0.bias"])
    np.testing.assert_allclose(*biases, rtol=1e-3)


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
    assert not takes((1, 1), 1 << 28)  # few products, but places beyond 32 bits
    assert not takes((8, 8), 256, shared_bytes=96 << 10)


def test_wide_layers_have_large_tiles_and_narrow_ones_many_parts() -> None:
    def tiles(plan) -> list[tuple[int, int]]:
        return [TILES[cut.tile] for phase in plan.backward for cut in phase]

    wide = phase_plan.plan_of([Layer(784, 512, True, True), Layer(512, 10, True, True)], 256, 132)
    assert (64, 64) in tiles(wide)
    assert wide.parts == 1
    narrow = [Layer(28, 64, True, True), Layer(64, 3, True, True)]
    assert (64, 64) not in tiles(phase_plan.plan_of(narrow, 64, 132))
    assert phase_plan.plan_of(narrow, 2048, 132).parts > 1


def test_weights_are_updated_when_nobody_reads_them_any_more() -> None:
    layers = [Layer(4, 4, True, True)] * 4
    plan = phase_plan.plan_of(layers, 8, 132)
    order = [{(c.product.kind, c.product.layer) for c in phase} for phase in plan.backward]
    assert order == [
        {("below", 3)}, {("below", 2), ("weights", 3)}, {("below", 1), ("weights", 2)},
        {("weights", 1), ("weights", 0)},
    ]  # fmt: skip


@pytest.mark.skipif(nvrtc.library() is None, reason="needs the wheel nvidia-cuda-nvrtc")
@pytest.mark.slow
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_kernel_compiles_without_a_warning(architecture: str, real: str) -> None:
    backend = StandInBackend(shared_bytes=SHARED[architecture])
    text = source(kernels.phase_definitions(backend.gpu.shared_bytes))
    nvrtc.compile_program(text, f"-arch={architecture}", f"-DReal={real}")


@pytest.mark.parametrize("meeting", ["between phases", "before the first step"])
def test_blocks_that_do_not_meet_are_found(monkeypatch, meeting: str) -> None:
    text, meet = kernels._text, "meet_grid(arrived + turn, meetings);"
    indent = 12 if meeting == "between phases" else 4

    def planted(name: str) -> str:
        return text(name).replace(f"\n{' ' * indent}{meet}", "")

    monkeypatch.setattr(kernels, "_text", planted)
    memory = (200 << 10) + (indent << 10)  # so that it is a program of its own
    backends = (StandInBackend(shared_bytes=memory, order=DESCENDING), "numpy")
    with pytest.raises((AssertionError, nn.NonFiniteLossError)):
        compare(*(trained(backend, (20, 133, 5)) for backend in backends))
