"""Kernels that do many steps, in shared memory or in phases: they train as graphs and NumPy do."""

import copy
import secrets
import shutil

import numpy as np
import pytest
from cuda_stand_in import DESCENDING, RANDOM, StandInBackend, compiler
from small_networks import BATCH, CASES, ROWS, model_of, rows_of

import nnbackend as nn
from nnbackend.backends.cuda import executor as cuda_executor
from nnbackend.backends.cuda.known import is_dense
from nnbackend.backends.cuda.phased import PhasedSteps
from nnbackend.backends.cuda.resident import ResidentSteps
from nnbackend.data.sources import make_source
from nnbackend.executor.base import Run
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.training import trainer

pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
KERNELS = {"in shared memory": ResidentSteps, "in phases": PhasedSteps}


@pytest.fixture(params=KERNELS, autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only one that there is, from the first step on."""
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 0)
    other = "can_take_phases" if request.param == "in shared memory" else "can_stay"
    monkeypatch.setattr(cuda_executor, other, lambda *program: False)
    return str(request.param)


def device(blocks: int = 4, **settings) -> StandInBackend:
    """So many blocks work together."""
    return StandInBackend(cluster_blocks=blocks, multiprocessors=blocks, **settings)


def fit(model: nn.Sequential, x, y, epochs: int = 3, **options) -> list[float]:
    history = model.fit(x, y, epochs=epochs, batch_size=BATCH, verbose=0, **options)
    return [value for name in ("loss", "accuracy") if name in history for value in history[name]]


def is_used(kernel: str, model: nn.Sequential) -> bool:
    """By all of the model's steps."""
    found = model.executor._kernels.values()
    return bool(found) and all(isinstance(steps, KERNELS[kernel]) for steps in found)


def same(one: nn.Sequential, other: nn.Sequential, **tolerance: float) -> None:
    arrays = other.arrays()
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, arrays[name], err_msg=name, **(tolerance or {"rtol": 0}))


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_numpy(kernel, rng, case: str, blocks: int) -> None:
    resident, numpy = (model_of(case, backend) for backend in (device(blocks), "numpy"))
    x, y = rows_of(numpy, rng)
    np.testing.assert_allclose(fit(resident, x, y), fit(numpy, x, y), rtol=1e-10)
    same(resident, numpy, rtol=1e-8, atol=1e-11)
    assert is_used(kernel, resident)
    state = numpy.optimizer_state()
    for name, array in resident.optimizer_state().items():
        np.testing.assert_allclose(array, state[name], rtol=1e-8, atol=1e-11, err_msg=name)


def test_single_precision_too(rng) -> None:
    for case in ("labels", "curved"):
        resident, numpy = (model_of(case, b, "float32") for b in (StandInBackend(), "numpy"))
        x, y = rows_of(numpy, rng)
        np.testing.assert_allclose(fit(resident, x, y), fit(numpy, x, y), rtol=1e-4)
        same(resident, numpy, rtol=1e-3, atol=1e-5)


def test_rows_have_weights_and_targets_may_be_rows(kernel, rng) -> None:
    for case in ("labels", "curved"):
        resident, numpy = (model_of(case, b) for b in (device(), "numpy"))
        x, y = rows_of(numpy, rng)
        if case == "labels":
            y = np.eye(4)[y]
        weight = rng.uniform(0, 2, ROWS)
        weight[:7] = 0
        curves = [fit(model, x, y, sample_weight=weight) for model in (resident, numpy)]
        np.testing.assert_allclose(*curves, rtol=1e-10)
        same(resident, numpy, rtol=1e-8, atol=1e-11)
        assert is_used(kernel, resident)


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
def test_rows_that_a_batch_has_not_take_no_part(kernel, rng, layers) -> None:
    """A block's rows are a multiple of four, a batch's are not; of nothing but its biases the first
    layer would make numbers that are not finite."""
    x, y = rng.uniform(0.99, 1.01, (17, 6)), rng.normal(size=(17, 2))
    models = []
    for backend in (device(), "numpy"):
        model = nn.Sequential(copy.deepcopy(layers), seed=0, backend=backend)
        model.layers[0].weight = np.full(model.layers[0].weight.shape, -100 / 6)
        model.layers[0].bias = np.full(model.layers[0].bias.shape, 100.0)
        model.compile("mean_squared_error", nn.SGD(1e-4))
        model.fit(x, y, epochs=2, batch_size=BATCH, shuffle=False, verbose=0)
        models.append(model)
    assert is_used(kernel, models[0])
    assert np.isfinite(models[1].history["loss"]).all()
    np.testing.assert_allclose(models[0].history["loss"], models[1].history["loss"], rtol=1e-3)


