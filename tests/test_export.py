"""Models as ONNX files: what ONNX Runtime makes of them is what predict returns."""

import json
import sys

import numpy as np
import pytest
from command_line import run
from random_models import draw
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nn
import nnbackend.sklearn as ours
from nnbackend.export import ONLY_FLOAT32, lacking
from nnbackend.kernels.codes import ACTIVATIONS

# a machine whose packages are not ours, as one with a GPU, may lack them
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
skl2onnx = pytest.importorskip("skl2onnx")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator

OWN_NUMBER = {"leaky_relu": nn.LeakyReLU(0.2), "elu": nn.ELU(0.7)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def outputs(path, x, *, with_runtime: bool = True) -> dict[str, np.ndarray]:
    """What the graph gives for x."""
    if with_runtime:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {"x": x}), strict=True))
    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation(activation, backend, dtype, path, rng) -> None:
    model = nn.Sequential(
        [nn.Dense(3, 50, OWN_NUMBER.get(activation, activation))], seed=0, dtype=dtype
    )
    nn.export_onnx(model, path)
    x = rng.normal(scale=3.0, size=(60, 3)).astype(dtype)
    x[:2] = [[0.0] * 3, [30.0, -30.0, 1.0]]
    found = outputs(path, x, with_runtime=dtype == "float32" or activation not in ONLY_FLOAT32)
    # numbers in a node's settings, and erf of the reference, are float32
    tolerance = 3e-6 if dtype == "float32" or activation in ONLY_FLOAT32 else 1e-12
    np.testing.assert_allclose(found["y"], model.predict(x), rtol=tolerance, atol=tolerance)


def test_each_kind_of_layer(backend, path, rng) -> None:
    layers = [
        nn.Standardize(7, skip=2), nn.Embedding(7, 4, 3), nn.Embedding(9, 3, 2), nn.Dense(10, 12),
        nn.BatchNorm(12), nn.Dropout(0.5), nn.GELU(), nn.Dense(12, 5, "relu", bias=False),
        nn.LayerNorm(5), nn.Dense(5, 3, "softmax"),
    ]  # fmt: skip
    model = nn.Sequential(layers, seed=1)
    model.compile("categorical_cross_entropy", "adam")
    x = rng.normal(scale=3.0, size=(90, 7)).astype("float32")
    x[:, 0], x[:, 1] = rng.integers(0, 4, 90), rng.integers(0, 3, 90)
    model.fit(x, rng.integers(0, 3, 90), epochs=3, verbose=0)
    nn.export_onnx(model, path)
    x[0, :2] = 1.4, 1.6  # the nearest category
    for rows in (x, x[:1]):
        found = outputs(path, rows)
        np.testing.assert_allclose(found["y"], model.predict(rows), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["probabilities"], found["y"])


@pytest.mark.parametrize("code", [-0.6, 3.6, np.nan])
def test_what_is_no_category_gives_nan(code, path) -> None:
    model = nn.Sequential([nn.Embedding(1, 4, 2)], seed=0)
    nn.export_onnx(model, path)
    found = outputs(path, np.array([[code], [3.4]], "float32"))["y"]
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], model.layers[0].weight[3])


@pytest.mark.parametrize("seed", range(25))
def test_random_models(seed, path) -> None:
    drawn = draw(seed, 60)
    model = drawn.model("float32", "numpy")
    drawn.fit(model, 1)
    nn.export_onnx(model, path)
    found = outputs(path, drawn.x.astype("float32"))
    close = {"rtol": 2e-5, "atol": 2e-5}
    np.testing.assert_allclose(found["y"], model.predict(drawn.x), **close)
    assert ("probabilities" in found) == model.loss.probabilities
    if model.loss.probabilities:
        np.testing.assert_allclose(found["probabilities"], model.predict_proba(drawn.x), **close)


