"""The CUDA kernels without a GPU: NVIDIA's compiler takes them, and a stand-in device runs them.

``cuda_stand_in.py`` builds the same files as C++; what it proves and what it cannot is said there
and in docs/cuda.md.
"""

import ctypes
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import nvrtc
import pytest
from cuda_stand_in import (
    ASCENDING,
    DESCENDING,
    RANDOM,
    CpuDevice,
    DeviceArray,
    StandInBackend,
    build,
    compiler,
    helpers,
    letters,
    program,
)

import nnbackend as nn
from nnbackend.backends.cuda.kernels import (
    Launch,
    bind,
    phase_definitions,
    signatures,
    source,
)
from nnbackend.backends.cuda.resident import layout_of
from nnbackend.backends.types import LossFormula
from nnbackend.data.sources import make_source
from nnbackend.executor.base import Run
from nnbackend.testing.conformance import CHECKS, run_check

BUILDS = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
FLOAT32 = np.dtype(np.float32)
#: That of the H100; the others are compiled with ``-m slow``.
OFTEN = ("sm_90",)
#: Checks that take two seconds or more in all orders.
LONG = ("losses", "activations")
ORDERS = (ASCENDING, DESCENDING, RANDOM)


@pytest.mark.skipif(nvrtc.library() is None, reason="needs the wheel nvidia-cuda-nvrtc")
class TestCompiler:
    @pytest.mark.parametrize(
        "architecture",
        [
            pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
            for name in nvrtc.ARCHITECTURES
        ],
    )
    @pytest.mark.parametrize("real", ["float", pytest.param("double", marks=pytest.mark.slow)])
    def test_kernels_compile_without_a_warning(self, architecture: str, real: str) -> None:
        nvrtc.compile_program(source(), f"-arch={architecture}", f"-DReal={real}")

    @pytest.mark.parametrize(
        ("planted", "message"),
        [
            ("KERNEL wrong(Real* x) { x[0] = nothing; }", "nothing"),
            ("KERNEL warned(Real* x) { int unused = 1; }", "unused"),
        ],
    )
    def test_mistakes_and_warnings_are_found(self, planted: str, message: str) -> None:
        with pytest.raises(AssertionError, match=message):
            nvrtc.compile_program(source() + planted, "-arch=sm_90", "-DReal=float")


