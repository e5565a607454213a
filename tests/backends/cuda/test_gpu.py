"""What only a GPU can show: ``NN_TEST_BACKENDS=cuda pytest -m gpu``.

That runs the contract, gradients, goldens and all other tests of a backend on it, too (see
conftest.py); ``benchmarks/gpu_check.sh`` runs them in parts.
"""

import copy
import shutil
import subprocess
import sys

import every_kernel
import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends.cuda import executor as cuda_executor
from nnbackend.backends.cuda.arrays import BF16
from nnbackend.backends.cuda.executor import GraphExecutor
from nnbackend.backends.cuda.gemm import Epilogue, Product
from nnbackend.backends.cuda.phased import PhasedSteps
from nnbackend.backends.cuda.resident import ResidentSteps
from nnbackend.data import sources
from nnbackend.distributed.communicator import Alone
from nnbackend.distributed.executor import SharedTraining
from nnbackend.distributed.nccl import NcclCommunicator, import_nccl
from nnbackend.distributed.ranks import Ranks
from nnbackend.executor.base import Run
from nnbackend.executor.python import PythonExecutor
from nnbackend.training import trainer

pytestmark = pytest.mark.gpu
#: Products that steps are made of: the epilogue, and which matrix is stored transposed.
ASKED_FOR = [
    *((epilogue, "neither") for epilogue in Epilogue),
    (Epilogue.PLAIN, "a"),
    (Epilogue.PLAIN, "b"),
    (Epilogue.COLUMN_SUMS, "a"),
]


@pytest.fixture(scope="module")
def cuda() -> nn.Backend:
    return nn.get_backend("cuda")  # fails, and says why, where there is none


def model_on(backend, dtype: str = "float32", seed: int = 1) -> nn.Sequential:
    layers = [nn.Dense(20, 70, "gelu"), nn.BatchNorm(70), nn.Dropout(0.2), nn.Dense(70, 5)]
    model = nn.Sequential(layers, seed=seed, dtype=dtype, backend=backend)
    model.compile("softmax_cross_entropy", nn.AdamW(1e-3, clip_norm=1.0), ["accuracy"])
    return model


#: How many steps are done in few launches.
MANY_STEPS = ("in shared memory", "in phases")


