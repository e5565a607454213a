"""What a first training with ``nnbackend train`` is like: how long, how good, what is kept."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, figure, run, wait_for_an_epoch

import nnbackend as nn
from nnbackend.cli import job_data, report, train_job
from nnbackend.cli.keep_best import KeepBest
from nnbackend.cli.settings import Settings, parse_class_weight, read_config
from nnbackend.executor.python import PythonExecutor


@pytest.fixture
def rare(tmp_path: Path) -> Path:
    """A CSV with 3 % of rows that are "yes", which the columns only hint at."""
    rng = np.random.default_rng(0)
    y = rng.uniform(size=1200) < 0.03
    x = rng.normal(size=(1200, 3)) + 1.2 * y[:, None]
    path = tmp_path / "rare.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "fraud"])
        writer.writerows(
            [*row, "yes" if is_rare else "no"] for row, is_rare in zip(x, y, strict=True)
        )
    return path


class TestBudget:
    """Without --epochs there are about 5,000 steps, whatever the number of rows."""

    @pytest.mark.parametrize(
        ("rows", "batch_size", "expected"),
        [(300, 32, 625), (1000, 32, 200), (1797, 32, 112), (70_000, 32, 10), (20, 32, 1000),
         (300, 300, 1000), (10_000_000, 32, 10)],
    )  # fmt: skip
    def test_epochs_follow_from_the_rows(self, rows, batch_size, expected) -> None:
        settings = Settings(batch_size=batch_size).with_epochs(rows)
        assert settings.epochs == expected

    def test_epochs_that_are_given_stay(self) -> None:
        assert Settings(epochs=3).with_epochs(300).epochs == 3

    @pytest.mark.parametrize(
        ("data", "name", "least"),
        [("spiral", "accuracy", 75), ("sine", "r2", 0.999), ("moons", "accuracy", 99),
         ("circles", "accuracy", 99), ("vertical", "accuracy", 90)],
    )  # fmt: skip
    def test_every_built_in_data_set_is_learnt(self, tmp_path, data, name, least) -> None:
        done = run("train", data, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert figure(done.stdout, name, "validation") >= least

    def test_few_steps_are_said_to_be_few(self, tmp_path) -> None:
        short = run("train", "spiral", "--epochs", "30", cwd=tmp_path).stdout
        assert "240 steps are few for a network; without --epochs" in short
        assert "are few" not in run("train", "spiral", cwd=tmp_path).stdout

    def test_a_loss_that_still_falls_is_said_to(self, tmp_path) -> None:
        slow = run("train", "sine", "--lr", "1e-5", "--schedule", "constant", cwd=tmp_path).stdout
        assert "the loss was still falling" in slow
        assert "--epochs 400" in slow
        flat = run("train", "spiral", "--epochs", "200", cwd=tmp_path).stdout
        assert "still falling" not in flat


class TestFigures:
    def test_what_is_rare_is_judged_by_more_than_accuracy(self, rare) -> None:
        done = run("train", "rare.csv", "--save", "m", "--epochs", "40", cwd=rare.parent)
        assert done.returncode == 0, done.stderr
        share = figure(done.stdout, "largest class", "validation")
        assert share == pytest.approx(97.1, abs=0.5)
        assert figure(done.stdout, "accuracy", "validation") > 95
        assert figure(done.stdout, "f1", "validation") < 0.8
        assert 0.5 < figure(done.stdout, "auc", "validation") < 0.999
        assert f"would be right for {share:.2f} %" in done.stdout

    def test_they_are_those_of_the_weights_that_are_saved(self, rare) -> None:
        done = run("train", "rare.csv", "--save", "m", "--epochs", "40", cwd=rare.parent)
        model, data = nn.load(rare.parent / "m"), job_data.load_data(str(rare))
        train, held_out = report.Parts.of(Settings(), data)
        assert len(held_out) == 240
        model.compile(model.loss, metrics=["accuracy", "f1", "auc"])
        for name, rows in (("training", train), ("validation", held_out)):
            expected = model.evaluate(data.x[rows], data.y[rows])
            for key in ("f1", "auc", "loss"):
                found = figure(done.stdout, key, name)
                assert found == pytest.approx(expected[key], rel=1e-3, abs=1e-4)
            found = figure(done.stdout, "accuracy", name)
            assert found == pytest.approx(100 * expected["accuracy"], abs=0.01)

    def test_numbers_have_their_own(self, tmp_path) -> None:
        out = run("train", "sine", cwd=tmp_path).stdout
        assert figure(out, "mae", "validation") < 0.05
        assert "largest class" not in out

    def test_without_validation_there_is_one_column(self, tmp_path) -> None:
        out = run("train", "digits", "--validation", "0", "--epochs", "2", cwd=tmp_path).stdout
        assert figure(out, "accuracy", "training") > 80
        assert "validation" not in out

    def test_time_is_that_of_the_training_alone(self, monkeypatch) -> None:
        def slow(executor, batch_size, data) -> None:
            time.sleep(0.5)

        monkeypatch.setattr(PythonExecutor, "prepare", slow)
        model = nn.Sequential([nn.Dense(2, 2)], backend="numpy")
        model.compile("softmax_cross_entropy")
        x, y = nn.datasets.moons(50, seed=0)
        assert sum(model.fit(x, y, epochs=2, verbose=0).seconds) < 0.4

    def test_evaluate_shows_the_same(self, rare) -> None:
        run("train", "rare.csv", "--save", "m", "--epochs", "20", cwd=rare.parent)
        out = run("evaluate", "m", "rare.csv", cwd=rare.parent).stdout
        shown = {line[:13].strip(): float(line[13:]) for line in out.splitlines()}
        assert list(shown) == ["accuracy", "f1", "auc", "loss", "largest class", "rows"]
        assert shown["largest class"] == pytest.approx(0.97, abs=0.01)
        assert shown["f1"] < shown["accuracy"]


class TestKeepBest:
    def fit(self, curve, losses=None, patience=None, epochs=None):
        """A training whose validation figures are these; its weights tell the epoch."""
        model = nn.Sequential([nn.Dense(1, 2)], seed=0)
        model.compile("softmax_cross_entropy", nn.SGD(0.0), ["accuracy"])
        callback = KeepBest("accuracy", patience)
        callback.attach(model)
        callback.on_fit_begin(model)
        losses = losses or [1.0] * len(curve)
        for epoch, (value, loss) in enumerate(zip(curve, losses, strict=True), 1):
            model.layers[0].weight = np.full((1, 2), epoch)
            model.training.epoch = epoch
            figures = {"val_accuracy": value, "val_loss": loss}
            if callback.on_epoch_end(model, epoch, figures, model.history):
                break
        callback.on_fit_end(model, model.history)
        return model, callback

    @pytest.mark.parametrize(
        ("curve", "losses", "kept"),
        [
            ([0.1, 0.5, 0.4], [3, 2, 1], 2),
            ([0.1, 0.5, 0.5], [3, 2, 1], None),  # the last one, whose loss is lower
            ([0.5, 0.5, 0.5], [1, 2, 3], 1),
            ([0.5, float("nan"), 0.4], [1, 0.5, 0.2], 1),
            ([float("nan"), 0.1, 0.0], [1, 2, 3], 2),
        ],
    )
    def test_the_best_epochs_weights_are_left(self, curve, losses, kept) -> None:
        model, callback = self.fit(curve, losses)
        assert callback.kept_epoch == kept
        weight = model.backend.to_numpy(model.layers[0].weight)
        assert (weight == (kept or len(curve))).all()

    def test_patience(self) -> None:
        model, callback = self.fit([0.1, 0.3, 0.2, 0.2, 0.2, 0.9], patience=3)
        assert (callback.kept_epoch, model.epoch) == (2, 5)

    def test_a_saved_training_goes_on_as_if_nothing_had_happened(self, tmp_path) -> None:
        data = job_data.load_data("spiral")
        settings = replace(
            Settings(), epochs=60, schedule="constant", hidden=(16,), metrics=("accuracy",)
        )
        whole = train_job.build_model(settings, data)
        train_job.train(settings, whole, data)
        half = replace(settings, epochs=25)
        model = train_job.build_model(half, data)
        train_job.train(half, model, data)
        assert model.info["kept_epoch"] is not None  # else this tests nothing
        model.save(tmp_path / "m")
        again, resumed = train_job.resume(tmp_path / "m", {"epochs": 60}, None)
        train_job.train(again, resumed, data)
        assert resumed.history.to_dict() == whole.history.to_dict()
        assert resumed.info["kept_epoch"] == whole.info["kept_epoch"]
        for name, values in whole.arrays().items():
            np.testing.assert_array_equal(values, resumed.arrays()[name])

    def test_the_command_line_says_so_and_stops(self, tmp_path) -> None:
        done = run("train", "digits", "--patience", "4", "--save", "m", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "no epoch was better for 4 epochs" in done.stdout
        model = nn.load(tmp_path / "m")
        assert model.epoch == model.info["kept_epoch"] + 4 < 112
        assert f"the weights of epoch {model.info['kept_epoch']} are kept" in done.stdout
        assert (
            f"those of epoch {model.info['kept_epoch']}" in run("summary", "m", cwd=tmp_path).stdout
        )


class TestOptions:
    def test_class_weights_by_name(self, rare) -> None:
        plain = run("train", "rare.csv", "--epochs", "20", "--save", "a", cwd=rare.parent)
        for weights in ("balanced", "no=1,yes=30", "yes=30"):
            done = run("train", "rare.csv", "--epochs", "20", "--class-weight", weights, "--save",
                       "b", cwd=rare.parent)  # fmt: skip
            assert done.returncode == 0, done.stderr
            data = job_data.load_data(str(rare))
            found = [(nn.load(rare.parent / m).predict(data.x).argmax(axis=1) == 1).sum()
                     for m in ("a", "b")]  # fmt: skip
            assert found[1] > 2 * found[0], weights
        assert plain.returncode == 0

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("balanced", "balanced"),
            ("no=1,yes=30", {"no": 1.0, "yes": 30.0}),
            ("a=b=2", {"a=b": 2.0}),
            (" no = 0.5 , yes = 1e1", {"no": 0.5, "yes": 10.0}),
        ],
    )
    def test_how_class_weights_are_written(self, text, expected) -> None:
        assert parse_class_weight(text) == expected

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["rare.csv", "--class-weight", "ballanced"], "balanced, or weights by class such as"),
            (["rare.csv", "--class-weight", "no=1,=3"], "balanced, or weights by class such as"),
            (["rare.csv", "--class-weight", "no=much"], "balanced, or weights by class such as"),
            (["rare.csv", "--class-weight", "yse=3"], "Did you mean 'yes'?"),
            (["rare.csv", "--class-weight", "yes=-3"], "at least 0"),
            (["sine", "--class-weight", "balanced"], "works only with classes"),
            (["digits", "--patience", "0"], "patience must be at least 1"),
            (["digits", "--patience", "3", "--validation", "0"], "validation must not be 0"),
            (["digits", "--metrics", "acurracy"], "Did you mean 'accuracy'?"),
            (["sine", "--metrics", "f1"], "f1 counts classes"),
            (["digits", "--metrics", "r2"], "use accuracy"),
            (["digits", "--weight-decay", "0.1", "--optimizer", "sgd"], "adam and adamw"),
            (["digits", "--weight-decay", "-1"], "weight_decay must be at least 0"),
        ],
    )
    def test_wrong_ones(self, rare, arguments, message) -> None:
        done = run("train", *arguments, cwd=rare.parent)
        assert done.returncode == 1
        assert message in done.stderr
        assert "epoch" not in done.stdout

    def test_weight_decay(self, tmp_path) -> None:
        norms = []
        for decay in ("0", "0.5"):
            run("train", "digits", "--weight-decay", decay, "--save", "m", cwd=tmp_path)
            model = nn.load(tmp_path / "m")
            assert model.optimizer == nn.AdamW(model.optimizer.lr, weight_decay=float(decay))
            norms.append(np.linalg.norm(model.arrays()["layers.0.weight"]))
        assert norms[1] < 0.7 * norms[0]

    def test_metrics_are_computed_after_each_epoch(self, tmp_path) -> None:
        done = run("train", "digits", "--epochs", "3", "--metrics", "f1,top_k_accuracy", "--save",
                   "m", "--plot", "p.png", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        history = nn.load(tmp_path / "m").history
        assert {"f1", "val_f1", "top_k_accuracy", "val_top_k_accuracy"} <= {*history}
        assert figure(done.stdout, "top_k_accuracy", "validation") > 99

    def test_from_a_file(self, tmp_path) -> None:
        path = tmp_path / "job.toml"
        path.write_text(
            'metrics = ["f1", "auc"]\npatience = 7\nweight-decay = 0.1\n'
            "[class_weight]\nno = 1\nyes = 30\n"
        )
        assert read_config(path) == {
            "metrics": ("f1", "auc"), "patience": 7, "weight_decay": 0.1,
            "class_weight": {"no": 1, "yes": 30},
        }  # fmt: skip
        path.write_text('metrics = "f1,auc"\nclass-weight = "balanced"\n')
        assert read_config(path) == {"metrics": ("f1", "auc"), "class_weight": "balanced"}
        for text in ("metrics = [3]", "patience = 1.5", "class_weight = 3",
                     'class_weight = {yes = "much"}', "weight_decay = true"):  # fmt: skip
            path.write_text(text)
            with pytest.raises(nn.NNBackendError, match=f"job.toml: {text.split()[0]}"):
                read_config(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
class TestTermination:
    def start(self, cwd: Path, *arguments: str, ignores=()) -> subprocess.Popen[str]:
        def prepare() -> None:
            for number in ignores:
                signal.signal(number, signal.SIG_IGN)

        command = [*COMMAND, "train", "digits", "--epochs", "20000", *arguments]
        return subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=prepare,
        )  # fmt: skip

    @pytest.mark.parametrize("ignores", [(), (signal.SIGINT,)], ids=["", "in the background"])
    def test_sigterm_saves_as_ctrl_c_does(self, tmp_path, ignores) -> None:
        process = self.start(tmp_path, "--save", "m", ignores=ignores)
        wait_for_an_epoch(process)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 143, error
        assert error == ""
        assert re.search(r"stopped after epoch \d+: interrupted", out)
        assert 0 < nn.load(tmp_path / "m").epoch < 20000

    def test_before_a_training_it_ends_at_once(self, tmp_path) -> None:
        process = subprocess.Popen(
            [*COMMAND, "train", "-", "--save", "m"], cwd=tmp_path, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        process.stdin.write("a,b\n" * (1 << 16))  # more than a pipe holds: it has begun to read
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        error = process.stderr.read()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        assert process.returncode == 143
        assert error == "interrupted\n"


def test_a_page_leaves_no_gap(rng) -> None:
    data = job_data.load_data("digits")
    settings = Settings(epochs=2)
    model = train_job.build_model(settings, data)
    train_job.train(settings, model, data)
    figure_ = report.picture(settings, model, data)
    figure_.draw_without_rendering()
    places = [axes.get_subplotspec() for axes in figure_.axes]
    bottom = [place for place in places if place.is_last_row()]
    columns = sorted(c for spec in bottom for c in spec.colspan)
    assert columns == list(range(bottom[0].get_gridspec().ncols))
