"""Batch norms whose batch is shared by ranks: statistics of every rank's rows, joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnbackend.backends.types import Array
from nnbackend.distributed.ranks import Block, Ranks
from nnbackend.program.table import Program, Row

_FLOAT64 = np.dtype(np.float64)


class SharedBatchNorm:
    """A row with ``Op.BATCH_NORM`` over this rank's blocks of the batch.

    Each block's mean and variance are taken by the backend, then joined in float64 (Chan, Golub
    and LeVeque, 1983); the backward pass adds up the blocks' sums likewise.
    """

    def __init__(self, program: Program, row: Row, ranks: Ranks, out: Array, capacity: int) -> None:
        """``out`` (capacity, n_outputs) receives the outputs."""
        backend, width, dtype = program.backend, row.n_outputs, program.dtype
        self.backend, self.ranks, self.dtype, self.out = backend, ranks, dtype, out
        (self.gamma, self.beta), self.gradients, self.running = program.arrays[row.layer]
        self.momentum, self.eps = (float(f) for f in program.floats[row.layer][:2])
        self._saved = backend.zeros((2, width), dtype)
        self._unmoved = backend.zeros((2, width), dtype)
        self._mean_var = backend.zeros((2, width), dtype)
        self._affine = backend.zeros((2, width), dtype)
        self._correction = backend.zeros((capacity, width), dtype)
        self._rows = 0

    def forward(self, x: Array, blocks: Sequence[Block], rows: int) -> Array:
        """Outputs for this rank's rows x, whose ``blocks`` count from its first; the batch has
        so many ``rows``."""
        backend, out, width = self.backend, self.out, x.shape[1]
        own = np.zeros((len(blocks), 3, width))
        for k, (first, last) in enumerate(blocks):
            own[k, 0] = last - first
            if last - first == 1:
                own[k, 1], own[k, 2] = backend.to_numpy(x[first]), self.eps
                continue
            backend.batch_norm_forward(
                x[first:last], self.gamma, self.beta, self._unmoved[0], self._unmoved[1], 0.0,
                self.eps, out[first:last], self._saved,
            )  # fmt: skip
            mean, inv_std = backend.to_numpy(self._saved).astype(np.float64)
            own[k, 1], own[k, 2] = mean, inv_std**-2.0
        counts, means, spreads = self.ranks.gather_blocks(own).transpose(1, 0, 2)
        mean, spread = joined(counts / rows, means, spreads)
        self._rows = rows
        self._put(self._saved, mean, spread**-0.5)
        self._put(self._mean_var, mean, spread - self.eps)
        self._move(mean, spread - self.eps)
        for first, last in blocks:
            backend.batch_norm_inference(
                x[first:last], self.gamma, self.beta, self._mean_var[0], self._mean_var[1],
                self.eps, out[first:last],
            )  # fmt: skip
        return out[: len(x)]

    def _move(self, mean: Any, variance: Any) -> None:
        """Running statistics, with the unbiased variance."""
        values = (mean, variance * (self._rows / (self._rows - 1)))
        for running, value in zip(self.running, values, strict=True):
            before = self.backend.to_numpy(running).astype(np.float64)
            after = before + self.momentum * (value - before)
            if running is not None:
                running[...] = self.backend.asarray(after, self.dtype)

    def backward(
        self, x: Array, dy: Array, dx: Array | None, blocks: Sequence[Block]
    ) -> list[tuple[Any, Any]]:
        """``dx`` of this rank's rows; the gradients of gamma and beta by each block, float64."""
        backend, (dgamma, dbeta) = self.backend, self.gradients
        width, sums = x.shape[1], np.zeros((len(blocks), 2, x.shape[1]))
        for k, (first, last) in enumerate(blocks):
            backend.batch_norm_backward(
                dy[first:last], x[first:last], self.gamma, self._saved, dgamma, dbeta,
                None if dx is None else dx[first:last],
            )  # fmt: skip
            sums[k] = backend.to_numpy(dgamma), backend.to_numpy(dbeta)
        totals = self.ranks.add(sums) if dx is not None else np.zeros((2, width))
        if dx is not None:
            gamma = backend.to_numpy(self.gamma).astype(np.float64)
            slope = gamma * backend.to_numpy(self._saved)[1]
            for own, (first, last) in zip(sums, blocks, strict=True):
                # the backend took the mean over the block's rows: the rest is linear in x
                rest = slope * (own / (last - first) - totals / self._rows)
                self._put(self._affine, *rest)
                more = self._correction[: last - first]
                backend.batch_norm_inference(
                    x[first:last], self._affine[0], self._affine[1], self._mean_var[0],
                    self._mean_var[1], self.eps, more,
                )  # fmt: skip
                dx[first:last] += more
        return [(own[0], own[1]) for own in sums]

    def _put(self, places: Array, first: Any, second: Any) -> None:
        places[...] = self.backend.asarray(np.stack([first, second]), self.dtype)


def joined(shares: Any, means: Any, spreads: Any) -> tuple[Any, Any]:
    """Mean and spread (N,) of parts with these (k, N): shares of the rows, means, and variances
    with the same number added to all."""
    mean, spread = np.zeros(means.shape[1]), np.zeros(means.shape[1])
    for share, part in zip(shares, means, strict=True):
        mean += share * part
    for share, part, own in zip(shares, means, spreads, strict=True):
        spread += share * (own + (part - mean) ** 2)
    return mean, spread