def only(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in one way, from the first step on."""
    monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", 1 << 40 if how == "graphs" else 0)
    monkeypatch.setattr(GraphExecutor, "_time_of", lambda *way: 0.0)  # the first one is taken
    for name, known in zip(("can_stay", "can_take_phases"), MANY_STEPS, strict=True):
        if how != known:
            monkeypatch.setattr(cuda_executor, name, lambda *program: False)


def is_used(how: str, model: nn.Sequential) -> bool:
    kind = {"in shared memory": ResidentSteps, "in phases": PhasedSteps}[how]
    return any(isinstance(steps, kind) for steps in model.executor._kernels.values())


@pytest.fixture
def rows(rng):
    return rng.normal(size=(1000, 20)), rng.integers(0, 5, 1000)


def rounded(cuda, x):
    out = cuda.zeros(x.shape, BF16)
    cuda.round_to_bf16(x, out)
    return out


def numbers(cuda, x) -> np.ndarray:
    """On the host, in double precision."""
    host = cuda.to_numpy(x)
    if host.dtype == BF16:
        host = (host.astype(np.uint32) << 16).view(np.float32)
    return host.astype(float)


class TestKernels:
    def test_every_kernel_computes_what_numpy_does(self, cuda, dtype) -> None:
        assert every_kernel.failures(cuda, dtype) == []


class TestProducts:
    @pytest.mark.parametrize("columns", [3, 10, 64, 300])
    @pytest.mark.parametrize("operand", ["float32", "tf32", "float64", "bf16", "bf16 throughout"])
    @pytest.mark.parametrize(("epilogue", "transposed"), ASKED_FOR)
    def test_epilogues_are_what_kernels_of_their_own_would_do(
        self, cuda, rng, epilogue, transposed, operand, columns
    ):
        """Whatever this GPU's cuBLASLt has an algorithm for, against NumPy in float64."""
        rows, inner = 48, 32
        real = np.dtype("float64" if operand == "float64" else "float32")
        out_dtype = BF16 if operand == "bf16 throughout" else real
        if epilogue is Epilogue.COLUMN_SUMS and out_dtype == BF16:
            pytest.skip("sums of bfloat16 are not asked for")
        a_t, b_t = transposed == "a", transposed == "b"
        shapes = ((inner, rows) if a_t else (rows, inner),
                  (columns, inner) if b_t else (inner, columns), (columns,))  # fmt: skip
        a, b, vector = (cuda.asarray(rng.normal(size=shape), real) for shape in shapes)
        if "bf16" in operand:
            a, b = (rounded(cuda, x) for x in (a, b))
        if out_dtype == BF16:
            vector = rounded(cuda, vector)
        out = cuda.zeros((rows, columns), out_dtype)
        product = Product(
            a, b, out, a_t, b_t, operand == "tf32", epilogue,
            None if epilogue is Epilogue.PLAIN else vector,
        )  # fmt: skip
        if not cuda.gpu.supports(product):
            assert epilogue is not Epilogue.PLAIN
            pytest.skip("this cuBLASLt has no such product")
        left, right = numbers(cuda, a), numbers(cuda, b)
        left, right = left.T if a_t else left, right.T if b_t else right
        plain = left @ right
        expected = plain
        if epilogue in (Epilogue.BIAS, Epilogue.RELU):
            expected = plain + numbers(cuda, vector)
        if epilogue is Epilogue.RELU:
            expected = np.maximum(expected, 0)
        results = []
        for _ in range(2):
            cuda.gpu.product(product)
            results.append(numbers(cuda, out))
        np.testing.assert_array_equal(*results)  # bit for bit
        error = 2.0**-8 * 40 if out_dtype == BF16 else 1e-4 if real == np.float32 else 1e-12
        if operand == "tf32":
            error = 2.0**-9 * float((np.abs(left) @ np.abs(right)).max())
        np.testing.assert_allclose(results[0], expected, atol=error)
        if epilogue is Epilogue.COLUMN_SUMS:
            sums = right.sum(axis=0)
            allowed = 2.0**-9 * np.abs(right).sum(axis=0).max() if operand == "tf32" else 1e-3
            np.testing.assert_allclose(numbers(cuda, vector), sums, atol=allowed)

    @pytest.mark.parametrize(("precision", "rounding"), [("tf32", 2.0**-11), ("bf16", 2.0**-8)])
    def test_tensor_cores_round_as_much_as_they_may(self, cuda, rng, precision, rounding) -> None:
        models = [nn.Sequential([nn.Dense(512, 256)], seed=0, backend=cuda, precision=p)
                  for p in ("fp32", precision)]  # fmt: skip
        x = rng.normal(size=(256, 512)).astype("float32")
        exact, rounded = (model.predict(x) for model in models)
        sizes = np.abs(x) @ np.abs(models[0].arrays()["layers.0.weight"])
        assert 0 < (np.abs(exact - rounded) / sizes).max() < 2.1 * rounding


class TestGraphs:
    def test_replays_equal_launches(self, cuda, rows, dtype) -> None:
        graph, launched = model_on(cuda, dtype), model_on(cuda, dtype)
        launched.executor = PythonExecutor(launched.program, launched.backend)
        assert isinstance(graph.executor, GraphExecutor)
        histories = [m.fit(*rows, epochs=4, batch_size=64, verbose=0) for m in (graph, launched)]
        tolerance = 1e-3 if dtype == "float32" else 1e-9  # products may be of other algorithms
        np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=tolerance)

    def test_no_gradient_passes_a_relu_at_zero(self, cuda) -> None:
        """Rows of zeros and biases of zero: cuBLASLt's own gradient of a ReLU would let it pass."""
        x, arrays = np.zeros((64, 8), np.float32), []
        x[::2] = 1
        for backend in (cuda, "numpy"):
            layers = [nn.Dense(8, 64, "relu"), nn.Dense(64, 64, "relu"), nn.Dense(64, 4)]
            model = nn.Sequential(layers, seed=0, backend=backend)
            model.compile("softmax_cross_entropy", nn.SGD(1.0))
            model.fit(x, np.arange(64) % 4, epochs=1, batch_size=64, verbose=0)
            arrays.append(model.arrays())
        for name, array in arrays[0].items():
            np.testing.assert_allclose(array, arrays[1][name], atol=1e-6, err_msg=name)

    @pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
    def test_planned_steps_are_as_good_as_single_launches(self, cuda, rng, precision: str) -> None:
        """Products with their epilogues, and bfloat16 kept between layers, after one step."""
        models = []
        for planned, wanted in ((True, precision), (False, precision), (False, "fp32")):
            layers = [nn.Dense(40, 64, "relu"), nn.Dense(64, 32, "relu"), nn.Dense(32, 8)]
            model = nn.Sequential(layers, seed=0, backend=cuda, precision=wanted)
            model.compile("softmax_cross_entropy", nn.SGD(1.0))
            if not planned:
                model.executor = PythonExecutor(model.program, model.backend)
            models.append(model)
        x, y = rng.normal(size=(96, 40)), rng.integers(0, 8, 96)
        for model in models:
            model.fit(x, y, batch_size=96, shuffle=False, verbose=0)
        found, expected, exact = (model.arrays() for model in models)
        for name, truth in exact.items():
            allowed = 2.5 * np.abs(expected[name] - truth).max() + 1e-5
            assert np.abs(found[name] - truth).max() <= allowed, name

    def test_bfloat16_after_another_dtype(self, cuda, rng) -> None:
        """The process has kernels of float64 by then."""
        x, y = rng.normal(size=(96, 40)), rng.integers(0, 8, 96)
        losses = []
        for dtype, precision in (("float64", "fp32"), ("float32", "fp32"), ("float32", "bf16")):
            layers = [nn.Dense(40, 64, "relu"), nn.Dense(64, 8)]
            model = nn.Sequential(layers, seed=0, dtype=dtype, backend=cuda, precision=precision)
            model.compile("softmax_cross_entropy", nn.Adam(1e-2))
            losses.append(model.fit(x, y, epochs=3, batch_size=32, verbose=0)["loss"])
        np.testing.assert_allclose(losses[2], losses[1], rtol=0.02)

    def test_what_changes_between_replays_acts(self, cuda, rng) -> None:
        """Data, rate, number of steps, batch size and seed, each against NumPy."""
        for seed in (1, 2):
            models = [model_on(backend, "float64", seed) for backend in (cuda, "numpy")]
            for rate, n, batch in (
                (1e-3, 200, 50),
                (1e-2, 200, 50),
                (1e-3, 333, 32),
                (1e-3, 60, 7),
            ):
                x, y = rng.normal(size=(n, 20)), rng.integers(0, 5, n)
                for model in models:
                    model.optimizer.lr = rate
                    model.fit(x, y, epochs=2, batch_size=batch, verbose=0)
            arrays = models[1].arrays()
            for name, array in models[0].arrays().items():
                np.testing.assert_allclose(array, arrays[name], rtol=1e-6, atol=1e-8, err_msg=name)

    def test_single_steps_on_arrays_of_the_gpu_are_those_on_arrays_of_the_host(
        self, cuda, rng
    ) -> None:
        models = []
        for _ in range(2):
            layers = [nn.Dense(20, 30, "relu"), nn.Dense(30, 5)]
            models.append(nn.Sequential(layers, seed=0, backend=cuda))
            models[-1].compile("softmax_cross_entropy", nn.Adam(0.01))
        quick, checked = models
        for _ in range(50):
            x, y = (
                rng.normal(size=(64, 20)).astype("float32"),
                rng.integers(0, 5, 64).astype("int32"),
            )
            one = quick.train_step(cuda.asarray(x, x.dtype), cuda.asarray(y, y.dtype))
            assert float(one) == float(checked.train_step(x, y))
        before, no_class = (
            quick.arrays(),
            cuda.asarray(np.full(64, 5, np.int32), np.dtype(np.int32)),
        )
        assert np.isnan(float(quick.train_step(cuda.asarray(x, x.dtype), no_class)))
        for name, array in quick.arrays().items():
            np.testing.assert_array_equal(array, before[name])

    def test_inference_by_graphs_is_that_of_numpy(self, cuda, rng) -> None:
        models = [model_on(backend, "float64") for backend in (cuda, "numpy")]
        for rows in (1, 7, 1, 1000, 7, 3, 50_000):
            x = rng.normal(size=(rows, 20))
            for _ in range(2):
                one, other = (model.predict(x) for model in models)
                np.testing.assert_allclose(one, other, atol=1e-12)

    def test_runs_repeat_bit_for_bit(self, cuda, rows, dtype) -> None:
        models = [model_on(cuda, dtype) for _ in range(2)]
        for model in models:
            model.fit(*rows, epochs=5, batch_size=96, verbose=0)
        arrays = models[1].arrays()
        for name, array in models[0].arrays().items():
            np.testing.assert_array_equal(array, arrays[name])


