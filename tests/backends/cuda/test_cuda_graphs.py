"""Training steps as CUDA graphs: a replayed step does what its launches would have done."""

import shutil

import numpy as np
import pytest
from cuda_stand_in import ASCENDING, RANDOM, StandInBackend, build, compiler, helpers

import nnbackend as nn
from nnbackend.backends.cuda.executor import KEPT, KEPT_SIZES, GraphExecutor, padded
from nnbackend.backends.cuda.graphs import STEPS
from nnbackend.backends.cuda.kernels import STATE_BYTES
from nnbackend.data import sources
from nnbackend.data.sources import make_source
from nnbackend.executor.base import Run
from nnbackend.executor.python import PythonExecutor
from nnbackend.training import trainer

pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
OPTIMIZERS = {
    "sgd": lambda: nn.SGD(0.05),
    "momentum": lambda: nn.SGD(0.05, momentum=0.9, nesterov=True),
    "adagrad": lambda: nn.AdaGrad(0.05),
    "rmsprop": lambda: nn.RMSprop(0.01),
    "adam": lambda: nn.Adam(0.01),
    "adamw": lambda: nn.AdamW(nn.CosineDecay(0.01, 90), clip_norm=1.0),
}


def deep(backend: nn.Backend, dtype: str = "float32", optimizer: str = "adamw") -> nn.Sequential:
    """A model with everything in it that a graph could get wrong."""
    model = nn.Sequential(
        [
            nn.Standardize(6),
            nn.Dense(6, 20, "relu", weight_l2=1e-3, bias_l1=1e-4),
            nn.BatchNorm(20),
            nn.Dropout(0.2),
            nn.Dense(20, 11, "gelu"),
            nn.LayerNorm(11),
            nn.Dense(11, 4),
        ],
        seed=3, dtype=dtype, backend=backend,
    )  # fmt: skip
    model.compile("softmax_cross_entropy", OPTIMIZERS[optimizer](), ["accuracy", "recall"])
    return model


@pytest.fixture
def rows(rng):
    return rng.normal(size=(83, 6)), rng.integers(0, 4, 83), rng.uniform(0.5, 2.0, 83)


def fit(model: nn.Sequential, rows, epochs: int = 5, batch_size: int = 8) -> list[float]:
    x, y, weight = rows
    history = model.fit(x, y, epochs=epochs, batch_size=batch_size, sample_weight=weight, verbose=0)
    return [*history["loss"], *history["accuracy"], *history["recall"]]


