"""Losses and the sums behind metrics, for some rows of the batch.

Formulas: ``Backend.loss``. Each loss returns the sum of w_i l_i over its rows, float64,
and leaves ``scale`` w_i times the derivative of l_i in dpred. Labels, targets and weights that are
not there are empty arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.codes import LOSSES
from nnbackend.kernels.cpu.codegen.compile import NARROW, compiled, formula, inlined, loop
from nnbackend.kernels.cpu.codegen.math import cast, exp, log, log1p
from nnbackend.kernels.cpu.ops.activations import (
    at_least,
    at_most,
    exponentials,
    row_maximum,
    sum_of,
)
from nnbackend.kernels.cpu.ops.vectors import inner
from nnbackend.kernels.cpu.ops.vectors import scale as multiply_by

SOFTMAX_CE, CATEGORICAL_CE = (
    LOSSES["softmax_cross_entropy"].code,
    LOSSES["categorical_cross_entropy"].code,
)
_SUMS = tuple(kind.code for kind in LOSSES.values() if not kind.averages)

#: Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm is taken.
CLIP = 1e-7


@loop
def _subtract(row: Any, by: Any, out: Any) -> None:
    """out (n,) = row (n,) - by."""
    for j in range(out.size):
        out[j] = row[j] - by


@loop
def _scale_and_subtract(row: Any, factor: Any, target: Any, target_factor: Any) -> None:
    """row (n,) = row factor - target target_factor; target (n,)."""
    for j in range(row.size):
        row[j] = row[j] * factor - target[j] * target_factor


@loop
def _shift_narrow(pred: Any, labels: Any, weight: Any, dpred: Any) -> float:
    """dpred = pred - max of its row; minus the weighted sum of the labels' own."""
    loss = 0.0
    for i in range(pred.shape[0]):
        largest, wrong = pred[i, 0], pred[i, 0] != pred[i, 0]
        for j in range(1, pred.shape[1]):
            largest = pred[i, j] if pred[i, j] > largest else largest
            wrong = wrong or pred[i, j] != pred[i, j]
        largest = cast(np.nan, largest) if wrong else largest
        for j in range(pred.shape[1]):
            dpred[i, j] = pred[i, j] - largest
        loss -= dpred[i, labels[i]] * (weight[i] if weight.size else cast(1.0, largest))
    return loss


@loop
def _normalise_narrow(labels: Any, weight: Any, scale: float, dpred: Any) -> float:
    """From exponentials to the gradient; the weighted sum of log(sum of the row)."""
    loss, product = 0.0, cast(1.0, dpred[0, 0])
    for i in range(dpred.shape[0]):
        total = cast(0.0, dpred[i, 0])
        for j in range(dpred.shape[1]):
            total += dpred[i, j]
        w = float(weight[i]) if weight.size else 1.0
        own = cast(w * scale, total)
        if weight.size:
            loss += w * log(total)
        else:
            # one logarithm for sixteen rows: a total is at most NARROW, their product 2^64
            product *= total
            if i % 16 == 15:
                loss += log(product)
                product = cast(1.0, product)
        factor = own / total
        for j in range(dpred.shape[1]):
            dpred[i, j] *= factor
        dpred[i, labels[i]] -= own
    return loss + log(product)


@compiled
def softmax_cross_entropy(
    pred: Any, labels: Any, target: Any, weight: Any, scale: float, dpred: Any
) -> float:
    """pred, dpred (B, C); labels (B,) int32 or target (B, C), weight (B,): empty if not there."""
    if labels.size and pred.shape[1] <= NARROW:
        loss = _shift_narrow(pred, labels, weight, dpred)
        exponentials(dpred.reshape(dpred.size))
        return loss + _normalise_narrow(labels, weight, scale, dpred)
    loss = 0.0
    for i in range(pred.shape[0]):
        row = dpred[i]
        _subtract(pred[i], row_maximum(pred[i]), row)
        shifted = row[labels[i]] if labels.size else inner(target[i], row)
        loss -= shifted * (weight[i] if weight.size else cast(1.0, shifted))
    exponentials(dpred.reshape(dpred.size))
    for i in range(pred.shape[0]):
        row = dpred[i]
        total = sum_of(row)
        w = float(weight[i]) if weight.size else 1.0
        own = cast(w * scale, total)
        if labels.size:
            loss += w * log(total)
            multiply_by(row, own / total)
            row[labels[i]] -= own
        else:
            share = sum_of(target[i])
            loss += w * (share * log(total))
            _scale_and_subtract(row, own * (share / total), target[i], own)
    return loss


@formula
def clip_probability(p: Any) -> Any:
    """p within [CLIP, 1 - CLIP]."""
    return at_most(at_least(p, CLIP), 1.0 - CLIP)


@loop
def _categorical_row(p: Any, target: Any, factor: Any, out: Any) -> Any:
    """The loss of a row p (C,) with target (C,); its derivative times ``factor`` into out (C,)."""
    total = cast(0.0, p[0])
    for j in range(p.size):
        clipped = clip_probability(p[j])
        total -= target[j] * log(clipped)
        out[j] = -target[j] / clipped * factor
    return total


