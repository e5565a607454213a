"""The types of the contract: arrays, dtypes, and formulas with their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from nnbackend._checks import check_name
from nnbackend.errors import DeviceError
from nnbackend.kernels.codes import ACTIVATIONS, LOSSES, UPDATES, Saves

#: An array of some backend's library. Asked of it: ``shape``, ``len(a)``, ``a[i]``, ``a[i:j]`` and
#: ``a.reshape(shape)``, which are views, i and j within range, ``a[...] = b``, and arithmetic.
Array = Any
DType = np.dtype[Any]


class Activation(NamedTuple):
    """An activation as backends see it: its name, and the slope or scale if it has one."""

    name: str
    parameter: float = 0.0

    @property
    def code(self) -> int:
        """Its number in compiled code."""
        return int(ACTIVATIONS[self.name].code)

    @property
    def saves(self) -> Saves:
        """What its backward pass needs as ``saved``: the output y, the input z, or nothing."""
        return ACTIVATIONS[self.name].saves


LINEAR = Activation("linear")


class DenseCalls(Protocol):
    """A dense layer's operations, bound to its arrays."""

    #: x of the last forward, and what its backward pass needs; None if it was not made here
    kept: tuple[Array, Array] | None

    def forward(self, x: Any) -> Array | None:
        """y in a new array from a caller's x (B, I); None if x needs a conversion or an error
        message. x must not be changed before ``backward``."""

    def backward(self, dy: Any) -> Array | None:
        """dx in a new array from a caller's dy (B, O), for the last ``forward``; None likewise."""


class LossFormula(NamedTuple):
    """A loss as backends see it: its name, and delta or the like if it has one."""

    name: str
    parameter: float = 0.0

    @property
    def code(self) -> int:
        """Its number in compiled code."""
        return int(LOSSES[self.name].code)

    @property
    def averages(self) -> bool:
        """Whether it is a weighted mean over rows, not a sum."""
        return bool(LOSSES[self.name].averages)


class UpdateRule(NamedTuple):
    """An optimizer as backends see it: its name, and the parameters of its formula."""

    name: str
    momentum: float = 0.0
    nesterov: float = 0.0
    rho: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    weight_decay: float = 0.0
    eps_hat: float = 0.0

    @property
    def code(self) -> int:
        """Its number in compiled code."""
        return int(UPDATES[self.name].code)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of its state vectors."""
        return tuple(UPDATES[self.name].slots)

    def gradient_limit(self, dtype: DType) -> float:
        """The size that elements of a gradient must stay below for the update to be finite."""
        return float(np.finfo(dtype).max) ** 0.5 if UPDATES[self.name].squares else float("inf")

    @property
    def numbers(self) -> tuple[float, ...]:
        """In the order of ``kernels.codes.UPDATE_NUMBERS``."""
        return self[1:]

    def corrected(self, lr: float, step: int) -> tuple[float, float]:
        """Rate and eps with which m and v give Adam's step, so that the vectors need no bias
        correction."""
        root = (1.0 - self.beta2 ** (step + 1)) ** 0.5
        return lr * root / (1.0 - self.beta1 ** (step + 1)), self.eps * root + self.eps_hat


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here.

    Attributes:
        ok: whether it can.
        reason: why not, in one sentence, then the command that fixes it; empty when ok.
        devices: names for ``get_backend``, such as ``("cuda:0", "cuda:1")``.
        detail: what it will use, if there is a choice.
    """

    ok: bool
    reason: str = ""
    devices: tuple[str, ...] = ()
    detail: str = ""


#: Precisions of the numbers that products of float32 matrices multiply; sums are float32 in each,
#: and so are weights, outputs and everything else.
PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str) -> str:
    """``precision`` if it is one of PRECISIONS."""
    return check_name("precision", precision, PRECISIONS)


def check_full_precision(device: str, precision: str) -> None:
    """Refuse another precision than the full one."""
    if check_precision(precision) != "fp32":
        raise DeviceError(
            f"precision must be 'fp32' on the backend {device}; received {precision!r}, which is "
            f"for GPUs. Use backend='cuda', or move the model with model.to({device!r}, "
            f"precision='fp32')"
        )


#: DLPack's number for memory of a CUDA device.
_DLPACK_CUDA = 2


def is_on_gpu(x: Any) -> bool:
    """Whether ``x`` is an array of some library in the memory of a CUDA device."""
    if hasattr(x, "__cuda_array_interface__"):
        return True
    return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == _DLPACK_CUDA
