"""Models from files that ``Sequential.save`` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnbackend._checks import check_dtype, check_flag, check_mapping, check_values
from nnbackend._types import HostArrays, PathLike
from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.errors import CheckpointError, DataError, DTypeError, OutOfMemoryError, raise_as_ours
from nnbackend.layers import LAYERS
from nnbackend.layers.base import Layer
from nnbackend.metrics import resolve_metric
from nnbackend.model.ending import fitted
from nnbackend.model.notes import from_json
from nnbackend.model.sequential import Sequential
from nnbackend.model.serialization import fill, matched, read_file
from nnbackend.schedules import schedule_from_config
from nnbackend.training.history import History
from nnbackend.training.orders import Orders


def load(
    path: PathLike,
    backend: str | Backend | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
) -> Sequential:
    """Read a model that ``save`` wrote, ready to predict or to train further.

    Args:
        path: the file.
        backend: where to run it; None takes the current backend.
        custom_objects: custom layers, losses and metrics by name, if the model has any.
        compile: False leaves out loss, metrics, optimizer and callbacks, for inference: functions
            of your own are not needed then.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, not safetensors, not an nnbackend model, or has a
            newer format version.
    """
    compile = check_flag("compile", compile)
    backend = get_backend(backend)
    tensors, metadata = read_file(path)
    own = {} if custom_objects is None else check_mapping("custom_objects", custom_objects)
    try:
        return _built(path, tensors, metadata, own, backend, compile)
    except (CheckpointError, OutOfMemoryError):
        raise
    except MemoryError as error:
        raise_as_ours(error)
    except Exception as error:
        raise CheckpointError(
            f"{os.fspath(path)} does not describe a model that this version can build: "
            f"{type(error).__name__}: {error}"
        ) from error


def _built(
    path: PathLike,
    tensors: HostArrays,
    metadata: dict[str, Any],
    own: Mapping[str, Any],
    backend: Backend,
    compile: bool,
) -> Sequential:
    config = metadata["config"]
    compiles = compile and "optimizer" in config
    layers = [_layer(dict(entry), own) for entry in config["layers"]]
    dtype = check_dtype(config["dtype"])
    matched(layers, dtype, tensors, path)
    model = Sequential(layers, metadata["seed"], config["dtype"], backend)
    model.keep_precision(config.get("precision", "fp32"))
    if compiles:
        loss = _own_or(config["loss"], own) if "loss" in config else None
        metrics = [resolve_metric(_own_or(entry, own)) for entry in config["metrics"]]
        model.compile(
            loss,
            _own_optimizer(config["optimizer"], own),
            # older files leave a threshold of 0.5 out
            [fitted(metric, loss, layers, usual=0.5) for metric in metrics],
            penalties_per_row=config.get("penalties_per_row", False),
        )
    fill(model, tensors, path)
    if compiles:
        prefix = "optimizer."
        slots = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        missing = model.optimizer_state().keys() - slots.keys()
        if missing:
            raise CheckpointError(f"{os.fspath(path)} lacks {prefix}{min(missing)}")
        model.resting = {
            key: check_values(f"optimizer state {key}", slots.pop(key), shape, model.dtype)
            for key, shape in model.program.resting_shapes().items()
            if key in slots
        }
        model.set_optimizer_state(slots)
    state = model.training
    state.step, state.epoch = (_count(name, metadata[name]) for name in ("step", "epoch"))
    key, block = (metadata["orders"][name] for name in ("key", "block"))
    state.orders = Orders(_count("key", key, 1 << 128), _count("block", block))
    state.history = _history(metadata["history"], tensors)
    model.info = from_json(metadata["info"])
    if not isinstance(model.info, dict):
        raise DTypeError("info must be a dict")
    if compile:
        model.callback_states = _load_callback_states(metadata["callbacks"], tensors)
    return model


def _count(name: str, value: Any, end: int = 1 << 62) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise DataError(f"{name} must be a count; it is {str(value)[:40]}")
    return value


def _history(found: Mapping[str, Any], tensors: HostArrays) -> History:
    """Curves and seconds, as numbers of one length."""
    curves = {str(name): _numbers(values) for name, values in dict(found["curves"]).items()}
    long, prefix = {k: v for k, v in tensors.items() if k.startswith("history.")}, "history.curves."
    for key, values in long.items():
        if values.dtype != np.float64 or values.ndim != 1:
            raise DTypeError(f"{key} must hold numbers of float64 in one row")
        if key.startswith(prefix):
            curves[key.removeprefix(prefix)] = values.tolist()
    history = History(curves)
    seconds = long.get("history.seconds")
    history.seconds = _numbers(found["seconds"]) if seconds is None else seconds.tolist()
    if {len(values) for values in (*curves.values(), history.seconds)} - {history.epochs}:
        raise DataError("the curves of a history must be of one length")
    return history


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or any(type(v) not in (int, float) for v in values):
        raise DTypeError("a curve must be a list of numbers")
    return [float(v) for v in values]


def _load_callback_states(states: Any, tensors: HostArrays) -> list[dict[str, Any]]:
    if not isinstance(states, list) or not all(isinstance(s, dict) for s in states):
        raise DTypeError("callbacks must be a list of states")
    for state in states:
        if not isinstance(state.get("type"), str):
            raise DTypeError("a callback's state must name its type")
    for key, value in tensors.items():
        if key.startswith("callbacks."):
            _, number, name = key.split(".", 2)
            if not (number.isascii() and number.isdecimal() and int(number) < len(states)):
                raise DataError(f"there is no callback for {key}")
            states[int(number)][name] = value
    return states


def _layer(config: dict[str, Any], own: Mapping[str, Any]) -> Layer:
    kind = config.pop("type")
    made = own.get(kind) or LAYERS.get(kind)
    if made is None:
        raise CheckpointError(
            f"the model has a layer {kind!r} that nnbackend does not know; pass it as "
            f"nn.load(path, custom_objects={{{kind!r}: {kind}}})"
        )
    layer = made(**config)
    if not isinstance(layer, Layer):
        raise CheckpointError(f"custom_objects[{kind!r}] must be a subclass of nn.Layer")
    return layer


def _own_or(config: dict[str, Any], own: Mapping[str, Any]) -> Any:
    """A built-in's configuration, or the user's own function or object that it names."""
    if "function" not in config:
        settings = dict(config)
        name = settings.pop("name", None)
        return own[name](**settings) if name in own else config
    name = config["function"]
    if name not in own:
        raise CheckpointError(
            f"the model was compiled with a custom function {name!r}; pass it as "
            f"nn.load(path, custom_objects={{{name!r}: {name}}})"
        )
    return own[name]


def _own_optimizer(config: dict[str, Any], own: Mapping[str, Any]) -> Any:
    """The same for an optimizer, whose rate may be a schedule."""
    if isinstance(config.get("lr"), dict):
        lr = _own_or(config["lr"], own)
        config = {**config, "lr": schedule_from_config(lr) if isinstance(lr, dict) else lr}
    return _own_or(config, own)
