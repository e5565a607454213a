"""From a gradient to new parameters: penalties, the look at it, the clipping, the optimizer."""

from __future__ import annotations

import math
from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled
from nnbackend.kernels.cpu.codegen.intrinsics import vector_at
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.ops.updates import (
    add_penalty_gradient,
    all_below,
    penalty_value,
    rough_square_sum,
    square_sum,
    update_step,
)
from nnbackend.kernels.cpu.ops.vectors import scale
from nnbackend.kernels.cpu.program import context as c
from nnbackend.kernels.cpu.program.context import numbers_of, share, vector
from nnbackend.kernels.cpu.program.views import WEIGHT_MULTIPLE, gradients, parameters, sums_of

#: Parameters that several loops go over one after the other: with their gradient and averages they
#: stay in the first-level cache.
AT_A_TIME = 1 << 10


@compiled
def look_at_gradient(f: Any, part: int, like: Any) -> None:
    """Whether this part's share of a gradient that is there already can be used; its square, if it
    will be clipped."""
    first, last = share(f[c.N_TRAINED], part, f[c.N_PARTS], WEIGHT_MULTIPLE)
    if last <= first:
        return
    g = gradients(f, first, last - first, like)
    if f[c.CLIPS]:
        sums = sums_of(f, part)
        sums[sums.size - 1] = square_sum(g)
        return
    quick, limit = rough_square_sum(g, cast(0.0, like)), numbers_of(f)[c.GRADIENT_LIMIT]
    if quick - quick != cast(0.0, like) and not all_below(g, cast(limit, like)):
        f[c.STATUS] = c.NOT_FINITE


@compiled
def use(
    f: Any, trains: int, start: int, g: Any, l1: float, l2: float, part: int, like: Any
) -> None:
    """What follows from the gradient of some parameters, which is there but for their penalties."""
    for low in range(0, g.size, AT_A_TIME):
        some = g[low : min(low + AT_A_TIME, g.size)]
        use_some(f, trains, start + low, some, l1, l2, part, like)


@compiled
def use_some(
    f: Any, trains: int, start: int, g: Any, l1: float, l2: float, part: int, like: Any
) -> None:
    """Add an L1 and L2 term of a few parameters to the part's sums and, where they are trained, to
    their gradient, which is then complete."""
    if l1 != 0.0 or l2 != 0.0:
        if f[c.PENALTIES_PER_ROW]:
            l1, l2 = l1 / f[c.ROWS], l2 / f[c.ROWS]
        w = parameters(f, start, g.size, like)
        sums_of(f, part)[c.TRACE_PENALTY] += penalty_value(w, l1, l2)
        if trains:
            add_penalty_gradient(w, cast(l1, like), cast(l2, like), g)
    if trains:
        finish(f, start, g, part, like)


@compiled
def finish(f: Any, start: int, g: Any, part: int, like: Any) -> None:
    """The gradient of some parameters is there: use it, or add its square for the clipping."""
    if f[c.CLIPS]:
        sums = sums_of(f, part)
        sums[sums.size - 1] += square_sum(g)
    elif f[c.TRAINS]:
        update_if_finite(f, start, g, like)


@compiled
def update_if_finite(f: Any, start: int, g: Any, like: Any) -> None:
    """One step of the optimizer, unless the gradient is not finite: then the run ends. The
    gradient is in the cache, so that looking at it costs little."""
    quick = rough_square_sum(g, cast(0.0, like))
    limit = cast(numbers_of(f)[c.GRADIENT_LIMIT], like)
    if quick - quick == cast(0.0, like) or all_below(g, limit):
        update(f, start, g, like)
    else:
        f[c.STATUS] = c.NOT_FINITE


@compiled
def update(f: Any, start: int, g: Any, like: Any) -> None:
    """One step of the optimizer for parameters with the gradient g, all decayed or none."""
    numbers, n = numbers_of(f), g.size
    w = parameters(f, start, n, like)
    empty = vector_at(0, 0, 0, like)
    slot_0 = vector(f[c.SLOT_0], f[c.N_TRAINED], start, n, like) if f[c.N_SLOTS] > 0 else empty
    slot_1 = vector(f[c.SLOT_1], f[c.N_TRAINED], start, n, like) if f[c.N_SLOTS] > 1 else empty
    update_step(
        f[c.UPDATE], numbers[c.MOMENTUM :], numbers[c.RATE], numbers[c.CORRECTED_RATE],
        numbers[c.CORRECTED_EPS], start < f[c.N_DECAYED], w, g, slot_0, slot_1, like,
    )  # fmt: skip


@compiled
def run_clipped_update(f: Any, part: int, like: Any) -> None:
    """Scale this part's share of the gradient to the allowed norm, then update."""
    square = 0.0
    for other in range(f[c.N_PARTS]):
        sums = sums_of(f, other)
        square += sums[sums.size - 1]
    if not square < math.inf:
        f[c.STATUS] = c.NOT_FINITE
        return
    norm, limit = square**0.5, numbers_of(f)[c.CLIP_NORM]
    factor = limit / norm if norm > limit else 1.0
    decayed, trained = f[c.N_DECAYED], f[c.N_TRAINED]
    for low, high in ((0, decayed), (decayed, trained)):
        first, last = share(high - low, part, f[c.N_PARTS], WEIGHT_MULTIPLE)
        if last > first:
            g = gradients(f, low + first, last - first, like)
            if factor != 1.0:
                scale(g, cast(factor, like))
            update_if_finite(f, low + first, g, like)
