"""Matrix products, for one thread: the operands in blocks that fit the caches, tile by tile.

A product runs along the inner dimension in blocks of STEPS. Within a block the columns go in
panels as wide as a tile; a panel of b (STEPS x 48 numbers) stays in the first-level cache while
the rows of a pass by. Panels of b and blocks of rows of a are copied into the order in which
tiles read them where that pays: where they are read many times, or where b is transposed.

Each element of the result is a sum over the inner dimension in an order that does not depend on
its place, so that a product split among threads gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import FIRST, NO, ONE, compiled
from nnbackend.kernels.cpu.codegen.intrinsics import blas_product, linked, size_of, vector_at
from nnbackend.kernels.cpu.gemm.copies import (
    copy_a,
    copy_b,
    lanes_of,
    panel_of,
    pieces,
    start_of,
    transpose_exactly,
)
from nnbackend.kernels.cpu.gemm.thin import FEW_COLUMNS, FEW_STEPS, dots, few_steps_product
from nnbackend.kernels.cpu.gemm.tile import TURN, tile
from nnbackend.kernels.cpu.gemm.vector_code import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES
from nnbackend.kernels.processor import USES_BLAS

#: Steps of a block along the inner dimension, columns of a block of b in vectors, and rows of a
#: block of a in tiles: 1.3 and 0.7 MB with vectors of 64 bytes, in the second-level cache.
STEPS, BLOCK_VECTORS, BLOCK_TILES = 320, 64, 64
#: b is copied if it is transposed, or a has so many rows. a is copied if b has so many columns
#: and b is copied too; or, transposed, if its rows are so many bytes apart: then they fall on few
#: places of the cache.
COPY_B, COPY_A, COPY_A_BYTES = 96, 160, 2048
#: Multiplications of the largest product that is ours where SciPy's BLAS does larger ones.
OWN_PRODUCT = 1 << 15
#: Bytes of a line of memory; regions of memory that are asked for ahead of their use, and the
#: numbers of each: start, row, distance of rows, rows, lines across that are left.
LINE, REGIONS, REGION = 64, 3, 5
START, ROW, ROW_STEP, ROWS, LINES = range(REGION)
AHEAD_NUMBERS = REGIONS * REGION
#: Up to so many columns the product is computed transposed, if the rows, or the columns, of a are
#: as they must be for that without a copy, or with one.
NARROW_OF_ROWS, NARROW_OF_COLUMNS = 12, 4
#: Bytes of scratch memory that a product needs: to align it, for a block of b, for a block of a
#: with room after each tile, for a transposed result, for a result that is used at once, and for
#: the numbers that say what to bring near.
B_BYTES = STEPS * BLOCK_VECTORS * VECTOR_BYTES
COPY_BYTES = B_BYTES + BLOCK_TILES * (8 * STEPS * TILE_ROWS + VECTOR_BYTES)
SWAP_BYTES = 1 << 15
RESULT_BYTES = 1 << 18
AHEAD_AT = COPY_BYTES + SWAP_BYTES + RESULT_BYTES
SCRATCH_BYTES = VECTOR_BYTES + AHEAD_AT + 8 * AHEAD_NUMBERS

#: ``multiply`` from code outside the object file that it belongs to.
linked_multiply = linked("multiply")


@compiled
def check_shapes(fits: bool) -> None:
    """A product whose shapes do not fit would read beyond its arrays."""
    if not fits:
        raise IndexError("matrix product: shapes do not fit")


@compiled
def product(a: Any, b: Any, c: Any, scratch: int) -> None:
    """c (M, N) = a (M, K) b (K, N)."""
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    check_shapes(b.shape[0] == k and c.shape[0] == m and c.shape[1] == n)
    if c.size:
        a_, b_, c_ = address_of(a), address_of(b), address_of(c)
        linked_multiply(m, n, k, a_, k, ONE, b_, n, ONE, c_, n, scratch, a[0, 0])


@compiled
def product_with_transposed(a: Any, b: Any, c: Any, scratch: int) -> None:
    """c (M, K) = a (M, N) b^T, b (K, N)."""
    m, n, k = a.shape[0], a.shape[1], b.shape[0]
    check_shapes(b.shape[1] == n and c.shape[0] == m and c.shape[1] == k)
    if c.size:
        a_, b_, c_ = address_of(a), address_of(b), address_of(c)
        linked_multiply(m, k, n, a_, n, ONE, b_, ONE, n, c_, k, scratch, a[0, 0])


@compiled
def transposed_product(a: Any, first: int, b: Any, c: Any, scratch: int) -> None:
    """c (K, N) = a[:, first : first + K]^T b, for a (B, I) and b (B, N)."""
    batch, width, k, n = a.shape[0], a.shape[1], c.shape[0], c.shape[1]
    check_shapes(b.shape[0] == batch and b.shape[1] == n and first + k <= width and first >= 0)
    if c.size:
        a_, b_, c_ = address_of(a) + first * a.itemsize, address_of(b), address_of(c)
        linked_multiply(k, n, batch, a_, ONE, width, b_, n, ONE, c_, n, scratch, a[0, 0])


@compiled
def address_of(array: Any) -> Any:
    """Where an array's data lie."""
    return np.int64(array.ctypes.data)


