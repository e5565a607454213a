"""The sums behind metrics, for some rows of the batch; added to what is there, float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import compiled


@compiled
def largest(row: Any) -> int:
    """Place of the largest element, the first of equals; of a NaN, if there is one."""
    best = 0
    for j in range(1, row.size):
        if row[j] > row[best] or (row[j] != row[j] and row[best] == row[best]):
            best = j
    return best


@compiled
def _label(labels: Any, target: Any, i: int) -> int:
    """The class of row i, from labels (B,) or target (B, C)."""
    return int(labels[i]) if labels.size else largest(target[i])


@compiled
def _is_right(row: Any, label: int, top: int) -> bool:
    """Whether ``label`` is among the ``top`` largest of row (C,)."""
    if top == 1:
        return largest(row) == label
    own, before = row[label], 0
    for j in range(row.size):
        if row[j] > own or (row[j] == own and j < label):
            before += 1
    return before < top


@compiled
def count_correct(
    pred: Any, labels: Any, target: Any, weight: Any, by_threshold: bool, threshold: float,
    top: int, out: Any,
) -> None:  # fmt: skip
    """out (1,) += sum of w_i [row i is right]."""
    for i in range(pred.shape[0]):
        w = float(weight[i]) if weight.size else 1.0
        if by_threshold:
            agreed = 0
            for j in range(pred.shape[1]):
                agreed += (pred[i, j] > threshold) == (target[i, j] > 0.5)
            out[0] += w * (agreed / pred.shape[1])
        elif _is_right(pred[i], _label(labels, target, i), top):
            out[0] += w


@compiled
def confusion_counts(
    pred: Any, labels: Any, target: Any, weight: Any, by_threshold: bool, threshold: float, out: Any
) -> None:
    """out (3 C,) += weighted hits, predictions and occurrences of each class."""
    classes = pred.shape[1]
    for i in range(pred.shape[0]):
        w = float(weight[i]) if weight.size else 1.0
        if by_threshold:
            for j in range(classes):
                predicted, actual = pred[i, j] > threshold, target[i, j] > 0.5
                if predicted and actual:
                    out[j] += w
                if predicted:
                    out[classes + j] += w
                if actual:
                    out[2 * classes + j] += w
        else:
            guess, label = largest(pred[i]), _label(labels, target, i)
            if guess == label:
                out[guess] += w
            out[classes + guess] += w
            out[2 * classes + label] += w


@compiled
def regression_sums(pred: Any, target: Any, weight: Any, out: Any) -> None:
    """out (4 O,) += sums of w |e|, w e^2, w t, w t^2 per output."""
    outputs = pred.shape[1]
    for i in range(pred.shape[0]):
        w = float(weight[i]) if weight.size else 1.0
        for j in range(outputs):
            t = np.float64(target[i, j])  # float() would leave it in float32
            e = np.float64(pred[i, j]) - t
            out[j] += w * abs(e)
            out[outputs + j] += w * e * e
            out[2 * outputs + j] += w * t
            out[3 * outputs + j] += w * t * t
