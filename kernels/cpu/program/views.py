"""What lies where: parts of the context's buffers as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.codes import Op
from nnbackend.kernels.cpu.codegen.compile import compiled, view
from nnbackend.kernels.cpu.codegen.intrinsics import matrix_at, vector_at
from nnbackend.kernels.cpu.gemm.products import SCRATCH_BYTES
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.context import matrix, vector

DENSE, DROPOUT, BATCH_NORM = int(Op.DENSE), int(Op.DROPOUT), int(Op.BATCH_NORM)
ACTIVATION, LAYER_NORM, STANDARDIZE = int(Op.ACTIVATION), int(Op.LAYER_NORM), int(Op.STANDARDIZE)
EMBEDDING = int(Op.EMBEDDING)
N_COLUMNS = len(c.COLUMNS)
#: Slices of the batch begin at multiples of this, which keeps Philox's blocks whole.
ROW_MULTIPLE = 4
#: Weight rows of a part, and columns of its biases, in multiples of a vector register.
WEIGHT_MULTIPLE = 16

#: Arrays of a batch norm in a part's area, float64: of the part's rows, of the batch, the
#: gradients of the part and of all.
(
    PART_MEAN, PART_SQUARE, MEAN, INV_STD, PART_DGAMMA, PART_DBETA, DGAMMA, DBETA,
) = map(np.int64, range(8))  # fmt: skip


@view
def table_of(f: Any) -> Any:
    return matrix_at(f[c.TABLE], 0, f[c.N_ROWS], N_COLUMNS, c.INT64)


@view
def floats_of(f: Any) -> Any:
    return matrix_at(f[c.FLOATS], 0, f[c.N_ROWS], c.N_FLOATS, c.FLOAT64)


@view
def sums_of(f: Any, part: int) -> Any:
    """The part's sums: those of a trace, then the square of the gradient."""
    width = f[c.SUMS_WIDTH]
    return vector_at(f[c.SUMS], part * width, width, c.FLOAT64)


@view
def parameters(f: Any, start: int, n: int, like: Any) -> Any:
    """(n,) of the flat parameters; empty where ``start`` is ABSENT."""
    if start < 0:
        return vector_at(0, 0, 0, like)
    return vector(f[c.PARAMETERS], f[c.N_PARAMETERS], start, n, like)


@view
def embedding_weight(f: Any, table: Any, floats: Any, r: int, like: Any) -> Any:
    """The (categories, width) matrix of an embedding."""
    width = table[r, c.OUTPUTS] - table[r, c.INPUTS] + 1
    start, count = table[r, c.PARAMETER_0], np.int64(floats[r, 0])
    return matrix(f[c.PARAMETERS], f[c.N_PARAMETERS], start, count, width, like)


@view
def gradients(f: Any, start: int, n: int, like: Any) -> Any:
    """(n,) of the flat gradient."""
    return vector(f[c.GRADIENTS], f[c.N_PARAMETERS], start, n, like)


@compiled
def partial_start(f: Any, r: int) -> int:
    """Where row r of the table has its gradient in a part's area of partial ones; -1 if it has
    none there."""
    return vector_at(f[c.PARTIAL_STARTS], r, 1, c.INT64)[0]


@view
def partial(f: Any, part: int, start: int, n: int, like: Any) -> Any:
    """(n,) of a part's partial gradients."""
    width = f[c.PARTIALS_WIDTH]
    return vector(f[c.PARTIALS], f[c.N_PARTS] * width, part * width + start, n, like)


@view
def state(f: Any, start: int, n: int, like: Any) -> Any:
    """(n,) of the flat state."""
    return vector(f[c.STATE], f[c.N_STATE], start, n, like)


@view
def work(f: Any, offset: int, width: int, first: int, last: int, like: Any) -> Any:
    """Rows first ... last of the (capacity, width) array at ``offset`` in the workspace."""
    start = offset * f[c.CAPACITY] + first * width
    return matrix(f[c.WORKSPACE], f[c.WORKSPACE_SIZE], start, last - first, width, like)


@view
def delta(f: Any, offset: int, width: int, first: int, last: int, like: Any) -> Any:
    """The gradient by rows first ... last of a layer's output."""
    start = offset * f[c.CAPACITY] + first * width
    return matrix(f[c.DELTAS], f[c.DELTAS_SIZE], start, last - first, width, like)


@compiled
def scratch_of(f: Any, part: int) -> int:
    """Address of the part's scratch memory for products."""
    return f[c.SCRATCH] + part * SCRATCH_BYTES


@view
def nothing(like: Any) -> Any:
    """An empty matrix, for what is not there."""
    return matrix_at(0, 0, 0, 0, like)


@view
def input_rows(f: Any, table: Any, r: int, first: int, last: int, like: Any) -> Any:
    """What row r of the table reads: the batch, or the output of the row before."""
    width = table[r, c.INPUTS]
    if r == 0:
        return matrix(f[c.X_BATCH], f[c.ROWS] * width, first * width, last - first, width, like)
    return work(f, table[r - 1, c.OUTPUT], width, first, last, like)


@compiled
def is_sparse(f: Any, r: int) -> bool:
    """Whether row r of the table reads rows with few numbers."""
    return r == 0 and f[c.X_STARTS] != 0


@view
def sparse_rows(f: Any, first: int, last: int, like: Any) -> Any:
    """Rows first ... last of a batch whose rows have few numbers: the numbers of all data, their
    columns (Z,), where each row's begin (N + 1,), and which rows these are."""
    starts = vector_at(f[c.X_STARTS], 0, f[c.N_DATA] + 1, c.INT64)
    n = starts[f[c.N_DATA]]
    values, columns = vector_at(f[c.X], 0, n, like), vector_at(f[c.X_COLUMNS], 0, n, c.INT32)
    return values, columns, starts, vector_at(f[c.ORDER], f[c.ORDER_START] + first, last - first,
                                              c.INT64)  # fmt: skip


@view
def input_delta(f: Any, table: Any, r: int, first: int, last: int, like: Any) -> Any:
    """The gradient by what row r of the table reads."""
    width = table[r, c.INPUTS]
    if r == 0:
        return matrix(f[c.DX], f[c.ROWS] * width, first * width, last - first, width, like)
    return delta(f, table[r - 1, c.DELTA], width, first, last, like)


@view
def weights(f: Any, table: Any, r: int, like: Any) -> Any:
    """(I, O), the weights of row r of the table."""
    n_inputs, n_outputs = table[r, c.INPUTS], table[r, c.OUTPUTS]
    size = f[c.N_PARAMETERS]
    return matrix(f[c.PARAMETERS], size, table[r, c.PARAMETER_0], n_inputs, n_outputs, like)


@view
def norm_area(f: Any, table: Any, r: int, part: int, which: int) -> Any:
    """One of the (N,) float64 arrays of a batch norm in a part's area."""
    n = table[r, c.OUTPUTS]
    start = part * f[c.NORMS_WIDTH] + table[r, c.NORM] + which * n
    return vector_at(f[c.NORMS], start, n, c.FLOAT64)


@view
def layer_norm_saved(f: Any, table: Any, r: int, first: int, last: int, like: Any) -> Any:
    """Means and 1 / deviations (n,) each, that row r of the table keeps for rows of the batch."""
    start = table[r, c.SAVED] * f[c.CAPACITY]
    size, capacity = f[c.WORKSPACE_SIZE], f[c.CAPACITY]
    means = vector(f[c.WORKSPACE], size, start + first, last - first, like)
    inv_stds = vector(f[c.WORKSPACE], size, start + capacity + first, last - first, like)
    return means, inv_stds
