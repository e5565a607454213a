"""What ranks make sure of before they work together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from nnbackend._checks import check_flag
from nnbackend._version import __version__
from nnbackend.data.shards import Shards
from nnbackend.data.sources import ArraySource, BatchSource, Source
from nnbackend.distributed.communicator import Communicator
from nnbackend.distributed.ranks import Ranks
from nnbackend.errors import DataError, DTypeError, shown
from nnbackend.executor.base import Data
from nnbackend.layers.base import Layer
from nnbackend.layers.standardize import Standardize
from nnbackend.losses import loss_name
from nnbackend.metrics import AnyMetric, metric_name
from nnbackend.program.table import Program


def join(comm: Communicator | None, sharded: bool = False, exact: bool = False) -> Ranks | None:
    """The ranks of a call; None if there is one alone, which works as without a communicator.

    Raises:
        DTypeError: ``comm`` is no communicator.
        DataError: ``exact`` or ``sharded`` without one; both.
    """
    sharded, exact = check_flag("sharded", sharded), check_flag("exact", exact)
    if comm is None:
        if sharded or exact:
            name = "sharded" if sharded else "exact"
            raise DataError(
                f"{name}=True is about ranks that train together; pass comm=nn.distributed.init()"
            )
        return None
    if not isinstance(comm, Communicator):
        raise DTypeError(
            f"comm must be what nn.distributed.init() returns, or a subclass of "
            f"nn.distributed.Communicator; received {shown(comm)}"
        )
    if sharded and exact:
        raise DataError(
            "exact=True gives the same bits for any number of ranks, which needs all rows on every "
            "rank; sharded=True says that each has its own"
        )
    return Ranks(comm, exact, sharded) if comm.size > 1 or exact else None


def check_alike(
    ranks: Ranks,
    call: str,
    program: Program,
    layers: Sequence[Layer],
    metrics: Sequence[AnyMetric],
    sources: Mapping[str, Source | None],
    more: Mapping[str, Any],
) -> None:
    """Refuse ranks that were called for something else, or with something else.

    Args:
        sources: by what they are called in a message.

    Raises:
        RankError: a rank, what differs, and both values.
        DataError: ``exact`` where not every rank can know all rows.
    """
    settings: dict[str, Any] = {"call": call, "exact": ranks.exact, "sharded": ranks.sharded}
    settings |= {"nnbackend": __version__, "numpy": np.__version__}
    settings |= {"backend": program.backend.name, "dtype": str(program.dtype)}
    for number, layer in enumerate(layers):
        settings |= {f"layer {number}{key}": value for key, value in _described(layer).items()}
    for name, source in sources.items():
        for key, value in _of_data(ranks, source).items():
            settings[f"{name}{key}"] = value
    optimizer = program.optimizer
    settings["loss"] = loss_name(program.loss)
    settings["optimizer"] = None if optimizer is None else repr(optimizer)
    settings["metrics"] = [metric_name(metric) for metric in metrics]
    ranks.check_alike({**settings, **more})


def _described(layer: Layer) -> dict[str, str]:
    """A layer, and each of its settings, where it tells them."""
    widths = ", ".join(str(w) for w in (layer.n_inputs, layer.n_outputs) if w is not None)
    found = {"": f"{type(layer).__name__}({widths})", "'s trainable": str(layer.trainable)}
    if layer.adapts:
        found["'s adapted"] = str(layer.adapted)
    with suppress(DTypeError, DataError):  # what cannot be saved does not say
        found |= {f"'s {name}": str(value) for name, value in layer.config().items()}
    return found


def _of_data(ranks: Ranks, source: Source | None) -> Mapping[str, Any]:
    if source is None:
        return {"rows": None}
    if not isinstance(source, ArraySource):
        if ranks.exact:
            raise DataError("exact=True works only with arrays, of which every rank has all rows")
        if isinstance(source.batches, Shards) and source.batches.size != (
            ranks.size if ranks.sharded else 1
        ):
            raise DataError(
                "Shards whose files the ranks share need sharded=True: pass comm=comm to "
                "nn.datasets.Shards and comm=comm, sharded=True to the model, or neither"
            )
        source.may_be_empty = ranks.sharded
        return {"batches": "an iterable"}
    known: dict[str, Any] = {
        "row width": int(source.x.shape[1]),
        "targets": [*source.target.shape[1:], source.target.dtype.kind],
        "sample weights": source.weight is not None,
    }
    if not ranks.sharded:
        known["rows"] = source.n_rows
        known["data"] = source.fingerprint()
    return known


def weights_of(program: Program) -> dict[str, str]:
    """What tells whether ranks have the same weights: their sum."""
    backend, storage = program.backend, program.storage
    total = backend.total(storage.parameters) + backend.total(storage.state)
    return {"weights that add up to": repr(float(backend.to_numpy(total)))}


def check_coupled(program: Program) -> None:
    """Refuse layers written in Python that use the whole batch, of which a rank has a part."""
    for layer in program.own_layers.values():
        if getattr(layer, "couples_rows", False):
            raise DataError(
                f"{type(layer).__name__} uses all rows of a batch, of which each rank has a part; "
                f"of layers that do, only BatchNorm trains on several ranks"
            )


def share_start(ranks: Ranks, program: Program) -> None:
    """Parameters, state and the optimizer's vectors are those of rank 0."""
    for array in program.changing_arrays():
        if array.shape[0]:
            ranks.comm.broadcast(array)


