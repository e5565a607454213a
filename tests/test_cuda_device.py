"""What is asked of CuPy and cuBLAS, where neither is: by stand-ins that do what those document."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends import _cuda_device
from nnbackend.backends._cublas import WORKSPACE, Products
from nnbackend.backends._cuda_kernels import THREADS, bind

FLOAT32 = np.dtype(np.float32)


class FakeArray(np.ndarray):
    """As much of a CuPy array as the device class uses."""

    device = SimpleNamespace(id=0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self, order: str = "C") -> np.ndarray:
        return np.array(self.view(np.ndarray), order=order)

    def set(self, x: np.ndarray) -> None:
        self.view(np.ndarray)[...] = x


def fake(x, number: int = 0) -> FakeArray:
    array = np.array(x).view(FakeArray)
    array.device = SimpleNamespace(id=number)
    return array


# -- cuBLAS ---------------------------------------------------------------------------------------

_DTYPES = {0: np.float32, 1: np.float64, 14: np.uint16}


class FakeCublas:
    """cublasGemmEx on host memory: column-major C (m, n) = op(A) op(B), as NVIDIA documents it."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[str] = []
        self.compute: list[int] = []
        self.status = status

    def cublasSetStream_v2(self, handle, stream) -> int:  # noqa: N802
        self.calls.append(f"stream {stream.value}")
        return 0

    def cublasSetWorkspace_v2(self, handle, address, size) -> int:  # noqa: N802
        self.calls.append(f"workspace {address.value} {size.value}")
        return 0

    def cublasGemmEx(  # noqa: N802
        self, handle, op_a, op_b, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind,
        ldc, compute, algorithm,
    ) -> int:  # fmt: skip
        self.calls.append(f"product {handle.value}")
        self.compute.append(compute)
        m, n, k = m.value, n.value, k.value
        left = _columns(a, a_kind, lda, (k, m) if op_a else (m, k))
        right = _columns(b, b_kind, ldb, (n, k) if op_b else (k, n))
        result = _columns(c, c_kind, ldc, (m, n))
        left, right = (_float(x.T if op else x) for x, op in ((left, op_a), (right, op_b)))
        result[...] = left @ right
        return self.status


def _columns(address, kind: int, leading, shape: tuple[int, int]) -> np.ndarray:
    """The column-major matrix at an address."""
    dtype = np.dtype(_DTYPES[kind])
    assert leading.value >= shape[0]
    memory = (ctypes.c_char * (leading.value * shape[1] * dtype.itemsize)).from_address(
        address.value
    )
    return np.frombuffer(memory, dtype).reshape(shape[1], leading.value).T[: shape[0]]


def _float(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def products_of(library: FakeCublas) -> Products:
    products = object.__new__(Products)
    products._library, products._handle, products._workspace = library, lambda: 77, 1234
    return products


@pytest.mark.parametrize("a_t", [False, True])
@pytest.mark.parametrize("b_t", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float64", "bf16"])
def test_row_major_products_in_every_form(rng, a_t: bool, b_t: bool, kind: str) -> None:
    dtype = "float64" if kind == "float64" else "float32"
    a, b = rng.normal(size=(5, 7)).astype(dtype), rng.normal(size=(7, 3)).astype(dtype)
    if kind == "bf16":
        a, b = (x.view(np.uint32) & np.uint32(0xFFFF0000) for x in (a, b))
        expected = a.view(np.float32) @ b.view(np.float32)
        a, b = ((x >> 16).astype(np.uint16) for x in (a, b))
    else:
        expected = a @ b
    out = fake(np.full((5, 3), np.nan, dtype))
    library = FakeCublas()
    left, right = (fake(np.ascontiguousarray(x.T if t else x)) for x, t in ((a, a_t), (b, b_t)))
    products_of(library)(left, right, out, a_t, b_t, False, 99)
    np.testing.assert_allclose(out.view(np.ndarray), expected, rtol=1e-5)
    # setting the stream resets the workspace
    assert library.calls == ["stream 99", f"workspace 1234 {WORKSPACE}", "product 77"]
    assert library.compute == [70 if kind == "float64" else 68]


def test_tf32_is_asked_for_by_its_own_compute_type() -> None:
    library = FakeCublas()
    for dtype, asked in (("float32", 77), ("float64", 70)):
        x = fake(np.ones((2, 2), dtype))
        products_of(library)(x, x, fake(np.ones((2, 2), dtype)), False, False, True, 0)
        assert library.compute[-1] == asked


def test_what_cublas_refuses_is_an_error() -> None:
    x = fake(np.ones((2, 2), "float32"))
    with pytest.raises(nn.NNBackendError, match="cublasGemmEx answers with cublasStatus_t 13"):
        products_of(FakeCublas(13))(x, x, fake(np.ones((2, 2), "float32")), False, False, False, 0)


# -- CuPy -----------------------------------------------------------------------------------------


class OutOfMemoryError(Exception):
    pass


class FakeContext:
    mem_info = (1000, 5000)

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name, self.ptr = log, name, 5

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def begin_capture(self) -> None:
        self.log.append("begin")

    def end_capture(self):
        self.log.append("end")
        return SimpleNamespace(launch=lambda: self.log.append("launch"))


class FakeCupy:
    """The few functions of CuPy that the device class calls, each noted."""

    ndarray = FakeArray

    def __init__(self) -> None:
        self.log: list = []
        log = self.log
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDeviceProperties=lambda i: {"multiProcessorCount": 3}),
            Device=lambda i: FakeContext(log, f"device {i}"),
            Stream=lambda non_blocking: FakeContext(log, "stream"),
            get_current_stream=lambda: SimpleNamespace(ptr=5),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            device=SimpleNamespace(get_cublas_handle=lambda: 1),
        )

    def empty(self, size, dtype):
        return fake(np.empty(size, dtype))

    def zeros(self, shape, dtype):
        if np.prod(shape) > 10_000:
            raise OutOfMemoryError
        return fake(np.zeros(shape, dtype))

    def asarray(self, x):
        return fake(np.ones(2, np.float32), x.number)

    def from_dlpack(self, x):
        return fake(np.ones(3, np.float32), x.number)

    def get_default_memory_pool(self):
        return SimpleNamespace(free_bytes=lambda: 24)

    def RawModule(self, code, options, backend):  # noqa: N802
        self.log.append(("compile", options))

        def get_function(name):
            return lambda *arguments: self.log.append((name, *arguments))

        return SimpleNamespace(get_function=get_function)