def same(one: nn.Sequential, other: nn.Sequential, **tolerance: float) -> None:
    arrays = other.arrays()
    for name, array in one.arrays().items():
        if tolerance:
            np.testing.assert_allclose(array, arrays[name], **tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def eager(model: nn.Sequential) -> nn.Sequential:
    """The model, its steps launched one by one."""
    model.executor = PythonExecutor(model.program, model.backend)
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_equal_those_of_numpy(rows, dtype: str, optimizer: str) -> None:
    graph = deep(StandInBackend(), dtype, optimizer)
    numpy = deep(nn.get_backend("numpy"), dtype, optimizer)
    tolerance = {"rtol": 1e-8, "atol": 1e-10} if dtype == "float64" else {"atol": 2e-3}
    np.testing.assert_allclose(fit(graph, rows, 2), fit(numpy, rows, 2), **tolerance)
    same(graph, numpy, **tolerance)
    assert isinstance(graph.executor, GraphExecutor)
    assert graph.backend.gpu.replays > 0


def test_a_replayed_step_is_that_of_its_launches(rows, dtype) -> None:
    backend = StandInBackend()
    graph, launched = deep(backend, dtype), eager(deep(backend, dtype))
    x, y, weight = rows
    for model in (graph, launched):
        model.fit(x, y, epochs=3, batch_size=8, sample_weight=weight, verbose=0)
    same(graph, launched, rtol=1e-6 if dtype == "float32" else 1e-13, atol=1e-7)
    assert backend.gpu.replays > 0


def test_runs_repeat_bit_for_bit_whatever_the_order_of_threads(rows, dtype) -> None:
    runs = []
    for order in (ASCENDING, ASCENDING, RANDOM):
        model = deep(StandInBackend(order=order, most_blocks=16), dtype)
        runs.append((fit(model, rows), model))
    for figures, model in runs[1:]:
        assert figures == runs[0][0]
        same(model, runs[0][1])


def test_results_do_not_depend_on_the_length_of_a_chunk(rows, monkeypatch) -> None:
    models = []
    for seconds in (0.0, 1e-3, 10.0):
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        models.append(deep(StandInBackend()))
        fit(models[-1], rows)
    same(models[0], models[1])
    same(models[0], models[2])


def test_long_runs_take_graphs_of_many_steps(rng) -> None:
    model = nn.Sequential([nn.Dense(3, 2)], seed=0, backend=StandInBackend())
    model.compile("mean_squared_error", "sgd")
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    source = make_source(model.program, x, y, None)
    model.executor.run(Run(source.data, None, 4, model.program.rates(model.step, 1), 0))
    assert model.backend.gpu.replays == 0  # the first step is launched
    model.executor.run(Run(source.data, None, 4, model.program.rates(model.step, 3 * STEPS + 2), 1))
    assert model.backend.gpu.replays == 3 + 2


def test_each_run_reads_its_own_data_rates_and_steps(rng) -> None:
    """What a captured step must not have kept: arrays, the rate, the number of the update."""
    models = [
        nn.Sequential([nn.Dense(3, 5, "tanh"), nn.Dropout(0.3), nn.Dense(5, 2)], seed=1,
                      dtype="float64", backend=backend)
        for backend in (StandInBackend(), nn.get_backend("numpy"))
    ]  # fmt: skip
    for model in models:
        model.compile("mean_squared_error", nn.Adam(0.1))
    for rate, n in ((0.1, 12), (0.01, 12), (0.5, 30), (0.02, 4)):
        x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
        for model in models:
            model.optimizer.lr = rate
            model.fit(x, y, epochs=3, batch_size=4, verbose=0)
        same(*models, rtol=1e-8, atol=1e-11)


def test_another_rate_needs_no_other_graph(rows) -> None:
    model = deep(StandInBackend())
    for rate in (0.1, 0.01, nn.CosineDecay(0.01, 90)):
        model.optimizer.lr = rate
        model.fit(*rows[:2], batch_size=83, verbose=0)
    assert len(model.executor._steps) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("beta1", 0.1), ("eps", 0.5), ("clip_norm", 1e-3), ("weight_decay", 0.9)]
)
def test_settings_changed_between_runs_act(rows, name: str, value: float) -> None:
    models = [deep(backend, "float64") for backend in (StandInBackend(), nn.get_backend("numpy"))]
    for model in models:
        fit(model, rows, 1)
        setattr(model.optimizer, name, value)
        fit(model, rows, 2)
    same(*models, rtol=1e-7, atol=1e-9)


def test_every_form_of_a_batch_has_graphs_of_its_own(rng) -> None:
    models = [
        nn.Sequential([nn.Dense(3, 4)], seed=1, dtype="float64", backend=backend)
        for backend in (StandInBackend(), nn.get_backend("numpy"))
    ]
    for model in models:
        model.compile("softmax_cross_entropy", "adam")
    kinds = [(8, "", ""), (8, "onehot", ""), (8, "", "weighted"), (40, "", ""), (8, "", ""),
             (7, "onehot", "weighted")]  # fmt: skip
    for n, onehot, weighted in kinds:
        x, y = rng.normal(size=(n, 3)), rng.integers(0, 4, n)
        target = np.eye(4)[y] if onehot else y
        weight = rng.uniform(size=n) if weighted else None
        for model in models:
            model.fit(x, target, sample_weight=weight, epochs=2, batch_size=20,
                      verbose=0)  # fmt: skip
        same(*models, rtol=1e-9, atol=1e-11)
    assert len(models[0].executor._steps) <= KEPT


def test_a_gradient_and_an_evaluation_in_between_change_nothing(rows) -> None:
    x, y, _ = rows
    one, other = deep(StandInBackend()), deep(StandInBackend())
    fit(one, rows, 2)
    fit(other, rows, 1)
    other.gradient(x[:9], y[:9])
    other.evaluate(x, y)
    other.predict(x)
    fit(other, rows, 1)
    same(one, other)


def test_models_of_ones_own_run_launch_by_launch(rows) -> None:
    class Bf16(nn.Layer):
        def forward(self, x, training=False):
            return x / 2

        def backward(self, dy):
            return dy / 2

    model = nn.Sequential([nn.Dense(6, 4), Bf16()], seed=0, backend=StandInBackend())
    model.compile("softmax_cross_entropy")
    assert type(model.executor) is PythonExecutor
    model.fit(*rows[:2], verbose=0)


def test_replays_allocate_nothing_but_the_trace(rows, monkeypatch) -> None:
    model = deep(StandInBackend())
    x, y, weight = rows
    source = make_source(model.program, x, y, weight)
    model.executor.run(Run(source.data, None, 83, model.program.rates(model.step, 1 + STEPS), 0))
    shapes, take = [], model.backend.gpu._memory

    def memory(shape, dtype):
        shapes.append(shape)
        return take(shape, dtype)

    monkeypatch.setattr(model.backend.gpu, "_memory", memory)
    model.executor.run(
        Run(source.data, None, 83, model.program.rates(model.step, STEPS), 1 + STEPS)
    )
    width = 3 + model.program.n_sums
    assert sorted(shapes) == sorted([(STEPS, width), (STEPS,)])