class TestTraining:
    @pytest.mark.parametrize("data", ["digits", "spiral"])
    @pytest.mark.parametrize("how", ["graphs", *MANY_STEPS])
    def test_curves_in_double_precision_are_those_of_numpy(
        self, cuda, data, how, monkeypatch
    ) -> None:
        only(how, monkeypatch)
        x, y = nn.datasets.digits() if data == "digits" else nn.datasets.spiral(seed=0)
        curves = []
        for backend in (cuda, "numpy"):
            layers = [nn.Dense(x.shape[1], 64, "relu"), nn.Dense(64, int(y.max()) + 1)]
            model = nn.Sequential(layers, seed=0, dtype="float64", backend=backend)
            model.compile("softmax_cross_entropy", nn.Adam(0.01), ["accuracy"])
            curves.append(model.fit(x, y, epochs=5, batch_size=64, verbose=0))
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=1e-9)

    @pytest.mark.parametrize("how", MANY_STEPS)
    def test_many_steps_in_a_launch_repeat_bit_for_bit(self, cuda, monkeypatch, dtype, how) -> None:
        """However a training is cut into runs, and on whatever multiprocessors the blocks are."""
        first = cuda_executor.LAUNCHED_FIRST
        only(how, monkeypatch)
        monkeypatch.setattr(cuda_executor, "LAUNCHED_FIRST", first)
        x, y = nn.datasets.digits()
        models = []
        for seconds in (0.05, 0.05, 1e-4):
            monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
            layers = [nn.Dense(64, 32, "relu"), nn.Dense(32, 10)]
            models.append(nn.Sequential(layers, seed=0, dtype=dtype, backend=cuda))
            models[-1].compile("softmax_cross_entropy", nn.AdamW(0.01), ["accuracy"])
            models[-1].fit(x, y, epochs=12, batch_size=32, verbose=0)
            assert is_used(how, models[-1])
        arrays = models[0].arrays()
        for model in models[1:]:
            assert model.history["loss"] == models[0].history["loss"]
            for name, array in model.arrays().items():
                np.testing.assert_array_equal(array, arrays[name])

    def test_a_model_may_move_between_steps(self, cuda, rows) -> None:
        x, y = rows
        losses = []
        for places in (("cuda", "numpy", "cuda", "cuda"), ("numpy",) * 4):
            model = model_on("numpy", "float64")
            for place in places:
                model.to(place)
                model.fit(x, y, epochs=2, batch_size=100, verbose=0)
            losses.append(model.history["loss"])
        np.testing.assert_allclose(*losses, rtol=1e-8)

    def test_training_equals_that_of_numpy(self, cuda, rows) -> None:
        models = [model_on(backend, "float64") for backend in (cuda, "numpy")]
        losses = [m.fit(*rows, epochs=3, batch_size=100, verbose=0)["loss"] for m in models]
        np.testing.assert_allclose(*losses, rtol=1e-9)

    def test_dropout_masks_are_those_of_the_host(self, cuda) -> None:
        shape, host = (513, 77), nn.get_backend("numpy")
        masks = []
        for backend in (cuda, host):
            out, saved = (backend.zeros(shape, np.dtype("float32")) for _ in range(2))
            x = backend.asarray(np.ones(shape, np.float32), np.dtype("float32"))
            backend.dropout_forward(x, 0.3, 12345, 7 | 2 << 64, out, saved)
            masks.append(backend.to_numpy(saved))
        np.testing.assert_array_equal(*masks)


