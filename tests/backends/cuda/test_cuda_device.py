"""What is asked of CuPy and cuBLAS, where neither is: by stand-ins that do what those document."""

import ctypes
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends.cuda import cupy_device, driver
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.cuda.cublas import WORKSPACE, Products
from nnbackend.backends.cuda.cublaslt import WANTED, LtProducts
from nnbackend.backends.cuda.gemm import ALIGNMENT, Epilogue, Product, ProductError
from nnbackend.backends.cuda.kernels import THREADS, bind, phase_definitions

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
    products._library, products._handle = library, lambda: 77
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
    products_of(library)(Product(left, right, out, a_t, b_t), 99, 1234)
    np.testing.assert_allclose(out.view(np.ndarray), expected, rtol=1e-5)
    # setting the stream resets the workspace
    assert library.calls == ["stream 99", f"workspace 1234 {WORKSPACE}", "product 77"]
    assert library.compute == [70 if kind == "float64" else 68]


def test_tf32_is_asked_for_by_its_own_compute_type() -> None:
    library = FakeCublas()
    for dtype, asked in (("float32", 77), ("float64", 70)):
        x = fake(np.ones((2, 2), dtype))
        product = Product(x, x, fake(np.ones((2, 2), dtype)), tf32=True)
        products_of(library)(product, 0, 0)
        assert library.compute[-1] == asked


def test_what_cublas_refuses_is_an_error() -> None:
    x = fake(np.ones((2, 2), "float32"))
    with pytest.raises(nn.NNBackendError, match="cublasGemmEx answers with cublasStatus_t 13"):
        products_of(FakeCublas(13))(Product(x, x, fake(np.ones((2, 2), "float32"))), 0, 0)


# -- cuBLASLt -------------------------------------------------------------------------------------


class FakeCublasLt:
    """As much of cuBLASLt as is asked of it, on host memory and as cublasLt.h documents it; its
    algorithms are numbers that say which search found them."""

    #: bytes of the attributes that are set
    SIZES: ClassVar = {
        "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8},
        "MatmulPreference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
    }

    def __init__(self, finds: int = 1) -> None:
        self.finds, self.objects, self.searches, self.made = finds, {}, 0, 0
        self.matmuls: list[tuple] = []

    def _create(self, out, **content) -> int:
        self.made += 1
        key = self.made
        self.objects[key] = content
        ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = key
        return 0

    def cublasLtMatmulDescCreate(self, out, compute, scale) -> int:  # noqa: N802
        return self._create(out, compute=compute, scale=scale)

    def cublasLtMatrixLayoutCreate(self, out, kind, rows, columns, leading) -> int:  # noqa: N802
        return self._create(out, kind=kind, rows=rows.value, columns=columns.value,
                            leading=leading.value)  # fmt: skip

    def cublasLtMatmulPreferenceCreate(self, out) -> int:  # noqa: N802
        return self._create(out)

    def _destroy(self, what) -> int:
        del self.objects[what.value]
        return 0

    cublasLtMatmulPreferenceDestroy = _destroy  # noqa: N815
    cublasLtMatmulDescDestroy = cublasLtMatrixLayoutDestroy = _destroy  # noqa: N815

    def _set(self, kind: str, what, attribute, buffer, size) -> int:
        assert size.value == self.SIZES[kind][attribute]
        number = {4: ctypes.c_int32, 8: ctypes.c_int64}[size.value]
        self.objects[what.value][attribute] = ctypes.cast(buffer, ctypes.POINTER(number))[0]
        return 0

    def cublasLtMatmulDescSetAttribute(self, *arguments) -> int:  # noqa: N802
        return self._set("MatmulDesc", *arguments)

    def cublasLtMatmulPreferenceSetAttribute(self, *arguments) -> int:  # noqa: N802
        return self._set("MatmulPreference", *arguments)

    def cublasLtMatmulAlgoGetHeuristic(  # noqa: N802
        self, handle, descriptor, a, b, c, d, preference, wanted, results, count
    ) -> int:
        assert wanted == WANTED
        preferred = self.objects[preference.value]
        assert preferred[1] == WORKSPACE
        assert preferred[3] == 2  # sums in place come in no fixed order
        assert all(
            preferred[attribute] in (4, 8, 16, 32, 64, 128, 256) for attribute in range(5, 9)
        )
        self.searches += 1
        for number in range(self.finds):
            results[number].algorithm[0] = 100 * self.searches + number
            results[number].workspace = 4096
        count._obj.value = self.finds
        return 0 if self.finds else 15  # CUBLAS_STATUS_NOT_SUPPORTED

    def cublasLtMatmul(  # noqa: N802
        self, handle, descriptor, alpha, a, layout_a, b, layout_b, beta, c, layout_c, d, layout_d,
        algorithm, workspace, size, stream,
    ) -> int:  # fmt: skip
        told = self.objects[descriptor.value]
        self.matmuls.append((algorithm._obj[0], workspace.value, size.value, stream.value))
        assert (alpha._obj.value, beta._obj.value) == (1.0, 0.0)
        left, right, out = (
            self._matrix(*pair) for pair in ((a, layout_a), (b, layout_b), (d, layout_d))
        )
        left, right = (_float(x.T if told[k] else x) for x, k in ((left, 3), (right, 4)))
        sums, epilogue = left @ right, told[7]
        rows = len(sums)
        vector = None
        if 8 in told:
            vector = np.ctypeslib.as_array((ctypes.c_float * rows).from_address(told[8]))
        if epilogue & 4 and epilogue < 256:
            sums = sums + vector[:, None]
        if epilogue & 2 and epilogue < 256:
            sums = np.maximum(sums, 0)
        if epilogue == 256:
            vector[...] = left.sum(axis=1)
        out[...] = sums
        return 0

    def _matrix(self, address, layout) -> np.ndarray:
        told = self.objects[layout.value]
        leading = ctypes.c_int(told["leading"])
        return _columns(address, told["kind"], leading, (told["rows"], told["columns"]))


