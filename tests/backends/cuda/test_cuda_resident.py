"""Networks that stay in shared memory: their steps are those of graphs, and of NumPy."""

import copy
import secrets
import shutil

import numpy as np
import nvrtc
import pytest
from cuda_stand_in import DESCENDING, RANDOM, StandInBackend, compiler

import nnbackend as nn
from nnbackend.backends.cuda import executor as cuda_executor
from nnbackend.backends.cuda.kernels import source
from nnbackend.backends.cuda.resident import MOST_LAYERS, can_stay, layout_of, stride, tiling
from nnbackend.data.sources import make_source
from nnbackend.executor.base import Run
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.training import trainer

pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
SHARED_DEVICE = StandInBackend(cluster_blocks=8)
ROWS, BATCH = 53, 12  # the last batch of an epoch has five rows
CASES = {
    "labels": (
        lambda: [nn.Dense(6, 9, "relu"), nn.Dense(9, 4)],
        "softmax_cross_entropy", lambda: nn.AdamW(0.02), ["accuracy"],
    ),
    "curved": (
        lambda: [nn.Dense(6, 20, "gelu"), nn.Dense(20, 7, "silu"), nn.Dense(7, 2, "tanh")],
        "mean_squared_error", lambda: nn.SGD(0.05, momentum=0.9, nesterov=True), [],
    ),
    "many outputs": (
        lambda: [nn.Dense(6, 5, "leaky_relu", bias=False), nn.Dense(5, 40)],
        "softmax_cross_entropy", lambda: nn.RMSprop(0.01), ["accuracy"],
    ),
    "frozen": (
        lambda: [nn.Dense(6, 8, "relu", trainable=False), nn.Dense(8, 8, "sigmoid"),
                 nn.Dense(8, 8, "relu", trainable=False), nn.Dense(8, 3, "softplus")],
        "poisson", lambda: nn.AdaGrad(0.05), [],
    ),
    "one layer": (lambda: [nn.Dense(6, 1)], "sigmoid_cross_entropy", lambda: nn.SGD(0.1), []),
    "sum": (lambda: [nn.Dense(6, 3, "elu")], "sum_squared_error", lambda: nn.Adam(0.01), []),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 0)


def model_of(case: str, backend, dtype: str = "float64") -> nn.Sequential:
    layers, loss, optimizer, metrics = CASES[case]
    model = nn.Sequential(layers(), seed=2, dtype=dtype, backend=backend)
    model.compile(loss, optimizer(), metrics)
    return model


def rows_of(model: nn.Sequential, rng, rows: int = ROWS):
    x, outputs = rng.normal(size=(rows, 6)), model.layers[-1].n_outputs
    if model.loss.name == "softmax_cross_entropy":
        return x, rng.integers(0, outputs, rows)
    return x, rng.integers(0, 2, (rows, outputs)).astype(float)


def fit(model: nn.Sequential, x, y, epochs: int = 3, **options) -> list[float]:
    history = model.fit(x, y, epochs=epochs, batch_size=BATCH, verbose=0, **options)
    return [value for name in ("loss", "accuracy") if name in history for value in history[name]]


def stays(model: nn.Sequential) -> bool:
    return any(steps is not None for steps in model.executor._residents.values())


def same(one: nn.Sequential, other: nn.Sequential, **tolerance: float) -> None:
    arrays = other.arrays()
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, arrays[name], err_msg=name, **(tolerance or {"rtol": 0}))


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_numpy(rng, case: str, blocks: int) -> None:
    resident, numpy = (
        model_of(case, backend) for backend in (StandInBackend(cluster_blocks=blocks), "numpy")
    )
    x, y = rows_of(numpy, rng)
    np.testing.assert_allclose(fit(resident, x, y), fit(numpy, x, y), rtol=1e-10)
    same(resident, numpy, rtol=1e-8, atol=1e-11)
    assert stays(resident)
    state = numpy.optimizer_state()
    for name, array in resident.optimizer_state().items():
        np.testing.assert_allclose(array, state[name], rtol=1e-8, atol=1e-11, err_msg=name)


def test_single_precision_too(rng) -> None:
    for case in ("labels", "curved"):
        resident, numpy = (model_of(case, b, "float32") for b in (StandInBackend(), "numpy"))
        x, y = rows_of(numpy, rng)
        np.testing.assert_allclose(fit(resident, x, y), fit(numpy, x, y), rtol=1e-4)
        same(resident, numpy, rtol=1e-3, atol=1e-5)


