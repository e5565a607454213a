"""Model files that somebody has changed: one kind of error, and nothing large is made for them."""

import json
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

import nnbackend as nn
from nnbackend.cli.app import app
from nnbackend.cli.settings import Settings


def write(path: Path, change=None, tensors=None) -> Path:
    """A model file with changed metadata, or other entries of its header."""
    model = nn.Sequential([nn.Dense(4, 3, "relu"), nn.Dense(3, 2)], seed=0, backend="numpy")
    model.compile("softmax_cross_entropy", metrics=["accuracy"])
    model.fit(np.ones((8, 4)), np.arange(8) % 2, epochs=2, verbose=0,
              callbacks=[nn.EarlyStopping("loss")])  # fmt: skip
    model.save(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["nnbackend"])
    if change is not None:
        changed = change(metadata)
        metadata = metadata if changed is None else changed
    header["__metadata__"]["nnbackend"] = (
        metadata if isinstance(metadata, str) else json.dumps(metadata)
    )
    if tensors is not None:
        tensors(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return path


def put(*keys_and_value):
    """A change of one entry of the metadata."""
    *keys, last, value = keys_and_value

    def change(metadata) -> None:
        for key in keys:
            metadata = metadata[key]
        metadata[last] = value

    return change


HUGE = 10**400
CHANGES = {
    "huge version": put("format_version", HUGE),
    "huge step": put("step", HUGE),
    "step is text": put("step", "7"),
    "step is true": put("step", True),
    "fractional epoch": put("epoch", 1.5),
    "huge seed": put("seed", -1),
    "config is a list": put("config", []),
    "layers is a number": put("config", "layers", 5),
    "a layer is a number": put("config", "layers", 0, 5),
    "huge width": put("config", "layers", 0, "n_inputs", HUGE),
    "huge rate": put("config", "optimizer", "lr", HUGE),
    "optimizer is a list": put("config", "optimizer", []),
    "loss is nothing": put("config", "loss", None),
    "metrics is a number": put("config", "metrics", 3),
    "activation is a dict of lists": put("config", "layers", 0, "activation", {"name": []}),
    "activation parameter is NaN": put(
        "config", "layers", 0, "activation", {"name": "elu", "parameter": float("nan")}
    ),
    "orders are text": put("orders", "PCG64"),
    "key of orders is huge": put("orders", "key", HUGE),
    "block of orders is negative": put("orders", "block", -1),
    "curves is a list": put("history", "curves", [1, 2]),
    "a curve is text": put("history", "curves", "loss", "abc"),
    "a curve holds text": put("history", "curves", "loss", ["a", "b"]),
    "a curve holds a huge number": put("history", "curves", "loss", [HUGE, 1]),
    "a curve is shorter": put("history", "curves", "loss", [1.0]),
    "seconds is a number": put("history", "seconds", 3),
    "info is a list": put("info", [["a", 1]]),
    "callbacks is a dict": put("callbacks", {}),
    "a callback is text": put("callbacks", ["EarlyStopping"]),
    "a callback has no type": put("callbacks", [{"waited": 0}]),
    "no callbacks for the arrays": put("callbacks", []),
    "nothing": lambda metadata: {},
    "a list": lambda metadata: [],
    "not JSON": lambda metadata: "{",
    "nested": lambda metadata: "[" * 100_000,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_forged_metadata_are_an_error_of_the_file(tmp_path, change) -> None:
    path = write(tmp_path / "m.safetensors", change)
    with pytest.raises(nn.CheckpointError, match="m.safetensors"):
        nn.load(path, backend="numpy")


def test_an_unchanged_file_loads(tmp_path) -> None:
    assert nn.load(write(tmp_path / "m.safetensors"), backend="numpy").epoch == 2


@pytest.mark.parametrize("name", ["callbacks.5.x", "callbacks.x.y", "callbacks.²", "callbacks"])
def test_arrays_of_callbacks_that_are_not_there(tmp_path, name) -> None:
    def rename(header) -> None:
        key = next(key for key in header if key.startswith("callbacks."))
        header[name] = header.pop(key)

    path = write(tmp_path / "m.safetensors", tensors=rename)
    if name == "callbacks":
        nn.load(path, backend="numpy")  # of no meaning here
    else:
        with pytest.raises(nn.CheckpointError, match="m.safetensors"):
            nn.load(path, backend="numpy")


@pytest.mark.parametrize(
    "curve",
    [np.zeros(2, np.float32), np.zeros((1, 2)), np.zeros(3), np.zeros(2, np.int64)],
    ids=lambda curve: f"{curve.dtype} {curve.shape}",
)
@pytest.mark.parametrize("name", ["curves.loss", "seconds"])
def test_curves_of_another_form(tmp_path, name, curve) -> None:
    path = write(tmp_path / "m.safetensors")
    with safe_open(path, framework="np") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({**tensors, f"history.{name}": curve}, path, metadata)
    with pytest.raises(nn.CheckpointError, match="m.safetensors"):
        nn.load(path, backend="numpy")


def test_dtypes_that_numpy_lacks(tmp_path) -> None:
    def change(header) -> None:
        header["layers.0.weight"]["dtype"] = "F8_E4M3"
        header["layers.0.weight"]["shape"] = [4, 12]

    with pytest.raises(nn.CheckpointError, match="m.safetensors"):
        nn.load(write(tmp_path / "m.safetensors", tensors=change), backend="numpy")


def test_nothing_is_built_for_layers_that_the_file_has_no_values_for(tmp_path, monkeypatch) -> None:
    def widen(metadata) -> None:
        for layer in metadata["config"]["layers"]:
            layer["n_inputs"] = layer["n_outputs"] = 20_000

    path = write(tmp_path / "m.safetensors", widen)
    monkeypatch.setattr(nn.Sequential, "__init__", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(nn.CheckpointError, match="has shape .* there and .20000"):
        nn.load(path, backend="numpy")


def test_the_callers_own_mistakes_are_not_the_files(tmp_path) -> None:
    path = write(tmp_path / "m.safetensors")
    with pytest.raises(nn.UnknownNameError, match="nunpy"):
        nn.load(path, backend="nunpy")


NOTES = {
    "names are numbers": ("class_names", [1, 2]),
    "names are one text": ("class_names", "ab"),
    "names are a dict": ("class_names", {"a": 1, "b": 2}),
    "a name too few": ("class_names", ["a"]),
    "no name for a column": ("feature_names", ["a", "b", "c", None]),
    "columns are a number": ("feature_names", 4),
    "the target is a list": ("target_name", ["y"]),
    "settings are a list": ("settings", [1]),
}


@pytest.mark.parametrize(("key", "value"), NOTES.values(), ids=NOTES)
def test_forged_notes_are_an_error_of_the_command_line(tmp_path, key, value) -> None:
    write(tmp_path / "m.safetensors", put("info", {key: value}))
    (tmp_path / "d.csv").write_text("a,b,c,d,y\n" + "1,2,3,4,0\n1,2,3,5,1\n" * 4)
    for arguments in (
        ("summary", "m.safetensors"),
        ("predict", "m.safetensors", "d.csv", "--out", "p.csv"),
        ("evaluate", "m.safetensors", "d.csv"),
    ):
        done = CliRunner().invoke(app, [str(tmp_path / a) if "." in a else a for a in arguments])
        assert done.exit_code == 1, done.output
        assert f"m.safetensors: the note info['{key}'] must be" in done.output


@pytest.mark.parametrize(
    "change",
    [{"hidden": 5}, {"hidden": ["a"]}, {"lr": "fast"}, {"new": 1}, {"dtype": "int8"}, {"seed": {}}],
)
def test_forged_settings_cannot_be_resumed(tmp_path, change) -> None:
    settings = {**asdict(Settings()), **change}
    path = write(
        tmp_path / "m.safetensors",
        put("info", {"settings": settings, "class_names": None, "feature_names": None}),
    )
    done = CliRunner().invoke(app, ["train", "digits", "--resume", str(path), "--epochs", "9"])
    assert done.exit_code == 1, done.output
    assert "m.safetensors: its settings cannot be read" in done.output