def lt_products_of(library: FakeCublasLt, choose=None) -> LtProducts:
    products = object.__new__(LtProducts)
    products._library, products._plans, products._handle = library, {}, ctypes.c_void_p(7)
    products._choose = choose
    return products


@pytest.mark.parametrize("a_t", [False, True])
@pytest.mark.parametrize("b_t", [False, True])
@pytest.mark.parametrize("epilogue", Epilogue)
def test_epilogues_of_row_major_products(rng, a_t: bool, b_t: bool, epilogue: Epilogue) -> None:
    a, b = (rng.normal(size=shape).astype("float32") for shape in ((5, 7), (7, 3)))
    vector = rng.normal(size=3).astype("float32")
    plain = a @ b
    expected = {
        Epilogue.BIAS: plain + vector,
        Epilogue.RELU: np.maximum(plain + vector, 0),
    }.get(epilogue, plain)
    left, right = (fake(np.ascontiguousarray(x.T if t else x)) for x, t in ((a, a_t), (b, b_t)))
    out, own_vector = fake(np.full((5, 3), np.nan, "float32")), fake(vector)
    product = Product(
        left, right, out, a_t, b_t, False, epilogue,
        None if epilogue is Epilogue.PLAIN else own_vector,
    )  # fmt: skip
    library = FakeCublasLt()
    lt_products_of(library)(product, 99, 1234)
    np.testing.assert_allclose(out.view(np.ndarray), expected, rtol=1e-5, atol=1e-6)
    if epilogue is Epilogue.COLUMN_SUMS:
        np.testing.assert_allclose(own_vector.view(np.ndarray), b.sum(axis=0), rtol=1e-5)
    assert library.matmuls == [(100, 1234, 4096, 99)]


def test_an_algorithm_is_searched_once_for_a_form_and_addresses_may_change(rng) -> None:
    library = FakeCublasLt()
    products = lt_products_of(library)
    arrays = [rng.normal(size=(8, 8)).astype("float32") for _ in range(4)]
    for a, b in ((0, 1), (2, 3), (1, 2)):
        out, bias = fake(np.zeros((8, 8), "float32")), fake(np.ones(8, "float32"))
        left, right = fake(arrays[a]), fake(arrays[b])
        product = Product(left, right, out, epilogue=Epilogue.BIAS, vector=bias)
        before = library.searches
        products(product, 0, 0)
        np.testing.assert_allclose(out.view(np.ndarray), arrays[a] @ arrays[b] + 1, rtol=1e-5)
        assert products.supports(product)
        assert library.searches <= before + 1
    assert library.searches == len(products._plans)


