"""Model files: plain tensors in safetensors, everything else in one JSON metadata entry.

Keys: ``layers.{i}.{name}`` and ``optimizer.{slot}.layers.{i}.{name}``; curves of many epochs are
``history.curves.{name}`` and ``history.seconds``. No pickle, no code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnbackend._checks import check_path
from nnbackend._files import write_atomically
from nnbackend._types import HostArrays, PathLike
from nnbackend.backends.types import DType
from nnbackend.errors import CheckpointError, DataError, DTypeError, OutOfMemoryError
from nnbackend.layers.base import Layer
from nnbackend.losses import Loss, loss_name
from nnbackend.metrics import Metric, ScoreMetric, metric_name
from nnbackend.model.notes import to_json
from nnbackend.model.stack import LayerStack

#: Files without curves of many epochs have version 1.
FORMAT_VERSION = 2
#: Curves of more epochs are tensors: the metadata of a safetensors file may not be large.
JSON_EPOCHS = 10_000
METADATA_KEY = "nnbackend"


def save_model(model: LayerStack, path: PathLike) -> None:
    """Write ``model`` to ``path``; see ``Sequential.save``."""
    import json

    from safetensors.numpy import save

    path = check_path("path", path)
    tensors: HostArrays = model.arrays()
    if model.is_compiled:
        for key, value in (model.optimizer_state() | model.resting).items():
            tensors[f"optimizer.{key}"] = value
    history = {"curves": model.history.to_dict(), "seconds": model.history.seconds}
    is_long = model.history.epochs > JSON_EPOCHS
    if is_long:
        for name, curve in model.history.items():
            tensors[f"history.curves.{name}"] = np.array(curve, np.float64)
        tensors["history.seconds"] = np.array(model.history.seconds, np.float64)
        history = {"curves": {name: [] for name in model.history}, "seconds": []}
    metadata = {
        "format_version": FORMAT_VERSION if is_long else 1,
        "config": _config(model),
        "seed": model.seed,
        "step": model.step,
        "epoch": model.epoch,
        "orders": asdict(model.training.orders),
        "history": history,
        "callbacks": _callback_states(model, tensors),
    }
    for key, array in tensors.items():
        finite = key.startswith(("callbacks.", "history.")) or np.isfinite(array).all()
        if not finite:
            raise DataError(
                f"{key} holds NaN or infinity, so the model is not saved: it could not be loaded. "
                f"Load the last file, or train again from finite numbers"
            )
    # safetensors ends the process where it has no memory for the file and its parts
    np.empty(2 * sum(array.nbytes for array in tensors.values()), np.uint8)
    try:
        metadata["info"] = to_json(model.info)
        text = json.dumps(metadata, default=plain)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, DTypeError):
            raise
        raise DataError(f"info cannot be written to a model file as JSON: {error}") from error
    try:
        content = save(tensors, {METADATA_KEY: text})
    except (MemoryError, OSError):
        raise
    except Exception as error:  # its own class is no part of its interface
        raise DataError(f"the model cannot be written as a safetensors file: {error}") from error
    write_atomically(path, content)


def plain(value: Any) -> Any:
    """NumPy numbers as Python numbers, for JSON."""
    if isinstance(value, np.generic) and not isinstance(value, np.longdouble):
        return value.item()
    raise DTypeError(
        f"a model file holds numbers, text, lists and dicts; received {type(value).__name__}"
    )


def _callback_states(model: LayerStack, tensors: HostArrays) -> list[dict[str, Any]]:
    """States of the callbacks; their arrays go into ``tensors``."""
    states = [{"type": type(c).__name__, **c.state()} for c in model.callbacks]
    states = states or [dict(state) for state in model.callback_states]
    for number, state in enumerate(states):
        for name, value in list(state.items()):
            if isinstance(value, np.ndarray):
                tensors[f"callbacks.{number}.{name}"] = state.pop(name)
    return states


def _config(model: LayerStack) -> dict[str, Any]:
    config: dict[str, Any] = {
        "dtype": str(model.dtype),
        "precision": model.precision,
        "layers": [{"type": type(layer).__name__, **layer.config()} for layer in model.layers],
    }
    loss = model.loss
    if loss is not None:
        config["loss"] = loss.config() if isinstance(loss, Loss) else {"function": loss_name(loss)}
    if model.is_compiled:
        config["optimizer"] = model.optimizer.config()
        if model.penalties_per_row:
            config["penalties_per_row"] = True
        config["metrics"] = [
            m.config() if isinstance(m, Metric | ScoreMetric) else {"function": metric_name(m)}
            for m in model.metrics
        ]
    return config


def load_weights(model: LayerStack, path: PathLike) -> None:
    """Read parameters and layer state into ``model``; see ``Sequential.load_weights``."""
    tensors, _ = read_file(path)
    fill(model, tensors, path)


def read_file(path: PathLike) -> tuple[HostArrays, dict[str, Any]]:
    """HostArrays and nnbackend's metadata of a model file, the version checked."""
    from safetensors import safe_open

    name = check_path("path", path)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no model file {name}")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from error
    try:
        with safe_open(name, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            metadata = _read_metadata(name, text)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except CheckpointError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"there is not enough memory to read {name}") from error
    except Exception as error:  # dtypes of a newer safetensors come as AttributeError, for example
        raise CheckpointError(
            f"{name} is not a whole safetensors file ({error}); it may be truncated or of "
            f"a different kind"
        ) from error
    return tensors, metadata


