"""The Numba backend beyond the contract: the compiled executor, its short cuts, and threads."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from python_process import run_python

import nnbackend as nn
from nnbackend.backends.types import UpdateRule
from nnbackend.training import trainer

pytest.importorskip("numba")
if not nn.available_backends()["numba"].ok:
    pytest.skip("the numba backend cannot run here", allow_module_level=True)

from nnbackend.backends.numba import runtime as _numba_runtime
from nnbackend.backends.numba.executor import table as compiled_table
from nnbackend.kernels import codes
from nnbackend.kernels.cpu.program import context as cpu_context
from nnbackend.losses import LOSSES
from nnbackend.program.table import Row

TWO = pytest.mark.skipif(
    nn.get_num_threads() < 2 and not os.environ.get("NN_NUM_THREADS"),
    reason="needs two processors and a threading layer that is safe",
)


def deep_model(dtype: str = "float32", **settings: float) -> nn.Sequential:
    """A model with every opcode in it, and everything that threads could get wrong."""
    model = nn.Sequential(
        [
            nn.Standardize(6, skip=1),
            nn.Embedding(6, 5, 3),
            nn.Dense(8, 40, "relu", weight_l2=1e-3, bias_l1=1e-4),
            nn.BatchNorm(40),
            nn.Dropout(0.2),
            nn.Dense(40, 33, "gelu"),
            nn.LayerNorm(33),
            nn.BatchNorm(33),
            nn.SiLU(),
            nn.Dense(33, 4),
        ],
        seed=3,
        dtype=dtype,
        backend="numba",
    )
    # a large eps: where a batch norm takes a bias away, Adam would blow up rounding
    optimizer = nn.AdamW(lr=0.01, eps=1e-3, **settings)
    model.compile("softmax_cross_entropy", optimizer, ["accuracy", "recall"])
    return model


@pytest.fixture
def many_parts(monkeypatch):
    """Even small work is split between threads."""
    monkeypatch.setattr(compiled_table, "STEP_GRAIN", 1)
    monkeypatch.setattr(compiled_table, "INFERENCE_GRAIN", 1)
    before = nn.get_num_threads()
    yield
    nn.set_num_threads(before)


@pytest.fixture
def rows(rng):
    x = rng.normal(size=(203, 6)).astype("float32")
    x[:, 0] = rng.integers(0, 5, 203)
    return x, rng.integers(0, 4, 203), rng.uniform(0.5, 2.0, 203)


def test_codes_are_positions_in_the_public_lists() -> None:
    for kinds in (codes.ACTIVATIONS, codes.LOSSES, codes.UPDATES):
        assert [kind.code for kind in kinds.values()] == list(range(len(kinds)))
    assert set(LOSSES) == set(codes.LOSSES)
    assert UpdateRule._fields[1:] == codes.UPDATE_NUMBERS
    assert set(cpu_context.COLUMNS) - {"delta", "norm"} == set(Row._fields)


class TestThreads:
    @TWO
    @pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.5}])
    def test_one_thread_and_two_agree(self, many_parts, rows, settings, dtype) -> None:
        results = []
        for threads in (1, 2):
            nn.set_num_threads(threads)
            model = deep_model(dtype, **settings)
            history = model.fit(
                rows[0], rows[1], epochs=2, batch_size=50, sample_weight=rows[2], verbose=0
            )
            assert model.executor._training.parts == threads
            results.append([history["loss"], history["recall"], model.predict(rows[0])])
        tolerance = 2e-4 if dtype == "float32" else 1e-11
        for one, two in zip(*results, strict=True):
            np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)

    @TWO
    def test_two_threads_repeat_bit_for_bit(self, many_parts, rows, dtype) -> None:
        nn.set_num_threads(2)
        runs = []
        for _ in range(5):
            model = deep_model(dtype)
            model.fit(rows[0], rows[1], epochs=4, batch_size=50, verbose=0)
            runs.append(model.arrays())
        for again in runs[1:]:
            for name, array in runs[0].items():
                np.testing.assert_array_equal(array, again[name], err_msg=name)

    @TWO
    @pytest.mark.parametrize("batch", [16, 64], ids=["by columns", "by rows"])
    @pytest.mark.parametrize("clip_norm", [None, 0.3])
    def test_weight_gradients_by_rows_or_columns_are_those_of_one_thread(
        self, many_parts, rng, batch, clip_norm
    ) -> None:
        # the last batch has two rows, so that the second part has none
        x = rng.normal(size=(2 * batch + 2, 48))
        y, weight = rng.integers(0, 5, len(x)), rng.uniform(0.5, 2.0, len(x))
        results = []
        for threads in (1, 2):
            nn.set_num_threads(threads)
            layers = [
                nn.Dense(48, 33, "tanh", weight_l1=1e-3, weight_l2=1e-2, bias_l2=1e-2),
                nn.Dense(33, 33, "relu", trainable=False),
                nn.Dense(33, 5, bias=False, weight_l2=1e-3),
            ]
            model = nn.Sequential(layers, seed=0, dtype="float64", backend="numba")
            model.compile("softmax_cross_entropy", nn.Adam(lr=0.01, clip_norm=clip_norm))
            history = model.fit(
                x, y, epochs=3, batch_size=batch, sample_weight=weight, shuffle=False, verbose=0
            )
            starts, _ = model.executor.compiled.partial_starts(batch, threads)
            by_rows = threads == 2 and batch == 64
            assert (starts >= 0).tolist() == [by_rows, False, threads == 2]
            model.gradient(x[:batch], y[:batch])
            one_batch = model.flat_gradient.copy()
            model.forward(x[:batch])
            model.backward(np.ones((batch, 5)))
            driven = model.flat_gradient
            results.append([history["loss"], one_batch, driven, model.get_flat()])
        for one, two in zip(*results, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-13)

    @TWO
    def test_two_python_threads_train_two_models(self, many_parts, rows) -> None:
        alone = deep_model()
        alone.fit(rows[0], rows[1], epochs=20, batch_size=50, verbose=0)
        models = [deep_model() for _ in range(2)]
        workers = [
            threading.Thread(
                target=model.fit,
                args=(rows[0], rows[1]),
                kwargs={"epochs": 20, "batch_size": 50, "verbose": 0},
            )
            for model in models
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for model in models:
            for name, array in alone.arrays().items():
                np.testing.assert_array_equal(array, model.arrays()[name], err_msg=name)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    def test_a_forked_child_trains_on_one_thread(self) -> None:
        done = run_python(
            """
            import os, sys
            import numpy as np
            import nnbackend as nn
            from nnbackend.backends.numba.executor import table as compiled_table
            compiled_table.STEP_GRAIN = 1
            x, y = nn.datasets.digits()
            def train(model):
                model.fit(x, y, epochs=1, batch_size=64, verbose=0)
                return model
            def new():
                model = nn.Sequential([nn.Dense(64, 32, "relu"), nn.Dense(32, 10)], seed=0,
                                      backend="numba")
                model.compile("softmax_cross_entropy", "adam")
                return model
            model = train(new())
            if child := os.fork():
                _, status = os.waitpid(child, 0)
                train(model)
                sys.exit(os.waitstatus_to_exitcode(status))
            train(model)
            fresh = train(new())
            print(nn.get_num_threads(), model.executor._training.parts, flush=True)
            os._exit(0)
            """
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["1", "1"]

    def test_the_number_of_threads_is_checked(self) -> None:
        with pytest.raises(nn.DataError, match=r"threads for kernels.*received 1000"):
            nn.set_num_threads(1000)
        with pytest.raises(nn.ShapeError, match="at least 1"):
            nn.set_num_threads(0)

    def test_the_environment_sets_the_number_of_threads(self) -> None:
        source = "import nnbackend as nn; print(nn.get_num_threads())"
        assert run_python(source, NN_NUM_THREADS="1").stdout.strip() == "1"
        for wrong in ("many", "²", "1.5"):
            done = run_python(source, NN_NUM_THREADS=wrong, PYTHONUTF8="1")
            assert f"NN_NUM_THREADS must be a whole number; received '{wrong}'" in done.stderr


class TestRuns:
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_results_do_not_depend_on_the_length_of_a_chunk(self, monkeypatch, shuffle) -> None:
        x, y = nn.datasets.digits()
        results = []
        for milliseconds in (1, 7, 50):
            monkeypatch.setattr(trainer, "CHUNK_SECONDS", milliseconds / 1000)
            model = nn.Sequential(
                [nn.Dense(64, 32, "tanh"), nn.Dropout(0.1), nn.Dense(32, 10)],
                seed=1, backend="numba",
            )  # fmt: skip
            model.compile("softmax_cross_entropy", "adam", ["accuracy"])
            history = model.fit(x, y, epochs=12, batch_size=32, shuffle=shuffle, verbose=0)
            results.append((history["loss"], history["accuracy"], model.arrays()))
        for loss, accuracy, arrays in results[1:]:
            assert loss == results[0][0]
            assert accuracy == results[0][1]
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, results[0][2][name])

    def test_numpy_and_numba_train_alike_from_one_seed(self, rows) -> None:
        models = [deep_model("float64"), deep_model("float64").to("numpy")]
        losses = [
            model.fit(rows[0], rows[1], epochs=3, batch_size=50, verbose=0)["loss"]
            for model in models
        ]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)

    def test_subnormals_are_flushed_inside_kernels_only(self) -> None:
        tiny = np.float32(1e-30)
        model = nn.Sequential([nn.Dense(2, 2, weight_init="zeros")], seed=0, backend="numba")
        model.compile("mean_squared_error", nn.SGD(lr=1.0))
        model.train_step(np.full((4, 2), tiny), np.full((4, 2), 1e-9))
        assert np.all(model.layers[0].weight == 0.0)  # the gradient, some 1e-39, is flushed
        assert np.float32(1e-20) * np.float32(1e-20) > 0  # and Python's numbers are not


class TestOwnBatches:
    """``train_step`` and ``model(x)`` take arrays as they come, once one was checked in full."""

    def pair(self) -> tuple[nn.Sequential, nn.Sequential]:
        models = []
        for _ in range(2):
            model = nn.Sequential([nn.Dense(5, 7, "relu"), nn.Dense(7, 3)], seed=0, backend="numba")
            model.compile("softmax_cross_entropy", nn.Adam(lr=0.01))
            models.append(model)
        return models[0], models[1]

    def test_steps_equal_those_of_fit(self, rng) -> None:
        stepped, fitted = self.pair()
        x, y = rng.normal(size=(40, 5)).astype("float32"), rng.integers(0, 3, 40)
        losses = [float(stepped.train_step(x[i : i + 8], y[i : i + 8])) for i in range(0, 40, 8)]
        history = fitted.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        assert np.mean(losses) == pytest.approx(history["loss"][0], rel=1e-6)
        for name, array in stepped.arrays().items():
            np.testing.assert_array_equal(array, fitted.arrays()[name])

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            (lambda x, y: (x[:, :4], y), nn.ShapeError, "5"),
            (lambda x, y: (x, y[:4]), nn.ShapeError, "as many rows"),
            (lambda x, y: (x, y + 3), nn.DataError, "class labels must lie in 0 ... 2"),
            (lambda x, y: (x, y - 3), nn.DataError, "class labels must lie in 0 ... 2"),
            (lambda x, y: (np.where(x == x[3, 2], np.nan, x), y), nn.DataError, "row 3"),
            (lambda x, y: (np.where(x == x[3, 2], np.inf, x), y), nn.DataError, "row 3"),
            (lambda x, y: (x[None], y), nn.ShapeError, "shape"),
        ],
    )
    def test_bad_batches_give_the_usual_errors_and_lose_nothing(
        self, rng, change, error, text
    ) -> None:
        model, _ = self.pair()
        x, y = rng.normal(size=(8, 5)).astype("float32"), rng.integers(0, 3, 8)
        for _ in range(2):
            model.train_step(x, y)
        before, step = model.arrays(), model.step
        bad_x, bad_y = change(x, y)
        with pytest.raises(error, match=text):
            model.train_step(np.asarray(bad_x, "float32"), bad_y)
        assert model.step == step
        for name, array in before.items():
            np.testing.assert_array_equal(array, model.arrays()[name])
        model.train_step(x, y)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x, y: (x.astype("float64"), y),
            lambda x, y: (x, y.astype("int32")),
            lambda x, y: (x, y[:, None]),
            lambda x, y: (x, np.eye(3, dtype="float32")[y]),
            lambda x, y: (np.asfortranarray(x), y),
            lambda x, y: (np.repeat(x, 2, axis=0)[::2], np.repeat(y, 2)[::2]),
            lambda x, y: (x.tolist(), y.tolist()),
        ],
    )
    def test_other_forms_of_a_batch_train_alike(self, rng, change) -> None:
        one, other = self.pair()
        for _ in range(3):
            x, y = rng.normal(size=(8, 5)).astype("float32"), rng.integers(0, 3, 8)
            expected = one.train_step(x, y)
            changed_x, changed_y = change(x, y)
            received = other.train_step(changed_x, changed_y)
            np.testing.assert_allclose(float(received), float(expected), rtol=1e-6)

    def test_read_only_arrays_are_read(self, rng) -> None:
        one, other = self.pair()
        x, y = rng.normal(size=(8, 5)).astype("float32"), rng.integers(0, 3, 8)
        fixed_x, fixed_y = x.copy(), y.copy()
        fixed_x.flags.writeable = fixed_y.flags.writeable = False
        for _ in range(3):
            assert float(one.train_step(x, y)) == float(other.train_step(fixed_x, fixed_y))
        np.testing.assert_array_equal(one(x), other(fixed_x))

    def test_settings_changed_between_steps_act_at_once(self, rng) -> None:
        x, y = rng.normal(size=(8, 5)).astype("float32"), rng.integers(0, 3, 8)
        for name, value in [("lr", 0.0), ("beta1", 0.1), ("clip_norm", 1e-9)]:
            model, other = self.pair()
            for one in (model, other):
                for _ in range(2):
                    one.train_step(x, y)
            setattr(other.optimizer, name, value)
            for one in (model, other):
                one.train_step(x, y)
            arrays, changed = model.arrays(), other.arrays()
            assert any(not np.array_equal(arrays[key], changed[key]) for key in arrays), name

    def test_a_schedule_is_followed(self, rng) -> None:
        x, y = rng.normal(size=(8, 5)).astype("float32"), rng.integers(0, 3, 8)
        model, _ = self.pair()
        model.compile("softmax_cross_entropy", nn.SGD(lr=nn.StepDecay(0.1, 2, 1e-30)))
        model.train_step(x, y)
        model.train_step(x, y)
        before = model.arrays()
        model.train_step(x, y)
        for name, array in before.items():
            np.testing.assert_array_equal(array, model.arrays()[name])

    def test_a_batch_of_one_is_still_refused_by_batch_norm(self, rng) -> None:
        model = nn.Sequential([nn.Dense(5, 4), nn.BatchNorm(4)], seed=0, backend="numba")
        model.compile("mean_squared_error")
        model.train_step(np.ones((2, 5), "float32"), np.ones((2, 4), "float32"))
        with pytest.raises(nn.ShapeError, match="BatchNorm"):
            model.train_step(np.ones((1, 5), "float32"), np.ones((1, 4), "float32"))

    def test_a_few_rows_equal_many(self, rng) -> None:
        model, _ = self.pair()
        x = rng.normal(size=(100, 5)).astype("float32")
        whole = model.predict(x)
        for n in (1, 2, 16, 17):
            np.testing.assert_allclose(model(x[:n]), whole[:n], rtol=1e-5, atol=1e-6)
        with pytest.raises(nn.ShapeError):
            model(x[:2, :4])
        with pytest.raises(nn.ShapeError):
            model(x[0])

    def test_many_threads_may_predict(self, rng) -> None:
        model, _ = self.pair()
        x = rng.normal(size=(64, 5)).astype("float32")
        expected = [model(x[i : i + 1]).copy() for i in range(64)]
        wrong = []

        def work() -> None:
            for _ in range(50):
                for i in range(64):
                    if not np.array_equal(model(x[i : i + 1]), expected[i]):
                        wrong.append(i)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong


class TestCompiling:
    """What has to be compiled first is compiled in several processes, where processors are."""

    class Unit:
        def __init__(self) -> None:
            self.compiled: list[str] = []

        def missing(self, kinds: tuple[str, ...], dtype: str = "") -> list[str]:
            needed = () if kinds == ("fork",) else ("products", "losses")
            return [f"{kind}_{dtype}" if dtype else kind for kind in (*kinds, *needed)]

        def compile(self, file: str) -> None:
            self.compiled.append(file)

        def entry(self, file: str) -> int:
            return 1

    @pytest.mark.parametrize(
        ("processors", "dtypes", "here", "elsewhere"),
        [
            (1, ("a",), ["phase_a", "products_a", "losses_a"], []),
            (2, ("a",), ["phase_a"], [["products_a", "losses_a", "fork"]]),
            (8, ("a",), ["phase_a"], [["products_a"], ["losses_a", "fork"]]),
            (
                1, ("a", "b"),
                ["phase_a", "products_a", "losses_a", "phase_b", "products_b", "losses_b"], [],
            ),
            (
                2, ("a", "b"), ["phase_a", "products_a", "losses_a"],
                [["phase_b", "products_b", "losses_b", "fork"]],
            ),
        ],
    )  # fmt: skip
    def test_files_are_dealt_out(
        self, monkeypatch, capsys, processors, dtypes, here, elsewhere
    ) -> None:
        started = []

        @contextlib.contextmanager
        def helper(files):
            started.append(files)
            yield

        monkeypatch.setattr(_numba_runtime, "_compiling_elsewhere", helper)
        run = _numba_runtime.Runtime()
        run.unit = self.Unit()
        run.threads.most = run.threads.count = processors
        run.compile_files(("phase",), dtypes)
        assert (run.unit.compiled, started) == (here, elsewhere)
        assert "compiling the Numba kernels for programs in a" in capsys.readouterr().err

    @pytest.mark.parametrize("executable", ["/no/python", "/opt/some-server", ""])
    def test_without_a_second_process_all_is_done_here(self, monkeypatch, executable) -> None:
        monkeypatch.setattr(sys, "executable", executable)
        assert _numba_runtime.start_python("") is None
        with _numba_runtime._compiling_elsewhere(["x"]):
            pass

    def test_an_interrupted_compilation_leaves_no_process(self, monkeypatch) -> None:
        helpers = []

        def sleep(source):
            helpers.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"]))
            return helpers[-1]

        monkeypatch.setattr(_numba_runtime, "start_python", sleep)
        with pytest.raises(KeyboardInterrupt), _numba_runtime._compiling_elsewhere(["x"]):
            raise KeyboardInterrupt
        assert helpers[0].returncode is not None

    def test_the_other_process_finds_the_same_modules(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "of_mine.py").write_text("open(__file__ + '.imported', 'w')")
        monkeypatch.syspath_prepend(str(tmp_path))
        helper = _numba_runtime.start_python("import of_mine, nnbackend")
        helper.wait()
        helper.communicate()
        assert helper.returncode == 0
        assert (tmp_path / "of_mine.py.imported").exists()

    @pytest.mark.slow
    def test_two_processes_fill_one_cache(self, tmp_path) -> None:
        done = run_python(
            """
            from nnbackend.backends.numba.runtime import runtime
            here, run = [], runtime()
            run.threads.most = 2
            compile_ = run.unit.compile
            run.unit.compile = lambda file: (here.append(file), compile_(file))
            assert run.entry("phase", "float32")
            print(*here)
            """,
            NUMBA_CACHE_DIR=str(tmp_path),
        )
        assert done.stdout.split() == ["phase_float32"], done.stderr
        assert {path.stem for path in tmp_path.rglob("*.o")} == {
            "phase_float32", "products_float32", "losses_float32", "fork",
        }  # fmt: skip


class TestMissing:
    BLOCK = """
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "numba" else find(name)
        import nnbackend as nn
        """

    def test_a_backend_that_was_asked_for_says_how_to_get_it(self) -> None:
        done = run_python(self.BLOCK + "nn.get_backend()", NN_BACKEND="numba")
        assert done.returncode != 0
        assert 'needs numba; install with: pip install "nnbackend[numba]"' in done.stderr

    def test_numpy_runs_where_nothing_was_asked_for(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "NN_BACKEND"}
        source = textwrap.dedent(self.BLOCK) + "print(nn.get_backend().name)"
        done = subprocess.run(
            [sys.executable, "-c", source], env=environment, capture_output=True, text=True,
            timeout=100, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "numpy"


@pytest.mark.slow
class TestBoundsChecking:
    """Compiled anew with Numba's bounds checking, in a cache folder of its own."""

    def environment(self, tmp_path: Path) -> dict[str, str]:
        return {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "NN_NUM_THREADS": "1"}

    def test_no_kernel_leaves_its_arrays(self, tmp_path) -> None:
        done = run_python(
            """
            import sys
            import numpy as np
            import nnbackend as nn
            from nnbackend.testing import check_backend
            failures = []
            sys.unraisablehook = lambda error: failures.append(repr(error.exc_value))
            check_backend(nn.get_backend("numba"))
            rng = np.random.default_rng(0)
            x, y = rng.normal(size=(67, 5)), rng.integers(0, 4, 67)
            for optimizer in ("sgd", "adagrad", "rmsprop", nn.AdamW(clip_norm=1.0)):
                model = nn.Sequential(
                    [nn.Standardize(5), nn.Dense(5, 19, "gelu", weight_l1=1e-3), nn.BatchNorm(19),
                     nn.Dropout(0.3), nn.Dense(19, 21, "relu"), nn.LayerNorm(21), nn.Dense(21, 4)],
                    seed=0, backend="numba")
                model.compile("softmax_cross_entropy", optimizer, ["accuracy", "f1"])
                model.fit(x, y, epochs=2, batch_size=16, validation_split=0.2, verbose=0)
                model(x[:1].astype("float32"))
            assert not failures, failures
            print("checked")
            """,
            **self.environment(tmp_path),
        )
        assert done.stdout.strip() == "checked", done.stderr
        assert any(tmp_path.rglob("operation_float64.o"))  # not those of another cache

    def test_a_planted_overrun_is_caught(self, tmp_path) -> None:
        done = run_python(
            """
            import sys
            import numpy as np
            import nnbackend as nn
            failures = []
            sys.unraisablehook = lambda error: failures.append(type(error.exc_value).__name__)
            backend = nn.get_backend("numba")
            from nnbackend.kernels.cpu.ops import activations as cpu_activations
            from nnbackend.kernels.codes import ACTIVATIONS
            import numba
            TANH = ACTIVATIONS["tanh"].code
            @numba.njit
            def plant(dy, saved):
                cpu_activations.activation_backward(TANH, np.float32(0), dy, saved)
            try:
                plant(np.ones((4, 4), np.float32), np.ones((4, 3), np.float32))
            except IndexError as error:
                print("caught", type(error).__name__)
            model = nn.Sequential([nn.Dense(3, 4), nn.Dense(4, 2)], seed=0, backend="numba")
            model.compile("mean_squared_error", nn.SGD())
            # the table claims a wider last layer than the buffers hold
            model.executor.compiled.table[-1, 3] += 10**6
            model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
            print(sorted(set(failures)))
            """,
            **self.environment(tmp_path),
        )
        assert done.stdout.split() == ["caught", "IndexError", "['IndexError']"], done.stderr
