"""PyTorch as a backend of nnbackend: ``NN_BACKEND=torch:cpu``, ``torch:cuda``, ``torch:mps`` ..."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import array_api_compat.torch
import numpy as np
import torch

from nnbackend.backends.array_api import ArrayApiBackend
from nnbackend.backends.types import Array, Availability
from nnbackend.errors import DeviceError

#: Kinds of devices: ROCm's GPUs go by the name of cuda.
KINDS = ("cpu", "cuda", "mps", "xpu")


class TorchBackend(ArrayApiBackend):
    """nnbackend's operations over the array API standard, with PyTorch's arrays."""

    name: ClassVar[str] = "torch"
    xp: ClassVar[Any] = array_api_compat.torch

    def __init__(self, index: int | str | None = None) -> None:
        place = _devices()[0].removeprefix("torch:") if index is None else index
        super().__init__(index, torch.device(place), torch.device("cpu"))
        if self.place.type == "mps":
            self.dtypes = ("float32",)

    @classmethod
    def is_available(cls) -> Availability:
        return Availability(True, devices=_devices(), detail=f"PyTorch {torch.__version__}")

    def owns(self, x: object) -> bool:
        return isinstance(x, torch.Tensor) and x.device in (self.place, self.host)

    def adopt(self, x: Any) -> Array | None:
        if not isinstance(x, torch.Tensor):
            return super().adopt(x)
        if not self.owns(x):
            raise DeviceError(
                f"a model on {self.device} takes arrays on {self.place}; received a tensor on "
                f"{x.device}. Copy it with .to('{self.place}'), or move the model with "
                f"model.to('torch:{x.device}')"
            )
        return x.detach()  # the layers know their own gradients

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return np.asarray(x.detach().cpu())

    def _to_device(self, x: Array, device: Any) -> Array:
        return x.to(device)

    def synchronize(self) -> None:
        if self.place.type != "cpu":
            getattr(torch, self.place.type).synchronize()


@functools.cache
def _devices() -> tuple[str, ...]:
    """The best first; ``torch:cuda`` is the current one, ``torch:cuda:1`` the second."""
    found = [f"torch:{kind}" for kind in reversed(KINDS) if _count(kind)]
    numbered = [f"torch:{kind}:{i}" for kind in KINDS[1:] for i in range(_count(kind))]
    return (*found, *numbered)


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0