def test_the_state_is_as_large_as_the_kernels_say(tmp_path) -> None:
    import ctypes

    extra = "KERNEL measure_state(Size* out) { out[0] = sizeof(StepState); }"
    library = build(helpers() + extra, "float", tmp_path / "state.so")
    out = np.zeros(1, np.int64)
    values = (ctypes.c_void_p * 1)()
    pointer = ctypes.c_void_p(out.ctypes.data)
    values[0] = ctypes.addressof(pointer)
    library.launch_measure_state(1, 32, 0, 0, ctypes.c_size_t(0), values)
    assert out[0] == STATE_BYTES


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_data_that_do_not_fit_come_block_by_block(rng, monkeypatch, shuffle, weighted) -> None:
    """The next block is on its way while one is in use, and gives way to nothing too early."""
    x, y = rng.normal(size=(4000, 30)).astype("float32"), rng.integers(0, 3, 4000)
    weight = rng.uniform(size=4000) if weighted else None
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 15)
    models, figures = [], []
    for memory in (1 << 30, 600_000):  # x takes 480,000 bytes
        backend = StandInBackend(memory=memory)
        model = nn.Sequential([nn.Dense(30, 16, "relu"), nn.Dense(16, 3)], seed=0, backend=backend)
        model.compile("softmax_cross_entropy", metrics=["accuracy", own_accuracy])
        source = make_source(model.program, x, y)
        assert (source.data is None) == (memory == 600_000)
        assert (source.uploads() is None) == (memory != 600_000)
        model.fit(x, y, epochs=2, batch_size=64, shuffle=shuffle, sample_weight=weight, verbose=0)
        models.append(model)
        figures.append(model.evaluate(x, y))
    same(*models)
    assert figures[0] == pytest.approx(figures[1])
    assert figures[0]["own_accuracy"] == pytest.approx(figures[0]["accuracy"])


def own_accuracy(y_true, y_pred) -> float:
    return float((y_pred.argmax(axis=1) == y_true).mean())


def test_an_interrupted_epoch_of_streamed_data_is_undone(rng, monkeypatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 15)
    x, y = rng.normal(size=(4000, 30)).astype("float32"), rng.integers(0, 3, 4000)
    model = nn.Sequential([nn.Dense(30, 3)], seed=0, backend=StandInBackend(memory=600_000))
    model.compile("softmax_cross_entropy")
    before = model.arrays()
    run, calls = model.executor.run, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(model.executor, "run", interrupted)
    assert model.fit(x, y, batch_size=64, verbose=0).stopped == "interrupted"
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(array, before[name])


