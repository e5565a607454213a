"""Checks of the arrays passed to a model: shapes, types, finite values, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from nnbackend._checks import check_number, check_real, is_masked, real_array
from nnbackend._files import release_pages
from nnbackend._types import HostArray
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Array, DType, is_on_gpu
from nnbackend.errors import DataError, DTypeError, NotCompiledError, ShapeError, shown
from nnbackend.losses import Loss, LossFunction, function_target
from nnbackend.program.table import NO_LOSS, Program

ClassWeight = Mapping[int, float] | Literal["balanced"]

_SCAN_ELEMENTS = 1 << 20


def on_host(backend: Backend, values: Any) -> Any:
    """``values`` on the host, where targets and weights are checked; copied from a device."""
    there = is_on_gpu(values) or (backend.owns(values) and not isinstance(values, np.ndarray))
    return backend.to_numpy(backend.adopt(values)) if there else values


def checked(
    program: Program, x: Any, y: Any, weight: Any
) -> tuple[Any, HostArray, HostArray | None]:
    x = check_matrix(program.backend, x, program.n_inputs)
    y, weight = (on_host(program.backend, values) for values in (y, weight))
    target = check_target(program.loss, y, program.n_outputs, program.dtype)
    if len(target) != len(x):
        raise ShapeError(
            f"x and y must have as many rows; received {len(x)} rows of x and {len(target)} of y"
        )
    regression = any(s.kind == "regression" for s in program.statistics)
    if regression and target.shape != (len(x), program.n_outputs):
        raise ShapeError(
            f"the metrics mae, mse and r2 compare outputs of shape (rows, {program.n_outputs}) "
            f"with targets of the same shape; received {target.shape}"
        )
    check_finite(program.backend, x, program.dtype)
    check_categories(program, x)
    weight = check_weight(program, weight, len(target))
    _check_classes(program, target)
    return x, target, weight


def _check_classes(program: Program, target: HostArray) -> None:
    """Refuse targets that metrics would misread, where a loss function says nothing of classes."""
    if isinstance(program.loss, Loss):
        return
    thresholds = {s.threshold for s in program.statistics if s.kind != "regression"}
    if None in thresholds and target.ndim == 2 and target.shape[1] > 1:
        highest = (target == target.max(axis=1, keepdims=True)).sum(axis=1)
        # shares of classes may be equal
        wrong = np.flatnonzero((highest != 1) & (np.abs(target.sum(axis=1) - 1) > 1e-3))
        if len(wrong):
            raise DataError(
                f"metrics of classes take the largest target of a row as its class, and row "
                f"{wrong[0]} has {highest[wrong[0]]} of them, {shown(target[wrong[0]])}. For "
                f"outputs of yes and no say so, as in nn.metrics.Accuracy(threshold=0.5)"
            )
    if thresholds - {None} and target.ndim == 1 and program.n_outputs > 1:
        raise ShapeError(
            f"a metric with a threshold compares each of the {program.n_outputs} outputs with a "
            f"target of its own; received class numbers of shape {target.shape}"
        )


def check_matrix(backend: Backend, x: Any, n_inputs: int) -> Any:
    """``x`` as an (N, n_inputs) array of numbers, at least one row; copied only if needed."""
    if is_masked(x):
        raise DTypeError("x must not be a masked array; fill it with x.filled(value)")
    if hasattr(type(x), "toarray"):
        raise DTypeError("x must be a dense array; received a sparse matrix: pass x.toarray()")
    if not isinstance(x, np.ndarray):
        adopted = backend.adopt(x)
        x = real_array("x", x) if adopted is None else adopted
    check_real("x", x.dtype if isinstance(x, np.ndarray) else backend.dtype_of(x))
    if x.ndim != 2 or x.shape[1] != n_inputs:
        remedy = ""
        if x.ndim == 1:
            remedy = ". For one row use x[None, :], for one column x[:, None]"
        elif x.ndim > 2 and int(np.prod(x.shape[1:])) == n_inputs:
            remedy = ". Flatten it with x.reshape(len(x), -1)"
        raise ShapeError(
            f"the model takes x of shape (rows, {n_inputs}); received {tuple(x.shape)}{remedy}"
        )
    if len(x) == 0:
        raise DataError("x must have at least one row; received none")
    return x


def check_target(
    loss: Loss | LossFunction | None, y: Any, n_outputs: int, dtype: DType
) -> HostArray:
    """Targets in the form that backends take; see ``Loss.target``."""
    if loss is None:
        raise NotCompiledError(NO_LOSS)
    if isinstance(loss, Loss):
        return loss.target(y, n_outputs, dtype)
    return function_target(y, n_outputs, dtype)


def check_finite(backend: Backend, x: Any, dtype: DType) -> None:
    """Refuse NaN, infinity, and what would overflow ``dtype``, naming the first row and
    column; scans block by block."""
    if not isinstance(x, np.ndarray):
        if backend.dtype_of(x).kind == "f" and not backend.all_finite(x):
            check_finite(backend, backend.to_numpy(x), dtype)
        return
    if x.dtype.kind != "f":
        return
    step = max(1, _SCAN_ELEMENTS // x.shape[1])
    limit = np.finfo(dtype).max
    for start in range(0, len(x), step):
        block = x[start : start + step]
        # NaN wins every maximum and compares false
        highest, lowest = np.maximum.reduce(block, axis=None), np.minimum.reduce(block, axis=None)
        if not (highest <= limit and lowest >= -limit):
            row, column = (int(i) for i in np.argwhere(~(np.abs(block) <= limit))[0])
            raise DataError(
                f"x must be finite in {dtype}; received {block[row, column]} in row "
                f"{start + row}, column {column}. Remove or fill such rows first"
            )
        release_pages(x)


def check_categories(program: Program, x: Any) -> None:
    """Refuse what is no number of a category in a column that the model has vectors for, naming
    the first row. Arrays on a GPU are not looked through: there the loss becomes NaN."""
    if not isinstance(x, np.ndarray):
        return
    for column, count in enumerate(program.categories):
        # as the model rounds them
        nearest = np.floor(np.asarray(x[:, column], program.dtype) + program.dtype.type(0.5))
        wrong = np.flatnonzero(~((nearest >= 0) & (nearest < count)))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"column {column} of x holds numbers of categories, 0 ... {count - 1}, for an "
                f"Embedding; received {x[row, column]} in row {row}"
            )


def check_weight(program: Program, weight: Any, rows: int) -> HostArray | None:
    """Weights of the rows, (N,) of the model's dtype; None where all are one."""
    if weight is None:
        return None
    if not isinstance(program.loss, Loss):
        raise DataError(
            "a custom loss function sees no weights; leave sample_weight and class_weight "
            "out, or use a built-in loss"
        )
    values = real_array("weights", weight)
    if values.shape not in ((rows,), (rows, 1)):
        raise ShapeError(
            f"weights must be one number a row, shape ({rows},); received {values.shape} of "
            f"dtype {values.dtype}"
        )
    values = values.reshape(rows)
    wrong = np.argwhere(~(np.abs(values) <= np.finfo(program.dtype).max) | (values < 0))
    if len(wrong):
        row = int(wrong[0, 0])
        raise DataError(
            f"weights must be finite and at least 0; received {values[row]} in row {row}"
        )
    return values.astype(program.dtype)


