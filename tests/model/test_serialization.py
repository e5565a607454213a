"""Model files: complete, plain, atomic; and every broken one refused."""

import copy
import errno
import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from cuda_stand_in import STAND_IN, compiler
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sample_models import Scale, squared

import nnbackend as nn
from nnbackend.model import serialization


def model_of_everything(seed: int = 3) -> nn.Sequential:
    hidden = nn.Dense(4, 6, nn.ELU(0.5), weight_init=nn.initializers.Normal(0.2), weight_l2=1e-4,
                      bias_init=np.full(6, 0.1))  # fmt: skip
    frozen = nn.Dense(6, 5, bias=False, trainable=False)
    layers = [nn.Standardize(4), hidden, nn.BatchNorm(6), nn.Dropout(0.2), nn.LayerNorm(6),
              nn.LeakyReLU(0.1), frozen, nn.Dense(5, 3)]  # fmt: skip
    model = nn.Sequential(layers, seed=seed)
    optimizer = nn.AdamW(lr=nn.CosineDecay(1e-2, 200, warmup=5), clip_norm=1.0)
    model.compile("softmax_cross_entropy", optimizer, ["accuracy", nn.metrics.TopKAccuracy(2)])
    return model


@pytest.fixture
def xy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(3.0, 2.0, size=(50, 4)), rng.integers(0, 3, 50)


def test_a_loaded_model_predicts_and_trains_on_exactly(backend, xy, tmp_path) -> None:
    model = model_of_everything()
    model.fit(*xy, epochs=3, verbose=0)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = nn.load(path)
    np.testing.assert_array_equal(loaded.predict(xy[0]), model.predict(xy[0]))
    assert loaded.evaluate(*xy) == model.evaluate(*xy)
    assert loaded.history.to_dict() == model.history.to_dict()
    for each in (model, loaded):
        each.fit(*xy, epochs=2, verbose=0)
    for name in ("parameters", "state"):
        pair = [backend.to_numpy(getattr(m.storage, name)) for m in (model, loaded)]
        np.testing.assert_array_equal(*pair)
    assert (loaded.epoch, loaded.step) == (5, model.step)
    assert loaded.optimizer == model.optimizer
    assert repr(loaded) == repr(model)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", nn.SGD(0.1, 0.9, True)])
@pytest.mark.parametrize("loss", ["mean_squared_error", nn.losses.Huber(0.5)])
def test_every_optimizer_and_loss_comes_back(backend, rng, tmp_path, optimizer, loss) -> None:
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    model = nn.Sequential([nn.Dense(3, 1)], seed=0, dtype="float64")
    model.compile(loss, optimizer, ["mae", "r2"])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m")
    loaded = nn.load(tmp_path / "m")
    assert loaded.optimizer == model.optimizer
    assert loaded.loss.config() == model.loss.config()
    assert [m.name for m in loaded.metrics] == ["mae", "r2"]
    for each in (model, loaded):
        each.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.predict(x), loaded.predict(x))


def test_the_file_is_plain_tensors_and_one_json_entry(backend, xy, tmp_path) -> None:
    model = model_of_everything()
    model.fit(*xy, verbose=0)
    model.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        assert set(file.metadata()) == {"nnbackend"}
        metadata = json.loads(file.metadata()["nnbackend"])
        keys = set(file.keys())
        assert file.get_tensor("layers.1.weight").shape == (4, 6)
    assert metadata["format_version"] == 1
    assert {"layers.0.mean", "layers.2.running_var", "layers.4.gamma"} <= keys
    assert {"optimizer.m.layers.1.weight", "optimizer.v.layers.7.bias"} <= keys
    assert not any(key.startswith("optimizer.m.layers.6") for key in keys)  # frozen


@pytest.mark.parametrize("epochs", [10_000, 10_001])
def test_curves_of_any_length_come_back(backend, xy, tmp_path, epochs) -> None:
    """The header of a file holds 100 MB at most."""
    model = model_of_everything()
    model.fit(*xy, verbose=0)
    values = [{**model.history.last(), "loss": k / 7, "late": np.nan} for k in range(epochs - 1)]
    model.history.extend(values, 0.25)
    model.training.epoch = epochs
    model.save(tmp_path / "m.safetensors")
    loaded = nn.load(tmp_path / "m.safetensors")
    assert list(loaded.history) == list(model.history)
    for name, curve in model.history.items():
        np.testing.assert_array_equal(loaded.history[name], curve)
    assert loaded.history.seconds == model.history.seconds
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        version = json.loads(file.metadata()["nnbackend"])["format_version"]
    assert version == (1 if epochs == 10_000 else 2)


