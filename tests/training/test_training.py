"""The training loop: chunks, sources of data, interruption, losses that are no numbers."""

import copy
import os
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest

import nnbackend as nn
from nnbackend import _files, _memory
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.data import sources, validation
from nnbackend.executor.base import Run
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.training import trainer


def make(seed: int = 0, dtype: str = "float64", lr: float = 1e-3, **layer) -> nn.Sequential:
    model = nn.Sequential(
        [nn.Dense(4, 8, "tanh", **layer), nn.Dropout(0.2), nn.Dense(8, 3)], seed=seed, dtype=dtype
    )
    model.compile("softmax_cross_entropy", nn.Adam(lr=lr), ["accuracy"])
    return model


@pytest.fixture
def xy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(103, 4)), rng.integers(0, 3, 103)


def weights(model: nn.Sequential) -> np.ndarray:
    return model.backend.to_numpy(model.storage.parameters).copy()


def press_ctrl_c() -> None:
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)
    else:  # where that would end the process
        signal.raise_signal(signal.SIGINT)


class LookOn(nn.Callback):
    """Makes fit come back after every epoch."""


def test_it_does_not_matter_where_chunks_end(backend, monkeypatch) -> None:
    """Also if a short last batch is alone in one; with two threads, where there are any."""
    before = nn.get_num_threads()
    nn.set_num_threads(2)
    rng, found = np.random.default_rng(3), []
    x, y = rng.normal(size=(704, 114)).astype("float32"), rng.integers(0, 7, 704)
    try:
        for seed in range(3):
            cuts = np.random.default_rng(seed)
            monkeypatch.setattr(
                trainer.Trainer, "_next_steps",
                lambda self, left, cuts=cuts: min(int(cuts.integers(1, 9)), left),
            )  # fmt: skip
            layers = [nn.Dense(114, 179), nn.BatchNorm(179), nn.ReLU(), nn.Dense(179, 7)]
            model = nn.Sequential(layers, seed=0)
            model.compile("softmax_cross_entropy", nn.Adam(1e-3), ["accuracy"])
            # somebody who looks on has each epoch by itself
            model.fit(x, y, epochs=2, batch_size=92, verbose=0, callbacks=[nn.Callback()])
            found.append((model.history["loss"], model.history["accuracy"], model.arrays()))
    finally:
        nn.set_num_threads(before)
    for loss, accuracy, arrays in found[1:]:
        assert (loss, accuracy) == found[0][:2]
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, found[0][2][name], err_msg=name)


@pytest.mark.slow_on_stand_in
def test_results_do_not_depend_on_the_length_of_chunks(
    backend, xy, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for seconds in (0.0, 1e-4, 0.05, 10.0):
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        model = make()
        history = model.fit(*xy, epochs=40, batch_size=10, verbose=0)
        results.append((weights(model), history.to_dict()))
    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 10.0)
    monkeypatch.setattr(trainer, "TRACE_BYTES", 100)
    model = make()
    history = model.fit(*xy, epochs=40, batch_size=10, callbacks=[LookOn()], verbose=0)
    results.append((weights(model), history.to_dict()))
    for parameters, curves in results[1:]:
        np.testing.assert_array_equal(parameters, results[0][0])
        assert curves == results[0][1]


def test_an_epoch_that_ends_with_part_of_a_batch_is_one_run(backend, xy, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 10.0)
    model = make()
    run, steps = model.executor.run, []

    def count(asked):
        steps.append(len(asked.rates))
        return run(asked)

    monkeypatch.setattr(model.executor, "run", count)
    model.fit(*xy, epochs=20, batch_size=10, callbacks=[LookOn()], verbose=0)
    assert steps[-5:] == [11] * 5


def test_the_gradient_of_an_epochs_last_step_is_there_afterwards(backend, rng, monkeypatch) -> None:
    """Large matrices are updated while their gradient is in the cache; nobody sees those before."""
    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 0.0)
    x, y = rng.normal(size=(96, 130)), rng.integers(0, 130, 96)
    layers = [nn.Dense(130, 130, "tanh"), nn.Dense(130, 130)]
    model = nn.Sequential(layers, seed=0, dtype="float64")
    model.compile("softmax_cross_entropy", nn.SGD(0.1))
    model.fit(x[:64], y[:64], batch_size=32, shuffle=False, verbose=0)
    before = model.arrays()
    model.fit(x[64:], y[64:], batch_size=32, shuffle=False, verbose=0)
    after = model.arrays()
    for k, layer in enumerate(model.layers):
        gradient = backend.to_numpy(layer.weight_grad)
        moved = before[f"layers.{k}.weight"] - after[f"layers.{k}.weight"]
        np.testing.assert_allclose(moved, 0.1 * gradient, rtol=1e-9, atol=1e-14)