def test_norms_with_tiny_eps(path, rng) -> None:
    """In float64, and where float32 has none so small."""
    model = nn.Sequential([nn.BatchNorm(3, eps=1e-50), nn.LayerNorm(3, eps=1e-60)], dtype="float64")
    model.set_arrays({**model.arrays(), "layers.0.running_var": np.array([1.0, 2.0, 0.5])})
    x = np.vstack([rng.normal(size=(5, 3)), np.full((1, 3), 0.0)])
    for dtype in ("float64", "float32"):
        nn.export_onnx(model, path, dtype)
        found = outputs(path, x.astype(dtype))["y"]
        np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-6)


def test_numbers_beyond_a_dtype_are_refused(path) -> None:
    model = nn.Sequential([nn.Dense(1, 1)], dtype="float64")
    model.layers[0].weight = [[1e300]]
    nn.export_onnx(model, path)
    with pytest.raises(nn.DataError, match="float32 cannot hold, such as 1e.300"):
        nn.export_onnx(model, path, "float32")


@pytest.mark.parametrize("path", [b"m.onnx", 5, None, ""])
def test_paths_are_checked_as_for_save(path) -> None:
    with pytest.raises((nn.DTypeError, nn.DataError), match="path must be a path"):
        nn.export_onnx(nn.Sequential([nn.Dense(2, 2)]), path)


def test_what_the_runtime_lacks_is_known() -> None:
    model = nn.Sequential([nn.Dense(2, 2, "gelu"), nn.ELU(), nn.Dense(2, 2, "relu")])
    assert lacking(model, np.dtype("float64")) == ["elu", "gelu"]
    assert lacking(model, np.dtype("float32")) == []


def test_another_dtype(path, rng) -> None:
    model = nn.Sequential([nn.Dense(3, 4, "elu"), nn.Dense(4, 1)], seed=0, dtype="float64")
    nn.export_onnx(model, path, dtype="float32")
    x = rng.normal(size=(5, 3))
    found = outputs(path, x.astype("float32"))["y"]
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-6)


def test_names_are_kept_as_metadata(path) -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0)
    model.info = {"class_names": ["Löwe", np.int64(2)], "mine": {1, 2}}
    nn.export_onnx(model, path)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {p.key: json.loads(p.value) for p in file.metadata_props} == {"class_names": ["Löwe", 2]}
    assert file.producer_name == "nnbackend"
    model.info = {"class_names": np.array(["a", "b"])}
    with pytest.raises(nn.DTypeError, match="numbers, text, lists and dicts"):
        nn.export_onnx(model, path)