def test_the_fastest_of_the_algorithms_is_taken_once_for_a_form(rng) -> None:
    library, asked = FakeCublasLt(finds=5), []

    def choose(question: str, ways) -> int:
        asked.append(question)
        for way in ways:
            way(4, 8)
        return 3

    products = lt_products_of(library, choose)
    arrays = [fake(rng.normal(size=(4, 4)).astype("float32")) for _ in range(3)]
    for _ in range(2):
        products(Product(*arrays), 99, 1234)
    expected = arrays[0].view(np.ndarray) @ arrays[1].view(np.ndarray)
    np.testing.assert_allclose(arrays[2].view(np.ndarray), expected, rtol=1e-5)
    assert library.matmuls == [
        *((100 + number, 8, 4096, 4) for number in range(5)), *[(103, 1234, 4096, 99)] * 2,
    ]  # fmt: skip
    (question,) = asked
    assert question.startswith("product (4, 4, 4, 4, 4, 4, False, False, False, 'plain'")


def test_what_cublaslt_cannot_do_is_found_before_it_is_asked() -> None:
    products = lt_products_of(FakeCublasLt(finds=0))
    product = Product(*(fake(np.ones((2, 2), "float32")) for _ in range(3)))
    assert not products.supports(product)
    with pytest.raises(nn.NNBackendError, match="no algorithm"):
        products(product, 0, 0)


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

    def wait_event(self, event) -> None:
        self.log.append(f"{self.name} waits for {event.recorded}")


class FakeEvent:
    """Remembers which stream it was recorded on."""

    recorded = ""

    def __init__(self, disable_timing: bool = False) -> None:
        self.timed = not disable_timing

    def record(self, stream=None) -> None:
        self.recorded = "" if stream is None else stream.name

    def synchronize(self) -> None:
        pass


class PinnedMemory(np.ndarray):
    """Has a buffer and an address, as CuPy's."""

    @property
    def ptr(self) -> int:
        return self.ctypes.data


class FakeCupy:
    """The few functions of CuPy that the device class calls, each noted."""

    ndarray, __version__ = FakeArray, "14.2"

    def __init__(self) -> None:
        self.log: list = []
        log = self.log
        main = FakeContext(log, "main")
        main.ptr = 9
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDeviceProperties=lambda i: {
                    "multiProcessorCount": 3,
                    "name": b"A GPU",
                    "major": 9,
                    "sharedMemPerBlockOptin": 232448,
                },
                memcpyAsync=self.copy,
                memcpyHostToDevice=1,
            ),
            alloc_pinned_memory=lambda size: np.full(size, 255, np.uint8).view(PinnedMemory),
            Device=lambda i: FakeContext(log, f"device {i}"),
            Stream=lambda non_blocking: FakeContext(log, "side"),
            Event=FakeEvent,
            get_elapsed_time=lambda start, stop: 4.0,
            get_current_stream=lambda: main,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            device=SimpleNamespace(get_cublas_handle=lambda: 1),
            driver=SimpleNamespace(launchKernel=lambda *given: self.log.append(given)),
        )

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self.log.append(("copy", kind, stream))
        ctypes.memmove(to, source, size)

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
            def kernel(*arguments) -> None:
                self.log.append((name, *arguments))

            kernel.kernel = SimpleNamespace(ptr=name)
            return kernel

        return SimpleNamespace(
            get_function=get_function, compile=lambda: self.log.append(("compiled", options))
        )


@pytest.fixture
def cupy(monkeypatch, tmp_path) -> FakeCupy:
    fake_cupy = FakeCupy()
    monkeypatch.setattr(cupy_device.importlib, "import_module", lambda name: fake_cupy)
    monkeypatch.setattr(cupy_device, "Products", lambda handle: None)
    monkeypatch.setattr(cupy_device, "make_lt_products", lambda choose: None)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "somewhere"))
    return fake_cupy


@pytest.fixture
def device(cupy) -> cupy_device.CupyDevice:
    return cupy_device.CupyDevice(0)


def test_kernels_are_compiled_once_for_a_dtype_and_get_typed_arguments(cupy, device) -> None:
    x = fake(np.ones(4, np.float32))
    for _ in range(2):
        device.launch(
            bind("activation_backward", FLOAT32, 7, (x, None, x, None, 4, 1, 0.5, x, None))
        )
    assert [entry for entry in cupy.log if entry[0] == "compile"] == [
        ("compile", ("-std=c++17", "-DReal=float"))
    ]
    name, grid, block, arguments = cupy.log[-1]
    assert (name, grid, block) == ("activation_backward", (7,), (THREADS,))
    assert [type(value) for value in arguments[4:7]] == [np.int64, np.int32, np.float32]