@compiled
def multiply(
    m: int, n: int, k: int, a: int, a_row: int, a_step: int, b: int, b_row: int, b_column: int,
    c: int, c_row: int, scratch: int, like: Any,
) -> None:  # fmt: skip
    """c (m, n) = a (m, k) b (k, n) for matrices at addresses.

    Distances in elements: a_row and b_row to the next row, a_step and b_column to the next
    column; columns of c, and rows or columns of a and of b, are contiguous.
    """
    if USES_BLAS and m * n * k > OWN_PRODUCT:
        blas_product(
            a_step != 1, b_column != 1, m, n, k, a, max(a_row, a_step), b,
            max(b_row, b_column), c, c_row, like,
        )  # fmt: skip
        return
    size, lanes = size_of(like), lanes_of(like)
    # what decides about the order of a sum does not depend on m: no row's bits do
    if few_columns(n, k, a_step, c_row, like):
        scratch = aligned(scratch)
        if b_row != 1:
            transpose_exactly(k, n, b, b_row, scratch, k, like)
            b, b_column = scratch, k
        dots(m, n, k, a, a_row, b, b_column, c, like)
        return
    if m <= TILE_ROWS and n <= TILE_VECTORS * lanes and k <= STEPS and b_column == 1:
        run_tile(m, n, k, a, a_row, a_step, b, b_row, c, c_row, NO, b, FIRST, like)
        return
    scratch = aligned(scratch)
    if k <= FEW_STEPS and n >= lanes and n * k <= B_BYTES // size:
        if b_column != 1:
            transpose_exactly(n, k, b, b_column, scratch, n, like)
            b, b_row = scratch, n
        few_steps_product(m, n, k, a, a_row, a_step, b, b_row, c, c_row, like)
        return
    few = NARROW_OF_ROWS if a_row == 1 else NARROW_OF_COLUMNS
    if n > few or m < lanes:
        multiply_wide(m, n, k, a, a_row, a_step, b, b_row, b_column, c, c_row, scratch, like)
        return
    # c has few columns: c^T = b^T a^T has long rows
    most = SWAP_BYTES // size // n // lanes * lanes
    swapped = scratch + COPY_BYTES
    for first in range(0, m, most):
        rows = min(most, m - first)
        multiply_wide(
            n, rows, k, b, b_column, b_row, a + size * first * a_row, a_step, a_row, swapped, rows,
            scratch, like,
        )  # fmt: skip
        transpose_exactly(n, rows, swapped, rows, c + size * first * c_row, c_row, like)


@compiled
def few_columns(n: int, k: int, a_step: int, c_row: int, like: Any) -> bool:
    """Whether a product is one of dot products."""
    fits = n <= min(FEW_COLUMNS, lanes_of(like)) and n * k <= B_BYTES // size_of(like)
    return fits and k > FEW_STEPS and a_step == 1 and c_row == n


@compiled
def pays_to_copy_a(a_row: int, a_step: int, n: int, copies_b: bool, like: Any) -> bool:
    """Whether a is copied, to be multiplied by n columns."""
    return n >= COPY_A and (copies_b if a_row != 1 else a_step * size_of(like) >= COPY_A_BYTES)


@compiled
def aligned(address: int) -> int:
    """The first place for a vector from here on."""
    return (address + VECTOR_BYTES - 1) // VECTOR_BYTES * VECTOR_BYTES


@compiled
def multiply_wide(
    m: int, n: int, k: int, a: int, a_row: int, a_step: int, b: int, b_row: int, b_column: int,
    c: int, c_row: int, scratch: int, like: Any,
) -> None:  # fmt: skip
    """The same in blocks, panels and tiles, for a c whose rows fill vectors."""
    size, lanes = size_of(like), lanes_of(like)
    b_copy, a_copy = scratch, scratch + B_BYTES
    copies_b = b_column != 1 or m >= COPY_B
    copies_a = pays_to_copy_a(a_row, a_step, n, copies_b, like)
    ahead = vector_at(scratch + AHEAD_AT, 0, AHEAD_NUMBERS if copies_b else 0, ONE)
    ahead[:] = 0
    vectors = pieces(n, lanes)
    panels = pieces(vectors, TILE_VECTORS)
    k_blocks, m_blocks = pieces(k, STEPS), pieces(m, BLOCK_TILES * TILE_ROWS)
    for kb in range(k_blocks):
        low, steps = steps_of(kb, k, k_blocks)
        for mb in range(m_blocks):
            first, last = start_of(mb, m, m_blocks), start_of(mb + 1, m, m_blocks)
            rows, tiles = last - first, pieces(last - first, TILE_ROWS)
            a_block = a + size * (first * a_row + low * a_step)
            if copies_a:
                copy_a(rows, steps, a_block, a_row, a_step, a_copy, like)
                a_block = a_copy
            if not copies_b:
                multiply_block(
                    rows, FIRST, tiles, n, steps, a_block, a_row, a_step, copies_a,
                    b + size * low * b_row, b_row, copies_b, c + size * first * c_row, c_row,
                    kb > 0, ahead, like,
                )  # fmt: skip
                continue
            # what is copied next comes near meanwhile: rows of a here, of b with each panel
            again = mb + 1 < m_blocks
            next_low = low if again else low + steps
            next_row = last if again else 0
            if again or kb + 1 < k_blocks:
                look_ahead(
                    ahead, ONE, a + size * (next_row * a_row + next_low * a_step), rows, a_row,
                    steps, a_step, like,
                )  # fmt: skip
            for p in range(panels):
                left, right = panel_of(p, vectors, panels, lanes)
                wide = min(right, n) - left
                copy_b(
                    steps, wide, b + size * (low * b_row + left * b_column), b_row, b_column,
                    b_copy, like,
                )  # fmt: skip
                next_b = b + size * (low * b_row + right * b_column)
                if p == panels - 1:
                    next_b = b + size * next_low * b_row
                look_ahead(ahead, FIRST, next_b, steps, b_row, wide, b_column, like)
                multiply_block(
                    rows, FIRST, tiles, wide, steps, a_block, a_row, a_step, copies_a, b_copy,
                    wide, copies_b, c + size * (first * c_row + left), c_row, kb > 0, ahead, like,
                )  # fmt: skip