def test_rows_have_weights_and_targets_may_be_rows(rng) -> None:
    for case in ("labels", "curved"):
        resident, numpy = (model_of(case, b) for b in (StandInBackend(cluster_blocks=4), "numpy"))
        x, y = rows_of(numpy, rng)
        if case == "labels":
            y = np.eye(4)[y]
        weight = rng.uniform(0, 2, ROWS)
        weight[:7] = 0
        curves = [fit(model, x, y, sample_weight=weight) for model in (resident, numpy)]
        np.testing.assert_allclose(*curves, rtol=1e-10)
        same(resident, numpy, rtol=1e-8, atol=1e-11)
        assert stays(resident)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Dense(6, 2, "exponential")],
        [nn.Dense(6, 5, "exponential"), nn.Dense(5, 2)],
        [nn.Dense(6, 5, "exponential"), nn.Dense(5, 2, "tanh")],
        [nn.Dense(6, 5, "exponential"), nn.Dense(5, 2, "silu")],
        [nn.Dense(6, 5, "exponential"), nn.Dense(5, 5, "gelu"), nn.Dense(5, 2)],
    ],
)
def test_rows_that_a_batch_has_not_take_no_part(rng, layers) -> None:
    """A block's rows are a multiple of four, a batch's are not; of nothing but its biases the first
    layer would make numbers that are not finite."""
    x, y = rng.uniform(0.99, 1.01, (17, 6)), rng.normal(size=(17, 2))
    models = []
    for backend in (StandInBackend(cluster_blocks=4), "numpy"):
        model = nn.Sequential(copy.deepcopy(layers), seed=0, backend=backend)
        model.layers[0].weight = np.full(model.layers[0].weight.shape, -100 / 6)
        model.layers[0].bias = np.full(model.layers[0].bias.shape, 100.0)
        model.compile("mean_squared_error", nn.SGD(1e-4))
        model.fit(x, y, epochs=2, batch_size=BATCH, shuffle=False, verbose=0)
        models.append(model)
    assert stays(models[0])
    assert np.isfinite(models[1].history["loss"]).all()
    np.testing.assert_allclose(models[0].history["loss"], models[1].history["loss"], rtol=1e-3)


def test_bits_do_not_depend_on_the_order_of_threads(rng) -> None:
    for case in ("labels", "curved"):
        x, y = rows_of(model_of(case, "numpy"), rng)
        models = [
            model_of(case, StandInBackend(order=order, cluster_blocks=4), "float32")
            for order in (0, DESCENDING, RANDOM)
        ]
        curves = [fit(model, x, y) for model in models]
        for model, curve in zip(models[1:], curves[1:], strict=True):
            assert curve == curves[0]
            same(model, models[0])


def test_it_does_not_matter_how_a_training_is_cut_into_runs(rng, monkeypatch) -> None:
    """Also where the first steps are launched, and others follow in the same run."""
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 7)
    models = []
    for seconds in (0.0, 1e-3, 10.0):
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        models.append(model_of("labels", StandInBackend(), "float32"))
        x, y = rows_of(models[-1], np.random.default_rng(1))
        fit(models[-1], x, y)
        assert stays(models[-1])
    halves = model_of("labels", StandInBackend(), "float32")
    fit(halves, x, y, epochs=1)
    fit(halves, x, y, epochs=2)
    for model in (*models[1:], halves):
        same(model, models[0])


def test_what_trains_for_a_moment_only_needs_no_kernel_of_its_own(rng, monkeypatch) -> None:
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 15)
    model = model_of("labels", StandInBackend())
    x, y = rows_of(model, rng)
    fit(model, x, y)  # 15 steps
    assert not model.executor._residents
    fit(model, x, y, epochs=1)
    assert stays(model)


def test_single_steps_and_the_gradient_that_they_leave(rng) -> None:
    resident, numpy = (model_of("curved", backend) for backend in (StandInBackend(), "numpy"))
    for _ in range(5):
        x, y = rows_of(numpy, rng, 9)
        losses = [float(model.train_step(x, y)) for model in (resident, numpy)]
        np.testing.assert_allclose(*losses, rtol=1e-11)
    assert stays(resident)
    for one, other in zip(resident.layers, numpy.layers, strict=True):
        np.testing.assert_allclose(
            resident.backend.to_numpy(one.weight_grad), other.weight_grad, rtol=1e-9, atol=1e-12
        )


def test_nothing_is_updated_from_the_first_loss_on_that_is_no_number(rng) -> None:
    model = model_of("labels", StandInBackend(cluster_blocks=4), "float32")
    x, y = rows_of(model, rng, BATCH)
    device = model.backend
    fit(model, x, y)
    before = model.arrays()
    bad = x.astype(np.float32)
    bad[3, 2] = np.nan
    on_device = (device.asarray(bad, bad.dtype), device.asarray(y, np.dtype(np.int32)))
    assert np.isnan(float(model.train_step(*on_device)))
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("layers", "loss", "settings"),
    [
        ([nn.Dense(6, 4), nn.Dropout(0.1)], "mean_squared_error", {}),
        ([nn.Dense(6, 4, weight_l2=0.1)], "mean_squared_error", {}),
        ([nn.Dense(6, 4, "softmax")], "categorical_cross_entropy", {}),
        ([nn.Dense(6, 4)], "mean_squared_error", {"optimizer": nn.Adam(0.1, clip_norm=1.0)}),
        ([nn.Dense(6, 4)], "mean_squared_error", {"metrics": ["mae"]}),
        ([nn.Dense(6, 4)], lambda y, p: (((p - y) ** 2).mean(), 2 * (p - y) / p.size), {}),
    ],
)
def test_what_the_kernel_does_not_know_is_done_by_launches(layers, loss, settings) -> None:
    model = nn.Sequential(layers, seed=0, backend=StandInBackend())
    model.compile(loss, settings.get("optimizer", "adam"), settings.get("metrics", []))
    assert not can_stay(model.program, model.backend)