def adapt_together(ranks: Ranks, layer: Layer, x: Any) -> None:
    """Have a layer learn from the rows of all ranks, of which ``x`` are this one's."""
    if not isinstance(layer, Standardize):
        raise DataError(
            f"{type(layer).__name__} learns from all rows, and with sharded=True each rank has "
            f"some; call layer.adapt with rows that stand for all of them before fit"
        )
    count, mean, square = layer.statistics(x)
    parts = ranks.gather_blocks(np.stack([np.full(len(mean), float(count)), mean, square])[None])
    total = parts[:, 0].sum(axis=0)
    joined = (parts[:, 0] * parts[:, 1]).sum(axis=0) / total
    squares = (parts[:, 2] + parts[:, 0] * (parts[:, 1] - joined) ** 2).sum(axis=0)
    layer.set_statistics(int(total[0]), joined, squares)


class OwnRows(BatchSource):
    """This rank's rows in batches, as many of them on every rank: in an epoch of s steps, each of
    them takes an s-th part of what every rank has."""

    def __init__(
        self, program: Program, source: ArraySource, ranks: Ranks, batch_size: int,
        shuffle: bool, drop_last: bool, seed: int, epoch: int,
    ) -> None:  # fmt: skip
        super().__init__(program, (), None)
        self.source, self.shuffle = source, shuffle
        self.seed, self.epoch = (seed, ranks.rank), epoch
        counts = ranks.gather_objects(source.n_rows)
        self.total = sum(counts)
        self.steps = self.total // batch_size if drop_last else -(-self.total // batch_size)
        if not self.steps:
            raise DataError(
                f"drop_last leaves no batch: all ranks have {self.total} rows, fewer than "
                f"batch_size {batch_size}"
            )
        #: of each epoch: all own rows, or the share of them that whole batches take
        self.used = source.n_rows
        if drop_last:
            self.used = source.n_rows * self.steps * batch_size // self.total

    def check_passes(self, passes: int) -> None:
        return

    def blocks(self) -> Iterator[Data]:
        order = np.arange(self.source.n_rows)
        if self.shuffle:
            order = np.random.default_rng((*self.seed, self.epoch)).permutation(order)
        self.epoch += 1
        for step in range(self.steps):
            first, last = (self.used * k // self.steps for k in (step, step + 1))
            yield self.source.block(order[first:last])
