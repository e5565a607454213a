"""The command line as a user types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nnbackend as nn

COMMAND = [sys.executable, "-m", "nnbackend.cli"]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=settings, timeout=120
    )


def test_the_main_job_trains_digits_and_writes_model_and_picture(tmp_path: Path) -> None:
    done = run("train", "digits", "--save", "d.safetensors", "--plot", "d.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.search(r"validation accuracy ([\d.]+) %", done.stdout)
    assert found is not None
    assert float(found[1]) >= 97
    assert "val_accuracy" in done.stdout
    x, y = nn.datasets.digits()
    model = nn.load(tmp_path / "d.safetensors")
    assert model.evaluate(x, y)["accuracy"] > 0.97
    assert model.history.epochs == 30
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["d.png", "d.safetensors"]


def test_every_option_is_used(tmp_path: Path) -> None:
    done = run(
        "train", "spiral", "--hidden", "32,16", "--activation", "tanh", "--epochs", "3",
        "--batch-size", "20", "--lr", "0.01", "--schedule", "constant", "--optimizer", "rmsprop",
        "--dropout", "0.1", "--validation", "0.1", "--seed", "5", "--backend", "numpy",
        "--dtype", "float64", "--save", "m", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = nn.load(tmp_path / "m")
    assert [repr(layer) for layer in model.layers] == [
        "Dense(2, 32)", "Dropout()", "Dense(32, 16)", "Dropout()", "Dense(16, 3)"]  # fmt: skip
    assert model.layers[0].activation.name == "tanh"
    assert model.layers[1].rate == 0.1
    assert model.optimizer == nn.RMSprop(lr=0.01)
    assert (model.seed, str(model.dtype), model.epoch) == (5, "float64", 3)
    assert model.step == 3 * -(-270 // 20)


@pytest.mark.parametrize("data", ["sine", "vertical"])
def test_other_data_sets(tmp_path: Path, data: str) -> None:
    done = run("train", data, "--epochs", "2", "--hidden", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("r2" if data == "sine" else "accuracy") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digts"], "Did you mean 'digits'?"),
        (["digits", "--hidden", "12,x"], "hidden must be whole numbers"),
        (["digits", "--epochs", "0"], "epochs must be at least 1; received 0"),
        (["digits", "--dropout", "1"], "dropout must be in [0, 1); received 1"),
        (["digits", "--lr", "0"], "lr must be above 0"),
        (["digits", "--optimizer", "adm"], "Did you mean 'adam'?"),
        (["digits", "--schedule", "linear"], "cosine"),
        (["digits", "--activation", "rely"], "Did you mean 'relu'?"),
        (["digits", "--backend", "cuda9"], "backend must be one of"),
        (["digits", "--dtype", "int8"], "dtype must be"),
        (["digits", "--seed", "-1"], "seed must be at least 0"),
        (["digits", "--validation", "2"], "validation must be in [0, 1)"),
        (["digits", "--save", "no/such/m"], "does not exist"),
        (["digits", "--epochs", "many"], "--epochs"),
        (["digits", "--nonsense"], "--nonsense"),
    ],
)
def test_a_users_error_is_one_clear_message(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run("train", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_info_names_backends_and_choice(tmp_path: Path) -> None:
    done = run("info", cwd=tmp_path, NN_BACKEND="numpy")
    assert done.returncode == 0
    assert "numpy" in done.stdout
    assert "chosen now: numpy" in done.stdout
    wrong = run("info", cwd=tmp_path, NN_BACKEND="nunpy")
    assert wrong.returncode == 1
    assert "NN_BACKEND=nunpy" in wrong.stderr


def test_help_has_examples(tmp_path: Path) -> None:
    assert "train" in run("--help", cwd=tmp_path).stdout
    assert "nnbackend train digits --save" in run("train", "--help", cwd=tmp_path).stdout


def test_plot_without_matplotlib_names_the_extra_before_training(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    done = run("train", "digits", "--plot", "p.png", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert 'pip install "nnbackend[plot]"' in done.stderr
    assert "epoch" not in done.stdout