def test_compiling_says_so_once(cupy, device, capsys) -> None:
    device.tuning.path = None
    x = fake(np.ones(4, np.float32))
    device.launch(bind("sum_squares", FLOAT32, 1, (x, 4, fake(np.ones(1)))))
    said = capsys.readouterr().err
    assert said.startswith("nnbackend: compiling the CUDA kernels in float32; once on this GPU")
    assert said.endswith(" s\n")
    # a later process: CuPy finds what it kept
    device._programs.clear()
    device._kernels.clear()
    device.launch(bind("sum_squares", FLOAT32, 1, (x, 4, fake(np.ones(1)))))
    assert capsys.readouterr().err == ""
    assert len([entry for entry in cupy.log if entry[0] == "compiled"]) == 1


def test_a_prepared_launch_takes_other_numbers_and_keeps_its_arrays(cupy, device) -> None:
    record, state = fake(np.zeros(12, np.int64)), fake(np.zeros(72, np.uint8))
    launch = bind("begin_run", None, 1, (*np.zeros(11, np.int64), 0.0, record, state))
    run = device.prepare(launch)
    for numbers in (range(1, 12), range(-11, 0)):
        run(*numbers, 0.25)
        name, *sizes, shared, stream, place, extra = cupy.log[-1]
        assert (name, sizes, shared, stream, extra) == (
            "begin_run", [1, 1, 1, THREADS, 1, 1], 0, 9, 0,
        )  # fmt: skip
        addresses = (ctypes.c_void_p * 14).from_address(place)
        assert [ctypes.c_int64.from_address(a).value for a in addresses[:11]] == [*numbers]
        assert ctypes.c_double.from_address(addresses[11]).value == 0.25
        arrays = [ctypes.c_uint64.from_address(a).value for a in addresses[12:]]
        assert arrays == [record.ctypes.data, state.ctypes.data]


