"""The command line as a user types it."""

import csv
import importlib.util
import os
import re
import signal
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, figure, run, run_process, wait_for_an_epoch
from typer.testing import CliRunner

import nnbackend as nn
from nnbackend.cli import train_job
from nnbackend.cli.app import app
from nnbackend.cli.settings import Settings


def test_the_main_job_trains_digits_and_writes_model_and_picture(tmp_path: Path) -> None:
    arguments = ("train", "digits", "--save", "d.safetensors", "--plot", "d.png")
    done = run_process(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert figure(done.stdout, "accuracy", "validation") >= 97
    assert "val_accuracy" in done.stdout
    x, y = nn.datasets.digits()
    model = nn.load(tmp_path / "d.safetensors")
    assert model.evaluate(x, y)["accuracy"] > 0.97
    assert model.history.epochs == 112  # about 5,000 steps
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["d.png", "d.safetensors"]
    shown = run("summary", "d.safetensors", cwd=tmp_path).stdout
    assert "trained for 112 epochs" in shown
    assert "classes: 0, 1, 2" in shown


OPTIONS = {
    "hidden": ("32,16", (32, 16)), "activation": ("tanh", "tanh"), "epochs": ("3", 3),
    "batch_size": ("20", 20), "lr": ("0.01", 0.01), "schedule": ("constant", "constant"),
    "optimizer": ("adamw", "adamw"), "weight_decay": ("0.2", 0.2), "dropout": ("0.1", 0.1),
    "validation": ("0.3", 0.3), "patience": ("7", 7), "metrics": ("f1,auc", ("f1", "auc")),
    "class_weight": ("no=1,yes=3", {"no": 1.0, "yes": 3.0}), "seed": ("5", 5),
    "dtype": ("float64", "float64"), "target": ("kind", "kind"), "decimal": (",", ","),
    "task": ("classification", "classification"), "features": ("a,b", ("a", "b")),
    "drop": ("c", ("c",)), "sep": (";", ";"), "encoding": ("latin-1", "latin-1"),
    "header": (None, True),
}  # fmt: skip


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_is_an_option_and_a_key(name, tmp_path, monkeypatch) -> None:
    """What is asked for is what the job is given, from the command line and from a file."""
    found = []

    def stop(data, settings, *rest):
        found.append(getattr(settings, name))
        raise StopHereError

    monkeypatch.setattr("nnbackend.cli.job_data.training_data", stop)
    text, value = OPTIONS[name]
    option = [f"--{name.replace('_', '-')}", *([] if text is None else [text])]
    toml = repr(list(value) if isinstance(value, tuple) else value).replace("True", "true")
    if isinstance(value, dict):
        toml = repr(text)
    needed = {"patience": "validation = 0.2\n", "weight_decay": 'optimizer = "adam"\n'}
    (tmp_path / "s.toml").write_text(f"{needed.get(name, '')}{name} = {toml}\n".replace("'", '"'))
    for arguments in (option, ["--config", str(tmp_path / "s.toml")]):
        result = CliRunner().invoke(app, ["train", "spiral", *arguments])
        assert isinstance(result.exception, StopHereError), result.output
    assert found == [value, value]


def test_every_setting_is_fixed_free_or_about_the_rate_when_a_training_goes_on() -> None:
    known = sorted([*train_job.FIXED, *train_job.FREE, *train_job.RATE])
    assert known == sorted(field.name for field in fields(Settings))


def test_a_file_that_is_older_than_a_setting_is_gone_on_with(tmp_path) -> None:
    run("train", "spiral", "--epochs", "2", "--hidden", "4", "--save", "m", cwd=tmp_path)
    model = nn.load(tmp_path / "m")
    for name in ("dropout", "schedule", "patience"):
        del model.info["settings"][name]
    model.save(tmp_path / "m")
    done = run("train", "spiral", "--resume", "m", "--epochs", "3", "--save", "m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert nn.load(tmp_path / "m").info["settings"]["dropout"] == 0.0


def test_options_make_the_model(tmp_path: Path) -> None:
    done = run(
        "train", "spiral", "--hidden", "32,16", "--activation", "tanh", "--epochs", "3",
        "--batch-size", "20", "--lr", "0.01", "--schedule", "constant", "--optimizer", "rmsprop",
        "--dropout", "0.1", "--validation", "0.1", "--seed", "5", "--backend", "numpy",
        "--dtype", "float64", "--save", "m", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = nn.load(tmp_path / "m")
    assert [repr(layer) for layer in model.layers] == [
        "Dense(2, 32, activation='tanh')", "Dropout(0.1)", "Dense(32, 16, activation='tanh')",
        "Dropout(0.1)", "Dense(16, 3)"]  # fmt: skip
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
        (["digts"], "there is no file or folder digts"),
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


def test_info_says_how_to_install_what_is_missing(tmp_path: Path) -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed")
    done = run("info", cwd=tmp_path, COLUMNS="200")
    assert 'pip install "nnbackend[cuda12]"' in done.stdout


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
    for command in ("train", "evaluate", "predict", "summary", "info"):
        assert f"nnbackend {command}" in run(command, "--help", cwd=tmp_path).stdout


def test_plot_without_matplotlib_names_the_extra_before_training(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    done = run("train", "digits", "--plot", "p.png", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert 'pip install "nnbackend[plot]"' in done.stderr
    assert "epoch" not in done.stdout


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A CSV with text classes, a column in large units, and one that does not matter."""
    rng = np.random.default_rng(0)
    lines = ["length,width,noise,kind"]
    for k, kind in enumerate(("rose", "tulip", "daisy")):
        for _ in range(60):
            length, width = 1000 * k + 300 * rng.normal(), 0.1 * k + 0.02 * rng.normal()
            lines.append(f"{length:.3f},{width:.5f},{rng.normal():.3f},{kind}")
    path = tmp_path / "flowers.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


class TestFiles:
    """Train, evaluate, predict and summary on users' own files."""

    def test_csv_of_classes(self, tmp_path: Path, flowers: Path) -> None:
        done = run("train", "flowers.csv", "--target", "kind", "--hidden", "16", "--epochs", "80",
                   "--save", "m", "--plot", "p.pdf", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        model = nn.load(tmp_path / "m")
        assert isinstance(model.layers[0], nn.Standardize)
        assert model.info["class_names"] == ["daisy", "rose", "tulip"]
        evaluated = run("evaluate", "m", "flowers.csv", cwd=tmp_path).stdout
        assert float(re.search(r"accuracy +([\d.]+)", evaluated)[1]) > 0.95
        assert "rows          180" in evaluated
        # new rows: columns in another order, no target
        new = ["kind2,noise,width,length", "x,0,0.2,2000", "x,0,0,0"]
        (tmp_path / "new.csv").write_text("\n".join(new))
        done = run("predict", "m", "new.csv", "--out", "out.csv", "--probabilities", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with (tmp_path / "out.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["kind"] for row in rows] == ["daisy", "rose"]
        for row in rows:
            shares = [float(row[f"p_{name}"]) for name in ("daisy", "rose", "tulip")]
            assert sum(shares) == pytest.approx(1, abs=1e-4)
        shown = run("summary", "m", cwd=tmp_path).stdout
        assert "columns: length, width, noise" in shown
        assert "classes: daisy, rose, tulip" in shown

    def test_csv_of_quantities_in_their_own_units(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        x = rng.normal(size=(300, 2))
        price = 250_000 + 40_000 * x[:, 0] - 20_000 * x[:, 1]
        lines = ["a,b,price"] + [f"{a},{b},{p}" for (a, b), p in zip(x, price, strict=True)]
        (tmp_path / "houses.csv").write_text("\n".join(lines))
        done = run("train", "houses.csv", "--epochs", "150", "--save", "m", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "target 'price': numbers (regression); 240 training and 60" in done.stdout
        assert figure(done.stdout, "r2", "validation") > 0.98
        run("predict", "m", "houses.csv", "--out", "p.csv", cwd=tmp_path)
        predicted = np.loadtxt(tmp_path / "p.csv", skiprows=1)
        assert np.abs(predicted - price).mean() < 5_000
        wrong = run("predict", "m", "houses.csv", "--out", "q.csv", "--probabilities", cwd=tmp_path)
        assert wrong.returncode == 1
        assert "needs a model of classes" in wrong.stderr
        assert not (tmp_path / "q.csv").exists()

    def test_idx_npz_and_images(self, tmp_path: Path) -> None:
        from idx_files import write_idx
        from PIL import Image

        rng = np.random.default_rng(0)
        labels = np.arange(40, dtype="uint8") % 2
        pixels = (labels[:, None, None] * 200 + rng.integers(0, 40, (40, 4, 4))).astype("uint8")
        mnist = tmp_path / "mnist"
        mnist.mkdir()
        write_idx(mnist / "train-images-idx3-ubyte.gz", pixels)
        write_idx(mnist / "train-labels-idx1-ubyte.gz", labels)
        np.savez(tmp_path / "a.npz", x=pixels, y=labels)
        for k in range(40):
            folder = tmp_path / "png" / ("dark", "light")[labels[k]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[k]).save(folder / f"{k:02}.png")
        for data in ("mnist", "a.npz", "png"):
            done = run("train", data, "--epochs", "100", "--save", "m", "--plot", "p.png",
                       cwd=tmp_path)  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert figure(done.stdout, "accuracy", "validation") == 100
            assert "accuracy      1\n" in run("evaluate", "m", data, cwd=tmp_path).stdout
            run("predict", "m", data, "--out", "out.csv", cwd=tmp_path)
            first = (tmp_path / "out.csv").read_text().splitlines()[1]
            assert first == ("dark/00.png,dark" if data == "png" else "0")
        write_idx(mnist / "t10k-images-idx3-ubyte", pixels[:6])
        write_idx(mnist / "t10k-labels-idx1-ubyte", labels[:6])
        run("train", "mnist", "--epochs", "2", "--save", "m", cwd=tmp_path)
        evaluated = run("evaluate", "m", "mnist", cwd=tmp_path).stdout
        assert "rows          6" in evaluated
        assert "t10k-images" in evaluated

    def test_config_file_and_what_wins(self, tmp_path: Path, flowers: Path) -> None:
        (tmp_path / "c.toml").write_text(
            'hidden = [8, 4]\nbatch-size = 20\nepochs = 2\ntarget = "kind"\n'
        )
        done = run("train", "flowers.csv", "--config", "c.toml", "--epochs", "3", "--save", "m",
                   cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        model = nn.load(tmp_path / "m")
        assert model.epoch == 3
        assert model.step == 3 * -(-144 // 20)
        assert model.info["settings"]["hidden"] == [8, 4]

    @pytest.mark.parametrize(
        ("content", "message"),
        [("hiden = 3", "Did you mean 'hidden'"), ("= 3", "not TOML"), ("epochs = 0", "at least 1"),
         ('epochs = "x"', "whole number")],
    )  # fmt: skip
    def test_wrong_config_files(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "c.toml").write_text(content)
        done = run("train", "digits", "--config", "c.toml", cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["train", "flowers.csv", "--target", "kin"], "Did you mean 'kind'"),
            (["train", "flowers.csv", "--task", "regression"], "regression needs numbers"),
            (["train", "flower.csv"], "there is no file or folder flower.csv"),
            (["train", "flowers.csv", "--task", "guess"], "task must be one of"),
            (["evaluate", "none", "flowers.csv"], "no model file none"),
            (["evaluate", "flowers.csv", "flowers.csv"], "not a whole safetensors file"),
            (["predict", "none", "flowers.csv", "--out", "o.csv"], "no model file none"),
            (["predict", "none", "flowers.csv", "--out", "no/o.csv"], "does not exist"),
            (["train", "spiral", "--seed", "5000000000"], "seed must be below 2**32"),
            (
                ["train", "digits", "--hidden", "100000000000"],
                "there is not the memory for Dense.weight",
            ),
            (["summary", "none"], "no model file none"),
            (["train", "digits", "--save", "."], "is a folder; name a file in it"),
            (
                ["train", "digits", "--epochs", "1", "--plot", "a.xyz"],
                "ending in .png, .pdf, .svg; received a.xyz",
            ),
        ],
    )
    def test_users_errors(
        self, tmp_path: Path, flowers: Path, arguments: list[str], message: str
    ) -> None:
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert os.listdir(tmp_path) == ["flowers.csv"]

    def test_data_that_do_not_fit_a_model(self, tmp_path: Path, flowers: Path) -> None:
        run("train", "flowers.csv", "--epochs", "1", "--save", "m", cwd=tmp_path)
        (tmp_path / "other.csv").write_text("length,width,kind\n1,2,rose\n3,4,tulip\n")
        (tmp_path / "lily.csv").write_text("length,width,noise,kind\n1,2,3,rose\n3,4,5,lily\n")
        (tmp_path / "blank.csv").write_text("length,width,noise\n1,2,3\n")
        for command, data, message in (
            ("evaluate", "blank.csv", "the target this model was trained on; for data without"),
            ("evaluate", "other.csv", "no column 'noise', which the model was trained on"),
            ("evaluate", "lily.csv", "classes that the model does not know: lily"),
            ("evaluate", "digits", "the model takes 3 inputs; digits has 64"),
            ("predict", "other.csv", "no column 'noise', which the model was trained on"),
        ):
            extra = ["--out", "o.csv"] if command == "predict" else []
            done = run(command, "m", data, *extra, cwd=tmp_path)
            assert done.returncode == 1, done.stdout
            assert message in done.stderr


class TestResume:
    def train(self, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("train", "digits", "--hidden", "16", "--dropout", "0.1", *arguments, cwd=cwd)

    def start(self, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "train", "digits", "--hidden", "16", "--dropout", "0.1", *arguments]
        return subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def test_ctrl_c_saves_and_resume_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        epochs = ["--epochs", "200"]
        whole = self.train(tmp_path, *epochs, "--save", "whole")
        assert whole.returncode == 0, whole.stderr
        process = self.start(tmp_path, *epochs, "--save", "m", "--plot", "p.png")
        wait_for_an_epoch(process)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert re.search(r"stopped after epoch \d+: interrupted", out)
        stopped = nn.load(tmp_path / "m")
        assert 0 < stopped.epoch < 200
        done = run("train", "digits", "--resume", "m", "--save", "m", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        a, b = nn.load(tmp_path / "whole"), nn.load(tmp_path / "m")
        for key, value in {**a.arrays(), **a.optimizer_state()}.items():
            np.testing.assert_array_equal(value, {**b.arrays(), **b.optimizer_state()}[key])
        assert a.history.to_dict() == b.history.to_dict()

    def test_more_epochs_than_at_first(self, tmp_path: Path) -> None:
        self.train(tmp_path, "--epochs", "2", "--save", "m")
        done = run("train", "digits", "--resume", "m", "--epochs", "5", "--save", "m",
                   cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        model = nn.load(tmp_path / "m")
        assert (model.epoch, model.history.epochs) == (5, 5)
        assert model.optimizer.lr.steps == 5 * 45

    def test_what_cannot_be_resumed(self, tmp_path: Path, flowers: Path) -> None:
        self.train(tmp_path, "--epochs", "2", "--save", "m")
        before = (tmp_path / "m").read_bytes()
        for arguments, message in (
            (["digits", "--resume", "m"], "trained for 2 epochs already; pass --epochs above"),
            (["digits", "--resume", "m", "--epochs", "5", "--hidden", "8"],
             "was trained with hidden (16,); received (8,)"),
            (["digits", "--resume", "m", "--epochs", "5", "--activation", "tanh"], "activation"),
            (["flowers.csv", "--resume", "m", "--epochs", "5"], "rows of 64 values"),
            (["digits", "--resume", "m", "--epochs", "5", "--batch-size", "64"], "batch_size 32"),
            (["digits", "--resume", "none"], "no model file none"),
        ):  # fmt: skip
            done = run("train", *arguments, "--save", "m", cwd=tmp_path)
            assert done.returncode == 1
            assert message in done.stderr
            assert (tmp_path / "m").read_bytes() == before
        nn.Sequential([nn.Dense(64, 10)]).save(tmp_path / "plain")
        done = run("train", "digits", "--resume", "plain", cwd=tmp_path)
        assert "was not written by nnbackend train" in done.stderr

    def test_a_folder_that_cannot_be_written_keeps_the_old_file(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            target = "/proc/m"  # root may write everywhere but there
        else:
            (tmp_path / "ro").mkdir(mode=0o555)
            target = str(tmp_path / "ro" / "m")
        done = self.train(tmp_path, "--epochs", "1", "--save", target)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "error:" in done.stderr
