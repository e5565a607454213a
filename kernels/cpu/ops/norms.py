"""Batch and layer normalisation and standardisation, for one slice of the batch.

Formulas: ``nnbackend.backends.contract``. Batch statistics are gathered in float64, a part of the
batch at a time, and joined by the rule of T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances" (1979).
"""

from __future__ import annotations

import math
from typing import Any

from nnbackend.kernels.cpu.codegen.compile import compiled, loop
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.cpu.ops.vectors import add_to


@loop
def _fill(out: Any, value: Any) -> None:
    """out (n,) = value."""
    for j in range(out.size):
        out[j] = value


@loop
def _divide(total: Any, by: Any) -> None:
    """total (n,) /= by."""
    for j in range(total.size):
        total[j] /= by


@loop
def _add_square_distance(total: Any, row: Any, mean: Any) -> None:
    """total (N,) += (row - mean)^2; row and mean (N,)."""
    for j in range(total.size):
        distance = row[j] - mean[j]
        total[j] += distance * distance


@compiled
def batch_statistics(x: Any, mean: Any, square: Any) -> None:
    """Column means of x (B, N) and sums of squared distances from them, (N,) float64."""
    _fill(mean, 0.0)
    _fill(square, 0.0)
    for i in range(x.shape[0]):
        add_to(mean, x[i])
    _divide(mean, float(max(1, x.shape[0])))
    for i in range(x.shape[0]):
        _add_square_distance(square, x[i], mean)


@loop
def join_statistics(
    count: float, mean: Any, square: Any, more: float, mean2: Any, square2: Any
) -> None:
    """Join the statistics of ``more`` rows into those of ``count`` rows, in place."""
    whole = count + more
    for j in range(mean.size):
        distance = mean2[j] - mean[j]
        mean[j] += distance * (more / whole)
        square[j] += square2[j] + distance * distance * (count * more / whole)


@loop
def move_running(
    running_mean: Any, running_var: Any, mean: Any, square: Any, rows: float, momentum: float
) -> None:
    """running += momentum (batch value - running), the variance unbiased."""
    for j in range(mean.size):
        old_mean, old_var = running_mean[j], running_var[j]
        variance = square[j] / (rows - 1.0)
        running_mean[j] = cast(old_mean + momentum * (mean[j] - old_mean), old_mean)
        running_var[j] = cast(old_var + momentum * (variance - old_var), old_var)


@loop
def inverse_deviation(square: Any, rows: float, eps: float, out: Any) -> None:
    """out = 1 / sqrt(square / rows + eps)."""
    for j in range(out.size):
        out[j] = 1.0 / math.sqrt(square[j] / rows + eps)


@compiled
def end_statistics(
    mean: Any, square: Any, rows: float, momentum: float, eps: float, moves: bool,
    running_mean: Any, running_var: Any,
) -> None:  # fmt: skip
    """From sums of squared distances over ``rows`` rows to 1 / deviation, in place; the running
    values move before, if they are to."""
    if moves:
        move_running(running_mean, running_var, mean, square, rows, momentum)
    inverse_deviation(square, rows, eps, square)


@compiled
def batch_norm_inference(
    x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any, eps: float, inv_std: Any,
    out: Any,
) -> None:  # fmt: skip
    """out = gamma (x - running_mean) / sqrt(running_var + eps) + beta; inv_std (N,) float64 is
    overwritten."""
    inverse_deviation(running_var, 1.0, eps, inv_std)
    batch_normalise(x, running_mean, inv_std, gamma, beta, out)


@loop
def _normalise(x: Any, mean: Any, inv_std: Any, gamma: Any, beta: Any, out: Any) -> None:
    """A row: x, gamma, beta, out (N,); mean, inv_std (N,) float64."""
    for j in range(x.size):
        scale = gamma[j] * cast(inv_std[j], gamma[j])
        out[j] = (x[j] - cast(mean[j], gamma[j])) * scale + beta[j]


@compiled
def batch_normalise(x: Any, mean: Any, inv_std: Any, gamma: Any, beta: Any, out: Any) -> None:
    """out = gamma (x - mean) inv_std + beta for x (B, N); mean and inv_std (N,)."""
    for i in range(x.shape[0]):
        _normalise(x[i], mean, inv_std, gamma, beta, out[i])


@loop
def _add_gradients(dy: Any, x: Any, mean: Any, inv_std: Any, dgamma: Any, dbeta: Any) -> None:
    """A row's part: dy, x (N,); mean, inv_std, dgamma, dbeta (N,) float64."""
    for j in range(dy.size):
        dgamma[j] += dy[j] * ((x[j] - mean[j]) * inv_std[j])
        dbeta[j] += dy[j]


@compiled
def batch_norm_sums(dy: Any, x: Any, mean: Any, inv_std: Any, dgamma: Any, dbeta: Any) -> None:
    """dgamma and dbeta (N,) float64 of these rows."""
    _fill(dgamma, 0.0)
    _fill(dbeta, 0.0)
    for i in range(x.shape[0]):
        _add_gradients(dy[i], x[i], mean, inv_std, dgamma, dbeta)