class TestData:
    def test_data_in_blocks_train_as_data_on_the_gpu_do(self, cuda, rng, monkeypatch) -> None:
        x, y = rng.normal(size=(20_000, 20)).astype("float32"), rng.integers(0, 5, 20_000)
        monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 18)
        models = []
        for spare in (1 << 40, 0):
            monkeypatch.setattr(type(cuda), "spare_bytes", lambda self, spare=spare: spare)
            model = model_on(cuda)
            model.fit(x, y, epochs=3, batch_size=100, verbose=0)
            models.append(model)
        arrays = models[1].arrays()
        for name, array in models[0].arrays().items():
            np.testing.assert_array_equal(array, arrays[name])

    def test_arrays_of_a_gpu_are_taken_without_a_copy(self, cuda) -> None:
        import cupy

        x = cupy.arange(12, dtype=cupy.float32).reshape(3, 4)
        assert cuda.asarray(x, np.dtype("float32")) is x

        class Foreign:
            __cuda_array_interface__ = x.__cuda_array_interface__

        assert cuda.asarray(Foreign(), np.dtype("float32")).data.ptr == x.data.ptr

    def test_out_of_memory_leaves_everything_usable(self, cuda, rows) -> None:
        model = model_on(cuda)
        with pytest.raises(nn.OutOfMemoryError, match=r"bytes asked, .* free"):
            cuda.zeros(1 << 45, np.dtype("uint8"))
        model.fit(*rows, epochs=1, batch_size=100, verbose=0)

    def test_a_process_ends_cleanly_after_training(self) -> None:
        source = (
            "import numpy as np, nnbackend as nn\n"
            "m = nn.Sequential([nn.Dense(4, 3)], seed=0, backend='cuda')\n"
            "m.compile('softmax_cross_entropy')\n"
            "m.fit(np.ones((64, 4)), np.zeros(64, int), epochs=40, batch_size=8, verbose=0)\n"
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if "compiling" not in line]
        assert (done.returncode, said) == (0, [])