class Doubled(nn.Layer):
    def forward(self, x, training=False):
        return 2 * x

    def backward(self, dy):
        return 2 * dy


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nn.Sequential([nn.Dense(2, 2), Doubled()]), nn.DataError, "layer 1, .*Doubled"),
        (lambda: nn.Sequential([nn.Standardize(2)]), nn.DataError, "has not seen data"),
        (lambda: nn.Dense(2, 2), nn.DTypeError, r"must be an nn\.Sequential"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(make, error, match, path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(error, match=match):
        nn.export_onnx(make(), path)
    assert path.read_bytes() == b"old"


def test_a_model_beyond_two_gigabytes_is_refused(monkeypatch, path) -> None:
    monkeypatch.setattr("nnbackend.export.MOST_BYTES", 100)
    with pytest.raises(nn.DataError, match="at most 2 GB"):
        nn.export_onnx(nn.Sequential([nn.Dense(5, 6)]), path)
    assert not path.exists()


def test_without_onnx_the_error_says_how_to_install_it(monkeypatch, path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "nnbackend\[onnx\]"'):
        nn.export_onnx(nn.Sequential([nn.Dense(5, 6)]), path)


class TestCommand:
    def test_writes_what_predict_computes(self, tmp_path) -> None:
        assert run("train", "digits", "--epochs", "2", "--save", "m", cwd=tmp_path).returncode == 0
        done = run("export", "m", "m.onnx", cwd=tmp_path)
        assert done.stdout == "m.onnx: x (rows, 64) -> y (rows, 10), probabilities (rows, 10)\n"
        x, _ = nn.datasets.digits()
        found = outputs(tmp_path / "m.onnx", x[:9].astype("float32"))["probabilities"]
        np.testing.assert_allclose(found, nn.load(tmp_path / "m").predict_proba(x[:9]), atol=1e-5)

    def test_says_what_is_left_to_do_with_a_table(self, tmp_path) -> None:
        """Whoever passes raw columns would get nonsense, silently."""
        lines = [
            "city,size,price",
            *(f"{'AB'[i % 2]},{i},{900_000 + i % 7 + i / 9}" for i in range(60)),
        ]
        (tmp_path / "t.csv").write_text("\n".join(lines))
        assert run("train", "t.csv", "--epochs", "1", "--save", "m", cwd=tmp_path).returncode == 0
        done = run("export", "m", "m.onnx", "--dtype", "float64", cwd=tmp_path)
        shown = " ".join(done.stdout.split())
        assert "leaves it to you to prepare these columns as for training: city: 2 categ" in shown
        assert "y is the prediction's distance from 900006" in shown
        notes = {p.key for p in onnx.load(tmp_path / "m.onnx").metadata_props}
        assert notes == {"feature_names", "target_name", "preparation", "kind"}

    def test_says_what_pixels_are_and_what_the_runtime_lacks(self, tmp_path, rng) -> None:
        pixels = rng.integers(0, 256, (40, 3, 3), dtype=np.uint8)
        np.savez(tmp_path / "i.npz", x=pixels, y=rng.integers(0, 2, 40))
        run("train", "i.npz", "--epochs", "1", "--dtype", "float64", "--activation", "gelu",
            "--save", "m", cwd=tmp_path)  # fmt: skip
        shown = run("export", "m", "m.onnx", cwd=tmp_path).stdout
        assert "pixels from 0 to 1: divide those of 0 to 255 by 255" in shown
        assert "no float64 for gelu" in shown

    def test_does_not_write_over_what_it_reads(self, tmp_path, rng) -> None:
        np.savez(tmp_path / "i.npz", x=rng.normal(size=(40, 3)), y=rng.integers(0, 2, 40))
        run("train", "i.npz", "--epochs", "1", "--save", "m", cwd=tmp_path)
        (tmp_path / "link").symlink_to("m")
        before = (tmp_path / "m").read_bytes(), (tmp_path / "i.npz").read_bytes()
        for arguments in (["export", "m", "m"], ["export", "m", "link"],
                          ["predict", "m", "i.npz", "--out", "i.npz"],
                          ["predict", "m", "i.npz", "--out", "m"],
                          ["train", "i.npz", "--save", "i.npz"]):  # fmt: skip
            done = run(*arguments, cwd=tmp_path)
            assert (done.returncode, "is read; choose" in done.stderr) == (1, True), done.stderr
        assert before == ((tmp_path / "m").read_bytes(), (tmp_path / "i.npz").read_bytes())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(["none", "m.onnx"], "no model file none"), (["none", "no/m.onnx"], "no does not exist")],
    )
    def test_what_is_wrong_is_said(self, arguments, message, tmp_path) -> None:
        done = run("export", *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr


class TestEstimators:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("kind", [ours.MLPClassifier, ours.MLPRegressor])
    def test_skl2onnx_converts_them_in_a_pipeline(self, kind, rng) -> None:
        ours.register_with_skl2onnx()
        x = rng.normal(size=(80, 5)).astype("float32")
        y = rng.integers(0, 3, 80) if kind is ours.MLPClassifier else x[:, 0] * 3
        network = kind(hidden_layer_sizes=(8,), max_iter=20, random_state=0)
        model = make_pipeline(StandardScaler(), network).fit(x, y)
        options = {"zipmap": False} if kind is ours.MLPClassifier else None
        file = skl2onnx.to_onnx(model, x[:1], options=options)
        session = onnxruntime.InferenceSession(file.SerializeToString())
        found = session.run(None, {"X": x})
        if kind is ours.MLPClassifier:
            np.testing.assert_array_equal(found[0], model.predict(x))
            np.testing.assert_allclose(found[1], model.predict_proba(x), atol=1e-5)
        else:
            np.testing.assert_allclose(found[0][:, 0], model.predict(x), atol=1e-4)

    def test_without_skl2onnx_the_error_says_so(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "skl2onnx", None)
        with pytest.raises(ImportError, match="pip install skl2onnx"):
            ours.register_with_skl2onnx()