@compiled
def categorical_cross_entropy(
    pred: Any, labels: Any, target: Any, weight: Any, scale: float, dpred: Any
) -> float:
    """Arguments: see softmax_cross_entropy."""
    loss = 0.0
    for i in range(pred.shape[0]):
        row = dpred[i]
        w = float(weight[i]) if weight.size else 1.0
        own = cast(w * scale, row[0])
        if labels.size:
            row[:] = cast(0.0, own)
            p = clip_probability(pred[i, labels[i]])
            row[labels[i]] = -own / p
            loss -= w * log(p)
        else:
            loss += w * _categorical_row(pred[i], target[i], own, row)
    return loss


@formula
def _sigmoid_value(z: Any, t: Any, _: Any) -> Any:
    return at_least(z, 0.0) - z * t + log1p(exp(-abs(z)))


@formula
def _sigmoid_slope(z: Any, t: Any, _: Any) -> Any:
    one = cast(1.0, z)
    return one / (one + exp(-z)) - t


@formula
def _binary_value(p: Any, t: Any, _: Any) -> Any:
    one, p = cast(1.0, p), clip_probability(p)
    return -(t * log(p) + (one - t) * log(one - p))


@formula
def _binary_slope(p: Any, t: Any, _: Any) -> Any:
    one, p = cast(1.0, p), clip_probability(p)
    return (one - t) / (one - p) - t / p


@formula
def _squared_value(p: Any, t: Any, _: Any) -> Any:
    return (p - t) * (p - t)


@formula
def _squared_slope(p: Any, t: Any, _: Any) -> Any:
    return (p - t) * cast(2.0, p)


@formula
def _absolute_value(p: Any, t: Any, _: Any) -> Any:
    return abs(p - t)


@formula
def _absolute_slope(p: Any, t: Any, _: Any) -> Any:
    e = p - t
    sign = cast(1.0, p) if e > 0 else cast(-1.0, p)
    return sign if e > 0 or e < 0 else e


@formula
def _huber_near(p: Any, t: Any, delta: Any) -> Any:
    e = p - t
    above = delta if e > delta else e
    return -delta if above < -delta else above


@formula
def _huber_value(p: Any, t: Any, delta: Any) -> Any:
    near = _huber_near(p, t, delta)
    return near * ((p - t) - near * cast(0.5, p))


@formula
def _poisson_value(p: Any, t: Any, _: Any) -> Any:
    p = at_least(p, CLIP)
    return p - t * log(p)


@formula
def _poisson_slope(p: Any, t: Any, _: Any) -> Any:
    return cast(1.0, p) - t / at_least(p, CLIP)


#: Losses that are sums over outputs: the formulas (p, t, parameter) of an output's term and of its
#: derivative.
FORMULAS: dict[str, tuple[Any, Any]] = {
    "sigmoid_cross_entropy": (_sigmoid_value, _sigmoid_slope),
    "binary_cross_entropy": (_binary_value, _binary_slope),
    "mean_absolute_error": (_absolute_value, _absolute_slope),
    "huber": (_huber_value, _huber_near),
    "poisson": (_poisson_value, _poisson_slope),
    "mean_squared_error": (_squared_value, _squared_slope),
    "sum_squared_error": (_squared_value, _squared_slope),
}


def _output_loss(code: int, own_value: Any, slope: Any, others: Any) -> Any:
    """Where a loss is ``code``, its sum over outputs, for flat arrays of one weight, and its
    derivative times ``factor``; else what ``others`` do."""

    @loop
    def run(pred: Any, target: Any, parameter: Any, factor: Any, dpred: Any) -> float:
        total = 0.0
        for j in range(dpred.size):
            total += own_value(pred[j], target[j], parameter)
            dpred[j] = slope(pred[j], target[j], parameter) * factor
        return total

    @compiled
    def choose(
        asked: int, pred: Any, target: Any, parameter: Any, factor: Any, dpred: Any
    ) -> float:
        if asked == code:
            return run(pred, target, parameter, factor, dpred)
        return others(asked, pred, target, parameter, factor, dpred)

    return choose


@compiled
def _no_loss(asked: int, pred: Any, target: Any, parameter: Any, factor: Any, dpred: Any) -> float:
    """For a code that is none of these."""
    return np.nan


_output_losses = _no_loss
for _name, _pair in reversed(FORMULAS.items()):
    _output_losses = _output_loss(LOSSES[_name].code, *_pair, _output_losses)


@inlined
def averages(code: int) -> bool:
    """Whether the loss is a mean over the rows' weights, not a sum."""
    return code not in _SUMS


@compiled
def loss_rows(
    code: int,
    parameter: Any,
    pred: Any,
    labels: Any,
    target: Any,
    weight: Any,
    scale: float,
    dpred: Any,
) -> float:
    """Sum of w_i l_i over these rows, and the gradient times ``scale`` in dpred (B, O)."""
    if code == SOFTMAX_CE:
        return softmax_cross_entropy(pred, labels, target, weight, scale, dpred)
    if code == CATEGORICAL_CE:
        return categorical_cross_entropy(pred, labels, target, weight, scale, dpred)
    outputs = float(pred.shape[1]) if averages(code) else 1.0
    scale /= outputs
    if not weight.size:
        size, factor = dpred.size, cast(scale, dpred[0, 0])
        flat = dpred.reshape(size)
        total = _output_losses(
            code, pred.reshape(size), target.reshape(size), parameter, factor, flat
        )
        return total / outputs
    total = 0.0
    for i in range(pred.shape[0]):
        factor = cast(weight[i] * scale, dpred[0, 0])
        value = _output_losses(code, pred[i], target[i], parameter, factor, dpred[i])
        total += weight[i] * value
    return total / outputs