def test_what_safetensors_refuses_is_said(backend, xy, tmp_path, monkeypatch) -> None:
    def refuses(*_):
        raise Exception("header too large")

    monkeypatch.setattr("safetensors.numpy.save", refuses)
    with pytest.raises(nn.DataError, match="as a safetensors file: header too large"):
        model_of_everything().save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_uncompiled_model_and_one_without_data_can_be_saved(backend, tmp_path) -> None:
    model = nn.Sequential([nn.Standardize(2), nn.Dense(2, 1)], seed=0)
    model.save(tmp_path / "m")
    loaded = nn.load(tmp_path / "m")
    assert loaded.loss is None
    with pytest.raises(nn.DataError, match="has not seen data"):
        loaded.predict([[1.0, 2.0]])


def test_parts_of_ones_own_come_back_by_name(backend, rng, tmp_path) -> None:
    class Saved(Scale):
        def config(self):
            return {"width": self.n_inputs}

    def median(y_true, y_pred):
        return np.median(y_pred)

    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    model = nn.Sequential([nn.Dense(4, 4), Saved(4)], seed=0)
    model.compile(squared, metrics=[median])
    model.fit(x, y, verbose=0)
    path = tmp_path / "m"
    model.save(path)
    own = {"Saved": Saved, "squared": squared, "median": median}
    loaded = nn.load(path, custom_objects=own)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert loaded.loss is squared
    for missing in own:
        with pytest.raises(nn.CheckpointError, match=f"custom_objects=.*{missing}"):
            nn.load(path, custom_objects={k: v for k, v in own.items() if k != missing})
    with pytest.raises(nn.DTypeError, match=r"Scale cannot be saved.*config\(\)"):
        nn.Sequential([Scale(4), nn.Dense(4, 1)]).save(path)
    np.testing.assert_array_equal(nn.load(path, custom_objects=own).predict(x), model.predict(x))


def test_own_metrics_schedules_and_optimizers_come_back(backend, rng, tmp_path) -> None:
    class Err(nn.metrics.MAE):
        name = "err"

    class Halves(nn.schedules.Schedule):
        def rates(self, steps):
            return self.lr * 0.5**steps

    class Mine(nn.Adam):
        pass

    class Own(nn.losses.MeanSquaredError):
        name = "mean_squared_error"

    model = nn.Sequential([nn.Dense(3, 1)], seed=0)
    model.compile(Own(), Mine(lr=Halves(0.1)), [Err()])
    model.fit(rng.normal(size=(9, 3)), rng.normal(size=9), verbose=0)
    model.save(tmp_path / "m")
    own = {"err": Err, "Halves": Halves, "Mine": Mine}
    loaded = nn.load(tmp_path / "m", custom_objects=own)
    assert type(loaded.optimizer) is Mine
    assert type(loaded.optimizer.lr) is Halves
    assert type(loaded.metrics[0]) is Err
    for missing in own:
        with pytest.raises(nn.CheckpointError, match=missing):
            nn.load(tmp_path / "m", custom_objects={k: own[k] for k in own if k != missing})


def test_numpy_numbers_in_settings_are_saved(backend, tmp_path) -> None:
    model = nn.Sequential([nn.Dense(3, 4)], seed=0)
    schedule = nn.CosineDecay(np.float32(0.1), steps=np.int64(100))
    model.compile(
        "softmax_cross_entropy", nn.Adam(schedule), [nn.metrics.TopKAccuracy(np.int64(2))]
    )
    model.save(tmp_path / "m")
    assert nn.load(tmp_path / "m").optimizer.lr(50) == pytest.approx(schedule(50))
    model.info["x"] = object()
    with pytest.raises(nn.DTypeError, match="received object"):
        model.save(tmp_path / "m")


