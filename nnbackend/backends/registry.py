"""Which backend runs: names, availability and the choice at run time.

Highest first: an explicit argument, :func:`use_backend`, :func:`set_backend`, the environment
variable ``NN_BACKEND`` (read at first use), then the best CPU backend that is installed.
Only ``auto`` may fall back.
"""

from __future__ import annotations

import copyreg
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Availability
from nnbackend.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    raise_as_ours,
    shown,
    unknown_name,
)
from nnbackend.kernels.locks import OPENING

ENTRY_POINT_GROUP = "nnbackend.backends"

#: name -> class, or "module:class" that is imported at first use
_registry: dict[str, type[Backend] | str] = {
    "numpy": "nnbackend.backends.numpy.backend:NumpyBackend",
    "numba": "nnbackend.backends.numba.backend:NumbaBackend",
    "cuda": "nnbackend.backends.cuda.backend:CudaBackend",
}
_CPU_PREFERENCE = ("numba", "numpy")
_GPU_PREFERENCE = ("cuda",)

#: What stands behind a backend's name and a colon: a number, or a name such as mps or cuda:1.
_DEVICE = re.compile(r"[0-9]+|[a-z][a-z0-9_]*(:[0-9]+)?", re.ASCII)

_instances: dict[str, Backend] = {}
_process_default: Backend | None = None
_environment_default: Backend | None = None
_scoped: ContextVar[Backend | None] = ContextVar("nnbackend_backend", default=None)


def register_backend(name: Any, backend: Any) -> None:
    """Make a backend known by name, for example from a plug-in or a test.

    Args:
        name: lower-case identifier; must not be taken.
        backend: a subclass of ``Backend``, or ``"module:class"`` to import at first use.

    Packages do the same without a call, by an entry point of the group ``nnbackend.backends``.
    """
    text = isinstance(name, str) and name.isidentifier()
    if not text or name != name.lower() or name == "auto":
        raise DTypeError(
            f"a backend's name must be a lower-case identifier other than 'auto'; received "
            f"{shown(name)}"
        )
    if not isinstance(backend, str) and not (
        isinstance(backend, type) and issubclass(backend, Backend)
    ):
        raise DTypeError(
            f"a backend must be a subclass of nn.Backend, or 'module:class'; received "
            f"{shown(backend)}"
        )
    with OPENING:
        if name in _registry:
            raise DTypeError(f"backend {name!r} is registered already; choose another name")
        _registry[name] = backend


def available_backends() -> dict[str, Availability]:
    """Every known backend, with whether it can run here and, if not, why.

    >>> available_backends()["numpy"].ok
    True
    """
    result = {}
    for name in (*_registry, *(_plug_ins().keys() - _registry.keys())):
        try:
            result[name] = _availability(name, _backend_class(name))
        except BackendUnavailableError as error:
            result[name] = Availability(False, str(error))
    return result


def get_backend(spec: str | Backend | None = None) -> Backend:
    """The backend named ``spec``, or the current one.

    Args:
        spec: ``"numpy"``, ``"cuda:1"``, ``"auto"``, a Backend, or None for the current choice.

    Raises:
        UnknownNameError: no backend has that name.
        BackendUnavailableError: it has, but cannot run here; the message says why.
    """
    global _environment_default
    if isinstance(spec, Backend):
        return spec
    if spec is not None:
        return _open(spec)
    current = _scoped.get() or _process_default
    if current is not None:
        return current
    with OPENING:
        if _environment_default is None:
            from_environment = os.environ.get("NN_BACKEND", "").strip()
            if from_environment:
                _environment_default = _open_from_environment(from_environment)
            else:
                _environment_default = _first_available(_CPU_PREFERENCE)
        return _environment_default


def _reopen(device: str, precision: str) -> Backend:
    return get_backend(device).at_precision(precision)


def _by_name(backend: Backend) -> tuple[Any, ...]:
    """How a backend is pickled: another process opens its own device of that name."""
    return _reopen, (backend.device, getattr(backend, "precision", "fp32"))


def set_backend(spec: str | Backend | None) -> Backend:
    """Choose the backend for the whole process; None goes back to ``NN_BACKEND``.

    Returns:
        The backend that is current after the call.
    """
    global _process_default
    _process_default = None if spec is None else get_backend(spec)
    return get_backend()


@contextmanager
def use_backend(spec: str | Backend) -> Iterator[Backend]:
    """Choose the backend inside a ``with`` block, for this thread or task only.

    As with all context variables, threads that are started in the block choose it too where
    Python hands them the context: free-threaded Python does (``sys.flags.thread_inherit_context``).
    """
    backend = get_backend(spec)
    token = _scoped.set(backend)
    try:
        yield backend
    finally:
        _scoped.reset(token)


def _open_from_environment(spec: str) -> Backend:
    try:
        return _open(spec)
    except (BackendUnavailableError, DeviceError, ValueError) as error:
        raise type(error)(f"NN_BACKEND={spec}: {error}") from error


def _open(spec: str) -> Backend:
    """The instance for ``name`` or ``name:index``, made once."""
    if not isinstance(spec, str):
        raise DTypeError(
            f"a backend is chosen by name or by a Backend object; received {type(spec).__name__}"
        )
    key = spec.strip().lower()
    if key == "auto":
        return _first_available(_GPU_PREFERENCE + _CPU_PREFERENCE)
    with OPENING:
        if key not in _instances:
            name, colon, index = key.partition(":")
            if colon and not _DEVICE.fullmatch(index):
                raise DeviceError(
                    f"a device is written NAME:NUMBER, such as 'cuda:1'; received {spec!r}"
                )
            backend_class = _backend_class(name)
            availability = _availability(name, backend_class)
            if not availability.ok:
                raise BackendUnavailableError(availability.reason)
            if index and key not in availability.devices:
                raise DeviceError(
                    f"backend {name!r} has the devices {', '.join(availability.devices)}; "
                    f"received {spec!r}"
                )
            number = int(index) if index.isdecimal() else index
            _instances[key] = backend_class(number if index else None)
            copyreg.pickle(type(_instances[key]), _by_name)
        return _instances[key]


def _availability(name: str, backend_class: type[Backend]) -> Availability:
    """Whether it can run; without memory, even asking may be too much."""
    try:
        return backend_class.is_available()
    except MemoryError as error:
        raise_as_ours(error)
    except (OSError, SystemError) as error:
        raise BackendUnavailableError(
            f"backend {name!r} could not be loaded: {error}. Is there enough memory?"
        ) from error


def _first_available(names: tuple[str, ...]) -> Backend:
    """The first of ``names`` that can run here; NumPy always can."""
    for name in names:
        if name not in _registry:
            continue
        with suppress(BackendUnavailableError):
            if _backend_class(name).is_available().ok:
                return _open(name)
    raise BackendUnavailableError(  # pragma: no cover - numpy is a core dependency
        "no backend can run here; pip install --force-reinstall nnbackend"
    )


def _plug_ins() -> dict[str, str]:
    """Backends that installed packages name under our entry-point group, as module:class."""
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}


def _backend_class(name: str) -> type[Backend]:
    """The class registered as ``name``; unknown names are looked up among the entry points."""
    if name not in _registry:
        points = _plug_ins()
        if name not in points:
            raise unknown_name("backend", name, {*_registry, *points, "auto"})
        _registry[name] = points[name]
    entry = _registry[name]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        try:
            entry = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise BackendUnavailableError(
                f"backend {name!r} could not be imported from {module}: {error}; "
                f"reinstall the package that provides it"
            ) from error
        _registry[name] = entry
    return entry