def _read_metadata(name: str, text: str | None) -> dict[str, Any]:
    """The metadata, if its version can be read."""
    import json

    if text is None:
        raise CheckpointError(
            f"{name} is a safetensors file, but was not written by nnbackend: its metadata has "
            f"no entry {METADATA_KEY!r}"
        )
    try:
        metadata: dict[str, Any] = json.loads(text)
        version = int(metadata["format_version"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{name} has unreadable metadata: {reason}") from error
    if not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has format version {version}; this nnbackend reads up to {FORMAT_VERSION}. "
            f"Update it: pip install --upgrade nnbackend"
        )
    return metadata


def fill(model: LayerStack, tensors: HostArrays, path: PathLike) -> None:
    """Copy ``layers.*`` tensors into the model, all of them or none."""
    for (layer, name), value in matched(model.layers, model.dtype, tensors, path):
        layer.assign(name, value)


#: Values of a layer that has not seen data yet, which a file may describe without holding them.
_MOST_UNSEEN = 1 << 20


def matched(
    layers: Sequence[Layer], dtype: DType, tensors: HostArrays, path: PathLike
) -> list[tuple[tuple[Layer, str], np.ndarray[Any, Any]]]:
    """Each array of the layers with its values from a file. Compares names and sizes first, so that
    nothing is built for layers that the file has no values for."""
    wanted = {
        f"layers.{number}.{name}": (layer, name)
        for number, layer in enumerate(layers)
        for name in layer.specs
    }
    given = {key: value for key, value in tensors.items() if key.startswith("layers.")}
    optional = {key for key, (layer, _) in wanted.items() if layer.adapts}
    for key in (wanted.keys() - given.keys() - optional) | (given.keys() - wanted.keys()):
        where = "the model, not the file" if key in wanted else "the file, not the model"
        raise CheckpointError(
            f"{os.fspath(path)} holds a model of another architecture: {key} is in {where}"
        )
    most = max(_MOST_UNSEEN, *(value.size for value in tensors.values()), 0)
    for key in optional - given.keys():
        layer, name = wanted[key]
        if math.prod(layer.specs[name].shape) > most:
            raise CheckpointError(
                f"{os.fspath(path)} describes {key} of shape {layer.specs[name].shape}, and does "
                f"not hold it"
            )
    for key, value in given.items():
        layer, name = wanted[key]
        if value.shape != layer.specs[name].shape:
            raise CheckpointError(
                f"{os.fspath(path)} holds a model of another architecture: {key} has shape "
                f"{value.shape} there and {layer.specs[name].shape} in the model"
            )
        with np.errstate(over="ignore"):
            finite = value.dtype.kind == "f" and np.isfinite(value.astype(dtype)).all()
        if not finite:
            raise CheckpointError(
                f"{os.fspath(path)}: {key} holds values that are not finite numbers"
            )
    return [(wanted[key], value) for key, value in given.items()]
