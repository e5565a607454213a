"""Which rows are held out for validation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from nnbackend._checks import check_name
from nnbackend.errors import DataError

RowNumbers = np.ndarray[Any, np.dtype[np.int64]]
How = Literal["auto", "stratified", "random", "last"]
HOW = ("auto", "stratified", "random", "last")


def split_rows(
    n_rows: int, share: float, seed: int, how: How = "auto", labels: Any = None
) -> tuple[RowNumbers, RowNumbers]:
    """Numbers of the rows to train on and of those held out, each in rising order.

    Args:
        share: of all rows, to be held out.
        seed: decides which, together with the number of rows and the labels.
        how: "stratified" takes the same share of each class, "random" any rows, "last" the last
            rows, for data in order of time; "auto" is stratified where there are classes.
        labels: (N,) class of each row, or None.

    Raises:
        DataError: no row is left on one side; "stratified" without classes.
    """
    check_name("validation_rows", how, HOW)
    held_out = round(n_rows * share)
    if held_out == 0 or held_out == n_rows:
        raise DataError(f"validation_split={share:g} of {n_rows} rows leaves no rows on one side")
    if how == "stratified" and labels is None:
        raise DataError(
            "validation_rows='stratified' needs one class a row; this loss is for numbers: use "
            "'random' or 'last'"
        )
    if how == "last":
        rows = np.arange(n_rows)
        return rows[: n_rows - held_out], rows[n_rows - held_out :]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(3,))))
    order = generator.permutation(n_rows)
    if how == "random" or labels is None:
        chosen = order[:held_out]
    else:
        chosen = _of_each_class(order, np.asarray(labels), held_out)
    is_held_out = np.zeros(n_rows, bool)
    is_held_out[chosen] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _of_each_class(order: RowNumbers, labels: np.ndarray[Any, Any], held_out: int) -> RowNumbers:
    """So many rows, the first ones of each class in ``order``; one row of a class is left."""
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * (held_out / len(labels))
    takes = np.floor(exact).astype(np.int64)
    # the largest remainders get what is left
    rest = np.argsort(takes - exact, kind="stable")[: held_out - int(takes.sum())]
    takes[rest] += 1
    takes = np.minimum(takes, counts - 1)
    by_class = order[np.argsort(numbers.reshape(-1)[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    parts = [by_class[start : start + n] for start, n in zip(starts, takes, strict=True)]
    chosen = np.concatenate(parts)
    if len(chosen) == 0:
        raise DataError(
            f"no class of {len(classes)} has rows to spare for validation; use "
            f"validation_rows='random' or more rows"
        )
    return chosen


def labels_for_split(target: np.ndarray[Any, Any], takes_labels: bool) -> Any:
    """The class of each row, if targets are of one class each; else None."""
    if target.ndim == 1:
        return target if target.dtype.kind in "iu" else None
    if takes_labels:
        return target.argmax(axis=1)
    if target.shape[1] == 1 and ((target == 0) | (target == 1)).all():
        return target[:, 0]
    return None
