"""Models as ONNX files: what ONNX Runtime makes of them is what predict returns."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import skl2onnx
from command_line import run
from onnx.reference import ReferenceEvaluator
from random_models import draw
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nnbackend as nn
import nnbackend.sklearn as ours
from nnbackend.kernels.codes import ACTIVATIONS

#: Activations for which ONNX Runtime has no float64.
ONLY_FLOAT32 = {"leaky_relu", "elu", "gelu", "softplus", "mish"}
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


def test_another_dtype(path, rng) -> None:
    model = nn.Sequential([nn.Dense(3, 4, "elu"), nn.Dense(4, 1)], seed=0, dtype="float64")
    nn.export_onnx(model, path, dtype="float32")
    x = rng.normal(size=(5, 3))
    found = outputs(path, x.astype("float32"))["y"]
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-6)


def test_names_are_kept_as_metadata(path) -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0)
    model.info = {"class_names": ["Löwe", "cat"], "mine": {1, 2}}
    nn.export_onnx(model, path)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {p.key: json.loads(p.value) for p in file.metadata_props} == {
        "class_names": ["Löwe", "cat"]
    }
    assert file.producer_name == "nnbackend"


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
        assert notes == {"feature_names", "target_name", "preparation"}

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
