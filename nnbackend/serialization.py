"""Model files: plain tensors in safetensors, everything else in one JSON metadata entry.

Keys: ``layers.{i}.{name}`` and ``optimizer.{slot}.layers.{i}.{name}``. No pickle, no code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._files import Path_, write_atomically
from nnbackend.activations import ACTIVATION_LAYERS
from nnbackend.backends.base import Backend
from nnbackend.errors import CheckpointError, DTypeError, NNBackendError
from nnbackend.history import History
from nnbackend.layer import Layer
from nnbackend.layers import BatchNorm, Dense, Dropout, LayerNorm, Standardize
from nnbackend.losses import Loss, loss_name
from nnbackend.metrics import Metric, metric_name
from nnbackend.schedules import schedule_from_config

if TYPE_CHECKING:
    from nnbackend.model import Sequential

FORMAT_VERSION = 1
METADATA_KEY = "nnbackend"
LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls for cls in (Dense, Dropout, BatchNorm, LayerNorm, Standardize)
} | dict(ACTIVATION_LAYERS)

Tensors = dict[str, np.ndarray[Any, Any]]


def save_model(model: Sequential, path: Path_) -> None:
    """Write ``model`` to ``path``; see ``Sequential.save``."""
    import json

    from safetensors.numpy import save

    tensors: Tensors = model.arrays()
    if model.loss is not None:
        for key, value in model.optimizer_state().items():
            tensors[f"optimizer.{key}"] = value
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": _config(model),
        "seed": model.seed,
        "step": model.step,
        "epoch": model.epoch,
        "generators": {"shuffle": model.shuffle_generator.bit_generator.state},
        "history": {"curves": model.history.to_dict(), "seconds": model.history.seconds},
        "callbacks": _callback_states(model, tensors),
        "info": model.info,
    }
    write_atomically(path, save(tensors, {METADATA_KEY: json.dumps(metadata, default=_plain)}))


def _plain(value: Any) -> Any:
    """NumPy numbers as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise DTypeError(
        f"a model file holds numbers, text, lists and dicts; received {type(value).__name__}"
    )


def _callback_states(model: Sequential, tensors: Tensors) -> list[dict[str, Any]]:
    """States of the callbacks; their arrays go into ``tensors``."""
    states = [{"type": type(c).__name__, **c.state()} for c in model.callbacks]
    states = states or [dict(state) for state in model.callback_states]
    for number, state in enumerate(states):
        for name, value in list(state.items()):
            if isinstance(value, np.ndarray):
                tensors[f"callbacks.{number}.{name}"] = state.pop(name)
    return states


def _config(model: Sequential) -> dict[str, Any]:
    config: dict[str, Any] = {
        "dtype": str(model.dtype),
        "layers": [{"type": type(layer).__name__, **layer.config()} for layer in model.layers],
    }
    if model.loss is not None:
        loss = model.loss
        config["loss"] = loss.config() if isinstance(loss, Loss) else {"function": loss_name(loss)}
        config["optimizer"] = model.optimizer.config()
        config["metrics"] = [
            m.config() if isinstance(m, Metric) else {"function": metric_name(m)}
            for m in model.metrics
        ]
    return config