class TestBrokenFiles:
    @pytest.fixture
    def path(self, backend, xy, tmp_path):
        model = model_of_everything()
        model.fit(*xy, verbose=0)
        model.save(tmp_path / "m.safetensors")
        return tmp_path / "m.safetensors"

    def rewrite(self, path, change) -> None:
        """Change the metadata and the tensors of a file."""
        with safe_open(path, framework="np") as file:
            metadata = json.loads(file.metadata()["nnbackend"])
        tensors = load_file(path)
        change(metadata, tensors)
        save_file(tensors, path, {"nnbackend": json.dumps(metadata)})

    def test_missing(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match="no model file"):
            nn.load(tmp_path / "none")

    @pytest.mark.parametrize("length", [0, 4, 100, 5000])
    def test_truncated(self, path, length) -> None:
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(nn.CheckpointError, match="truncated"):
            nn.load(path)

    def test_not_safetensors(self, path) -> None:
        path.write_bytes(b"PK\x03\x04" + bytes(1000))
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            nn.load(path)

    def test_of_another_program(self, path) -> None:
        save_file({"a": np.ones(3)}, path)
        with pytest.raises(nn.CheckpointError, match="not written by nnbackend"):
            nn.load(path)

    def test_of_a_newer_version(self, path) -> None:
        self.rewrite(path, lambda m, t: m.update(format_version=99))
        with pytest.raises(nn.CheckpointError, match="format version 99; .* reads up to 2"):
            nn.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m, t: m.pop("format_version"), "unreadable metadata"),
            (lambda m, t: m.update(format_version=float("inf")), "unreadable metadata"),
            (lambda m, t: m.update(format_version=-1), "format version -1"),
            (lambda m, t: m.update(step=-5), "step must be a count; it is -5"),
            (lambda m, t: t.pop("optimizer.m.layers.1.weight"), "lacks optimizer.m.layers.1"),
            (lambda m, t: t.update({"optimizer.m.layers.1.bias": np.ones(1)}), "received .1,."),
            (lambda m, t: m.pop("config"), "KeyError"),
            (lambda m, t: m["config"]["layers"][1].update(n_inputs=-4), "at least 1"),
            (lambda m, t: m["config"]["layers"][1].update(type="os.system"), "does not know"),
            (lambda m, t: m["config"]["layers"][1].update(extra=1), "no argument 'extra'"),
            (lambda m, t: m["config"]["optimizer"].update(name="lion"), "lion"),
            (lambda m, t: m["config"]["optimizer"].update(lr={"name": "os"}), "schedule"),
            (lambda m, t: m["orders"].pop("key"), "KeyError"),
            (lambda m, t: t.pop("layers.1.weight"), "layers.1.weight is in the model, not the"),
            (lambda m, t: t.update({"layers.9.weight": np.ones(2)}), "in the file, not the model"),
            (lambda m, t: t.update({"layers.1.bias": np.ones(7)}), "shape .7,. there and .6,."),
            (lambda m, t: t["layers.1.bias"].fill(np.nan), "not finite"),
        ],
    )
    def test_damaged(self, path, change, message) -> None:
        self.rewrite(path, change)
        with pytest.raises(nn.CheckpointError, match=message):
            nn.load(path)

    def test_numbers_that_overflow_in_the_models_dtype(self, backend, path) -> None:
        self.rewrite(path, lambda m, t: t.update({"layers.1.bias": np.full(6, 1e300)}))
        with pytest.raises(nn.CheckpointError, match="not finite"):
            nn.load(path)

    def test_of_a_type_that_numpy_lacks(self, path) -> None:
        import struct

        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
        head = {"__metadata__": metadata,
                "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}  # fmt: skip
        text = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0")
        with pytest.raises(nn.CheckpointError):
            nn.load(path)

    def test_weights_of_another_architecture_change_nothing(self, backend, path, xy) -> None:
        other = nn.Sequential([nn.Dense(4, 3)], seed=0)
        before = other.predict(xy[0])
        with pytest.raises(nn.CheckpointError, match="another architecture"):
            other.load_weights(path)
        np.testing.assert_array_equal(other.predict(xy[0]), before)
        same = model_of_everything(seed=9)
        view = same.layers[1].weight
        same.load_weights(path)
        np.testing.assert_array_equal(same.predict(xy[0]), nn.load(path).predict(xy[0]))
        np.testing.assert_array_equal(
            backend.to_numpy(view), backend.to_numpy(same.layers[1].weight)
        )


class TestAtomicWriting:
    def test_an_error_leaves_the_old_file_and_nothing_else(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "m"
        path.write_bytes(b"old")

        def fail(*_) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=re.escape(f"No space left on device: {str(path)!r}")):
            nn.Sequential([nn.Dense(2, 1)]).save(path)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["m"]

    @pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
    def test_permissions_follow_the_umask(self, tmp_path) -> None:
        previous = os.umask(0o027)
        try:
            serialization.write_atomically(tmp_path / "m", b"x")
        finally:
            os.umask(previous)
        assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640

    def test_a_missing_folder_is_an_error(self, tmp_path) -> None:
        model = nn.Sequential([nn.Dense(2, 1)])
        with pytest.raises(FileNotFoundError, match="the folder .*no does not exist"):
            model.save(tmp_path / "no" / "m")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            model.save(tmp_path)


NOTES = {
    "whole numbers for keys": {1: "a", 2: {3: "b"}, "4": "c"},
    "other keys": {1.5: 1, True: 2, None: 3, -7: 4},
    "tuples": {"shape": (28, 28), "nested": [(1, (2, 3)), {"a": ()}]},
    "names that look like ours": {"nnbackend:tuple": [1, 2], "x": {"nnbackend:items": [[1, 2]]}},
    "text": {"text": "größe 猫", "none": None, "yes": True, "numbers": [1, 2.5, -3], "empty": {}},
}


@pytest.mark.parametrize("info", NOTES.values(), ids=NOTES)
def test_notes_come_back_as_they_were(tmp_path, info) -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0, backend="numpy")
    model.info = info
    model.save(tmp_path / "m")
    loaded = nn.load(tmp_path / "m", backend="numpy").info
    assert repr(loaded) == repr(info)  # 1, 1.0 and True are equal