def test_a_network_that_does_not_fit_or_is_not_faster_there_is_left_to_graphs(rng) -> None:
    for device in (StandInBackend(shared_bytes=9000), StandInBackend(slow_epilogues=True)):
        model = model_of("labels", device)
        x, y = rows_of(model, rng)
        fit(model, x, y)
        assert [*model.executor._residents.values()] == [None]


def test_a_kernel_that_cannot_be_had_is_done_without_and_said_so(rng) -> None:
    device = StandInBackend()
    prepare = device.gpu.prepare

    def fails_for_networks(launch):
        if launch.network:
            raise nn.DeviceError("planted")
        return prepare(launch)

    device.gpu.prepare = fails_for_networks
    models = [model_of("labels", backend) for backend in (device, "numpy")]
    x, y = rows_of(models[0], rng)
    with pytest.warns(UserWarning, match="cannot be used .DeviceError: planted.; CUDA graphs"):
        found = fit(models[0], x, y)
    np.testing.assert_allclose(found, fit(models[1], x, y), rtol=1e-10)
    fit(models[0], x, y, epochs=1)  # says it once


def test_what_is_faster_is_found_with_whole_batches_whatever_rows_there_are(rng) -> None:
    device = StandInBackend()
    model, timed = model_of("labels", device), []
    begin = model.executor._begin

    def noted(data, *more):
        timed.append(len(data.x))
        begin(data, *more)

    model.executor._begin = noted
    x, y = rows_of(model, rng, 5)
    data = make_source(model.program, x, y).data
    model.executor.run(Run(data, None, BATCH, model.program.rates(model.step, 1), 0))
    assert set(timed[:-1]) == {BATCH}
    assert timed[-1] == 5


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


def test_finding_out_what_is_faster_changes_nothing(rng) -> None:
    models = [model_of("labels", StandInBackend()) for _ in range(2)]
    x, y = rows_of(models[0], rng)
    fit(models[0], x, y)
    models[1].backend.gpu.tuning = models[0].backend.gpu.tuning  # asks nothing
    fit(models[1], x, y)
    same(*models)


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


@pytest.mark.slow
def test_random_networks_train_as_on_numpy() -> None:
    """Fresh ones each time; the seed is in the message."""
    seed = secrets.randbelow(1 << 31)
    for number in range(seed, seed + 25):
        rng = np.random.default_rng(number)
        backend = StandInBackend(
            order=int(rng.integers(3)), cluster_blocks=1 << int(rng.integers(4))
        )
        build, x, y, weight, batch = random_training(rng)
        models, curves = [build(backend), build("numpy")], []
        for model in models:
            model.fit(x, y, epochs=2, batch_size=batch, sample_weight=weight, verbose=0)
            curves.append(model.history["loss"])
        np.testing.assert_allclose(*curves, rtol=1e-9, err_msg=f"seed {number}")
        same(*models, rtol=1e-6, atol=1e-9)


def random_training(rng):
    """A function that builds a network on a backend, and what it is to be trained on."""
    depth, rows = int(rng.integers(1, 5)), int(rng.integers(1, 150))
    widths = rng.integers(1, 70, depth + 1).tolist()
    acts = rng.choice([name for name in ACTIVATIONS if name != "softmax"], depth)
    loss = str(rng.choice(["softmax_cross_entropy", "sigmoid_cross_entropy", "huber", "poisson"]))
    acts[-1] = {"huber": acts[-1], "poisson": "softplus"}.get(loss, "linear")
    widths[-1] += loss == "softmax_cross_entropy"
    biases, trained = rng.random(depth) < 0.7, rng.random(depth) < 0.8
    trained[int(rng.integers(depth))] = True
    optimizer = int(rng.integers(5))

    def build(backend) -> nn.Sequential:
        layers = [
            nn.Dense(*pair, str(act), bias=bool(bias), trainable=bool(trains))
            for *pair, act, bias, trains in zip(
                widths, widths[1:], acts, biases, trained, strict=False
            )
        ]
        model = nn.Sequential(layers, seed=1, dtype="float64", backend=backend)
        kinds = [nn.SGD, nn.AdaGrad, nn.RMSprop, nn.Adam, nn.AdamW]
        model.compile(loss, kinds[optimizer](0.005))
        return model

    x, y = rng.normal(size=(rows, widths[0])), rng.uniform(0, 1, (rows, widths[-1]))
    if loss == "softmax_cross_entropy" and rng.random() < 0.5:
        y = rng.integers(0, widths[-1], rows)
    weight = rng.uniform(0.1, 2, rows) if rng.random() < 0.5 else None
    return build, x, y, weight, int(rng.integers(1, 71))
