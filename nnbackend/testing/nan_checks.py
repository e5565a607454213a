"""Where NaN goes in, NaN comes out, and nowhere else: see ``conformance``."""

from __future__ import annotations

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.types import LINEAR, Array, LossFormula
from nnbackend.testing import oracle
from nnbackend.testing.case import Case


def nan_reaches_what_depends_on_it(case: Case) -> None:
    """One NaN, in one row and column of the batch."""
    backend, rows, width = case.backend, 37, 19
    row, column = (int(case.rng.integers(n)) for n in (rows, width))
    clean = case.normal(rows, width)
    x = clean.copy()
    x[row, column] = np.nan
    whole_row, whole_column = np.zeros((2, rows, width), bool)
    whole_row[row], whole_column[:, column] = True, True
    one = whole_row & whole_column
    gamma, beta = case.normal(width), case.normal(width)
    x_, gamma_, beta_ = case.put(x), case.put(gamma), case.put(beta)

    out = case.poisoned(rows, width)
    backend.standardize_forward(x_, beta_, gamma_, out)
    _expect(case, "standardize", out, one)

    out = case.poisoned(rows, 11)
    backend.dense_forward(x_, case.put(case.normal(width, 11)), None, LINEAR, out, None)
    _expect(case, "dense", out, whole_row[:, :11])
    dw, db, dx = case.poisoned(11, width), case.poisoned(width), case.poisoned(rows, 11)
    backend.dense_backward(
        x_, case.put(case.normal(rows, 11)), case.put(case.normal(11, width)), LINEAR, None,
        dw, db, dx, case.poisoned(rows, width),
    )  # fmt: skip
    _expect(case, "dense, dw", dw, whole_column[:11])
    _expect(case, "dense, db", db, whole_column[0])
    _expect(case, "dense, dx", dx, whole_row[:, :11])

    out, mask = case.poisoned(rows, width), case.poisoned(rows, width)
    backend.dropout_forward(x_, 0.0, 5, 7, out, mask)
    _expect(case, "dropout", out, one)

    mean, var = case.state(np.zeros(width)), case.state(np.ones(width))
    out = case.poisoned(rows, width)
    backend.batch_norm_inference(x_, gamma_, beta_, mean, var, 1e-3, out)
    _expect(case, "batch norm, inference", out, one)
    saved = case.poisoned(2, width)
    backend.batch_norm_forward(x_, gamma_, beta_, mean, var, 0.1, 1e-3, out, saved)
    _expect(case, "batch norm", out, whole_column)
    _expect(case, "batch norm, running mean", mean, whole_column[0])
    out = case.poisoned(rows, width)
    backend.layer_norm_forward(x_, gamma_, beta_, 1e-3, out, case.poisoned(2, rows))
    _expect(case, "layer norm", out, whole_row)
    case.inputs_unchanged()


def nan_reaches_losses_and_updates(case: Case) -> None:
    for formula in oracle.LOSSES:
        _of_a_loss(case, formula)
    size = 1003
    place = int(case.rng.integers(size))
    grad = case.normal(size)
    grad[place] = np.nan
    for rule, lr in oracle.STEPS:
        param = case.state(case.normal(size))
        slots = [case.state(np.zeros(size)) for _ in oracle.slots(rule, size)]
        scratch = case.poisoned(case.backend.step_scratch_size(size))
        case.backend.update(rule, param, case.put(grad), slots, lr, 0, scratch)
        _expect(case, f"update by {rule.name}", param, np.isnan(grad))
    clipped, value = case.state(grad), case.scalar()
    case.backend.clip_by_global_norm(clipped, 1.0)
    if not np.isnan(case.backend.to_numpy(clipped)[place]):
        raise AssertionError("clip_by_global_norm: NaN is lost")
    value[...] = 0.0
    case.backend.penalty(case.put(grad), 0.0, 0.1, None, value)
    if not np.isnan(case.backend.to_numpy(value)):
        raise AssertionError("penalty: NaN is lost")


def _of_a_loss(case: Case, formula: LossFormula) -> None:
    pred, target = oracle.loss_inputs(formula.name, 37, 5, False, case.rng)
    if target is None:
        return
    row, column = int(case.rng.integers(37)), int(case.rng.integers(5))
    pred = pred.astype(case.dtype)
    pred[row, column] = np.nan
    value, dpred = case.scalar(), case.poisoned(37, 5)
    target = case.put(target.astype(case.dtype))
    case.backend.loss(formula, case.put(pred), target, None, dpred, value)
    if not np.isnan(case.backend.to_numpy(value)):
        raise AssertionError(f"{formula.name}: the loss of NaN is {value}")
    found = np.isnan(case.backend.to_numpy(dpred))
    if not found[row, column] or np.delete(found, row, 0).any():
        raise AssertionError(f"{formula.name}: the gradient is NaN in other rows, or not in this")


def _expect(case: Case, what: str, received: Array, where: HostArray) -> None:
    found = np.isnan(case.backend.to_numpy(received))
    if not np.array_equal(found, where):
        raise AssertionError(f"{what}: NaN in {found.sum()} places; expected {where.sum()}")