def larger_than_memory(monkeypatch) -> None:
    """From now on, data of more than 100 bytes are."""
    monkeypatch.setattr(_memory, "RESIDENT_BYTES", 100)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(sources, "available_bytes", lambda: 0)


class TestSources:
    """The same rows give the same training, wherever they come from."""

    @pytest.fixture
    def expected(self, backend, xy) -> np.ndarray:
        model = make()
        model.fit(*xy, epochs=3, batch_size=10, verbose=0)
        return weights(model)

    @pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
    def test_memory_mapped_file(self, backend, rng, tmp_path, monkeypatch, kind) -> None:
        larger_than_memory(monkeypatch)
        monkeypatch.setattr(sources, "BLOCK_BYTES", 640)
        monkeypatch.setattr(_files, "_MAPPED_BYTES", 300)
        x = (100 * rng.uniform(size=(103, 4))).astype(kind)
        y = rng.integers(0, 3, 103)
        mapped = np.memmap(tmp_path / "x.bin", x.dtype, "w+", shape=x.shape)
        mapped[:] = x
        results = []
        for data in (x, mapped):
            model = make()
            history = model.fit(data, y, epochs=3, batch_size=10, validation_split=0.2, verbose=0)
            results.append((weights(model), model.predict(data), history.to_dict(),
                            model.evaluate(data, y)))  # fmt: skip
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
        assert results[0][2].keys() == results[1][2].keys()
        for name, values in results[0][2].items():
            np.testing.assert_allclose(values, results[1][2][name], rtol=1e-12)
        assert results[0][3] == pytest.approx(results[1][3], rel=1e-12)

    def test_file_is_read_in_blocks_and_never_copied_whole(
        self, backend, tmp_path, monkeypatch
    ) -> None:
        if isinstance(backend, CudaBackend):
            pytest.skip("tracemalloc sees host memory only")
        larger_than_memory(monkeypatch)
        monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 16)
        monkeypatch.setattr(validation, "_SCAN_ELEMENTS", 1 << 14)
        x = np.memmap(tmp_path / "x.bin", "float32", "w+", shape=(160_000, 64))
        x[:] = 0.5
        y = np.zeros(len(x), np.int64)
        model = nn.Sequential([nn.Standardize(64), nn.Dense(64, 2)], seed=0)
        model.compile("softmax_cross_entropy")
        copy.deepcopy(model).fit(x[:2], y[:2], verbose=0)  # compiling takes memory too
        tracemalloc.start()
        model.fit(x, y, batch_size=640, validation_split=0.1, verbose=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 3

    @pytest.mark.parametrize("kind", ["float32", "float64"])
    def test_a_file_that_memory_holds_is_used_as_an_array(
        self, backend, rng, tmp_path, monkeypatch, kind
    ) -> None:
        """joblib hands arrays of more than a megabyte over as files."""
        x, y = rng.normal(size=(103, 4)).astype(kind), rng.integers(0, 3, 103)
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        monkeypatch.setattr(_files, "_release", lambda x: pytest.fail("pages were given back"))
        results = []
        for data in (x, mapped):
            model = make()
            model.fit(data, y, epochs=2, batch_size=10, validation_split=0.2, verbose=0)
            results.append((weights(model), model.predict(data), model.evaluate(data, y)))
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
        assert results[0][2] == results[1][2]

    def test_rows_of_a_large_file_are_read_forwards(self, rng, tmp_path, monkeypatch) -> None:
        larger_than_memory(monkeypatch)
        monkeypatch.setattr(_files, "_MAPPED_BYTES", 640)
        x = rng.normal(size=(500, 4)).astype("float32")
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        given_back = []
        monkeypatch.setattr(_files, "_release", lambda x: given_back.append(x))
        rows = rng.integers(0, 500, 300)
        np.testing.assert_array_equal(_files.read_rows(mapped, rows), x[rows])
        assert len(given_back) == len(np.unique(rows * 16 // 640))
        subset = _files.RowSubset(mapped, rows)
        for part in (slice(20, 90), np.array([7, 3, 3, 250])):
            np.testing.assert_array_equal(_files.read_rows(subset, part), x[rows[part]])

    def test_large_data_of_another_dtype_are_converted_in_blocks(
        self, backend, xy, monkeypatch, expected
    ) -> None:
        larger_than_memory(monkeypatch)
        monkeypatch.setattr(sources, "BLOCK_BYTES", 640)
        x, y = xy
        results = []
        for kind in ("float32", "float64"):
            model = make(dtype="float32")
            model.fit(x.astype("float32").astype(kind), y, epochs=2, batch_size=10, verbose=0)
            results.append(weights(model))
        np.testing.assert_array_equal(results[0], results[1])

    def test_copy_on_write_files_keep_what_was_written_to_them(self, backend, xy, tmp_path) -> None:
        np.save(tmp_path / "x.npy", xy[0])
        x = np.load(tmp_path / "x.npy", mmap_mode="c")
        x -= 5
        model = make()
        model.fit(x, xy[1], validation_split=0.2, verbose=0)
        model.predict(x)
        np.testing.assert_array_equal(x, xy[0] - 5)

    def test_list_of_batches_and_functions(self, backend, xy, expected) -> None:
        x, y = xy
        shuffled = make()
        epochs = iter(make().training.orders.take(nn.get_backend("numpy"), 3, 103))

        def batches():
            rows = next(epochs)
            for start in range(0, 103, 10):
                yield x[rows[start : start + 10]], y[rows[start : start + 10]]

        shuffled.fit(batches, epochs=3, verbose=0)
        np.testing.assert_array_equal(weights(shuffled), expected)
        again = make()
        pairs = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 103, 10)]
        history = again.fit(pairs, epochs=2, validation_data=pairs, verbose=0)
        in_order = make()
        in_order.fit(x, y, epochs=2, batch_size=10, shuffle=False, verbose=0)
        np.testing.assert_array_equal(weights(again), weights(in_order))
        assert history["val_loss"][-1] == pytest.approx(in_order.evaluate(x, y)["loss"])

    def test_batches_may_carry_weights(self, backend, xy) -> None:
        x, y = xy
        w = np.linspace(0, 1, 103)
        a, b = make(), make()
        a.fit([(x, y, w)], epochs=2, verbose=0)
        b.fit(x, y, epochs=2, batch_size=103, shuffle=False, sample_weight=w, verbose=0)
        np.testing.assert_array_equal(weights(a), weights(b))

    def test_a_generator_that_is_used_up_says_so(self, backend, xy) -> None:
        model = make()
        for arguments in (
            {"x": ((x, y) for x, y in [xy]), "epochs": 2},
            {"x": [xy], "epochs": 2, "validation_data": ((x, y) for x, y in [xy])},
        ):
            with pytest.raises(nn.DataError, match="a generator can be read only once.* 2 times"):
                model.fit(verbose=0, **arguments)
        assert model.step == 0
        model.fit(((x, y) for x, y in [xy]), verbose=0)
        with pytest.raises(nn.DataError, match="must give at least one"):
            model.fit([], verbose=0)
        with pytest.raises(nn.DataError, match=r"must give \(x, y\).*received a tuple of 1"):
            model.fit([(xy[0],)], verbose=0)

    def test_lists_and_integers_are_taken(self, backend) -> None:
        model = nn.Sequential([nn.Dense(2, 1)], seed=0)
        model.compile("mean_squared_error")
        model.fit([[1, 2], [3, 4]], [1, 2], verbose=0)
        model.fit(np.array([[True, False]]), [[1]], verbose=0)


class TestNonFinite:
    """The weights go back to the end of the last good epoch."""

    def exploding(self, good_epochs: int, steps_per_epoch: int) -> nn.Sequential:
        class Explodes(nn.schedules.Schedule):
            def rates(self, steps):
                bad = steps >= good_epochs * steps_per_epoch + 1
                return np.where(bad, 1e300, 1e-3)

        model = make(dtype="float32")
        model.compile("softmax_cross_entropy", nn.SGD(lr=Explodes(1.0)), ["accuracy"])
        return model

    @pytest.mark.parametrize("looks_on", [False, True])
    @pytest.mark.parametrize("chunk", [0.0, 10.0])
    def test_epoch_step_weights_and_history(
        self, backend, xy, monkeypatch, chunk, looks_on
    ) -> None:
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", chunk)
        callbacks = [LookOn()] if looks_on else []
        model = self.exploding(30, 11)
        with pytest.raises(nn.NonFiniteLossError, match="epoch 31, step 2") as caught:
            model.fit(*xy, epochs=50, batch_size=10, callbacks=callbacks, verbose=0)
        assert isinstance(caught.value, ArithmeticError)
        assert (caught.value.epoch, caught.value.step) == (31, 2)
        assert caught.value.history.epochs == 30
        assert (model.epoch, model.step) == (30, 330)
        good = self.exploding(100, 11)
        history = good.fit(*xy, epochs=30, batch_size=10, verbose=0)
        np.testing.assert_array_equal(weights(model), weights(good))
        assert caught.value.history.to_dict() == history.to_dict()
        assert model.history.epochs == 30

    def test_a_parameter_that_overflows_is_found_even_if_the_loss_does_not_show_it(
        self, backend, xy
    ) -> None:
        model = nn.Sequential([nn.Dense(4, 8, "relu"), nn.Dense(8, 3)], seed=0)
        model.compile("softmax_cross_entropy", nn.SGD(lr=1e-3))
        model.fit(*xy, verbose=0)
        before = weights(model)
        model.layers[0].bias[3] = -np.inf  # relu(-inf) is 0: the loss stays finite
        with pytest.raises(nn.NonFiniteLossError, match="epoch 2, step 1"):
            model.fit(*xy, verbose=0)
        assert np.isneginf(weights(model)).sum() == 1
        assert weights(model).shape == before.shape

    @pytest.mark.slow_on_stand_in
    def test_the_order_of_later_epochs_does_not_depend_on_timing(
        self, backend, xy, monkeypatch
    ) -> None:
        results = []
        for seconds in (0.0, 1e-3, 10.0):
            monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
            model = self.exploding(30, 11)
            with pytest.raises(nn.NonFiniteLossError):
                model.fit(*xy, epochs=50, batch_size=10, verbose=0)
            model.optimizer.lr = 0.01
            model.fit(*xy, epochs=2, batch_size=10, verbose=0)
            results.append(weights(model))
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])

    def test_running_statistics_count_too(self, backend, xy) -> None:
        model = nn.Sequential([nn.BatchNorm(4), nn.Dense(4, 3)], seed=0)
        model.compile("softmax_cross_entropy")
        with pytest.raises(nn.NonFiniteLossError, match="epoch 1, step 1"):
            model.fit(1e20 * xy[0], xy[1], verbose=0)  # its square overflows float32
        assert np.isfinite(backend.to_numpy(model.storage.state)).all()

    def test_iterables(self, backend, xy) -> None:
        model = self.exploding(2, 2)
        x, y = xy
        with pytest.raises(nn.NonFiniteLossError, match="epoch 3, step 2"):
            model.fit([(x, y), (x, y)], epochs=5, verbose=0)
        assert model.epoch == 2


