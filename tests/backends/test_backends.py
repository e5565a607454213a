"""Choosing a backend: who decides, and what is said when it cannot be had."""

import importlib.metadata
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.backends import registry as backends
from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.numpy.backend import NumpyBackend


class Broken(NumpyBackend):
    name = "broken"

    @classmethod
    def is_available(cls) -> nn.Availability:
        return nn.Availability(False, "there is no such chip; buy one")


class TwoDevices(NumpyBackend):
    name = "two"

    @classmethod
    def is_available(cls) -> nn.Availability:
        return nn.Availability(True, devices=("two", "two:0", "two:1"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that forgets what the test adds."""
    monkeypatch.setattr(backends, "_registry", dict(backends._registry))
    monkeypatch.setattr(backends, "_instances", dict(backends._instances))
    monkeypatch.setattr(backends, "_environment_default", None)
    monkeypatch.setattr(backends, "_process_default", None)
    monkeypatch.delenv("NN_BACKEND", raising=False)
    nn.register_backend("broken", Broken)
    nn.register_backend("two", TwoDevices)
    return


def test_priority_is_argument_then_scope_then_process_then_environment(
    registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NN_BACKEND", "two:0")
    assert nn.get_backend().device == "two:0"
    assert nn.set_backend("two:1").device == "two:1"
    with nn.use_backend("two"):
        assert nn.get_backend().device == "two"
        assert nn.get_backend("numpy").device == "numpy"
        with nn.use_backend("numpy"):
            assert nn.get_backend().device == "numpy"
        assert nn.get_backend().device == "two"
    assert nn.get_backend().device == "two:1"
    assert nn.set_backend(None).device == "two:0"


def test_without_any_choice_a_cpu_backend_runs(registry: None) -> None:
    assert nn.get_backend().name in ("numpy", "numba")
    assert nn.get_backend("auto").name in ("cuda", "numba", "numpy")


def test_use_backend_is_seen_by_its_own_thread_only(registry: None) -> None:
    seen: list[str] = []
    with nn.use_backend("two"):
        thread = threading.Thread(target=lambda: seen.append(nn.get_backend().device))
        thread.start()
        thread.join()
    inherits = getattr(sys.flags, "thread_inherit_context", False)  # as free-threaded Python has it
    assert seen == ["two" if inherits else nn.get_backend().device]


def test_same_device_gives_the_same_object(registry: None) -> None:
    assert nn.get_backend("numpy") is nn.get_backend(" NumPy ")
    assert nn.get_backend("two:1") is nn.get_backend("two:1")


def test_requested_backend_that_cannot_run_is_an_error_with_cause_and_remedy(
    registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(nn.BackendUnavailableError, match="no such chip; buy one"):
        nn.get_backend("broken")
    monkeypatch.setenv("NN_BACKEND", "broken")
    with pytest.raises(nn.BackendUnavailableError, match="NN_BACKEND=broken: there is no"):
        nn.get_backend()
    assert isinstance(nn.BackendUnavailableError("x"), RuntimeError)


def test_unknown_name_lists_the_choices_and_the_closest(
    registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(nn.UnknownNameError, match=r"numpy.*received 'nunpy'.*mean 'numpy'"):
        nn.get_backend("nunpy")
    monkeypatch.setenv("NN_BACKEND", "nunpy")
    with pytest.raises(ValueError, match="NN_BACKEND=nunpy"):
        nn.get_backend()


@pytest.mark.parametrize("spec", ["two:7", "two:x", "numpy:1", "numpy:"])
def test_device_that_does_not_exist_is_an_error(
    registry: None, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    with pytest.raises(nn.DeviceError, match=spec):
        nn.get_backend(spec)
    monkeypatch.setenv("NN_BACKEND", spec)
    with pytest.raises(nn.DeviceError, match=f"NN_BACKEND={spec}"):
        nn.get_backend()


def test_auto_passes_over_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._registry, "cuda", "no.such.module:Backend")
    assert nn.get_backend("auto").name in ("numba", "numpy")


def test_a_backend_is_a_name_or_an_object() -> None:
    with pytest.raises(nn.DTypeError, match="received int"):
        nn.get_backend(3)  # type: ignore[arg-type]
    backend = NumpyBackend()
    assert nn.get_backend(backend) is backend


@pytest.mark.parametrize("name", ["numpy", "Upper", "two words", "auto"])
def test_bad_names_cannot_be_registered(registry: None, name: str) -> None:
    with pytest.raises(nn.DTypeError, match=name):
        nn.register_backend(name, Broken)


def test_available_backends_says_why_each_cannot_run(registry: None) -> None:
    nn.register_backend("lost", "no.such.module:Backend")
    found = nn.available_backends()
    assert found["numpy"] == nn.Availability(True, devices=("numpy",))
    assert "no such chip" in found["broken"].reason
    assert "could not be imported from no.such.module" in found["lost"].reason
    with pytest.raises(nn.BackendUnavailableError) as caught:
        nn.get_backend("lost")
    assert isinstance(caught.value.__cause__, ImportError)


def test_plug_ins_are_found_by_entry_point(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("plugged", f"{__name__}:TwoDevices", group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    nn.get_backend("numpy")
    assert asked == []  # scanned only for an unknown name
    assert isinstance(nn.get_backend("plugged"), TwoDevices)
    assert asked == ["nnbackend.backends"]


def test_environment_is_read_at_first_use_not_at_import() -> None:
    code = "import nnbackend as nn, os; os.environ['NN_BACKEND'] = 'x'; nn.get_backend()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "NN_BACKEND=x: backend must be one of" in done.stderr


def test_arrays_of_another_device_are_refused(backend: nn.Backend) -> None:
    if isinstance(backend, CudaBackend):
        pytest.skip("device arrays are its own")

    class OnGpu:
        __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4"}
        dtype, shape, ndim = np.dtype("float32"), (1, 2), 2

    with pytest.raises(nn.DeviceError, match=f"{backend.device}.*on a GPU"):
        nn.Dense(2, 3).forward(OnGpu())


def test_zeros_are_aligned(backend: nn.Backend) -> None:
    for size in (1, 3, 1000):
        array = backend.zeros(size, np.dtype("float32"))
        assert backend.to_numpy(array).ctypes.data % 64 == 0 or isinstance(backend, CudaBackend)