def test_keys_that_json_lacks_are_refused(tmp_path) -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0, backend="numpy")
    model.info = {"a": {(1, 2): 3}}
    with pytest.raises(nn.DTypeError, match=r"text or numbers; received the key \(1, 2\)"):
        model.save(tmp_path / "m")


class TestPrecision:
    """It belongs to the model, wherever that is."""

    @pytest.fixture
    def model(self) -> nn.Sequential:
        if not shutil.which(compiler()):
            pytest.skip("needs a device that has other precisions")
        model = nn.Sequential([nn.Dense(4, 3)], seed=0, backend=STAND_IN, precision="bf16")
        model.compile("mean_squared_error")
        return model

    @pytest.mark.parametrize("way", ["file", "pickle", "copy"])
    def test_comes_back(self, model, tmp_path, way) -> None:
        if way == "file":
            model.save(tmp_path / "m")
            again = nn.load(tmp_path / "m", backend=STAND_IN)
        else:
            again = copy.deepcopy(model) if way == "copy" else pickle.loads(pickle.dumps(model))
        assert again.precision == "bf16"
        assert again.backend.precision == model.backend.precision == "bf16"
        x = np.random.default_rng(0).normal(size=(5, 4))
        np.testing.assert_array_equal(again.predict(x), model.predict(x))

    def test_is_kept_where_a_backend_has_it_not_and_that_is_said(self, model, tmp_path) -> None:
        model.save(tmp_path / "m")
        with pytest.warns(UserWarning, match="bf16 where it can; numpy has full precision only"):
            loaded = nn.load(tmp_path / "m", backend="numpy")
        loaded.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
        assert loaded.precision == "bf16"
        loaded.save(tmp_path / "m")
        assert nn.load(tmp_path / "m", backend=STAND_IN).backend.precision == "bf16"
        assert loaded.to("numpy", "fp32").precision == "fp32"
        loaded.save(tmp_path / "m")
        assert nn.load(tmp_path / "m", backend="numpy").precision == "fp32"


class Frame:
    """What counts of a DataFrame: it is turned into an array, and columns are attributes, which
    may have any name."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values)
        self.device, self.toarray = self.values[:, 0], self.values[:, -1]

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    @property
    def shape(self):
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def get(self, key):
        return getattr(self, key)


def test_frames_are_taken_for_arrays(backend, rng) -> None:
    x, y = rng.normal(size=(12, 4)), rng.integers(0, 3, (12, 1))
    figures = []
    for wrap in (np.asarray, Frame):
        model = nn.Sequential([nn.Standardize(4), nn.Dense(4, 3)], seed=0)
        model.compile("softmax_cross_entropy")
        model.fit(wrap(x), wrap(y), validation_data=(wrap(x), wrap(y)), verbose=0)
        model.train_step(wrap(x), wrap(y))
        figures.append((model.evaluate(wrap(x), wrap(y))["loss"], model.predict(wrap(x)).tolist()))
        nn.Standardize(4).adapt(wrap(x))
    assert figures[0] == figures[1]
