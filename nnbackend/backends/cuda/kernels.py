"""The source of the CUDA kernels, and what it says of each kernel's arguments.

All files are one program, compiled once for each dtype. A kernel's arguments are read from the
source, so that a launch cannot hand over a number of the wrong type or an array of another dtype.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnbackend.kernels import codes
from nnbackend.kernels.codes import ACTIVATIONS, LOSSES, UPDATES

FILES = ("common", "activations", "losses", "metrics", "norms", "random", "steps", "updates")
#: Files of the program that trains one network in shared memory.
RESIDENT_FILES = (
    "common",
    "cluster",
    "activations",
    "losses",
    "steps",
    "updates",
    "jobs",
    "resident",
)
#: What a run of captured steps reads from an int64 array: addresses, 0 for what is not there, the
#: number of updates made before, the step in the run, rows of an epoch and of a batch, and the rate
#: (as a double) where there are no rates.
RUN = (
    "x", "target", "weight", "order", "rates", "trace", "loss", "first_step", "index", "rows",
    "batch", "rate",
)  # fmt: skip
#: What a network that stays in shared memory is described by: once for all, and for each dense
#: layer; and the kinds of jobs that its steps consist of. See nnbackend/backends/cuda/resident.py.
PLAN = (
    "jobs", "forwards", "depth", "blocks", "rows", "inputs", "x", "x_stride", "outputs", "output",
    "output_stride", "output_gradient", "target_width", "targets", "labels", "row_weights",
    "indices", "begin", "trained", "share", "gradients", "m", "v", "rates", "traced", "totals",
    "sums", "losses", "counts_hits", "loss", "averages", "update",
)  # fmt: skip
LAYER = ("inputs", "outputs", "place", "stride", "weight", "bias", "x", "x_stride")
JOBS = ("forward", "slope", "weights", "below")
#: Columns of a trace, as kernels/codes.py has them.
TRACE = ("loss", "penalty", "weight", "sums")
#: Bytes of the StepState of kernels/cuda/common.cu.
STATE_BYTES = 64
#: Threads of a block, in every launch, its warps, and the columns that it takes where it sums over
#: the batch; the source is told.
THREADS, COLUMNS = 256, 8
WARPS = THREADS // 32

_KERNEL = re.compile(r"^KERNEL (?:MANY_AT_ONCE )?(\w+)\(([^)]*)\)", re.MULTILINE)
_ARGUMENT = re.compile(r"(?:const )?(\w+)(\*?) (\w+)")
_KINDS: dict[str, Any] = {
    "Size": np.int64,
    "Word": np.uint32,
    "Wide": np.uint64,
    "Bf16": np.uint16,
    "int": np.int32,
    "double": np.float64,
}


class Argument(NamedTuple):
    """An argument of a kernel: its type in C, and whether it is an address."""

    kind: str
    is_pointer: bool
    name: str


class Launch(NamedTuple):
    """A kernel with its arguments: arrays, NumPy scalars of the right type, None for no address."""

    kernel: str
    dtype: np.dtype[Any] | None  #: what Real is; None where that does not matter
    blocks: int
    arguments: tuple[Any, ...]
    #: bytes of shared memory that each block is given; with it, the blocks are one cluster
    shared: int = 0
    #: the network of whose program it is: see ``source``
    network: str = ""


def folder() -> Path:
    """Where the source lies."""
    return Path(codes.__file__).parent / "cuda"


@lru_cache(maxsize=8)
def source(network: str = "") -> str:
    """The program. ``Real`` is left to the compiler's options.

    Args:
        network: definitions of one; the program then is that which trains it in shared memory.
    """
    parts = [network] if network else []
    parts += [_codes(ACTIVATIONS), _codes(LOSSES), _codes(UPDATES, "update_")]
    parts += [_codes((*RUN, "fields"), "run_"), _codes((*PLAN, "fields"), "plan_")]
    parts += [_codes((*LAYER, "fields"), "layer_"), _codes(JOBS, "job_")]
    parts.append(_codes(TRACE, "trace_"))
    parts.append(f"enum {{ THREADS = {THREADS}, WARPS = {WARPS}, COLUMNS = {COLUMNS} }};")
    for name in RESIDENT_FILES if network else FILES:
        parts.append(f'#line 1 "cuda/{name}.cu"\n{_text(name)}')
    return "\n".join(parts)


def source_version(network: str = "") -> str:
    """What tells this ``source`` from others where a choice is kept."""
    return hashlib.sha256(source(network).encode()).hexdigest()[:16]


def _text(name: str) -> str:
    return (folder() / f"{name}.cu").read_text(encoding="utf-8")


def _codes(names: Iterable[str], prefix: str = "") -> str:
    return f"enum {{ {', '.join(f'{prefix}{name}'.upper() for name in names)} }};"


@cache
def signatures() -> dict[str, tuple[Argument, ...]]:
    """The arguments of each kernel, by its name."""
    found = {}
    for name, text in _KERNEL.findall(source()) + _KERNEL.findall(_text("resident")):
        arguments = [_ARGUMENT.fullmatch(part.strip()) for part in text.split(",")]
        found[name] = tuple(Argument(a[1], bool(a[2]), a[3]) for a in arguments if a is not None)
        if len(found[name]) != len(arguments):
            raise TypeError(f"the arguments of kernel {name} cannot be read: {text}")
    return found


def bind(kernel: str, dtype: np.dtype[Any] | None, blocks: int, values: tuple[Any, ...]) -> Launch:
    """A launch, its arguments checked against the source.

    Raises:
        TypeError: their number, or the dtype of an array, is not what the kernel says.
    """
    expected = signatures()[kernel]
    if len(values) != len(expected):
        raise TypeError(f"{kernel} takes {len(expected)} arguments; received {len(values)}")
    bound = (_bound(kernel, dtype, *pair) for pair in zip(expected, values, strict=True))
    return Launch(kernel, dtype, blocks, tuple(bound))


def _bound(kernel: str, dtype: np.dtype[Any] | None, argument: Argument, value: Any) -> Any:
    kind = _KINDS.get(argument.kind)
    if argument.kind == "Real":
        kind = None if dtype is None else dtype.type
    if not argument.is_pointer:
        return kind(value) if kind is not None else value
    if value is None:
        return None
    fits = kind is None or value.dtype == kind
    if not fits or not value.flags.c_contiguous:
        raise TypeError(
            f"{kernel}({argument.name}) takes a contiguous array of {np.dtype(kind)}; received "
            f"{value.dtype}, strides {value.strides}"
        )
    return value
