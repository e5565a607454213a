"""Every broken set-up of CUDA gets its own sentence, and the command that mends it."""

import pytest

import nnbackend as nn
from nnbackend.backends import registry
from nnbackend.backends.cuda.diagnosis import CudaError, Machine, diagnose


class Fake(Machine):
    """A machine that is in order but for what a test changes."""

    def __init__(self, **changes) -> None:
        good = {
            "packages": ["cupy-cuda12x"], "cupy": None, "driver": 12080, "runtime": 12090,
            "devices": 2, "visible": None, "libraries": {},
        }  # fmt: skip
        self.settings = good | changes

    def packages(self):
        return self.settings["packages"]

    def import_cupy(self):
        if self.settings["cupy"] is not None:
            raise self.settings["cupy"]

    def driver_version(self):
        return self.settings["driver"]

    def runtime_version(self):
        return self.settings["runtime"]

    def device_count(self):
        if isinstance(self.settings["devices"], int):
            return self.settings["devices"]
        raise self.settings["devices"]

    def visible_devices(self):
        return self.settings["visible"]

    def library(self, name):
        return self.settings["libraries"].get(name, f"/usr/lib/lib{name}.so.12")

    def product_library(self):
        return "cuBLASLt 12.9.2"


def test_a_machine_in_order_names_its_devices() -> None:
    found = diagnose(Fake())
    assert found.ok
    assert found.devices == ("cuda:0", "cuda:1")
    assert found.detail == "matrix products by cuBLASLt 12.9.2"


def test_without_cublaslt_there_is_another_library_for_products() -> None:
    machine = Fake(libraries={"cublasLt": None})
    found = diagnose(machine)
    assert found.ok
    assert Machine.product_library(machine) == "cublasGemmEx, since cuBLASLt cannot be found"


@pytest.mark.parametrize(
    ("changes", "cause", "command"),
    [
        ({"packages": []}, "CuPy is not installed", 'pip install "nnbackend[cuda12]"'),
        (
            {"packages": ["cupy-cuda12x", "cupy-cuda13x"]},
            "cupy-cuda12x and cupy-cuda13x are installed and overwrite each other",
            "pip uninstall -y cupy-cuda12x cupy-cuda13x",
        ),
        (
            {"cupy": ImportError("no module named cupy._core")},
            "importing it fails with ImportError: no module named cupy._core",
            "pip install --force-reinstall cupy-cuda12x",
        ),
        ({"driver": 0}, "there is no NVIDIA driver", "docker run --gpus all"),
        (
            {"packages": ["cupy-cuda13x"], "runtime": 13000},
            "driver supports CUDA 12.8, and cupy-cuda13x needs CUDA 13",
            'pip install "nnbackend[cuda12]"',
        ),
        (
            {"devices": CudaError(100, "no device"), "visible": "-1"},
            "CUDA_VISIBLE_DEVICES='-1' hides every GPU", "nvidia-smi -L",
        ),
        ({"devices": CudaError(100, "no device")}, "the driver finds no GPU", "nvidia-smi"),
        ({"devices": CudaError(35, "old")}, "driver is older", "update it"),
        ({"devices": CudaError(802, "?")}, "not ready", "systemctl start nvidia-fabricmanager"),
        ({"devices": CudaError(803, "?")}, "different versions", "reboot"),
        ({"devices": CudaError(999, "?")}, "bad state", "modprobe nvidia_uvm"),
        ({"devices": CudaError(46, "in use")}, "error 46, in use", "nvidia-smi"),
        (
            {"libraries": {"cublas": None, "nvrtc": None}},
            "CUDA 12's libraries are missing (nvrtc, cublas)", 'pip install "nnbackend[cuda12]"',
        ),
        (
            {"libraries": {"cublas": "/opt/old/libcublas.so.11"}},
            "needs the libraries of CUDA 12, but finds /opt/old/libcublas.so.11",
            "LD_LIBRARY_PATH",
        ),
        (
            {"libraries": {"nvrtc": r"nvrtc64_130_0.dll"}}, "but finds nvrtc64_130_0.dll",
            "nnbackend[cuda12]",
        ),
    ],
)  # fmt: skip
def test_broken_set_ups(changes, cause, command) -> None:
    found = diagnose(Fake(**changes))
    assert not found.ok
    assert found.reason.startswith("the cuda backend cannot run: ")
    assert cause in found.reason
    assert command in found.reason


def test_libraries_whose_names_say_no_version_are_taken() -> None:
    assert diagnose(Fake(libraries={"cublas": "/somewhere/libcublas.dylib"})).ok


def test_a_device_that_is_not_there(monkeypatch) -> None:
    from nnbackend.backends.cuda.backend import CudaBackend

    monkeypatch.setattr(CudaBackend, "is_available", classmethod(lambda cls: diagnose(Fake())))
    with pytest.raises(nn.DeviceError, match="has the devices cuda:0, cuda:1; received 'cuda:7'"):
        nn.get_backend("cuda:7")


def test_this_machine_is_asked_without_side_effects(monkeypatch) -> None:
    """Whatever it is: an answer, not an exception."""
    found = nn.available_backends()["cuda"]
    assert found.ok == (found.reason == "")
    monkeypatch.setenv("NN_BACKEND", "cuda")
    if not found.ok:
        with pytest.raises(nn.BackendUnavailableError, match="NN_BACKEND=cuda: the cuda backend"):
            registry._open_from_environment("cuda")
