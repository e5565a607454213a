"""Whether CUDA can be used here, and if not, what is missing: one cause, one command.

Nothing is allocated on a GPU, and CuPy is imported only where it is installed.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from importlib import metadata
from typing import Any

from nnbackend.backends.cuda.cublaslt import lt_version
from nnbackend.backends.types import Availability

#: Package that brings CuPy -> our extra that installs it with CUDA's libraries.
PACKAGES = {"cupy-cuda12x": "cuda12", "cupy-cuda13x": "cuda13", "cupy": ""}
#: Libraries that are loaded when they are needed. There is a way without the last one.
LIBRARIES = ("nvrtc", "cublas", "cublasLt")
NEEDED = LIBRARIES[:2]
_EITHER = 'pip install "nnbackend[cuda12]", or "nnbackend[cuda13]" for drivers from 580 on'

# cudaError_t
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100
_NOT_READY, _DRIVER_MISMATCH, _UNKNOWN = 802, 803, 999


class CudaError(Exception):
    """CUDA's runtime refused; ``status`` is its number."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Machine:
    """What this machine says of itself."""

    def packages(self) -> list[str]:
        """The installed packages that bring CuPy."""
        found = []
        for name in PACKAGES:
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
            found.append(name)
        return found

    def import_cupy(self) -> None:
        """Import CuPy, or raise whatever that raises."""
        importlib.import_module("cupy")

    def driver_version(self) -> int:
        """Newest CUDA that the driver supports, 1000 major + 10 minor; 0 without a driver."""
        return int(self._ask("driverGetVersion"))

    def runtime_version(self) -> int:
        """CUDA that CuPy was built for."""
        return int(self._ask("runtimeGetVersion"))

    def device_count(self) -> int:
        """Number of GPUs.

        Raises:
            CudaError: there is none, or the driver is not in order.
        """
        return int(self._ask("getDeviceCount"))

    def visible_devices(self) -> str | None:
        """What the environment hides and shows."""
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def library(self, name: str) -> str | None:
        """Where a library of CUDA lies; None where it cannot be found."""
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        try:
            return str(pathfinder.load_nvidia_dynamic_lib(name).abs_path)
        except pathfinder.DynamicLibNotFoundError:
            return None

    def product_library(self) -> str:
        """What matrix products will be done by."""
        path = self.library("cublasLt")
        if path is None:
            return "cublasGemmEx, since cuBLASLt cannot be found"
        return f"cuBLASLt {lt_version(ctypes.CDLL(path))}"

    def _ask(self, function: str) -> Any:
        runtime: Any = importlib.import_module("cupy").cuda.runtime
        try:
            return getattr(runtime, function)()
        except runtime.CUDARuntimeError as error:
            raise CudaError(int(error.status), str(error)) from error


def diagnose(machine: Machine) -> Availability:
    """Whether the cuda backend can run on ``machine``; the first thing that keeps it from that."""
    found, count = machine.packages(), 0
    problem = _package_problem(machine, found)
    try:
        problem = problem or _driver_problem(machine, found[0])
        if problem is None:
            count = machine.device_count()
            problem = _library_problem(machine, found[0])
    except CudaError as error:
        problem = _device_problem(machine, error)
    if problem is not None:
        return Availability(False, f"the cuda backend cannot run: {problem}")
    devices = tuple(f"cuda:{i}" for i in range(count))
    return Availability(True, "", devices, f"matrix products by {machine.product_library()}")


def _package_problem(machine: Machine, found: list[str]) -> str | None:
    if not found:
        return f"CuPy is not installed; install it with: {_EITHER}"
    if len(found) > 1:
        return (
            f"{' and '.join(found)} are installed and overwrite each other; keep one: "
            f"pip uninstall -y {' '.join(found)}, then {_EITHER}"
        )
    try:
        machine.import_cupy()
    except Exception as error:
        return (
            f"{found[0]} is installed, but importing it fails with {type(error).__name__}: "
            f"{error}; reinstall it with: pip install --force-reinstall {found[0]}"
        )
    return None


def _driver_problem(machine: Machine, package: str) -> str | None:
    driver, runtime = machine.driver_version(), machine.runtime_version()
    if driver == 0:
        return (
            "there is no NVIDIA driver; install one from nvidia.com/drivers, or start the "
            "container with: docker run --gpus all"
        )
    if driver // 1000 < runtime // 1000:
        return (
            f"the NVIDIA driver supports CUDA {_version(driver)}, and {package} needs CUDA "
            f"{runtime // 1000}; update the driver, or install the build for it: pip uninstall -y "
            f'{package}, then pip install "nnbackend[cuda{driver // 1000}]"'
        )
    return None


def _device_problem(machine: Machine, error: CudaError) -> str:
    visible = machine.visible_devices()
    if error.status == _NO_DEVICE and visible is not None:
        return (
            f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; unset it, or name one that "
            f"nvidia-smi -L lists"
        )
    if error.status == _NO_DEVICE:
        return (
            "the driver finds no GPU; look with nvidia-smi, or start the container with: "
            "docker run --gpus all"
        )
    if error.status == _INSUFFICIENT_DRIVER:
        return "the NVIDIA driver is older than CuPy's CUDA; update it from nvidia.com/drivers"
    if error.status == _NOT_READY:
        return (
            "the GPUs are not ready, as they are on machines with NVSwitch until their manager "
            "runs; start it with: sudo systemctl start nvidia-fabricmanager"
        )
    if error.status == _DRIVER_MISMATCH:
        return (
            "the driver in the kernel and its libraries are of different versions, as after an "
            "update; reboot, or take CUDA's compat folder out of LD_LIBRARY_PATH"
        )
    if error.status == _UNKNOWN:
        return (
            "the driver is in a bad state, as after a suspended laptop woke up; reload it with: "
            "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm"
        )
    return f"CUDA answers with error {error.status}, {error}; look with: nvidia-smi"


def _library_problem(machine: Machine, package: str) -> str | None:
    missing, foreign = [], []
    major = machine.runtime_version() // 1000
    for name in LIBRARIES:
        path = machine.library(name)
        if path is None:
            missing += [name] if name in NEEDED else []
        elif _major_of(path) not in (None, major):
            foreign.append(path)
    extra = PACKAGES[package] or f"cuda{major}"
    mend = f'pip install "nnbackend[{extra}]"'
    if missing:
        return f"CUDA {major}'s libraries are missing ({', '.join(missing)}); install with: {mend}"
    if foreign:
        return (
            f"{package} needs the libraries of CUDA {major}, but finds {', '.join(foreign)}; take "
            f"their folder out of LD_LIBRARY_PATH, and install with: {mend}"
        )
    return None


def _major_of(path: str) -> int | None:
    """The version in a library's file name: libcublas.so.12, cublas64_12.dll, nvrtc64_120_0.dll."""
    name = os.path.basename(path)
    if ".so." in name:
        number = name.partition(".so.")[2].partition(".")[0]
    else:
        number = name.partition("64_")[2].partition(".")[0].partition("_")[0]
        number = number[:2]
    return int(number) if number.isdigit() else None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