class TestInterrupt:
    def run(self, fit, after: float) -> nn.History:
        timer = threading.Timer(after, press_ctrl_c)
        timer.start()
        try:
            return fit()
        finally:
            timer.cancel()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @pytest.mark.parametrize("looks_on", [False, True])
    def test_ctrl_c_ends_fit_with_the_history_so_far(self, backend, xy, looks_on) -> None:
        model = make()
        callbacks = [LookOn()] if looks_on else []
        start = time.perf_counter()
        history = self.run(
            lambda: model.fit(*xy, epochs=10**6, callbacks=callbacks, verbose=0), 0.4
        )
        assert history.stopped == "interrupted"
        assert 0 < history.epochs < 10**6
        assert model.epoch == history.epochs
        assert time.perf_counter() - start < 5
        model.fit(*xy, verbose=0)

    def test_ctrl_c_inside_a_callback_or_an_iterable(self, backend, xy) -> None:
        class Press(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                raise KeyboardInterrupt

        history = make().fit(*xy, epochs=5, callbacks=[Press()], verbose=0)
        assert (history.stopped, history.epochs) == ("interrupted", 1)

        def batches():
            yield xy
            raise KeyboardInterrupt

        assert make().fit(batches, verbose=0).stopped == "interrupted"

    def test_iterables_stop_between_batches(self, backend, xy) -> None:
        def endless():
            while True:
                yield xy

        assert self.run(lambda: make().fit(endless, verbose=0), 0.3).stopped == "interrupted"

    def test_ctrl_c_in_the_last_epochs_callbacks_counts(self, backend, xy) -> None:
        class Press(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                press_ctrl_c()

        for epochs in (1, 5):
            history = make().fit(*xy, epochs=epochs, callbacks=[Press()], verbose=0)
            assert (history.stopped, history.epochs) == ("interrupted", 1)

    def test_second_ctrl_c_is_not_held_back(self) -> None:
        interrupt = trainer.Interrupt()
        interrupt._handle(2, None)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            interrupt._handle(2, None)

    def test_a_programs_own_handler_stays(self, backend, xy) -> None:
        seen = []
        previous = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
        try:
            make().fit(*xy, verbose=0)
            press_ctrl_c()
            time.sleep(0.01)
        finally:
            signal.signal(signal.SIGINT, previous)
        assert seen == [1]


def test_callbacks_see_every_epoch_and_may_stop(backend, xy) -> None:
    calls = []

    class Watch(nn.Callback):
        def on_fit_begin(self, model):
            calls.append("begin")

        def on_epoch_end(self, model, epoch, figures, history):
            calls.append((epoch, sorted(figures)))
            return "enough" if epoch == 3 else None

        def on_fit_end(self, model, history):
            calls.append("end")

    history = make().fit(*xy, epochs=9, callbacks=Watch(), validation_data=xy, verbose=0)
    names = ["accuracy", "loss", "lr", "val_accuracy", "val_loss"]
    assert calls == ["begin", (1, names), (2, names), (3, names), "end"]
    assert history.stopped == "enough"
    assert nn.Callback().on_epoch_end(None, 1, {}, history) is None


def test_own_metrics_are_computed_on_an_evaluation_pass(backend, xy) -> None:
    x, y = xy

    def share_of_class_0(y_true, y_pred):
        assert isinstance(y_pred, np.ndarray)
        return (y_pred.argmax(axis=1) == 0).mean()

    model = make()
    model.compile("softmax_cross_entropy", "adam", ["accuracy", share_of_class_0])
    history = model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
    expected = (model.predict(x).argmax(axis=1) == 0).mean()
    assert history["share_of_class_0"][-1] == expected
    assert history["val_share_of_class_0"][-1] == expected
    assert model.evaluate([(x, y)])["share_of_class_0"] == expected


def test_steps_allocate_nothing_that_grows_with_the_batch(backend, rng) -> None:
    """tracemalloc sees NumPy's arrays; the peak of one more step must not follow the batch."""
    if isinstance(backend, CudaBackend):
        pytest.skip("tracemalloc sees host memory only")

    def peak(rows: int) -> int:
        x, y = rng.normal(size=(rows, 20)).astype("float32"), rng.integers(0, 10, rows)
        acts = [name for name in ACTIVATIONS if name != "exponential"]
        middle = [nn.Dense(20, 20, act, weight_l1=1e-5, weight_l2=1e-5) for act in acts]
        layers = [nn.Dense(20, 20), nn.BatchNorm(20), nn.Dropout(0.1), nn.LayerNorm(20), nn.ReLU(),
                  *middle, nn.Dense(20, 10)]  # fmt: skip
        model = nn.Sequential(layers, seed=0)
        metrics = ["accuracy", "f1", nn.metrics.TopKAccuracy(3)]
        model.compile("softmax_cross_entropy", nn.AdamW(clip_norm=1.0), metrics)
        dtype = np.dtype("float32")
        source = sources.make_source(model.program, x, y, np.ones(rows))
        order = model.backend.asarray(np.arange(rows)[None], np.dtype(np.int64))
        model.executor.run(Run(source.data, order, rows, model.program.rates(model.step, 1), 0))
        tracemalloc.start()
        model.executor.run(Run(source.data, order, rows, model.program.rates(model.step, 1), 1))
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert x.dtype == dtype
        return traced

    small, large = peak(8_000), peak(64_000)
    assert large < small + 100_000  # one float32 column of 56,000 rows more is 224,000 bytes


class TestProgress:
    def test_lines_without_a_terminal(self, backend, xy, capsys) -> None:
        make().fit(*xy, epochs=3, validation_data=xy)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert lines[0].startswith("epoch 1/3  loss ")
        for word in ("accuracy", "val_loss", "val_accuracy", "samples/s"):
            assert word in lines[0]

    def test_long_trainings_print_about_twenty_lines(self, backend, xy, capsys) -> None:
        make().fit(*xy, epochs=200, batch_size=103, verbose=2)
        assert 20 <= len(capsys.readouterr().out.splitlines()) <= 25

    def test_a_bar_on_a_terminal(self, backend, xy, monkeypatch, capsys) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm-256color")
        make().fit(*xy, epochs=3)
        pairs = [xy]
        make().fit(pairs, epochs=2)
        assert "epoch 3/3" in capsys.readouterr().out

    def test_silence(self, backend, xy, capsys) -> None:
        make().fit(*xy, epochs=3, verbose=0)
        assert capsys.readouterr().out == ""


def huge(size: int, weight: float) -> np.ndarray:
    return np.full((size, size), weight)


def overflowing(kind: str, width: int = 2) -> tuple[nn.Sequential, np.ndarray, np.ndarray]:
    """A model and rows whose loss, or only its gradient, is past the largest float32."""
    x, y = np.ones((8, width), np.float32), np.ones((8, width), np.float32)
    loss, optimizer = "mean_absolute_error", "sgd"
    first, second = np.eye(width), np.eye(width)
    match kind:
        case "loss":
            loss, x = "mean_squared_error", x * np.float32(1e25)
        case "gradient":  # of the first weights: 1e25 of the inputs times 1e20 of the last weights
            first, second, x = first * 1e-25, second * 1e20, x * np.float32(1e25)
        case "square":
            optimizer, first, x, y = "adam", first * 1e-25, x * np.float32(1e25), y * 0
        case "clipped":
            optimizer = nn.SGD(0.1, clip_norm=1.0)
            first, second, x = first * 1e-25, second * 1e20, x * np.float32(1e25)
        case "own loss":

            def loss(y_true, y_pred):
                return 1.0, y_pred * np.nan

    layers = [nn.Dense(width, width, weight_init=first), nn.Dense(width, width, weight_init=second)]
    model = nn.Sequential(layers, seed=0)
    model.compile(loss, optimizer)
    return model, x, y


class TestSingleStepsThatLeaveTheNumbers:
    KINDS = ("loss", "gradient", "square", "clipped", "own loss")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("width", [2, 150])
    @pytest.mark.parametrize("warm", [False, True])
    def test_are_found_and_leave_finite_weights(self, backend, kind, width, warm) -> None:
        if isinstance(backend, CudaBackend) and kind != "own loss":
            pytest.skip("a GPU returns the loss without waiting for it")
        model, x, y = overflowing(kind, width)
        if warm:  # the way of arrays that need no check
            if kind == "own loss":
                return
            for _ in range(2):
                model.train_step(x * 0, y)
        steps = model.step
        with pytest.raises(nn.NonFiniteLossError, match=f"step {steps + 1}") as caught:
            model.train_step(x, y)
        assert caught.value.step == steps + 1
        assert model.step == steps
        for name, values in {**model.arrays(), **model.optimizer_state()}.items():
            assert np.isfinite(values).all(), name

    @pytest.mark.parametrize("kind", KINDS)
    def test_fit_finds_the_same(self, backend, kind) -> None:
        model, x, y = overflowing(kind)
        before = model.arrays()
        with pytest.raises(nn.NonFiniteLossError, match="epoch 1, step 1"):
            model.fit(x, y, epochs=3, verbose=0)
        for name, values in model.arrays().items():
            np.testing.assert_array_equal(values, before[name])

    def test_large_gradients_that_an_optimizer_bears_are_no_fault(self, backend) -> None:
        model, x, y = overflowing("square")
        model.compile("mean_absolute_error", nn.SGD(1e-30))
        assert float(model.train_step(x, y)) == pytest.approx(1.0)
        assert model.step == 1