class TestRanks:
    """NCCL with one rank: two of them need two GPUs."""

    @pytest.fixture
    def ranks(self, cuda) -> NcclCommunicator:
        try:
            import_nccl()
        except ImportError as error:
            pytest.skip(str(error))
        return NcclCommunicator(Alone(), cuda)

    def test_arrays_come_back_from_the_only_rank(self, cuda, ranks, rng, dtype) -> None:
        values = rng.normal(size=1001).astype(dtype)
        array = cuda.asarray(values, np.dtype(dtype))
        for move in (ranks.all_reduce, ranks.add_in_order_of_stream, ranks.broadcast):
            move(array)
            np.testing.assert_array_equal(cuda.to_numpy(array), values)

    @pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
    def test_the_sum_over_ranks_is_part_of_a_captured_step(
        self, cuda, ranks, rows, rng, weighted
    ) -> None:
        """Its trace and its parameters are those of a step that is nobody's part."""
        x, y = rows
        weight = rng.uniform(0.5, 2, len(x)) if weighted else None
        layers = [
            nn.Dense(20, 70, "gelu"), nn.Dropout(0.2), nn.Dense(70, 33, bias=False),
            nn.BatchNorm(33), nn.ReLU(), nn.Dropout(0.1), nn.Dense(33, 5, weight_l2=1e-3),
        ]  # fmt: skip
        found = []
        for shares in (False, True):
            model = nn.Sequential(copy.deepcopy(layers), seed=1, dtype="float64", backend=cuda)
            model.compile("softmax_cross_entropy", nn.Adam(0.01), ["accuracy"])
            data = sources.make_source(model.program, x, y, weight).data
            run = Run(data, None, 96, model.program.rates(0, 33), 0)
            training = model.executor
            if shares:
                training = SharedTraining(model.program, training, Ranks(ranks))
            found.append((training.run(run), numbers(cuda, model.get_flat())))
        for own, shared in zip(*found, strict=True):
            np.testing.assert_allclose(shared, own, rtol=1e-10, atol=1e-12)


class TestMemory:
    @pytest.mark.parametrize("how", ["graphs", *MANY_STEPS])
    def test_memory_stays_the_same_over_many_steps(self, cuda, rows, how, monkeypatch) -> None:
        import cupy

        model = model_on(cuda)
        if how != "graphs":
            only(how, monkeypatch)
            layers = [nn.Dense(20, 70, "gelu"), nn.Dense(70, 5)]
            model = nn.Sequential(layers, seed=0, backend=cuda)
            model.compile("softmax_cross_entropy", nn.AdamW(1e-3), ["accuracy"])
        model.fit(*rows, epochs=20, batch_size=100, verbose=0)
        pool = cupy.get_default_memory_pool()
        before = pool.used_bytes()
        model.fit(*rows, epochs=1000, batch_size=100, verbose=0)
        assert pool.used_bytes() <= before + (1 << 20)
        assert model.step == 10_200

    @pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
    @pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
    def test_the_sanitizer_finds_nothing(self, tool: str, dtype: str) -> None:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        done = subprocess.run(
            [*command, sys.executable, every_kernel.__file__, dtype],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
