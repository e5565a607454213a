"""Copies of blocks of a product's operands, in the order in which tiles read them."""

from __future__ import annotations

from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled
from nnbackend.kernels.cpu.codegen.intrinsics import size_of, vector_at
from nnbackend.kernels.cpu.gemm.tile import copy_lanes, transpose_square
from nnbackend.kernels.cpu.gemm.vector_code import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES

#: Rows copied at a time where each goes to many places.
NEAR_ROWS = 8


@compiled
def lanes_of(like: Any) -> int:
    """Numbers in a vector."""
    return VECTOR_BYTES // size_of(like)


@compiled
def pieces(n: int, most: int) -> int:
    """How many pieces of at most ``most`` make n."""
    return (n + most - 1) // most


@compiled
def start_of(piece: int, n: int, count: int) -> int:
    """Where a piece begins if n is cut into ``count`` as equal as can be, larger ones first."""
    if count == 1:  # divisions take longer than a small product
        return n * piece
    return n // count * piece + min(piece, n % count)


@compiled
def panel_of(panel: int, vectors: int, panels: int, lanes: int) -> Any:
    """First and last + 1 of a panel's columns, in whole vectors."""
    return start_of(panel, vectors, panels) * lanes, start_of(panel + 1, vectors, panels) * lanes


@compiled
def copy_b(
    steps: int, columns: int, b: int, b_row: int, b_column: int, out: int, like: Any
) -> None:
    """A block of b, panel after panel, each (steps, whole vectors)."""
    size, lanes = size_of(like), lanes_of(like)
    vectors = pieces(columns, lanes)
    panels = pieces(vectors, TILE_VECTORS)
    some = steps if b_column != 1 or panels == 1 else NEAR_ROWS
    for low in range(0, steps, some):
        high = min(low + some, steps)
        for p in range(panels):
            left, right = panel_of(p, vectors, panels, lanes)
            wide, source = min(right, columns) - left, b + size * (low * b_row + left * b_column)
            place = out + size * (left * steps + low * (right - left))
            if b_column != 1:
                transpose(wide, high - low, source, b_column, place, right - left, like)
            else:
                copy_rows(high - low, wide, source, b_row, place, right - left, like)


@compiled
def copy_a(
    rows: int, steps: int, a: int, a_row: int, a_step: int, out: int, like: Any
) -> None:  # fmt: skip
    """A block of a, tile after tile, each (steps, tile's rows) and a vector."""
    size, lanes = size_of(like), lanes_of(like)
    tiles = pieces(rows, TILE_ROWS)
    few, more = rows // tiles, rows % tiles
    # a few steps of all tiles, then the next ones: few pages of memory at a time
    some = steps if a_row != 1 else NEAR_ROWS
    for low in range(0, steps, some):
        high, i = min(low + some, steps), 0
        for t in range(tiles):
            height = few + (t < more)
            source = a + size * (low * a_step + i * a_row)
            place = out + size * (i * steps + t * lanes + low * height)
            # each row overwrites what the one before wrote beyond its end
            if a_row != 1:
                transpose(height, high - low, source, a_row, place, height, like)
            else:
                copy_rows(high - low, height, source, a_step, place, height, like)
            i += height


@compiled
def copy_rows(
    rows: int, columns: int, source: int, source_row: int, out: int, out_row: int, like: Any
) -> None:
    """out (rows, columns) = source, in whole vectors."""
    size, lanes = size_of(like), lanes_of(like)
    whole = columns // lanes * lanes
    for i in range(rows):
        here, place = source + size * i * source_row, out + size * i * out_row
        for j in range(0, whole, lanes):
            copy_lanes(here + size * j, place + size * j, lanes, like)
        if whole < columns:
            copy_lanes(here + size * whole, place + size * whole, columns - whole, like)


@compiled
def transpose(
    rows: int, columns: int, source: int, source_row: int, out: int, out_row: int, like: Any
) -> None:
    """out (columns, rows) = source^T, in whole vectors; the last row of out has room for them."""
    size, lanes = size_of(like), lanes_of(like)
    whole = columns // lanes * lanes
    # from the last vector on, which may reach into the next row
    for i in range((rows - 1) // lanes * lanes, -1, -lanes):
        for j in range(0, whole, lanes):
            transpose_square(
                source + size * (i * source_row + j), source_row, min(lanes, rows - i),
                out + size * (j * out_row + i), out_row, like,
            )  # fmt: skip
    transpose_exactly(
        rows, columns - whole, source + size * whole, source_row, out + size * whole * out_row,
        out_row, like,
    )  # fmt: skip


@compiled
def transpose_exactly(
    rows: int, columns: int, source: int, source_row: int, out: int, out_row: int, like: Any
) -> None:
    """out (columns, rows) = source^T, nothing else written."""
    size = size_of(like)
    for j in range(columns):
        row = vector_at(out + size * j * out_row, 0, rows, like)
        for i in range(rows):
            row[i] = vector_at(source, i * source_row + j, 1, like)[0]