class TestLaunches:
    """A launch is checked against the source before it reaches a device."""

    def test_numbers_get_the_type_that_the_kernel_says(self) -> None:
        x = np.zeros(5, np.float32)
        launch = bind("activation_backward", FLOAT32, 1, (x, None, x, None, 5, 2, 0.25, x, None))
        kinds = [type(value) for value in launch.arguments]
        array, absent = np.ndarray, type(None)
        assert kinds == [
            array,
            absent,
            array,
            absent,
            np.int64,
            np.int32,
            np.float32,
            array,
            absent,
        ]
        arguments = (None, None, None, None, 5, 2, 0.25, None, None)
        wide = bind("activation_backward", np.dtype("float64"), 1, arguments)
        assert type(wide.arguments[6]) is np.float64

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (np.zeros(5), "contiguous array of float32; received float64"),
            (np.zeros((5, 2), np.float32)[:, 0], "strides"),
        ],
    )
    def test_arrays_have_to_fit(self, x: np.ndarray, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            bind("sum_squares", FLOAT32, 1, (x, 5, np.zeros(1)))

    def test_nothing_may_be_left_out(self) -> None:
        with pytest.raises(TypeError, match="sum_squares takes 3 arguments; received 2"):
            bind("sum_squares", FLOAT32, 1, (None, 5))

    @BUILDS
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_compiler_reads_the_same_types(self, dtype: str) -> None:
        for kernel in signatures():
            definitions = ""
            if kernel == "train_resident":
                definitions = network_of(dtype)
            if kernel == "train_in_phases":
                definitions = phase_definitions(StandInBackend().gpu.shared_bytes)
            types = program(np.dtype(dtype), definitions)[f"types_{kernel}"]
            types.restype = ctypes.c_char_p
            assert types().decode() == letters(kernel, np.dtype(dtype)), kernel


@BUILDS
class TestOrder:
    """Threads of a block run in any order: a result that depends on it lacks a barrier."""

    @pytest.mark.parametrize(
        "name",
        [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in CHECKS],
    )
    @pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
    def test_operations_are_right_with_equal_bits_in_every_order(self, name, dtype: str) -> None:
        traces = []
        for order in ORDERS:
            device = Recorder(order=order, most_blocks=16)
            run_check(device, name, CHECKS[name], dtype, 3)
            traces.append(device.gpu.results)
            gc.collect()
            assert not device.gpu.overruns
        same_traces(traces)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_steps_have_equal_bits_in_every_order(self, precision: str) -> None:
        traces = []
        for order in ORDERS:
            device = Recorder(order=order, most_blocks=16)
            train(device, precision)
            traces.append(device.gpu.results)
        same_traces(traces)

    def test_no_kernel_is_left_out(self) -> None:
        launched = set()
        for name, check in CHECKS.items():
            device = Recorder(most_blocks=16)
            run_check(device, name, check, "float32", 3)
            launched |= {kernel for kernel, _ in device.gpu.results}
        device = Recorder()
        train(device, "bf16")
        launched |= {"train_resident", "train_in_phases"}  # see test_cuda_many_steps.py
        assert launched | {kernel for kernel, _ in device.gpu.results} == set(signatures())


def network_of(dtype: str) -> str:
    """Definitions of a small network, for the kernel that trains one in shared memory."""
    model = nn.Sequential([nn.Dense(4, 3)], seed=0, dtype=dtype, backend=StandInBackend())
    model.compile("mean_squared_error", "adam")
    data = make_source(model.program, np.ones((8, 4)), np.ones((8, 3))).data
    layout = layout_of(model.program, model.backend, 8, data)
    assert layout is not None
    return layout.network


def train(device: StandInBackend, precision: str) -> None:
    """A model with rows of every kind, on weighted rows."""
    layers = [
        nn.Standardize(6), nn.Dense(6, 40, "relu", weight_l2=1e-3), nn.Dense(40, 33, "gelu"),
        nn.Dense(33, 17, "relu"), nn.BatchNorm(17), nn.Dropout(0.2), nn.Dense(17, 9, "softmax"),
        nn.LayerNorm(9), nn.Tanh(), nn.Dropout(0.1), nn.Dense(9, 4),
    ]  # fmt: skip
    model = nn.Sequential(layers, seed=0, backend=device, precision=precision)
    optimizer = nn.AdamW(0.01, clip_norm=1.0)
    model.compile(
        "softmax_cross_entropy", optimizer, ["accuracy", nn.metrics.TopKAccuracy(k=2), "f1"]
    )
    rng = np.random.default_rng(5)
    x, y, weight = rng.normal(size=(70, 6)), rng.integers(0, 4, 70), rng.uniform(size=70)
    model.layers[0].adapt(x)
    data = make_source(model.program, x, y, weight).data
    model.executor.run(Run(data, None, 32, model.program.rates(model.step, 6), 0))
    part = Run(data.rows(0, 32), None, 32, model.program.rates(6, 1), 6)
    model.executor.run_shared([(part, 32)] * 3, lambda array: None)  # with no other rank
    model.predict(x)


def same_traces(traces: list[list[tuple[str, int]]]) -> None:
    for other in traces[1:]:
        assert len(other) == len(traces[0])
        for (kernel, a), (_, b) in zip(traces[0], other, strict=True):
            assert a == b, f"{kernel} depends on the order of threads"


class _RecordingDevice(CpuDevice):
    """Keeps what lies in every array after each launch."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.results: list[tuple[str, int]] = []

    def _launch(self, launch: Launch) -> None:
        super()._launch(launch)
        arguments = zip(signatures()[launch.kernel], launch.arguments, strict=True)
        # a run's record holds addresses, which are others each time
        arrays = [a for name, a in arguments if name.name != "run" and a is not None]
        arrays = [a for a in arrays if isinstance(a, DeviceArray)]
        self.results.append((launch.kernel, hash(b"".join(a.tobytes() for a in arrays))))


class Recorder(StandInBackend):
    device_class = _RecordingDevice


PLANTED = """
KERNEL no_barrier(double* out) {
    __shared__ double parts[256];
    parts[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = parts[255 - threadIdx.x];
}
KERNEL barrier_for_some(double* out) {
    if (threadIdx.x < 100) __syncthreads();
    out[0] = 1;
}
KERNEL shuffle_for_some(double* out) {
    if (threadIdx.x < 100) out[threadIdx.x] = warp_sum((double)threadIdx.x);
}
KERNEL overrun(double* out, Size n) { out[n] = 1; }
KERNEL no_meeting(double* out) {
    double* own = (double*)shared_memory();
    own[threadIdx.x] = threadIdx.x;
    __syncthreads();  // where all blocks should meet
    out[256 * blockIdx.x + threadIdx.x] = of_block(own, 1 - blockIdx.x)[threadIdx.x];
}
KERNEL meeting(double* out) {
    double* own = (double*)shared_memory();
    own[threadIdx.x] = 256 * blockIdx.x + threadIdx.x;
    meet_cluster();
    out[256 * blockIdx.x + threadIdx.x] = of_block(own, 1 - blockIdx.x)[255 - threadIdx.x];
}
KERNEL not_waited_for(double* out) {
    double* own = (double*)shared_memory();
    copy_later(own + threadIdx.x, out + threadIdx.x);
    __syncthreads();
    out[256 + threadIdx.x] = own[threadIdx.x];
}
KERNEL beyond_shared_memory(double* out) {
    ((double*)shared_memory())[256] = out[0];
}
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Launch one of the planted kernels; what the stand-in has to say of it."""
    library = build(helpers() + PLANTED, "float", tmp_path_factory.mktemp("planted") / "planted.so")

    def run(
        kernel: str, out: np.ndarray, order: int = ASCENDING, n: int = 0, blocks: int = 1,
        shared: int = 0,
    ) -> bytes | None:  # fmt: skip
        values = (ctypes.c_void_p * 2)()
        numbers = ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(n)
        for i, number in enumerate(numbers):
            values[i] = ctypes.addressof(number)
        launch = library[f"launch_{kernel}"]
        launch.restype = ctypes.c_char_p
        return launch(blocks, 256, order, 1, ctypes.c_size_t(shared), values)

    return run


@BUILDS
class TestStandIn:
    """The stand-in finds what it is there to find."""

    def test_a_missing_barrier_shows_in_some_order(self, planted) -> None:
        outs = []
        for order in (ASCENDING, DESCENDING, RANDOM):
            outs.append(np.zeros(256))
            assert planted("no_barrier", outs[-1], order) is None
        assert any(not np.array_equal(out, np.arange(256)[::-1]) for out in outs)
        assert np.isnan(outs[0]).any()  # shared memory was poisoned

    def test_a_barrier_that_some_never_reach_is_named(self, planted) -> None:
        assert planted("barrier_for_some", np.zeros(256)) is None  # the others have left
        assert b"a shuffle that not all lanes" in planted("shuffle_for_some", np.zeros(256))

    def test_blocks_of_a_cluster_that_do_not_meet_show_in_some_order(self, planted) -> None:
        expected, outs = np.tile(np.arange(256.0), 2), []
        for order in ORDERS:
            outs.append(np.zeros(512))
            assert planted("no_meeting", outs[-1], order, blocks=2, shared=2048) is None
            met = np.zeros(512)
            assert planted("meeting", met, order, blocks=2, shared=2048) is None
            np.testing.assert_array_equal(met, [*range(511, 255, -1), *range(255, -1, -1)])
        assert any(not np.array_equal(out, expected) for out in outs)
        assert any(np.isnan(out).any() for out in outs)  # each block's memory was poisoned

    def test_a_copy_that_nobody_waits_for_does_not_arrive(self, planted) -> None:
        out = np.ones(512)
        assert planted("not_waited_for", out, shared=2048) is None
        assert np.isnan(out[256:]).all()

    def test_shared_memory_ends_where_it_was_asked_to(self, planted) -> None:
        assert planted("beyond_shared_memory", np.ones(1), shared=2056) is None
        assert b"behind the end" in planted("beyond_shared_memory", np.ones(1), shared=2048)

    def test_numbers_behind_an_array_are_noticed(self, planted) -> None:
        device = CpuDevice()
        out = device.zeros(3, np.float64)
        planted("overrun", out, n=3)
        del out
        gc.collect()
        assert device.overruns == ["(3,) float64"]

    def test_touching_the_page_behind_an_array_ends_the_process(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import numpy as np; from cuda_stand_in import CpuDevice\n"
             "x = CpuDevice().zeros(64, np.float64)\n"
             "np.lib.stride_tricks.as_strided(np.asarray(x), (65,))[64] = 1"],
            cwd=Path(nvrtc.__file__).parent, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode < 0

    def test_arrays_of_the_host_are_refused(self) -> None:
        device = StandInBackend()
        out = device.zeros((2, 3), FLOAT32)
        with pytest.raises(AssertionError, match="standardize"):
            device.standardize_backward(np.ones((2, 3), np.float32), np.ones(3, np.float32), out)


@BUILDS
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "rows"])
@pytest.mark.parametrize("width", [33, 100, 127, 130, 256, 300, 516, 1000, 1024, 1027])
@pytest.mark.parametrize("shift", [0, 1], ids=["in fours", "one by one"])
def test_softmax_of_rows_that_lanes_keep(rng, width: int, shift: int, labels: bool) -> None:
    """Of each width that has code of its own, and from addresses of both kinds."""
    rows = 5 * rng.normal(size=(8, width)).astype(np.float32)
    rows[3, :] = -1e30
    rows[4, width // 2] = 1e30
    target = rng.uniform(size=rows.shape).astype(np.float32)
    if labels:
        target = rng.integers(0, width, len(rows)).astype(np.int32)
    not_finite = rows.copy()
    not_finite[5:, [0, 1, width - 1]] = np.diag([np.nan, np.inf, np.nan])

    for pred in (rows, not_finite):
        found, expected = (
            loss_of(backend, "softmax_cross_entropy", pred, target, shift)
            for backend in (StandInBackend(), nn.get_backend("numpy"))
        )
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


def loss_of(
    backend: nn.Backend, name: str, pred: np.ndarray, target: np.ndarray, shift: int = 0
) -> list[np.ndarray]:
    """The gradient and the loss, of float32 numbers ``shift`` places behind where memory begins."""
    given, dpred = (backend.zeros(pred.size + shift, FLOAT32)[shift:] for _ in range(2))
    given[...] = backend.asarray(pred.reshape(-1), FLOAT32)
    given, dpred = (flat.reshape(pred.shape) for flat in (given, dpred))
    value = backend.zeros((), np.dtype(np.float64))
    target = backend.asarray(target, target.dtype)
    with np.errstate(all="ignore"):
        backend.loss(LossFormula(name), given, target, None, dpred, value)
    return [backend.to_numpy(array) for array in (dpred, value)]


#: Losses that are sums over outputs.
OF_OUTPUTS = (
    "mean_squared_error", "sum_squared_error", "mean_absolute_error", "huber",
    "sigmoid_cross_entropy", "binary_cross_entropy", "poisson",
)  # fmt: skip


@BUILDS
@pytest.mark.parametrize("name", OF_OUTPUTS)
@pytest.mark.parametrize("width", [1, 4, 127, 128, 132, 256, 260, 388, 1000])
@pytest.mark.parametrize("shift", [0, 1], ids=["in fours", "one by one"])
def test_losses_of_outputs_that_are_fetched_ahead(rng, name: str, width: int, shift: int) -> None:
    """Of rows that end within each round of lanes, and from addresses of both kinds."""
    pred = rng.uniform(0.01, 0.99, (3, width)).astype(np.float32)
    target = rng.uniform(size=pred.shape).astype(np.float32)
    found, expected = (
        loss_of(backend, name, pred, target, shift)
        for backend in (StandInBackend(), nn.get_backend("numpy"))
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@BUILDS
def test_sigmoid_cross_entropy_of_every_size_of_logit(rng) -> None:
    """One logit each, so that no other hides its loss: to four units in the last place."""
    size = np.concatenate([10.0 ** np.arange(-37, 38, 2), np.linspace(0, 90, 91)])
    pred = np.concatenate([size, -size]).astype(np.float32)
    for wanted in (0, 1):
        t = np.full((1, 1), wanted, np.float32)
        for p in pred:
            found = loss_of(StandInBackend(), "sigmoid_cross_entropy", p.reshape(1, 1), t)
            z = np.float64(p if wanted == 0 else -p)
            loss, share = np.logaddexp(0, z), np.exp(-np.logaddexp(0, -z))
            np.testing.assert_allclose(found[1], loss, rtol=4 * 2**-23, atol=1e-37)
            np.testing.assert_allclose(
                found[0][0, 0], share if wanted == 0 else -share, rtol=4 * 2**-23, atol=2**-23
            )


@BUILDS
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "categorical_cross_entropy"])
@pytest.mark.parametrize("width", [5, 100, 1027])
@pytest.mark.parametrize("past", ["before", "behind"])
def test_a_label_that_is_no_class_makes_nan_of_its_row_and_of_the_loss(
    rng, name: str, width: int, past: str
) -> None:
    """Where nobody has looked through the labels, as with arrays that lie on the device."""
    device = StandInBackend()
    label = rng.integers(0, width, 6).astype(np.int32)
    label[2] = {"before": -1, "behind": width}[past]
    pred = device.asarray(rng.uniform(0.1, 0.9, (6, width)), FLOAT32)
    dpred, value = device.zeros(pred.shape, FLOAT32), device.zeros((), np.dtype(np.float64))
    device.loss(LossFormula(name), pred, device.asarray(label, label.dtype), None, dpred, value)
    assert np.isnan(device.to_numpy(value))
    of_rows = np.isnan(device.to_numpy(dpred))
    assert of_rows[2].all()
    assert not np.delete(of_rows, 2, axis=0).any()


@BUILDS
def test_memory_that_is_not_there(rng) -> None:
    device = StandInBackend(memory=100_000)
    with pytest.raises(nn.OutOfMemoryError, match="1,000,000 bytes"):
        device.zeros(250_000, FLOAT32)
    layer = nn.Sequential([nn.Dense(4, 3)], seed=0, backend=device)
    assert layer(rng.normal(size=(2, 4))).shape == (2, 3)  # the device is still of use
