"""Trained models on data that are not like those of the training: fewer classes, no targets."""

from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx
from PIL import Image
from typer.testing import CliRunner

import nnbackend as nn
from nnbackend.cli.app import app


def command(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 1, done.output
    return done.output


def write(kind: str, path: Path, classes: list[int], rows: int = 24) -> Path:
    """Rows whose classes are clear to see."""
    y = np.resize(classes, rows)
    x = np.zeros((rows, 3, 3), np.uint8)
    for row, label in enumerate(y):
        x[row, label] = 255
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), x=x, y=y)
        return path.with_suffix(".npz")
    if kind == "csv":
        lines = [
            ",".join(map(str, [*pixels.reshape(-1), "abc"[n]]))
            for pixels, n in zip(x, y, strict=True)
        ]
        path.with_suffix(".csv").write_text(
            ",".join([*"rstuvwxyz", "kind"]) + "\n" + "\n".join(lines)
        )
        return path.with_suffix(".csv")
    path.mkdir()
    if kind == "idx":
        write_idx(path / "train-images-idx3-ubyte", x)
        write_idx(path / "train-labels-idx1-ubyte", y.astype(np.uint8))
    else:
        for row, (pixels, label) in enumerate(zip(x, y, strict=True)):
            (path / "abc"[label]).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path / "abc"[label] / f"{row:02d}.png")
    return path


@pytest.mark.parametrize("kind", ["npz", "csv", "idx", "images"])
@pytest.mark.parametrize("only", [0, 2])
def test_rows_of_one_class(tmp_path, kind, only) -> None:
    model = tmp_path / "m.safetensors"
    every = write(kind, tmp_path / "all", [0, 1, 2])
    command("train", every, "--save", model, "--epochs", 100, "--hidden", 32)
    one = write(kind, tmp_path / "one", [only], 5)
    assert "accuracy      1\n" in command("evaluate", model, one)
    command("predict", model, one, "--out", tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    name = str(only) if kind in ("npz", "idx") else "abc"[only]
    assert {line.split(",")[-1] for line in lines[1:]} == {name}
    reason = "no column to learn from" if kind == "csv" else "needs at least 2 classes"
    assert reason in refused("train", one)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
def test_models_without_names_of_classes_know_them_by_number(tmp_path, loss) -> None:
    model = nn.Sequential([nn.Dense(9, 3 if loss[1] == "o" else 1)], seed=0, backend="numpy")
    model.compile(loss, nn.SGD(0.5), metrics=["accuracy"])
    data = nn.datasets.read(write("npz", tmp_path / "all", [0, 1]))
    model.fit(data.x, data.y, epochs=50, verbose=0)
    model.save(tmp_path / "m.safetensors")
    one = write("npz", tmp_path / "one", [1], 4)
    assert "accuracy      1\n" in command("evaluate", tmp_path / "m.safetensors", one)


def test_a_regression_of_few_whole_numbers(tmp_path) -> None:
    """Targets that would be taken for classes without the model."""
    x = np.random.default_rng(0).normal(size=(60, 2))
    np.savez(tmp_path / "a.npz", x=x, y=np.round(x[:, 0] * 2))
    model = tmp_path / "m.safetensors"
    command("train", tmp_path / "a.npz", "--task", "regression", "--save", model, "--epochs", 5)
    assert "r2" in command("evaluate", model, tmp_path / "a.npz")


def test_targets_are_not_read_for_predictions(tmp_path) -> None:
    model = tmp_path / "m.safetensors"
    command("train", write("npz", tmp_path / "all", [0, 1]), "--save", model, "--epochs", 2)
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 3, 3), np.uint8), y=[np.nan, np.nan])
    command("predict", model, tmp_path / "b.npz", "--out", tmp_path / "p.csv")


@pytest.mark.parametrize("text", [True, False])
def test_a_target_of_many_values_is_hardly_one_of_classes(tmp_path, text) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,id\n" + "".join(f"{n % 7},{'n' * text}{n}\n" for n in range(300)))
    output = refused("train", path, "--task", "classification")
    assert "the target has 300 different values in 300 rows, too many for classes" in output
