"""How a training step is cut into phases, and its products into tiles, so that the whole GPU is
busy: see ``kernels/cuda/phases.cu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product as combinations
from typing import NamedTuple

import numpy as np

from nnbackend.backends.cuda.kernels import LOSS_LANES, THREADS, TILES


class Time(NamedTuple):
    """Nanoseconds that a block takes for a tile on an H100: in any case, for each inner place, and
    where it updates weights."""

    fixed: float
    inner: float
    update: float


#: As measured.
TILE_TIME: Mapping[tuple[int, int], Time] = {
    (16, 8): Time(1400, 3.8, 1000), (16, 16): Time(1800, 4.4, 1000),
    (32, 32): Time(2200, 11.4, 1300), (64, 64): Time(3900, 32.6, 6000),
}  # fmt: skip
#: Likewise, how long blocks take to meet, and a block for losses of as many rows as it can take at
#: a time, rows of the next batch, and some parameters where gradients are added up; and for each of
#: their parts.
MEETING, LOSSES, FETCH, UPDATE, PART = 1000.0, 1200.0, 2500.0, 2500.0, 75.0
#: Into how many parts the rows of a batch may be cut for the gradients of weights, and how many
#: rows such a part has at least.
PARTS, FEWEST_ROWS = (1, 2, 4, 8, 16, 32), 64


class Layer(NamedTuple):
    """A dense layer: widths, and whether it has a bias and is trained."""

    inputs: int
    outputs: int
    has_bias: bool
    is_trained: bool


class Product(NamedTuple):
    """A product of a step. Its inner places are cut into ``parts``."""

    kind: str  #: "forward", "outputs" (with the loss), "below", "weights" or "fetch"
    layer: int
    rows: int
    columns: int
    inner: int
    parts: int = 1

    def units(self, tile: int) -> int:
        """Tiles of this size that it is cut into."""
        if self.kind == "fetch":
            return self.rows
        tall, wide = TILES[tile]
        return -(-self.rows // tall) * -(-self.columns // wide) * self.parts

    def time(self, tile: int) -> float:
        """Of a tile."""
        if self.kind == "fetch":
            return FETCH
        time = TILE_TIME[TILES[tile]]
        total = time.fixed + time.inner * self.inner / self.parts
        if self.kind == "outputs":
            total += LOSSES * -(-TILES[tile][0] * LOSS_LANES // THREADS)
        if self.kind == "weights" and self.parts == 1:
            total += time.update
        return total

    def tiles(self) -> list[int]:
        """Those that are possible: outputs need whole rows."""
        if self.kind == "fetch":
            return [0]
        whole = self.columns if self.kind == "outputs" else 0
        return [tile for tile, (_, wide) in enumerate(TILES) if wide >= whole]


class Cut(NamedTuple):
    """A product, and its tile's place in ``TILES``."""

    product: Product
    tile: int


class Plan(NamedTuple):
    """The products of each phase, forward and backward. With one part, the gradient of weights is
    in the phase behind that in which they were read last, and updates them at once; with more, a
    last phase adds up the parts."""

    forward: list[list[Cut]]
    backward: list[list[Cut]]
    parts: int
    time: float


def plan_of(layers: Sequence[Layer], rows: int, blocks: int, fetches: int = 0) -> Plan:
    """The quickest plan for batches of so many rows; a block can take the next batch's in so many
    units, besides what it does for the outputs."""
    possible = [parts for parts in PARTS if parts == 1 or rows // parts >= FEWEST_ROWS]
    plans = (_plan(tuple(layers), rows, blocks, fetches, parts) for parts in possible)
    return min(plans, key=lambda plan: plan.time)


def _plan(layers: tuple[Layer, ...], rows: int, blocks: int, fetches: int, parts: int) -> Plan:
    phases, time = [], 0.0
    forward = _forward(layers, rows)
    forward[-1].append(Product("fetch", 0, fetches, 0, 0))
    for products in (*forward, *_backward(layers, rows, parts)):
        cuts, taken = cut(tuple(products), blocks)
        phases.append(cuts)
        time += taken + MEETING
    if parts > 1:
        sizes = [layer.inputs * layer.outputs for layer in layers if layer.is_trained]
        rounds = -(-sum(-(-size // THREADS) for size in sizes) // blocks)
        time += rounds * (UPDATE + PART * parts) + MEETING
    depth = len(layers)
    return Plan(phases[:depth], phases[depth:], parts, time)


def _forward(layers: Sequence[Layer], rows: int) -> list[list[Product]]:
    found = [
        [Product("forward", i, rows, layer.outputs, layer.inputs)] for i, layer in enumerate(layers)
    ]
    if layers[-1].outputs <= max(wide for _, wide in TILES):
        found[-1] = [found[-1][0]._replace(kind="outputs")]
    return found


def _backward(layers: Sequence[Layer], rows: int, parts: int) -> list[list[Product]]:
    last, lowest = len(layers) - 1, min(i for i, x in enumerate(layers) if x.is_trained)

    def weights(i: int) -> list[Product]:
        layer = layers[i]
        if not layer.is_trained:
            return []
        tall = layer.inputs + layer.has_bias
        return [Product("weights", i, tall, layer.outputs, rows, parts)]

    below = {
        i: [Product("below", i, rows, layers[i].inputs, layers[i].outputs)]
        for i in range(lowest + 1, last + 1)
    }
    if parts > 1:
        return [[*below.get(i, []), *weights(i)] for i in range(last, lowest - 1, -1)]
    phases = [below.get(last, [])]
    phases += [[*below[i], *weights(i + 1)] for i in range(last - 1, lowest, -1)]
    above = weights(lowest + 1) if lowest < last else []
    return [*phases, [*above, *weights(lowest)]]


@lru_cache(maxsize=1024)
def cut(products: tuple[Product, ...], blocks: int) -> tuple[list[Cut], float]:
    """Products that are done side by side, the one with the longest tiles first, and the time that
    this takes."""
    best: tuple[list[Cut], float] = ([], np.inf)
    for tiles in combinations(*(product.tiles() for product in products)):
        cuts = [Cut(*pair) for pair in zip(products, tiles, strict=True)]
        cuts.sort(key=lambda c: -c.product.time(c.tile))
        times = [np.full(c.product.units(c.tile), c.product.time(c.tile)) for c in cuts]
        units = np.concatenate([*times, np.zeros(1)])
        # a block takes every so-many-th unit
        rounds = np.append(units, np.zeros(-len(units) % blocks)).reshape(-1, blocks)
        time = float(rounds.sum(axis=0).max())
        if time < best[1]:
            best = cuts, time
    return best