class TestSingleSteps:
    """``train_step`` on arrays that lie on the device: nobody looks through them, nobody waits."""

    def model(self, device: StandInBackend, loss: str = "softmax_cross_entropy"):
        layers = [nn.Dense(6, 8, weight_l2=1e-3), nn.BatchNorm(8), nn.ReLU(), nn.Dense(8, 4)]
        model = nn.Sequential(layers, seed=0, backend=device)
        metrics = ["accuracy", nn.metrics.TopKAccuracy(2)] if "softmax" in loss else ["mae"]
        model.compile(loss, nn.Adam(0.01), metrics)
        return model

    def arrays(self, rng, device, labels: bool = True):
        y = rng.integers(0, 4, 12) if labels else rng.normal(size=(12, 4))
        x = device.asarray(rng.normal(size=(12, 6)), np.dtype("float32"))
        return x, device.asarray(y, np.dtype("int32" if labels else "float32"))

    @pytest.mark.parametrize("labels", [True, False])
    def test_they_do_what_steps_on_host_arrays_do(self, rng, labels: bool) -> None:
        loss = "softmax_cross_entropy" if labels else "mean_squared_error"
        device = StandInBackend(late=True)
        quick, checked = self.model(device, loss), self.model(device, loss)
        for _ in range(4):
            x, y = self.arrays(rng, device, labels)
            one = quick.train_step(x, y)
            other = checked.train_step(device.to_numpy(x), device.to_numpy(y))
            assert one.shape == ()
            assert float(device.to_numpy(one)) == float(device.to_numpy(other))
        same(quick, checked)

    def test_the_first_is_checked_and_the_others_wait_for_nothing(self, rng, monkeypatch) -> None:
        device = StandInBackend()
        model = self.model(device)
        x, y = self.arrays(rng, device)
        model.train_step(x, y)
        copies = []
        to_host = device.gpu.to_host
        monkeypatch.setattr(device.gpu, "to_host", lambda a: (copies.append(a), to_host(a))[1])
        losses = [model.train_step(x, y) for _ in range(3)]
        assert not copies
        many = [model.train_step(x, y) for _ in range(300)]  # each has a place of its own
        values = [float(device.to_numpy(loss)) for loss in (*losses, *many)]
        assert values == sorted(values, reverse=True)

    @pytest.mark.parametrize("spoilt", ["label", "far label", "negative label", "x"])
    def test_what_is_no_number_or_no_class_changes_nothing(self, rng, spoilt: str) -> None:
        device = StandInBackend(late=True)
        model = self.model(device)
        x, y = self.arrays(rng, device)
        model.train_step(x, y)
        statistics = ("running_mean", "running_var")
        before = model.arrays()
        bad_x, bad_y = x.copy(), y.copy()
        if spoilt == "x":
            bad_x[3, 2] = np.nan
        else:
            bad_y[5] = {"label": 4, "far label": 2**31 - 1, "negative label": -1}[spoilt]
        assert np.isnan(float(device.to_numpy(model.train_step(bad_x, bad_y))))
        for name, array in model.arrays().items():
            assert np.isfinite(array).all()
            if not name.endswith(statistics) or spoilt == "x":  # of rows that are in order
                np.testing.assert_array_equal(array, before[name])
        assert np.isfinite(float(device.to_numpy(model.train_step(x, y))))
        assert not np.array_equal(model.arrays()["layers.0.weight"], before["layers.0.weight"])

    def test_arrays_of_another_form_are_checked(self, rng) -> None:
        device = StandInBackend()
        model = self.model(device)
        x, y = self.arrays(rng, device)
        model.train_step(x, y)
        with pytest.raises(nn.ShapeError):
            model.train_step(x[:, :5], y)
        with pytest.raises(nn.ShapeError):
            model.train_step(x, y[:5])
        with pytest.raises(nn.ShapeError, match="BatchNorm"):
            model.train_step(x[:1], y[:1])


class TestInference:
    """Outputs of any number of rows come from graphs, of which a few are kept."""

    def test_outputs_are_those_of_numpy(self, rng, dtype: str) -> None:
        models = [deep(backend, dtype) for backend in (StandInBackend(), nn.get_backend("numpy"))]
        fitted = rng.normal(size=(83, 6)), rng.integers(0, 4, 83)
        for model in models:
            model.layers[0].adapt(fitted[0])
        for rows in (1, 5, 1, 300, 290, 7, 8, 9, 1, *range(2, 20)):
            x = rng.normal(size=(rows, 6))
            for _ in range(2):
                found, expected = (model.predict(x) for model in models)
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert len(models[0].executor._inferences) <= KEPT_SIZES
        assert models[0].backend.gpu.replays > 0

    def test_few_graphs_serve_any_number_of_rows(self) -> None:
        assert [padded(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 11, 17, 1000, 1025)] == [
            1, 2, 3, 4, 5, 8, 10, 12, 20, 1024, 1280,
        ]  # fmt: skip
        assert all(rows <= padded(rows) <= 1.25 * rows for rows in range(1, 5000))

    def test_they_follow_the_parameters(self, rng) -> None:
        model = nn.Sequential([nn.Dense(3, 2)], seed=0, backend=StandInBackend())
        x = rng.normal(size=(4, 3))
        for factor in (1.0, 2.0, 3.0):
            model.layers[0].weight = np.ones((3, 2)) * factor
            np.testing.assert_allclose(
                model.predict(x), factor * x.sum(axis=1, keepdims=True) * [1, 1], rtol=1e-5
            )


def test_graphs_of_other_sizes_give_way_when_memory_runs_out(rng, monkeypatch) -> None:
    model = nn.Sequential([nn.Dense(6, 4)], seed=0, backend=StandInBackend())
    model.compile("softmax_cross_entropy")
    x, y = rng.normal(size=(40, 6)), rng.integers(0, 4, 40)
    model.fit(x, y, batch_size=20, verbose=0)
    model.predict(x)
    gpu, take, refused = model.backend.gpu, model.backend.gpu._memory, []

    def memory(shape, dtype):
        if not refused and len(model.executor._steps) > 0 and shape == (8, 6):
            refused.append(shape)
            raise nn.OutOfMemoryError("planted")
        return take(shape, dtype)

    monkeypatch.setattr(gpu, "_memory", memory)
    model.fit(x, y, batch_size=8, verbose=0)
    assert refused
    assert len(model.executor._steps) == 1
    assert not model.executor._inferences