class FakeDriver:
    """cuLaunchKernelEx, as cuda.h documents its structures."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.calls = status, []

    def cuLaunchKernelEx(self, config, function, arguments, extra) -> int:  # noqa: N802
        config = config._obj
        attribute = config.attributes[0]
        self.calls.append((
            [*config.grid], [*config.block], config.shared, config.stream, config.count,
            attribute.id, [*attribute.value[:3]], function.value, arguments.value, extra,
        ))  # fmt: skip
        return self.status


@pytest.mark.parametrize(
    ("together", "attribute"), [("cluster", (4, [8, 1, 1])), ("grid", (2, [1, 0, 0]))]
)
def test_blocks_that_meet_are_started_together(
    cupy, device, monkeypatch, together, attribute
) -> None:
    fake_driver = FakeDriver()
    monkeypatch.setattr(cupy_device, "load_driver", lambda: fake_driver)
    cupy.cuda.driver.funcSetAttribute = lambda *given: cupy.log.append(("attribute", *given))
    array = fake(np.zeros(4, np.float32))
    launch = bind("sum_squares", FLOAT32, 8, (array, 4, fake(np.zeros(1))))
    launch = launch._replace(shared=90_000, together=together, definitions="#define PLAN_WORDS 1")
    cupy.RawModule = lambda code, options, backend: SimpleNamespace(
        get_function=lambda name: SimpleNamespace(kernel=SimpleNamespace(ptr=77)),
        compile=lambda: None,
    )
    run = device.prepare(launch)
    run()
    assert ("attribute", 77, 8, 90_000) in cupy.log
    ((grid, block, shared, stream, count, kind, size, function, _, extra),) = fake_driver.calls
    assert (grid, block, shared, stream) == ([8, 1, 1], [THREADS, 1, 1], 90_000, 9)
    assert (count, (kind, size), function, extra) == (1, attribute, 77, None)
    fake_driver.status = 719
    with pytest.raises(nn.DeviceError, match="cuLaunchKernelEx answers with CUresult 719"):
        run()


def test_one_block_is_no_cluster(cupy, device) -> None:
    """So that drivers and GPUs that know of none are not asked for one."""
    cupy.cuda.driver.funcSetAttribute = lambda *given: cupy.log.append(("attribute", *given))
    array = fake(np.zeros(4, np.float32))
    launch = bind("sum_squares", FLOAT32, 1, (array, 4, fake(np.zeros(1))))
    device.prepare(launch._replace(shared=50_000))()
    assert ("attribute", "sum_squares", 8, 50_000) in cupy.log
    name, *sizes, shared, stream, _, _ = cupy.log[-1]
    assert (name, sizes, shared, stream) == ("sum_squares", [1, 1, 1, THREADS, 1, 1], 50_000, 9)


def test_structures_have_the_sizes_of_cuda_h() -> None:
    assert ctypes.sizeof(driver._Attribute) == 72
    assert ctypes.sizeof(driver._Config) == 56


def test_the_kernel_of_a_network_says_so_when_it_is_compiled(cupy, device, capsys) -> None:
    device.tuning.path = None
    device._kernel("train_resident", FLOAT32, "#define PLAN_WORDS 1")
    said = capsys.readouterr().err
    assert said.startswith("nnbackend: compiling a CUDA kernel for this network in float32; once")


def test_what_is_compiled_ahead_is_not_compiled_again(cupy, device, capsys) -> None:
    """The kernels of a dtype, and the one that trains any network in phases."""
    device.tuning.path = None
    device.shared_bytes = 227 << 10
    backend = CudaBackend(0, device)
    backend.compile_ahead(("float32", "float64"))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == [
        f"nnbackend: compiling {what} in {real}"
        for real in ("float32", "float64")
        for what in ("the CUDA kernels", "a CUDA kernel for training")
    ]
    for name, definitions in (
        ("sum_squares", ""),
        ("train_in_phases", phase_definitions(227 << 10)),
    ):
        device._kernel(name, FLOAT32, definitions)
    assert capsys.readouterr().err == ""


def test_what_is_compiled_ahead_is_there_whatever_was_noted(cupy, device, capsys) -> None:
    """CuPy's folder may have been emptied since; and another compiler has to do it anew, which
    takes time and is said."""
    CudaBackend(0, device).compile_ahead(("float32",))
    capsys.readouterr()
    device._programs.clear()
    cupy.log.clear()
    CudaBackend(0, device).compile_ahead(("float32",))
    assert [entry[0] for entry in cupy.log].count("compiled") > 0
    assert capsys.readouterr().err == ""
    device._programs.clear()
    cupy.cuda.nvrtc.getVersion = lambda: (13, 1)
    CudaBackend(0, device).compile_ahead(("float32",))
    assert "compiling the CUDA kernels" in capsys.readouterr().err


def test_a_gpu_without_the_memory_for_phases_need_not_compile_them(cupy, device, capsys) -> None:
    device.tuning.path = None
    device.shared_bytes = 64 << 10
    CudaBackend(0, device).compile_ahead(("float32",))
    assert "for training" not in capsys.readouterr().err


def test_programs_of_networks_that_nobody_uses_are_forgotten(cupy, device) -> None:
    x = fake(np.ones(4, np.float32))
    device.launch(bind("sum_squares", FLOAT32, 1, (x, 4, fake(np.ones(1)))))
    for number in range(cupy_device.MOST_NETWORKS + 5):
        device._kernel("train_resident", FLOAT32, f"#define PLAN_WORDS {number}")
    assert len(device._programs) == len(device._kernels) == cupy_device.MOST_NETWORKS + 1
    device._kernel("train_resident", FLOAT32, f"#define PLAN_WORDS {number}")
    assert ("float", "") in device._programs


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


def test_the_cause_of_a_broken_capture_is_seen_though_ending_it_fails_too(cupy, device) -> None:
    def broken() -> None:
        cupy.cuda.Stream(non_blocking=True)
        raise KeyboardInterrupt

    original = FakeContext.end_capture

    def end_capture(self):
        raise RuntimeError("cudaErrorStreamCaptureUnjoined")

    FakeContext.end_capture = end_capture
    try:
        with pytest.raises(KeyboardInterrupt):
            device.capture(broken)
    finally:
        FakeContext.end_capture = original


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, ProductError])
def test_without_cublaslt_its_products_are_done_without(monkeypatch, error) -> None:
    def fail(choose) -> None:
        raise error("not here")

    monkeypatch.setattr(cupy_device, "LtProducts", fail)
    assert cupy_device.make_lt_products(lambda question, ways: 0) is None


def test_a_gpu_is_one_device_for_all_its_backends(cupy, monkeypatch) -> None:
    monkeypatch.setattr(cupy_device, "_devices", {})
    assert cupy_device.device_of(0) is cupy_device.device_of(0)
    assert cupy_device.device_of(1) is not cupy_device.device_of(0)


def test_what_runs_beside_waits_for_what_was_before_and_is_waited_for(cupy, device) -> None:
    with device.side_stream():
        cupy.log.append("work")
    device.join()
    assert cupy.log == ["side waits for main", "work", "main waits for side"]


def test_nothing_is_waited_for_where_nothing_runs_beside(cupy, device) -> None:
    """CUDA refuses a captured stream that waits for one which has no part in the capture."""
    device.join()
    with device.side_stream():
        pass
    device.join()
    device.join()
    assert cupy.log == ["side waits for main", "main waits for side"]


@pytest.mark.parametrize(("milliseconds", "repeats"), [(0.01, 8), (0.5, 4), (4.0, 1)])
def test_work_is_timed_as_a_part_of_a_graph(cupy, device, milliseconds, repeats) -> None:
    cupy.cuda.get_elapsed_time = lambda start, stop: milliseconds
    seconds = device.time(lambda: cupy.log.append("work"))
    assert seconds == pytest.approx(milliseconds / 1e3 / repeats)
    assert cupy.log[: repeats + 4] == ["work", "work", "begin", *["work"] * repeats, "end"]


def test_the_quickest_way_is_measured_once_and_one_that_is_refused_is_left_out(device) -> None:
    taken = {"slow": 3.0, "quick": 1.0, "middling": 2.0}
    timed = []

    def seconds(work) -> float:
        work()
        return taken[timed[-1]]

    device.time = seconds
    ways = [lambda stream, workspace, name=name: timed.append(name) for name in taken]

    def refused(stream: int, workspace: int) -> None:
        raise ProductError("planted")

    for _ in range(2):
        assert device._quickest("which", [refused, *ways]) == 2
    assert timed == list(taken)
    assert device.tuning.get("which") == "2"
    device.tuning.keep("which", "9")  # of a library that offered more
    assert device._quickest("which", ways) == 1


def test_products_fall_back_where_cublaslt_has_none(cupy, device) -> None:
    done = []
    device._products = lambda product, stream, workspace: done.append(("gemm", stream))
    plain = Product(*(fake(np.ones((2, 2), "float32")) for _ in range(3)))
    with_bias = plain._replace(epilogue=Epilogue.BIAS, vector=fake(np.ones(2, "float32")))
    assert device.supports(plain)
    assert not device.supports(with_bias)
    device.product(plain)

    class Lt:
        def supports(self, product) -> bool:
            return product.epilogue is Epilogue.BIAS

        def __call__(self, product, stream, workspace) -> None:
            done.append(("lt", stream))

    device._lt = Lt()
    assert device.supports(with_bias)
    device.product(with_bias)
    device.product(plain)
    assert done == [("gemm", 9), ("lt", 9), ("gemm", 9)]


def test_choices_hold_for_a_gpu_and_its_library(device) -> None:
    assert device.tuning.kind == "A GPU, cublasGemmEx"
    assert device.tuning.path.parts[-2:] == ("somewhere", "nnbackend-tuning.json")


def test_uploads_go_through_pinned_memory_and_wait_for_their_slot(cupy, device) -> None:
    uploads = device.make_uploads()
    x, y = np.arange(12).reshape(4, 3), np.array([1, 2, 3, 0])
    wide = np.arange(300.0).reshape(100, 3)
    for arrays in ([(x, FLOAT32), (y, np.dtype(np.int32))], [(wide, FLOAT32)]):
        cupy.log.clear()
        uploads.release(1)
        found = uploads.start(arrays, 1)
        uploads.arrive(1)
        for (values, dtype), array in zip(arrays, found, strict=True):
            assert array.dtype == dtype
            np.testing.assert_array_equal(array.view(np.ndarray), values)
            assert array.ctypes.data % ALIGNMENT == found[0].ctypes.data % ALIGNMENT
        # it grows when the first copy is done, and the new memory is ready
        assert cupy.log == [
            "synchronize", "side waits for main", ("copy", 1, 5), "main waits for side",
        ]  # fmt: skip
