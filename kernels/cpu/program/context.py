"""What a compiled program is told: one int64 array of addresses, sizes and choices.

One array, because each argument of a call costs more than a small layer. The host writes it,
compiled code reads it by the names below; places that change from step to step are written by
``begin_step``.

What names stand for in all of ``kernels/cpu``: ``f`` is this array, ``f[c.X]`` one of its fields;
``table`` the program's table, with a row ``r`` for each layer; ``part`` one of the shares of a
batch, which a thread works on; ``first`` and ``last`` the rows of that share; ``like`` a number of
the model's dtype, which tells Numba the type of what is made from an address.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.codes import (
    N_FLOATS,
    TRACE_LOSS,
    TRACE_PENALTY,
    TRACE_SUMS,
    TRACE_WEIGHT,
)
from nnbackend.kernels.cpu.codegen.compile import compiled, view
from nnbackend.kernels.cpu.codegen.intrinsics import matrix_at, vector_at

#: Of kernels/codes.py, for those who read a context.
__all__ = ["N_FLOATS", "TRACE_LOSS", "TRACE_PENALTY", "TRACE_SUMS", "TRACE_WEIGHT"]

#: Number of fields.
N_FIELDS = 79
(
    # the program: its table (rows, len(COLUMNS)) and floats (rows, N_FLOATS), flat vectors
    TABLE, N_ROWS, FLOATS, PARAMETERS, N_PARAMETERS, N_DECAYED, N_TRAINED,
    GRADIENTS, STATE, N_STATE, SLOT_0, SLOT_1,
    # buffers: layer outputs, gradients by them; of each part: statistics of batch norms, sums,
    # scratch memory for products
    WORKSPACE, WORKSPACE_SIZE, DELTAS, DELTAS_SIZE, CAPACITY,
    NORMS, NORMS_WIDTH, SUMS, SUMS_WIDTH, SCRATCH,
    # gradients of weights from each part's own rows, and where the table's rows have theirs in a
    # part's area, -1 for those that have none
    PARTIALS, PARTIALS_WIDTH, PARTIAL_STARTS,
    # the data: addresses, 0 for what is not there; LABELS_64 is a caller's own int64 array; where
    # rows have few numbers, X has these, and X_COLUMNS and X_STARTS say where they belong
    X, X_COLUMNS, X_STARTS, N_INPUTS, TARGET, LABELS, LABELS_64, WEIGHT, N_DATA, N_OUTPUTS, OUT,
    ORDER, ORDER_ROWS, X_GATHERED, TARGET_GATHERED, LABELS_GATHERED, WEIGHT_GATHERED,
    # the run; FIRST_ROW is the place of a batch's first row in a larger one
    FIRST_ROW, BATCH_SIZE, BLOCK_ROWS, N_STEPS, FIRST_STEP, RATES, TRACE, N_PARTS, N_PHASES,
    LAST_FORWARD, FIRST_TRAINED, LOSS, PENALTIES_PER_ROW, UPDATE, N_SLOTS, NUMBERS, DROPOUT_KEY,
    STATISTICS, N_STATISTICS, TRAINS, CLIPS, CHECKS, KEEPS, STATUS, WIDEST, TEAM, NEXT_ROW,
    # what of a step is run; the gradient by the first row's input, where it is wanted
    MODE, FIRST_PHASE, DX,
    # the step under way: the batch's data, and where its rows lie in ORDER
    STEP, ROWS, ORDER_START, X_BATCH, TARGET_BATCH, LABELS_BATCH, WEIGHT_BATCH,
) = range(N_FIELDS)  # fmt: skip

#: STATUS of a step whose data the host has to look at, and of one whose loss or gradient is not
#: finite, or whose gradient's square overflows where the optimizer takes it.
REFUSED, NOT_FINITE = 1, 2

#: MODE: whole steps; or, driven from outside, one way of a step, for which another has the loss, or
#: the update alone.
WHOLE, FORWARD, BACKWARD, APPLY = range(4)

#: float64 numbers at NUMBERS: settings, then what begin_step works out.
N_NUMBERS = 18
(
    LOSS_PARAMETER, TARGET_LOW, TARGET_HIGH, CLIP_NORM, GRADIENT_LIMIT,
    # UPDATE_NUMBERS of kernels/codes.py
    MOMENTUM, NESTEROV, RHO, BETA_1, BETA_2, EPS, DECAY, EPS_HAT,
    # sum of weights of a larger batch that this is a part of; 0 if it is none
    BATCH_WEIGHT,
    WEIGHT_SUM, RATE, CORRECTED_RATE, CORRECTED_EPS,
) = range(N_NUMBERS)  # fmt: skip

#: Columns of the table; all but the last two are fields of a program's Row of the same name.
#: delta: offset of the gradient by the row's output, per row of the batch; norm: offset of a
#: batch norm's statistics in each part's area.
COLUMNS = (
    "op", "activation", "n_inputs", "n_outputs", "parameter_0", "parameter_1", "state_0", "state_1",
    "output", "saved", "layer", "trainable", "needs_dx", "phase", "delta", "norm",
)  # fmt: skip
(
    OP, ACTIVATION, INPUTS, OUTPUTS, PARAMETER_0, PARAMETER_1, STATE_0, STATE_1,
    OUTPUT, SAVED, LAYER, TRAINABLE, NEEDS_DX, PHASE, DELTA, NORM,
) = range(len(COLUMNS))  # fmt: skip
#: A statistic in float64: kind, by threshold or not, threshold, top, first of its sums.
STATISTIC_COLUMNS = 5

#: The array at TEAM: how many parts are done, then for each part how many turns are taken, each
#: number in a cache line of its own.
TEAM_STRIDE = 16
#: Examples of element types.
INT64, INT32, FLOAT64 = np.int64(0), np.int32(0), np.float64(0)


@view
def open_context(address: int) -> Any:
    """The context's fields."""
    return vector_at(address, 0, N_FIELDS, INT64)


@view
def numbers_of(fields: Any) -> Any:
    """The float64 settings."""
    return vector_at(fields[NUMBERS], 0, N_NUMBERS, FLOAT64)


@compiled
def share(n: int, part: int, parts: int, multiple: int) -> Any:
    """First and last + 1 of the elements that ``part`` of ``parts`` takes, in multiples."""
    units = (n + multiple - 1) // multiple
    return min(n, units * part // parts * multiple), min(n, units * (part + 1) // parts * multiple)


@view
def vector(address: int, size: int, start: int, n: int, like: Any) -> Any:
    """Elements start ... start + n of the ``size`` that lie at ``address``."""
    if start < 0 or n < 0 or start + n > size:
        raise IndexError("a kernel was sent beyond the end of a buffer")
    return vector_at(address, start, n, like)


@view
def matrix(address: int, size: int, start: int, rows: int, columns: int, like: Any) -> Any:
    """(rows, columns) at element ``start`` of the ``size`` that lie at ``address``."""
    if start < 0 or rows < 0 or columns < 0 or start + rows * columns > size:
        raise IndexError("a kernel was sent beyond the end of a buffer")
    return matrix_at(address, start, rows, columns, like)