def test_bits_do_not_depend_on_the_order_of_threads(rng) -> None:
    for case in ("labels", "curved"):
        x, y = rows_of(model_of(case, "numpy"), rng)
        models = [
            model_of(case, device(order=order), "float32") for order in (0, DESCENDING, RANDOM)
        ]
        curves = [fit(model, x, y) for model in models]
        for model, curve in zip(models[1:], curves[1:], strict=True):
            assert curve == curves[0]
            same(model, models[0])


def test_it_does_not_matter_how_a_training_is_cut_into_runs(kernel, rng, monkeypatch) -> None:
    """Also where the first steps are launched, and others follow in the same run."""
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 7)
    models = []
    for seconds in (0.0, 1e-3, 10.0):
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        models.append(model_of("labels", StandInBackend(), "float32"))
        x, y = rows_of(models[-1], np.random.default_rng(1))
        fit(models[-1], x, y)
        assert is_used(kernel, models[-1])
    halves = model_of("labels", StandInBackend(), "float32")
    fit(halves, x, y, epochs=1)
    fit(halves, x, y, epochs=2)
    for model in (*models[1:], halves):
        same(model, models[0])


def test_what_trains_for_a_moment_only_needs_no_kernel_of_its_own(kernel, rng, monkeypatch) -> None:
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 15)
    model = model_of("labels", StandInBackend())
    x, y = rows_of(model, rng)
    fit(model, x, y)  # 15 steps
    assert not model.executor._kernels
    fit(model, x, y, epochs=1)
    assert is_used(kernel, model)


def test_single_steps_and_the_gradient_that_they_leave(kernel, rng) -> None:
    resident, numpy = (model_of("curved", backend) for backend in (StandInBackend(), "numpy"))
    for _ in range(5):
        x, y = rows_of(numpy, rng, 9)
        losses = [float(model.train_step(x, y)) for model in (resident, numpy)]
        np.testing.assert_allclose(*losses, rtol=1e-11)
    assert is_used(kernel, resident)
    for one, other in zip(resident.layers, numpy.layers, strict=True):
        np.testing.assert_allclose(
            resident.backend.to_numpy(one.weight_grad), other.weight_grad, rtol=1e-9, atol=1e-12
        )


def test_nothing_is_updated_from_the_first_loss_on_that_is_no_number(rng) -> None:
    model = model_of("labels", device(), "float32")
    x, y = rows_of(model, rng, BATCH)
    asarray = model.backend.asarray
    fit(model, x, y)
    before = model.arrays()
    bad = x.astype(np.float32)
    bad[3, 2] = np.nan
    on_device = (asarray(bad, bad.dtype), asarray(y, np.dtype(np.int32)))
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
    model = nn.Sequential(copy.deepcopy(layers), seed=0, backend=StandInBackend())
    model.compile(loss, settings.get("optimizer", "adam"), settings.get("metrics", []))
    assert not is_dense(model.program, model.backend)


def test_a_network_that_does_not_fit_or_is_not_faster_there_is_left_to_graphs(rng) -> None:
    for device in (StandInBackend(shared_bytes=9000), StandInBackend(slow_epilogues=True)):
        model = model_of("labels", device)
        x, y = rows_of(model, rng)
        fit(model, x, y)
        assert [*model.executor._kernels.values()] == [None]


@pytest.mark.parametrize("when", ["it is made", "it starts"])
def test_a_kernel_that_cannot_be_used_is_done_without_and_said_so(rng, when: str) -> None:
    """A compiler may fail, or a driver refuse blocks that have to run at the same time."""
    device = StandInBackend()
    prepare = device.gpu.prepare

    def fails(*numbers: float) -> None:
        raise nn.DeviceError("planted")

    def fails_for_many_steps(launch):
        if not launch.definitions:
            return prepare(launch)
        return fails if when == "it starts" else fails()

    device.gpu.prepare = fails_for_many_steps
    models = [model_of("labels", backend) for backend in (device, "numpy")]
    x, y = rows_of(models[0], rng)
    said = r"cannot be used on a stand-in \(DeviceError: planted\); CUDA graphs train it"
    with pytest.warns(UserWarning, match=said):
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


def test_finding_out_what_is_faster_changes_nothing(rng) -> None:
    models = [model_of("labels", StandInBackend()) for _ in range(2)]
    x, y = rows_of(models[0], rng)
    fit(models[0], x, y)
    models[1].backend.gpu.tuning = models[0].backend.gpu.tuning  # asks nothing
    fit(models[1], x, y)
    same(*models)


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
