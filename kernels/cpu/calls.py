"""Entry points that take a caller's arrays: small drivers, which Numba compiles for the arrays that
they meet, and which call the phase and operation functions by address."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from nnbackend.kernels.cpu.codegen.compile import compiled
from nnbackend.kernels.cpu.codegen.intrinsics import call_phase, vector_at
from nnbackend.kernels.cpu.ops.losses import averages
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program import operations
from nnbackend.kernels.cpu.program.steps import reset_team

#: What the phase functions can be asked to do.
SERIAL, STEPS, EVALUATE, END_EVALUATE, PREDICT = range(5)


@njit(parallel=True)
def fork_parts(function: int, address: int, phase: int, parts: int) -> None:
    for part in prange(parts):
        call_phase(function, address, phase, part)


@njit
def _take_batch(f: Any, x: Any, y: Any, field: int, number: int, rate: float) -> bool:
    """Point the context at a caller's own batch, if it has the expected shape, for update
    ``number`` + 1."""
    rows = x.shape[0]
    width = f[c.N_OUTPUTS] if field == c.TARGET else 1
    fits = x.ndim == 2 and y.ndim <= 2 and x.flags.c_contiguous and y.flags.c_contiguous
    fits = fits and rows == f[c.BATCH_SIZE] and x.size == rows * f[c.N_INPUTS]
    fits = fits and y.shape[0] == rows and y.size == rows * width
    f[c.STATUS] = 0 if fits else c.REFUSED
    f[c.X] = x.ctypes.data
    f[field] = y.ctypes.data
    f[c.FIRST_STEP] = number
    vector_at(f[c.RATES], 0, 1, c.FLOAT64)[0] = rate
    return fits


@compiled
def _total_loss(f: Any) -> float:
    """Loss with penalties of the first step; NaN where the host has to look at the data."""
    if f[c.STATUS]:
        return np.nan
    trace = vector_at(f[c.TRACE], 0, c.TRACE_SUMS, c.FLOAT64)
    total = trace[c.TRACE_LOSS]
    if averages(f[c.LOSS]):
        total = total / trace[c.TRACE_WEIGHT] if trace[c.TRACE_WEIGHT] > 0.0 else 0.0
    return total + trace[c.TRACE_PENALTY]


def step(
    function: int, address: int, x: Any, y: Any, field: int, number: int, rate: float
) -> float:
    """One step on a caller's own batch, on this thread; its loss."""
    f = c.open_context(address)
    if _take_batch(f, x, y, field, number, rate):
        call_phase(function, address, SERIAL, 0)
    return _total_loss(f)


def fork_step(
    function: int, address: int, x: Any, y: Any, field: int, number: int, rate: float
) -> float:
    """One step on a caller's own batch, on several threads; its loss."""
    f = c.open_context(address)
    if _take_batch(f, x, y, field, number, rate):
        reset_team(f)
        fork_parts(function, address, STEPS, f[c.N_PARTS])
    return _total_loss(f)


@njit
def _go_forward(f: Any, x: Any, number: int) -> bool:
    """Have the context go forward from a caller's rows, if they have the expected shape."""
    rows = x.shape[0]
    if not (x.ndim == 2 and x.flags.c_contiguous and rows == f[c.BATCH_SIZE]):
        return False
    if x.size != rows * f[c.N_INPUTS]:
        return False
    f[c.X], f[c.FIRST_STEP], f[c.TRAINS], f[c.CHECKS], f[c.STATUS] = x.ctypes.data, number, 1, 1, 0
    f[c.MODE], f[c.FIRST_PHASE], f[c.N_PHASES] = c.FORWARD, 0, f[c.LAST_FORWARD] + 1
    return True


@njit
def _go_back(f: Any, dy: Any, place: int, dx: Any) -> bool:
    """Have the context go back from a caller's gradient, copied to its ``place``; False if it has
    not the expected shape or is not finite."""
    if not (dy.ndim == 2 and dy.flags.c_contiguous and dy.shape[0] == f[c.BATCH_SIZE]):
        return False
    if dy.size != dy.shape[0] * f[c.N_OUTPUTS]:
        return False
    flat, kept = dy.reshape(dy.size), vector_at(place, 0, dy.size, dy.flat[0])
    rough = flat[0] - flat[0]
    for i in range(flat.size):
        kept[i] = flat[i]
        rough += flat[i] - flat[i]  # 0, or NaN
    f[c.TRAINS] = f[c.CLIPS] = f[c.STATUS] = 0
    f[c.DX] = dx.ctypes.data if dx.size else 0
    f[c.MODE], f[c.FIRST_PHASE], f[c.N_PHASES] = (
        c.BACKWARD,
        f[c.LAST_FORWARD],
        f[c.LAST_FORWARD] + 2,
    )
    return rough == 0


@compiled
def _begin_update(f: Any, rate: float, number: int, clips: int) -> None:
    """Have the context make an update."""
    f[c.FIRST_STEP], f[c.TRAINS], f[c.CLIPS], f[c.STATUS] = number, 1, clips, 0
    f[c.MODE], f[c.FIRST_PHASE], f[c.N_PHASES] = c.APPLY, 2 * f[c.LAST_FORWARD] + 1, 2
    vector_at(f[c.RATES], 0, 1, c.FLOAT64)[0] = rate