@compiled
def steps_of(kb: int, k: int, k_blocks: int) -> Any:
    """Where a block of the inner dimension begins, and how long it is: but for the last one, in
    whole turns of a tile."""
    turns = pieces(k, TURN)
    low = start_of(kb, turns, k_blocks) * TURN
    return low, min(start_of(kb + 1, turns, k_blocks) * TURN, k) - low


@compiled
def look_ahead(
    ahead: Any, region: int, start: int, m: int, row: int, n: int, column: int, like: Any
) -> None:
    """Ask for the memory of a matrix (m, n), rows or columns of which are contiguous."""
    if column != 1:
        m, row, n = n, column, m
    place = region * REGION
    ahead[place + START], ahead[place + ROW], ahead[place + ROW_STEP] = start, 0, row
    ahead[place + ROWS], ahead[place + LINES] = m, pieces(n * size_of(like), LINE)


@compiled
def next_ahead(ahead: Any, steps: int, nowhere: int, like: Any) -> Any:
    """The first line, and the distance to the following ones, that a tile of so many steps shall
    bring near: down the rows of a region, line by line."""
    for place in range(0, ahead.size, REGION):
        if ahead[place + LINES] > 0:
            row, step = ahead[place + ROW], ahead[place + ROW_STEP]
            start = ahead[place + START] + size_of(like) * row * step
            ahead[place + ROW] = row + steps // TURN
            if row + steps // TURN >= ahead[place + ROWS]:
                ahead[place + ROW] = 0
                ahead[place + START] += LINE
                ahead[place + LINES] -= 1
            return start, step
    return nowhere, 0


@compiled
def multiply_block(
    rows: int, first_tile: int, last_tile: int, columns: int, steps: int, a: int, a_row: int,
    a_step: int, copied_a: bool, b: int, b_row: int, copied_b: bool, c: int, c_row: int, add: bool,
    ahead: Any, like: Any,
) -> None:  # fmt: skip
    """Some tiles' rows of a block of c, panel by panel of b, in it tile by tile of a.

    a is the block of all rows, c only the rows asked for. Memory that ``ahead`` asks for is
    brought near meanwhile.
    """
    size, lanes = size_of(like), lanes_of(like)
    vectors = pieces(columns, lanes)
    panels, tiles = pieces(vectors, TILE_VECTORS), pieces(rows, TILE_ROWS)
    few, more = rows // tiles, rows % tiles
    begin = start_of(first_tile, rows, tiles)
    for p in range(panels):
        left, right = panel_of(p, vectors, panels, lanes)
        b_panel, b_distance = b + size * left, b_row
        if copied_b:
            b_panel, b_distance = b + size * left * steps, right - left
        wide = min(right, columns) - left
        i = begin
        for t in range(first_tile, last_tile):
            high = few + (t < more)
            a_tile, row, step = a + size * i * a_row, a_row, a_step
            if copied_a:
                a_tile, row, step = a + size * (i * steps + t * lanes), 1, high
            near, near_step = next_ahead(ahead, steps, b_panel, like)
            run_tile(
                high, wide, steps, a_tile, row, step, b_panel, b_distance,
                c + size * ((i - begin) * c_row + left), c_row, add, near, near_step, like,
            )  # fmt: skip
            i += high


@compiled
def run_tile(
    rows: int, columns: int, steps: int, a: int, a_row: int, a_step: int, b: int, b_row: int,
    c: int, c_row: int, add: bool, near: int, near_step: int, like: Any,
) -> None:  # fmt: skip
    """The one place that calls ``tile``: each would hold, and compile, the code of all sizes."""
    tile(
        rows, columns, steps, a, a_row, a_step, b, b_row, c, c_row, add, near, near_step, like
    )  # fmt: skip