def load(
    path: Path_,
    backend: str | Backend | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Sequential:
    """Read a model that ``save`` wrote, ready to predict or to be trained on.

    Args:
        path: the file.
        backend: where it shall run; None takes the current backend.
        custom_objects: layers, losses and metrics of one's own by name, if the model has any.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, not safetensors, not a model of nnbackend, or of a
            newer format version.
    """
    from nnbackend.model import Sequential

    tensors, metadata = read_file(path)
    own = dict(custom_objects or {})
    try:
        config = metadata["config"]
        layers = [_layer(dict(entry), own) for entry in config["layers"]]
        model = Sequential(layers, metadata["seed"], config["dtype"], backend)
        if "loss" in config:
            model.compile(
                _own_or(config["loss"], own),
                _own_optimizer(config["optimizer"], own),
                [_own_or(entry, own) for entry in config["metrics"]],
            )
        _fill(model, tensors, path)
        if "loss" in config:
            prefix = "optimizer."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            missing = model.optimizer_state().keys() - state.keys()
            if missing:
                raise CheckpointError(f"{os.fspath(path)} lacks {prefix}{min(missing)}")
            model.set_optimizer_state(state)
        model.step, model.epoch = int(metadata["step"]), int(metadata["epoch"])
        if model.step < 0 or model.epoch < 0:
            raise CheckpointError(f"{os.fspath(path)} has a negative step or epoch")
        model.shuffle_generator.bit_generator.state = metadata["generators"]["shuffle"]
        model.history = History(metadata["history"]["curves"])
        model.history.seconds = list(metadata["history"]["seconds"])
        model.info = dict(metadata["info"])
        model.callback_states = _load_callback_states(metadata["callbacks"], tensors)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, NNBackendError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} does not describe a model that this version can build: "
            f"{type(error).__name__}: {error}"
        ) from error
    return model


def _load_callback_states(states: list[dict[str, Any]], tensors: Tensors) -> list[dict[str, Any]]:
    for key, value in tensors.items():
        if key.startswith("callbacks."):
            _, number, name = key.split(".", 2)
            states[int(number)][name] = value
    return states


def load_weights(model: Sequential, path: Path_) -> None:
    """Read parameters and layer state into ``model``; see ``Sequential.load_weights``."""
    tensors, _ = read_file(path)
    _fill(model, tensors, path)


def read_file(path: Path_) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and nnbackend's metadata of a model file, the version checked."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file {name}")
    try:
        with safe_open(name, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            metadata = _read_metadata(name, text)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{name} is not a whole safetensors file ({error}); it may be truncated or of "
            f"another kind"
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
        raise CheckpointError(f"{name} has unreadable metadata: {error}") from error
    if not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has format version {version}; this nnbackend reads up to {FORMAT_VERSION}. "
            f"Update it: pip install --upgrade nnbackend"
        )
    return metadata


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
            f"the model was compiled with a function {name!r} of one's own; pass it as "
            f"nn.load(path, custom_objects={{{name!r}: {name}}})"
        )
    return own[name]


def _own_optimizer(config: dict[str, Any], own: Mapping[str, Any]) -> Any:
    """The same for an optimizer, whose rate may be a schedule."""
    if isinstance(config.get("lr"), dict):
        lr = _own_or(config["lr"], own)
        config = {**config, "lr": schedule_from_config(lr) if isinstance(lr, dict) else lr}
    return _own_or(config, own)


def _fill(model: Sequential, tensors: Tensors, path: Path_) -> None:
    """Copy ``layers.*`` tensors into the model, all of them or none."""
    wanted = {
        f"layers.{number}.{name}": (layer, name)
        for number, layer in enumerate(model.layers)
        for name in layer.specs
    }
    given = {key: value for key, value in tensors.items() if key.startswith("layers.")}
    optional = {key for key, (layer, _) in wanted.items() if isinstance(layer, Standardize)}
    for key in (wanted.keys() - given.keys() - optional) | (given.keys() - wanted.keys()):
        where = "the model, not the file" if key in wanted else "the file, not the model"
        raise CheckpointError(
            f"{os.fspath(path)} holds a model of another architecture: {key} is in {where}"
        )
    for key, value in given.items():
        layer, name = wanted[key]
        if value.shape != layer.specs[name].shape:
            raise CheckpointError(
                f"{os.fspath(path)} holds a model of another architecture: {key} has shape "
                f"{value.shape} there and {layer.specs[name].shape} in the model"
            )
        with np.errstate(over="ignore"):
            finite = value.dtype.kind == "f" and np.isfinite(value.astype(model.dtype)).all()
        if not finite:
            raise CheckpointError(f"{os.fspath(path)}: {key} holds values that are not finite "
                                  f"numbers")  # fmt: skip
    for key, value in given.items():
        layer, name = wanted[key]
        layer.assign(name, value)