@pytest.fixture
def cupy(monkeypatch) -> FakeCupy:
    fake_cupy = FakeCupy()
    monkeypatch.setattr(_cuda_device.importlib, "import_module", lambda name: fake_cupy)
    monkeypatch.setattr(_cuda_device, "Products", lambda handle, workspace: None)
    return fake_cupy


@pytest.fixture
def device(cupy) -> _cuda_device.CupyDevice:
    return _cuda_device.CupyDevice(0)


def test_kernels_are_compiled_once_for_a_dtype_and_get_typed_arguments(cupy, device) -> None:
    x = fake(np.ones(4, np.float32))
    for _ in range(2):
        device.launch(bind("activation_backward", FLOAT32, 7, (x, x, 4, 1, 0.5, x)))
    assert [entry for entry in cupy.log if entry[0] == "compile"] == [
        ("compile", ("-std=c++17", "-DReal=float"))
    ]
    name, grid, block, arguments = cupy.log[-1]
    assert (name, grid, block) == ("activation_backward", (7,), (THREADS,))
    assert [type(value) for value in arguments[2:5]] == [np.int64, np.int32, np.float32]


def test_an_address_that_is_not_there_is_eight_zero_bytes(cupy, device) -> None:
    x = fake(np.ones(4, np.float32))
    device.launch(bind("standardize", FLOAT32, 1, (x, None, x, 4, 4, x)))
    null = cupy.log[-1][3][1]
    assert type(null) is np.uint64
    assert null == 0


def test_kernels_without_real_numbers_take_the_program_that_is_there(cupy, device) -> None:
    double, count = np.dtype(np.float64), fake(np.ones(1))
    device.launch(bind("sum_squares", double, 1, (count, 1, count)))
    device.launch(bind("sum_partials", None, 1, (count, 1, 1.0, 0, count)))
    compiled = [entry[1] for entry in cupy.log if entry[0] == "compile"]
    assert compiled == [("-std=c++17", "-DReal=double")]


@pytest.mark.parametrize("form", ["interface", "dlpack"])
def test_arrays_of_other_libraries_are_adopted_or_refused(device, form: str) -> None:
    def foreign(number: int):
        if form == "interface":
            return SimpleNamespace(__cuda_array_interface__={}, number=number)
        return SimpleNamespace(__dlpack_device__=lambda: (2, number), number=number)

    assert device.owns(device.adopt(foreign(0)))
    with pytest.raises(nn.DeviceError, match=r"model on cuda:0 takes .* received one on cuda:1"):
        device.adopt(foreign(1))
    assert device.adopt(np.ones(3)) is None
    assert device.adopt([1, 2]) is None


def test_out_of_memory_says_what_was_asked_and_what_is_free(device) -> None:
    with pytest.raises(nn.OutOfMemoryError, match="80,000 bytes asked, 1,000 of 5,000 free"):
        device.zeros(20_000, FLOAT32)
    assert device.zeros((2, 3), FLOAT32).shape == (2, 3)
    assert device.free_bytes() == 1024


def test_copies_go_there_and_back(device) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = device.from_host(x)
    assert device.owns(array)
    back = device.to_host(array)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, x)


def test_a_capture_ends_whatever_happens_and_is_forgotten_at_exit(cupy, device) -> None:
    replay = device.capture(lambda: cupy.log.append("work"))
    assert cupy.log == ["begin", "work", "end"]
    replay()
    replay()
    assert cupy.log[3:] == ["launch", "launch"]

    def broken() -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        device.capture(broken)
    assert cupy.log[-2:] == ["begin", "end"]
    device._forget_graphs()
    assert all(captured.graph is None for captured in device._captured)