@loop
def _batch_norm_dx(
    dy: Any,
    x: Any,
    mean: Any,
    inv_std: Any,
    gamma: Any,
    dgamma: Any,
    dbeta: Any,
    rows: float,
    dx: Any,
) -> None:
    """A row: dy, x, gamma, dx (N,); mean, inv_std, dgamma, dbeta (N,) float64."""
    for j in range(dx.size):
        n = (x[j] - mean[j]) * inv_std[j]
        value = gamma[j] * inv_std[j] * (dy[j] - dbeta[j] / rows - n * (dgamma[j] / rows))
        dx[j] = cast(value, dx[j])


@compiled
def batch_norm_data(
    dy: Any,
    x: Any,
    mean: Any,
    inv_std: Any,
    gamma: Any,
    dgamma: Any,
    dbeta: Any,
    rows: float,
    dx: Any,
) -> None:
    """dx of these rows, from the sums over all ``rows`` of the batch."""
    for i in range(dx.shape[0]):
        _batch_norm_dx(dy[i], x[i], mean, inv_std, gamma, dgamma, dbeta, rows, dx[i])


@loop
def store(source: Any, out: Any) -> None:
    """out = source, rounded to the type of out."""
    for j in range(out.size):
        out[j] = cast(source[j], out[j])


@loop
def _row_mean(x: Any) -> Any:
    total = cast(0.0, x[0])
    for j in range(x.size):
        total += x[j]
    return total / cast(x.size, x[0])


@loop
def _row_variance(x: Any, mean: Any) -> Any:
    """Mean of (x - mean)^2, x (N,)."""
    total = cast(0.0, x[0])
    for j in range(x.size):
        total += (x[j] - mean) * (x[j] - mean)
    return total / cast(x.size, x[0])


@loop
def _normalise_row(x: Any, mean: Any, inv_std: Any, gamma: Any, beta: Any, out: Any) -> None:
    """A row: x, gamma, beta, out (N,); mean and inv_std are numbers."""
    for j in range(x.size):
        out[j] = (x[j] - mean) * inv_std * gamma[j] + beta[j]


@compiled
def layer_norm_forward(
    x: Any, gamma: Any, beta: Any, eps: Any, out: Any, means: Any, inv_stds: Any
) -> None:
    """Each row normalised, then scaled and shifted; means and inv_stds (B,) if not empty."""
    for i in range(x.shape[0]):
        mean = _row_mean(x[i])
        inv_std = cast(1.0, eps) / math.sqrt(_row_variance(x[i], mean) + eps)
        _normalise_row(x[i], mean, inv_std, gamma, beta, out[i])
        if means.size:
            means[i] = mean
            inv_stds[i] = inv_std


@loop
def _layer_norm_dx(dy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any, dx: Any) -> None:
    """A row: dy, x, gamma, dx (N,); mean and inv_std are numbers."""
    sum_g, sum_gn = cast(0.0, mean), cast(0.0, mean)
    for j in range(x.size):
        g = dy[j] * gamma[j]
        sum_g += g
        sum_gn += g * ((x[j] - mean) * inv_std)
    width = cast(x.size, mean)
    mean_g, mean_gn = sum_g / width, sum_gn / width
    for j in range(x.size):
        n = (x[j] - mean) * inv_std
        dx[j] = inv_std * (dy[j] * gamma[j] - mean_g - n * mean_gn)


@compiled
def layer_norm_data(dy: Any, x: Any, gamma: Any, means: Any, inv_stds: Any, dx: Any) -> None:
    """dx of these rows."""
    for i in range(dx.shape[0]):
        _layer_norm_dx(dy[i], x[i], gamma, means[i], inv_stds[i], dx[i])


@loop
def _add_layer_gradients(dy: Any, x: Any, mean: Any, inv_std: Any, dgamma: Any, dbeta: Any) -> None:
    """A row's part: dy, x, dgamma, dbeta (n,); mean and inv_std are numbers."""
    for j in range(dgamma.size):
        dgamma[j] += dy[j] * ((x[j] - mean) * inv_std)
        dbeta[j] += dy[j]


@compiled
def layer_norm_parameters(
    dy: Any, x: Any, means: Any, inv_stds: Any, first: int, dgamma: Any, dbeta: Any
) -> None:
    """dgamma and dbeta of the columns from ``first``, over all rows."""
    last = first + dgamma.size
    _fill(dgamma, cast(0.0, dgamma[0]))
    _fill(dbeta, cast(0.0, dbeta[0]))
    for i in range(x.shape[0]):
        _add_layer_gradients(
            dy[i, first:last], x[i, first:last], means[i], inv_stds[i], dgamma, dbeta
        )


@loop
def _standardize(x: Any, mean: Any, scale: Any, out: Any) -> None:
    """A row: x, mean, scale, out (N,)."""
    for j in range(x.size):
        out[j] = (x[j] - mean[j]) * scale[j]


@compiled
def standardize_forward(x: Any, mean: Any, scale: Any, out: Any) -> None:
    """out = (x - mean) scale, by column."""
    for i in range(x.shape[0]):
        _standardize(x[i], mean, scale, out[i])


@loop
def _multiply(dy: Any, scale: Any, out: Any) -> None:
    """A row: dy, scale, out (N,)."""
    for j in range(dy.size):
        out[j] = dy[j] * scale[j]


@compiled
def standardize_backward(dy: Any, scale: Any, out: Any) -> None:
    """out = dy scale, by column."""
    for i in range(dy.shape[0]):
        _multiply(dy[i], scale, out[i])