def class_factors(program: Program, class_weight: ClassWeight, target: HostArray) -> HostArray:
    """The weight of each row's class, (N,) float64."""
    labels, classes = _labels(program, target)
    factors = np.ones(len(labels))
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise DataError(
                f"class_weight must be a dict from class to weight, or 'balanced'; received "
                f"{shown(class_weight)}"
            )
        counts = np.bincount(labels, minlength=classes)
        present = counts > 0
        table = np.ones(classes)
        table[present] = len(labels) / (present.sum() * counts[present])
        return np.asarray(table[labels])
    if not isinstance(class_weight, Mapping):
        raise DTypeError(
            f"class_weight must be a dict from class to weight, or 'balanced'; received "
            f"{type(class_weight).__name__}"
        )
    for label, value in class_weight.items():
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise DTypeError(f"class_weight's classes are whole numbers; received {shown(label)}")
        if not 0 <= label < classes:
            raise DataError(
                f"class_weight's classes lie in 0 ... {classes - 1}; received {shown(label)}"
            )
        factors[labels == label] = check_number(f"class_weight[{label}]", value, 0.0)
    if len(class_weight) == classes and not any(class_weight.values()):
        raise DataError("weights must not all be 0")
    return factors


def _labels(program: Program, target: HostArray) -> tuple[HostArray, int]:
    """The class of each row and the number of classes, where there are classes."""
    loss = program.loss
    if isinstance(loss, Loss) and loss.probabilities:
        if loss.takes_labels:
            labels = target if target.ndim == 1 else target.argmax(axis=1)
            return labels, program.n_outputs
        if program.n_outputs == 1 and np.isin(target, (0, 1)).all():
            return target[:, 0].astype(np.int64), 2
    raise DataError(
        "class_weight needs one class a row: a loss over classes, or one output with targets 0 "
        "and 1; use sample_weight instead"
    )


def as_predictions_input(backend: Backend, x: Any, n_inputs: int, dtype: DType) -> Array:
    """Rows for inference, on the device in the model's dtype. NaN is found afterwards, in the
    outputs, which is cheaper than a pass over x."""
    return backend.asarray(check_matrix(backend, x, n_inputs), dtype)
