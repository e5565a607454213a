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

FILES = (
    "common", "activations", "embedding", "losses", "metrics", "random", "norms", "steps",
    "updates",
)  # fmt: skip
_STEPS = ("common", "cluster", "activations", "losses", "steps", "updates", "batches")
_PHASES = ("grid", "tiles", "phase_memory", "phase_products", "phase_losses", "phases")


class Source(NamedTuple):
    """Files that are one program; what to call it while it is compiled, and how long that takes."""

    files: tuple[str, ...]
    called: str
    seconds: int


#: All kernels that do one thing each; and programs of one kernel that does many steps, by a name
#: that their definitions have: in shared memory, and with the whole GPU.
PROGRAMS = {
    "": Source(FILES, "the CUDA kernels", 6),
    "PLAN_WORDS": Source((*_STEPS, "jobs", "resident"), "a CUDA kernel for this network", 2),
    "TILE_BYTES": Source((*_STEPS, *_PHASES), "a CUDA kernel for training", 8),
}
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
#: What a task of a step in phases is described by, the kinds of tasks, and tiles of products: see
#: nnbackend/backends/cuda/phased.py.
TASK = (
    "kind", "units", "rows", "columns", "inner", "tile", "a", "a_stride", "a_turn", "b", "b_stride",
    "out", "out_stride", "bias", "kept", "saved", "saved_stride", "activation", "parameter",
    "weight_at", "bias_at", "twin", "twin_stride", "parts", "more", "part_size", "targets",
    "target_words", "by_label", "row_weights", "averages", "hits", "dz", "dz_stride", "sums",
)  # fmt: skip
TASKS = (
    "forward", "below", "weights", "outputs", "loss", "finish", "fetch", "align", "update",
)  # fmt: skip
TILES = ((16, 8), (16, 16), (32, 32), (64, 64))
#: The most tasks and phases of a step in phases; steps of a launch that does many, whose rates lie
#: in shared memory; words of eight bytes there that say what a step is; lanes of a row's loss.
MOST_TASKS, MOST_PHASES, MOST_STEPS, STEP_WORDS, LOSS_LANES = 72, 32, 256, 32, 8
#: Columns of a trace, as kernels/codes.py has them.
TRACE = ("loss", "penalty", "weight", "sums")
#: Bytes of the StepState of kernels/cuda/common.cu.
STATE_BYTES = 72
#: Threads of a block, in every launch, its warps, and the columns that it takes where it sums over
#: the batch; the source is told.
THREADS, COLUMNS = 256, 8
WARPS = THREADS // 32
#: Bytes of shared memory that a step in phases takes beside those of tiles, which take at least so
#: many.
_WORDS = len(RUN) + MOST_TASKS * len(TASK) + MOST_PHASES + 3 * MOST_STEPS + WARPS + STEP_WORDS
PHASE_TABLES, LEAST_TILES = 8 * _WORDS, 72 << 10

#: A kernel's name, behind what the compiler is told of its registers, and its arguments.
KERNEL = re.compile(r"^KERNEL (?:[A-Z_]+ )?(\w+)\(([^)]*)\)", re.MULTILINE)
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
    #: bytes of shared memory that each block is given; with it, the blocks run at the same time: as
    #: one cluster, whose memory is shared, or as a grid, which can only meet
    shared: int = 0
    together: str = "cluster"
    #: what defines the program that it is a part of: see ``source``
    definitions: str = ""


def folder() -> Path:
    """Where the source lies."""
    return Path(codes.__file__).parent / "cuda"


@lru_cache(maxsize=8)
def source(definitions: str = "") -> str:
    """The program. ``Real`` is left to the compiler's options.

    Args:
        definitions: of one of ``PROGRAMS``; without them it is all kernels that do one thing each.
    """
    parts = ["#define ONE_KERNEL", definitions] if definitions else []
    parts += [_codes(ACTIVATIONS), _codes(LOSSES), _codes(UPDATES, "update_")]
    parts += [_codes((*RUN, "fields"), "run_"), _codes((*PLAN, "fields"), "plan_")]
    parts += [_codes((*LAYER, "fields"), "layer_"), _codes(JOBS, "job_")]
    parts += [_codes((*TASK, "fields"), "task_"), _codes(TASKS, "do_")]
    parts.append(_codes((f"{rows}_{columns}" for rows, columns in TILES), "tile_"))
    parts.append(_codes(TRACE, "trace_"))
    sums = " || ".join(f"(code) == {n.upper()}" for n, kind in LOSSES.items() if not kind.averages)
    parts.append(f"#define AVERAGES(code) (!({sums}))")
    sizes = {
        "THREADS": THREADS, "WARPS": WARPS, "COLUMNS": COLUMNS, "MOST_TASKS": MOST_TASKS,
        "MOST_PHASES": MOST_PHASES, "MOST_STEPS": MOST_STEPS, "STEP_WORDS": STEP_WORDS,
        "LOSS_LANES": LOSS_LANES,
    }  # fmt: skip
    parts.append(f"enum {{ {', '.join(f'{name} = {size}' for name, size in sizes.items())} }};")
    for name in program_of(definitions).files:
        parts.append(f'#line 1 "cuda/{name}.cu"\n{_text(name)}')
    return "\n".join(parts)


def program_of(definitions: str) -> Source:
    """Of ``PROGRAMS``."""
    names = (name for name in PROGRAMS if name and f"#define {name} " in definitions)
    return PROGRAMS[next(names, "")]


def source_version(definitions: str = "") -> str:
    """What tells this ``source`` from others where a choice is kept."""
    return hashlib.sha256(source(definitions).encode()).hexdigest()[:16]


def _text(name: str) -> str:
    return (folder() / f"{name}.cu").read_text(encoding="utf-8")


def _codes(names: Iterable[str], prefix: str = "") -> str:
    return f"enum {{ {', '.join(f'{prefix}{name}'.upper() for name in names)} }};"


def tile_bytes(shared_bytes: int) -> int:
    """Shared memory of a block that tiles of a step in phases may take; 0 if it is too little."""
    left = (shared_bytes - PHASE_TABLES) // 256 * 256
    return left if left >= LEAST_TILES else 0


def phase_definitions(shared_bytes: int) -> str:
    """What the kernel that trains in phases is compiled with."""
    return f"#define TILE_BYTES {tile_bytes(shared_bytes)}"


@cache
def signatures() -> dict[str, tuple[Argument, ...]]:
    """The arguments of each kernel, by its name."""
    found = {}
    texts = (source(), *(_text(program.files[-1]) for name, program in PROGRAMS.items() if name))
    for name, text in (kernel for own in texts for kernel in KERNEL.findall(own)):
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