def forward(function: int, address: int, x: Any, out: Any, place: int, number: int) -> bool:
    """Outputs in training mode, which lie at ``place``, into ``out``; on this thread."""
    f = c.open_context(address)
    if not _go_forward(f, x, number):
        return False
    call_phase(function, address, SERIAL, 0)
    out.reshape(out.size)[:] = vector_at(place, 0, out.size, out.flat[0])
    return f[c.STATUS] == 0


def fork_forward(function: int, address: int, x: Any, out: Any, place: int, number: int) -> bool:
    """The same on several threads."""
    f = c.open_context(address)
    if not _go_forward(f, x, number):
        return False
    reset_team(f)
    fork_parts(function, address, STEPS, f[c.N_PARTS])
    out.reshape(out.size)[:] = vector_at(place, 0, out.size, out.flat[0])
    return f[c.STATUS] == 0


def backward(function: int, address: int, dy: Any, place: int, dx: Any) -> bool:
    """The gradient from the one by the outputs, and dx unless it is empty; on this thread."""
    f = c.open_context(address)
    if not _go_back(f, dy, place, dx):
        return False
    call_phase(function, address, SERIAL, 0)
    return True


def fork_backward(function: int, address: int, dy: Any, place: int, dx: Any) -> bool:
    """The same on several threads."""
    f = c.open_context(address)
    if not _go_back(f, dy, place, dx):
        return False
    reset_team(f)
    fork_parts(function, address, STEPS, f[c.N_PARTS])
    return True


def apply(function: int, address: int, rate: float, number: int, clips: int) -> bool:
    """One update from the gradient that is there, on this thread; False if it is not finite."""
    f = c.open_context(address)
    _begin_update(f, rate, number, clips)
    call_phase(function, address, SERIAL, 0)
    return f[c.STATUS] == 0


def fork_apply(function: int, address: int, rate: float, number: int, clips: int) -> bool:
    """The same on several threads."""
    f = c.open_context(address)
    _begin_update(f, rate, number, clips)
    reset_team(f)
    fork_parts(function, address, STEPS, f[c.N_PARTS])
    return f[c.STATUS] == 0


def infer(function: int, address: int, x: Any, out: Any) -> bool:
    """Outputs of a few rows on this thread; False if ``x`` has not the expected shape."""
    f = c.open_context(address)
    fits = x.ndim == 2 and x.flags.c_contiguous and x.shape[0] <= f[c.CAPACITY]
    if fits and x.size == x.shape[0] * f[c.N_INPUTS]:
        f[c.X] = x.ctypes.data
        f[c.OUT] = out.ctypes.data
        f[c.N_DATA] = x.shape[0]
        call_phase(function, address, PREDICT, 0)
        return True
    return False


#: Numbers of an operation as it finds them: its head, arguments, one number. A bound layer's are
#: followed by the address of the function for single operations.
PACKED = operations.FIRST_ARGUMENT + operations.N_ARGUMENTS + 1


@njit
def _arguments(bound: int, memory: int) -> Any:
    """A bound layer's arguments, copied to ``memory``, where scratch memory follows them."""
    given, a = vector_at(bound, 0, PACKED, c.INT64), vector_at(memory, 0, PACKED, c.INT64)
    for i in range(PACKED):
        a[i] = given[i]
    a[1] = memory + 8 * PACKED
    return a


def dense_forward(bound: int, x: Any, out: Any, saved: Any, memory: int) -> bool:
    """A dense layer's outputs, and z if ``saved`` is not None. False if x has not the expected
    shape, or no rows."""
    # parts, scratch, x, w, bias, out, saved, rows, inputs, outputs
    a = _arguments(bound, memory)
    if not (x.ndim == 2 and x.flags.c_contiguous and x.shape[0] and x.shape[1] == a[8]):
        return False
    a[2], a[5], a[7] = x.ctypes.data, out.ctypes.data, x.shape[0]
    if saved is not None:
        a[6] = saved.ctypes.data
    function = vector_at(bound, 0, PACKED + 1, c.INT64)[PACKED]
    call_phase(function, memory, operations.DENSE_FORWARD, 0)
    return True


def dense_backward(bound: int, dy: Any, x: Any, saved: Any, dx: Any, dz: Any, memory: int) -> bool:
    """dx and the gradients of a dense layer; ``dz`` is for scratch, None if it is dy itself. False
    if dy has not the expected shape."""
    # parts, scratch, dy, x, w, saved, dw, db, dx, dz, rows, inputs, outputs
    a = _arguments(bound, memory)
    rows = x.shape[0]
    if not (dy.ndim == 2 and dy.flags.c_contiguous and dy.shape[0] == rows):
        return False
    if not (dy.shape[1] == a[12] and saved.size == dy.size and x.size == rows * a[11]):
        return False
    a[2], a[3], a[5], a[8] = dy.ctypes.data, x.ctypes.data, saved.ctypes.data, dx.ctypes.data
    a[9] = a[2]
    if dz is not None:
        a[9] = dz.ctypes.data
    a[10] = rows
    function = vector_at(bound, 0, PACKED + 1, c.INT64)[PACKED]
    call_phase(function, memory, operations.DENSE_BACKWARD, 0)
    return True
