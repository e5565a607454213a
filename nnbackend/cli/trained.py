"""Model files, with the notes that ``nnbackend train`` leaves in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnbackend.data.preparation import Preparation
from nnbackend.errors import CheckpointError, shown
from nnbackend.model.loading import load
from nnbackend.model.sequential import Sequential


def load_trained(path: Path, backend: str | None = None) -> Sequential:
    """A model whose notes, where there are any, can be relied on.

    Raises:
        CheckpointError: the file cannot be read, or its notes are of another kind.
    """
    model = load(path, backend)
    info = model.info
    _check_names(path, info, "class_names", max(2, model.n_outputs))
    if info.get("preparation") is None:
        _check_names(path, info, "feature_names", model.n_inputs)
    else:
        _check_names(path, info, "feature_names")
        _check_preparation(path, model)
    target = info.get("target_name")
    if target is not None and not isinstance(target, str):
        raise _wrong(path, "target_name", "text", target)
    if not isinstance(info.get("settings", {}), dict):
        raise _wrong(path, "settings", "a dict", info["settings"])
    return model


def preparation_of(model: Sequential) -> Preparation | None:
    """What was done with the columns of the table that a model was trained on."""
    notes, features = model.info.get("preparation"), model.info.get("feature_names")
    if notes is not None:
        return Preparation.from_plain(notes)
    return None if features is None else Preparation.of_numbers(features)


def _check_preparation(path: Path, model: Sequential) -> None:
    notes = model.info["preparation"]
    try:
        plan = preparation_of(model)
        width = 0 if plan is None else sum(column.width for column in plan.used)
    except (KeyError, TypeError, ValueError) as error:
        rule = f"what was done with the columns ({type(error).__name__}: {error})"
        raise _wrong(path, "preparation", rule, notes) from error
    if width != model.n_inputs:
        raise _wrong(path, "preparation", f"of columns for {model.n_inputs} inputs", notes)


def _check_names(path: Path, info: dict[str, Any], key: str, count: int | None = None) -> None:
    names = info.get(key)
    if names is None:
        return
    texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not texts or count not in (None, len(names)):
        raise _wrong(path, key, f"a list of {'' if count is None else f'{count} '}names", names)


def _wrong(path: Path, key: str, rule: str, found: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: the note info[{key!r}] must be {rule} for the command line; it is {shown(found)}"
    )
