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
#: followed by the address of the function for single operations, that of the layer's dtype, and the
#: size of the head of every Python object.
PACKED = operations.FIRST_ARGUMENT + operations.N_ARGUMENTS + 1
FUNCTION, DTYPE, HEAD = PACKED, PACKED + 1, PACKED + 2
#: Words of an array object behind its head, as NumPy's C interface has them: addresses of data,
#: shape and dtype; the number of axes and flags, of which C-contiguous and aligned are wanted.
DATA, AXES, SHAPE, DESCRIPTION, FLAGS = 0, 1, 2, 5, 6
WANTED = 0x101


@njit
def matrix_of(given: Any, array: int) -> tuple[int, int, int]:
    """Address, rows and columns of an array object's data, given its own address; no rows where it
    is no C-contiguous matrix of the layer's dtype."""
    fields = vector_at(array + given[HEAD], 0, FLAGS + 1, c.INT64)
    fits = fields[AXES] & 0xFFFFFFFF == 2 and fields[FLAGS] & WANTED == WANTED
    if not (fits and fields[DESCRIPTION] == given[DTYPE]):
        return 0, 0, 0
    shape = vector_at(fields[SHAPE], 0, 2, c.INT64)
    return fields[DATA], shape[0], shape[1]


@njit
def _arguments(given: Any, memory: int) -> Any:
    """A bound layer's arguments, copied to ``memory``, where scratch memory follows them."""
    a = vector_at(memory, 0, PACKED, c.INT64)
    for i in range(PACKED):
        a[i] = given[i]
    a[1] = memory + 8 * PACKED
    return a


# Arrays come as the addresses of the objects: Numba takes a tenth of a microsecond for each array.


def dense_forward(bound: int, x: int, out: int, saved: int, memory: int) -> bool:
    """A dense layer's outputs, and z if ``saved`` is not 0. False if x has not the expected form,
    or no rows."""
    # parts, scratch, x, w, bias, out, saved, rows, inputs, outputs
    given = vector_at(bound, 0, HEAD + 1, c.INT64)
    a = _arguments(given, memory)
    data, rows, width = matrix_of(given, x)
    if not rows or width != a[8]:
        return False
    a[2], a[5], a[7] = data, matrix_of(given, out)[0], rows
    if saved:
        a[6] = matrix_of(given, saved)[0]
    call_phase(given[FUNCTION], memory, operations.DENSE_FORWARD, 0)
    return True


def dense_backward(bound: int, dy: int, x: int, saved: int, dx: int, dz: int, memory: int) -> bool:
    """dx and the gradients of a dense layer; ``dz`` is for scratch, 0 if it is dy itself. False if
    dy has not the expected form."""
    # parts, scratch, dy, x, w, saved, dw, db, dx, dz, rows, inputs, outputs
    given = vector_at(bound, 0, HEAD + 1, c.INT64)
    a = _arguments(given, memory)
    dy_data, rows, outputs = matrix_of(given, dy)
    x_data, x_rows, inputs = matrix_of(given, x)
    saved_data, saved_rows, saved_outputs = matrix_of(given, saved)
    if not (rows and rows == x_rows == saved_rows and inputs == a[11]):
        return False
    if outputs != a[12] or saved_outputs != a[12]:
        return False
    a[2], a[3], a[5], a[8] = dy_data, x_data, saved_data, matrix_of(given, dx)[0]
    a[9] = matrix_of(given, dz)[0] if dz else dy_data
    a[10] = rows
    call_phase(given[FUNCTION], memory, operations.DENSE_BACKWARD, 0)
    return True
