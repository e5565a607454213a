"""Callbacks, and resuming a training as if it had never stopped."""

import copy
import csv
import pickle

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.metrics import METRICS


def make(**settings) -> nn.Sequential:
    model = nn.Sequential(
        [nn.Dense(4, 8, "relu"), nn.BatchNorm(8), nn.Dropout(0.2), nn.Dense(8, 3)],
        seed=1,
        dtype="float64",
    )
    model.compile("softmax_cross_entropy", metrics=["accuracy"], **settings)
    return model


@pytest.fixture
def data(rng):
    return rng.normal(size=(60, 4)), rng.integers(0, 3, 60)


class Script(nn.Callback):
    """Feeds invented figures to another callback, whatever the training gives."""

    def __init__(self, inner: nn.Callback, name: str, values: list[float]) -> None:
        self.inner, self.name, self.values = inner, name, values

    def on_epoch_end(self, model, epoch, figures, history):
        return self.inner.on_epoch_end(model, epoch, {self.name: self.values[epoch - 1]}, history)

    def on_fit_begin(self, model):
        self.inner.on_fit_begin(model)

    def on_fit_end(self, model, history):
        self.inner.on_fit_end(model, history)


def snapshot(model: nn.Sequential) -> dict[str, np.ndarray]:
    optimizer = {f"optimizer.{k}": v for k, v in model.optimizer_state().items()}
    return {**model.arrays(), **optimizer}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


class TestEarlyStopping:
    def test_stops_after_its_patience_and_restores_the_best(self, backend, data) -> None:
        seen = []

        class Keep(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                seen.append(model.arrays())

        stop = nn.EarlyStopping("val_loss", patience=2)
        model = make()
        values = [1.0, 0.5, 0.7, 0.6, 0.1]
        history = model.fit(
            *data, epochs=5, callbacks=[Keep(), Script(stop, "val_loss", values)], verbose=0
        )
        assert history.epochs == 4
        assert history.stopped == "val_loss has not improved for 2 epochs"
        assert stop.best_epoch == 2
        same(model.arrays(), seen[1])

    def test_the_reason_is_shown(self, backend, data, capsys) -> None:
        stop = Script(nn.EarlyStopping("loss", patience=1), "loss", [1.0, 2.0])
        make().fit(*data, epochs=9, callbacks=[stop])
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == "stopped after epoch 2: loss has not improved for 1 epochs"

    @pytest.mark.parametrize(
        ("settings", "values", "epochs"),
        [
            ({"monitor": "val_accuracy"}, [0.1, 0.2, 0.3, 0.3], 4),
            ({"monitor": "val_f1", "mode": "min"}, [0.1, 0.2], 2),
            ({"monitor": "loss", "mode": "max"}, [0.1, 0.2, 0.1], 3),
            ({"monitor": "loss", "min_delta": 0.1}, [1.0, 0.95], 2),
            ({"monitor": "loss"}, [float("nan"), 1.0], 1),
        ],
    )
    def test_what_counts_as_better(self, backend, data, settings, values, epochs) -> None:
        stop = nn.EarlyStopping(patience=1, **settings)
        history = make().fit(
            *data, epochs=len(values), callbacks=[Script(stop, settings["monitor"], values)],
            verbose=0,
        )  # fmt: skip
        assert history.epochs == epochs

    def test_a_curve_that_is_not_there(self, backend, data) -> None:
        with pytest.raises(nn.DataError, match="received 'val_loss'.*Pass validation_data or"):
            make().fit(*data, callbacks=[nn.EarlyStopping()], verbose=0)
        for name in ("val_acc", "val_acuracy"):
            stop = nn.EarlyStopping(name, mode="max")
            with pytest.raises(nn.DataError, match=r"Did you mean 'val_accuracy'\?$"):
                make().fit(*data, validation_split=0.2, callbacks=[stop], verbose=0)
        with pytest.raises(nn.UnknownNameError, match="mode must be one of"):
            nn.EarlyStopping(mode="up")


class TestModelCheckpoint:
    def test_every_epoch_by_name(self, backend, data, tmp_path) -> None:
        path = tmp_path / "m-{epoch}.safetensors"
        make().fit(*data, epochs=5, callbacks=[nn.ModelCheckpoint(path, every=2)], verbose=0)
        assert sorted(f.name for f in tmp_path.iterdir()) == [
            "m-2.safetensors", "m-4.safetensors"]  # fmt: skip
        loaded = nn.load(tmp_path / "m-4.safetensors")
        assert (loaded.epoch, loaded.history.epochs) == (4, 4)

    def test_only_the_best(self, backend, data, tmp_path) -> None:
        save = nn.ModelCheckpoint(tmp_path / "{epoch}", monitor="val_accuracy")
        values = [0.1, 0.3, 0.2, 0.4]
        make().fit(*data, epochs=4, callbacks=[Script(save, "val_accuracy", values)], verbose=0)
        assert sorted(f.name for f in tmp_path.iterdir()) == ["1", "2", "4"]

    def test_a_missing_folder_is_found_before_training(self, backend, data, tmp_path) -> None:
        model = make()
        with pytest.raises(nn.DataError, match="does not exist"):
            model.fit(*data, callbacks=[nn.ModelCheckpoint(tmp_path / "no" / "m")], verbose=0)
        assert model.step == 0


def test_csv_logger_writes_a_line_an_epoch_and_goes_on_after_a_resume(
    backend, data, tmp_path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("old")
    model = make()
    first = model.fit(*data, epochs=2, callbacks=[nn.CSVLogger(path)], verbose=0)
    model.fit(*data, epochs=1, callbacks=[nn.CSVLogger(path)], verbose=0)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows[:2]] == first["loss"]


def test_learning_rate_scheduler_sets_each_epochs_rate(backend, data) -> None:
    model = make(optimizer=nn.SGD(lr=1.0))
    schedule = nn.LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch > 1 else 0.1)
    history = model.fit(*data, epochs=3, callbacks=[schedule], verbose=0)
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.025])


def test_learning_rate_scheduler_begins_anew_where_somebody_else_set_the_rate(
    backend, data
) -> None:
    """Between two fits: by hand, or with another optimizer. What it set itself is not set twice."""
    x, y = data
    model = make(optimizer=nn.SGD())
    scheduler = nn.LearningRateScheduler(lambda epoch, lr: lr / 2)
    settings = {"epochs": 2, "callbacks": [scheduler], "verbose": 0}
    model.optimizer.lr = 0.8
    assert model.fit(x, y, **settings)["lr"] == [0.4, 0.2]
    assert model.fit(x, y, **settings)["lr"] == [0.1, 0.05]
    model.optimizer.lr = 0.8
    assert model.fit(x, y, **settings)["lr"] == [0.4, 0.2]
    model.compile("softmax_cross_entropy", nn.SGD(1.6))
    assert model.fit(x, y, **settings)["lr"] == [0.8, 0.4]


@pytest.mark.parametrize("cut", ["no", "between fits", "by a file"])
def test_a_scheduler_beside_another_callback_that_sets_the_rate(
    backend, data, tmp_path, cut
) -> None:
    """Where a training is cut in two, no epoch's rate is set twice."""

    def callbacks() -> list[nn.Callback]:
        return [
            nn.LearningRateScheduler(lambda epoch, lr: lr * 0.9),
            nn.ReduceLROnPlateau("loss", patience=1, min_delta=10.0),
        ]

    model, own = make(optimizer=nn.SGD(0.1)), callbacks()
    model.fit(*data, epochs=4 if cut == "no" else 2, callbacks=own, verbose=0)
    if cut == "by a file":
        model.save(tmp_path / "m")
        model, own = nn.load(tmp_path / "m"), callbacks()
    if cut != "no":
        model.fit(*data, epochs=2, callbacks=own, verbose=0)
    assert model.optimizer.lr == pytest.approx(0.1 * 0.9**5 / 2**3)


def test_reduce_lr_on_plateau(backend, data) -> None:
    model = make(optimizer=nn.SGD(lr=1.0))
    reduce = nn.ReduceLROnPlateau("loss", factor=0.1, patience=2, min_lr=0.05)
    values = [1.0, 1.0, 1.0, 0.5, 0.6, 0.7, 0.8]
    history = model.fit(*data, epochs=7, callbacks=[Script(reduce, "loss", values)], verbose=0)
    assert history["lr"] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.05])


@pytest.mark.parametrize(
    "callback", [nn.ReduceLROnPlateau("loss"), nn.LearningRateScheduler(lambda e, lr: lr)]
)
def test_callbacks_that_set_the_rate_refuse_a_schedule(backend, data, callback) -> None:
    model = make(optimizer=nn.SGD(lr=nn.StepDecay(0.1)))
    with pytest.raises(nn.DataError, match="has a schedule, StepDecay"):
        model.fit(*data, callbacks=[callback], verbose=0)


def test_time_limit(backend, data) -> None:
    limit = nn.TimeLimit(1e-6)
    history = make().fit(*data, epochs=50, callbacks=[limit], verbose=0)
    assert history.epochs == 1
    assert history.stopped == "the time limit of 1e-06 s"
    with pytest.raises(nn.DataError, match="above 0"):
        nn.TimeLimit(0)


class TestResume:
    """Bit-identical to a run that never stopped."""

    def callbacks(self, path) -> list[nn.Callback]:
        return [
            nn.ModelCheckpoint(path, every=3),  # listed first, called last
            nn.EarlyStopping("val_loss", patience=50),
            nn.ReduceLROnPlateau("val_accuracy", patience=2, factor=0.7),
            nn.LearningRateScheduler(lambda epoch, lr: 0.99 * lr),
            nn.TimeLimit(1000),
        ]

    def test_from_a_checkpoint(self, backend, data, tmp_path) -> None:
        settings = {"validation_split": 0.25, "batch_size": 16, "verbose": 0}
        whole = make(optimizer=nn.Adam(lr=0.01))
        whole.fit(*data, epochs=10, callbacks=self.callbacks(tmp_path / "w{epoch}"), **settings)
        path = tmp_path / "m.safetensors"
        stopped = make(optimizer=nn.Adam(lr=0.01))
        stopped.fit(*data, epochs=4, callbacks=self.callbacks(path), **settings)
        resumed = nn.load(path)
        assert resumed.epoch == 3
        states = self.callbacks(tmp_path / "r{epoch}")
        resumed.fit(*data, epochs=7, callbacks=states, **settings)
        same(snapshot(resumed), snapshot(whole))
        assert resumed.history.to_dict() == whole.history.to_dict()
        assert states[1].state()["waited"] == whole.callbacks[1].state()["waited"]
        assert resumed.step == whole.step

    def test_after_ctrl_c_in_the_middle_of_an_epoch(self, backend, rng, tmp_path) -> None:
        x, y = rng.normal(size=(100, 4)), rng.integers(0, 3, 100)
        whole = make()
        whole.fit(x, y, epochs=6, batch_size=10, verbose=0)

        class Stops(nn.schedules.Schedule):
            """Presses Ctrl-C in epoch 4, and not again."""

            pressed = []

            def rates(self, steps):
                if (steps >= 34).any() and not self.pressed:
                    self.pressed.append(1)
                    raise KeyboardInterrupt
                return np.full(len(steps), 1e-3)

        model = make(optimizer=nn.Adam(lr=Stops(1.0)))
        history = model.fit(x, y, epochs=6, batch_size=10, verbose=0)
        assert history.stopped == "interrupted"
        assert model.epoch == model.history.epochs == history.epochs < 6
        assert model.step == 10 * model.epoch
        model.fit(x, y, epochs=6 - model.epoch, batch_size=10, verbose=0)
        same(snapshot(model), snapshot(whole))
        assert model.history["loss"] == whole.history["loss"]

    def test_iterables_go_back_to_the_last_epochs_end(self, backend, data) -> None:
        x, y = data

        def batches():
            yield x, y
            if model.epoch == 2:
                raise KeyboardInterrupt
            yield x, y

        model, expected = make(), make()
        history = model.fit(batches, epochs=5, verbose=0)
        expected.fit([(x, y), (x, y)], epochs=2, verbose=0)
        assert (history.stopped, model.epoch, model.step) == ("interrupted", 2, 4)
        same(snapshot(model), snapshot(expected))

    def test_states_without_their_callbacks_are_kept_until_the_next_fit(
        self, backend, data, tmp_path
    ) -> None:
        model = make()
        stop = nn.EarlyStopping("loss", patience=9)
        model.fit(*data, epochs=2, callbacks=[stop], verbose=0)
        model.save(tmp_path / "a")
        nn.load(tmp_path / "a").save(tmp_path / "b")
        again = nn.EarlyStopping("loss", patience=9)
        nn.load(tmp_path / "b").fit(*data, callbacks=[again], verbose=0)
        assert again.best_epoch in (1, 2, 3)
        assert again.monitor.best <= stop.monitor.best

    @pytest.mark.parametrize("kind", ["stopping", "reduce", "checkpoint"])
    @pytest.mark.parametrize("mode", ["auto", "max"])
    def test_the_state_of_another_curve_is_not_this_ones(
        self, backend, data, tmp_path, kind, mode
    ) -> None:
        """A loss cannot be less than minus an accuracy."""

        def watch(curve: str, mode: str = "auto") -> nn.Callback:
            if kind == "checkpoint":
                return nn.ModelCheckpoint(tmp_path / f"best {curve}", curve, mode=mode)
            make_one = nn.EarlyStopping if kind == "stopping" else nn.ReduceLROnPlateau
            return make_one(curve, patience=2, mode=mode)

        model = make()
        model.fit(*data, epochs=2, callbacks=watch("accuracy"), verbose=0)
        model.save(tmp_path / "a")
        again = watch("accuracy" if mode == "max" else "loss", mode)
        loaded = nn.load(tmp_path / "a")
        loaded.fit(*data, epochs=1, callbacks=again, verbose=0)
        if mode == "max":  # the same curve and direction goes on
            best = max(loaded.history["accuracy"])
            assert again.monitor.best == -best
        else:
            assert again.monitor.best == loaded.history["loss"][-1]

    def test_states_without_the_name_of_a_curve_are_taken_for_this_ones(self) -> None:
        stopping = nn.EarlyStopping("loss")
        stopping.set_state({"waited": 2, "best_epoch": 1, "best": 0.5})
        assert (stopping.waited, stopping.monitor.best) == (2, 0.5)


class TestOneCallbackForTwoModels:
    """A model that a callback has not seen starts afresh; the same model resumes."""

    def run(self, callback: nn.Callback, values: list[float], model=None) -> nn.Sequential:
        model = make() if model is None else model
        script = [Script(callback, "loss", values)]
        callback.attach(model)  # as fit does with the callbacks that it is given
        x, y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3
        model.fit(x, y, epochs=len(values) - model.epoch, verbose=0, callbacks=script)
        return model

    def test_early_stopping(self, backend) -> None:
        stopping = nn.EarlyStopping("loss", patience=2)
        first = self.run(stopping, [1.0, 0.1, 0.5, 0.5, 0.5])
        assert first.epoch == 4
        second = self.run(stopping, [3.0, 2.9, 2.8, 2.7])
        assert second.epoch == 4
        assert stopping.best_epoch == 4
        assert stopping.waited == 0

    def test_early_stopping_of_the_same_model_goes_on(self, backend) -> None:
        stopping = nn.EarlyStopping("loss", patience=3)
        model = self.run(stopping, [1.0, 0.1, 0.5])
        model = self.run(stopping, [1.0, 0.1, 0.5, 0.5, 0.5, 0.5], model)
        assert model.epoch == 5

    def test_model_checkpoint(self, backend, tmp_path) -> None:
        keep = nn.ModelCheckpoint(tmp_path / "e{epoch}", monitor="loss")
        self.run(keep, [1.0, 0.1])
        for file in tmp_path.iterdir():
            file.unlink()
        self.run(keep, [3.0, 2.0, 2.5])
        assert sorted(file.name for file in tmp_path.iterdir()) == ["e1", "e2"]

    def test_reduce_lr_on_plateau(self, backend) -> None:
        reduce = nn.ReduceLROnPlateau("loss", patience=2, factor=0.5)
        self.run(reduce, [0.1, 0.5])
        model = self.run(reduce, [3.0, 2.9, 2.8])
        assert model.optimizer.lr == 1e-3

    def test_time_limit(self, backend) -> None:
        limit = nn.TimeLimit(1000.0)
        self.run(limit, [1.0])
        limit.spent = 1001.0
        assert self.run(limit, [1.0, 1.0]).epoch == 2
        assert limit.spent < 1000

    def test_a_callback_of_ones_own(self, backend, data) -> None:
        class Counts(nn.Callback):
            seen: list[int]

            def __init__(self) -> None:
                self.seen = []

            def on_epoch_end(self, model, epoch, figures, history):
                self.seen.append(epoch)

            def state(self):
                return {"seen": list(self.seen)}

            def set_state(self, state):
                self.seen = list(state["seen"])

        counts = Counts()
        first, second = make(), make()
        first.fit(*data, epochs=2, verbose=0, callbacks=counts)
        first.fit(*data, epochs=1, verbose=0, callbacks=counts)
        assert counts.seen == [1, 2, 3]
        second.fit(*data, epochs=2, verbose=0, callbacks=counts)
        assert counts.seen == [1, 2]
        copy.deepcopy(counts)
        pickle.loads(pickle.dumps(nn.EarlyStopping("loss")))

    def test_a_copy_of_a_model_is_another_model(self, backend) -> None:
        stopping = nn.EarlyStopping("loss", patience=2)
        model = self.run(stopping, [1.0, 0.1, 0.5])
        other = self.run(stopping, [1.0, 1.0, 1.0, 9.0, 8.0, 7.0], copy.deepcopy(model))
        assert (other.epoch, stopping.best_epoch) == (6, 6)


class TestMonitors:
    @pytest.mark.parametrize("name", ["val_my_auc", "balanced", "val_lr", "my_loss", "val_acuracy"])
    @pytest.mark.parametrize(
        "make",
        [
            nn.EarlyStopping,
            nn.ReduceLROnPlateau,
            lambda name, **mode: nn.ModelCheckpoint("m", name, **mode),
        ],
        ids=["EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint"],
    )
    def test_a_name_that_is_not_known_needs_a_mode(self, make, name) -> None:
        with pytest.raises(nn.DataError, match=f"'{name}' is better is not known: pass mode='max'"):
            make(name)
        assert make(name, mode="max").monitor.sign == -1
        assert make(name, mode="min").monitor.sign == 1

    @pytest.mark.parametrize("value", [np.inf, -np.inf])
    def test_what_stays_infinite_does_not_improve(self, value) -> None:
        monitor = nn.EarlyStopping("loss").monitor
        assert [monitor.improved({"loss": value}) for _ in range(3)] == [True, False, False]
        assert monitor.improved({"loss": 1.0}) is (value > 0)
        assert not monitor.improved({"loss": np.nan})

    @pytest.mark.parametrize("name", ["val_acuracy", "val_acc", "val_Accuracy"])
    def test_a_misspelt_name_gets_a_hint(self, name) -> None:
        with pytest.raises(nn.DataError, match="Did you mean 'val_accuracy'"):
            nn.EarlyStopping(name)

    @pytest.mark.parametrize("name", list(METRICS))
    def test_every_metric_is_known(self, name) -> None:
        more = name not in ("mae", "mse")
        assert nn.EarlyStopping(f"val_{name}").monitor.sign == (-1 if more else 1)

    @pytest.mark.parametrize(
        ("every", "losses", "saved"),
        [
            (2, [1, 0.9, 0.5, 0.6, 0.7, 0.65], [2, 4]),
            (3, [0.1, 0.2, 0.9, 0.3, 0.2, 0.8, 0.4, 0.5, 0.85], [3, 6]),
            (1, [1, 0.9, 0.95, 0.8], [1, 2, 4]),
        ],
    )
    def test_a_checkpoint_is_compared_with_what_was_saved(
        self, backend, data, tmp_path, every, losses, saved
    ) -> None:
        keep = nn.ModelCheckpoint(tmp_path / "e{epoch:02d}", monitor="loss", every=every)
        make().fit(*data, epochs=len(losses), verbose=0, callbacks=Script(keep, "loss", losses))
        assert sorted(f.name for f in tmp_path.iterdir()) == [f"e{n:02d}" for n in saved]

    @pytest.mark.parametrize(("lr", "expected"), [(1e-4, 1e-4), (1.5e-3, 1e-3), (1e-2, 2.5e-3)])
    def test_a_lowest_rate_raises_no_rate(self, backend, data, lr, expected) -> None:
        model = make(optimizer=nn.Adam(lr=lr))
        reduce = nn.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_lr=1e-3)
        model.fit(*data, epochs=3, verbose=0, callbacks=Script(reduce, "loss", [1.0] * 3))
        assert model.optimizer.lr == pytest.approx(expected)


class TestPathsOfCheckpoints:
    def test_numbers_of_epochs_and_figures(self, backend, data, tmp_path) -> None:
        keep = nn.ModelCheckpoint(str(tmp_path / "{epoch:03d}-{{x}}-{accuracy:.2f}"))
        model = make()
        model.fit(*data, epochs=2, verbose=0, callbacks=keep)
        accuracy = model.history["accuracy"]
        expected = [f"{n + 1:03d}-{{x}}-{value:.2f}" for n, value in enumerate(accuracy)]
        assert sorted(file.name for file in tmp_path.iterdir()) == expected

    @pytest.mark.parametrize(
        "path", ["a{", "{epoch", "}", "{}", "{0}", "{epoch.real}", "{epoch[0]}"]
    )
    def test_what_is_no_path(self, path) -> None:
        with pytest.raises(nn.DataError, match="the checkpoint's path"):
            nn.ModelCheckpoint(path)

    def test_a_format_that_does_not_fit_is_found_before_training(
        self, backend, data, tmp_path
    ) -> None:
        model = make()
        with pytest.raises(nn.DataError, match="the checkpoint's path"):
            model.fit(*data, verbose=0, callbacks=nn.ModelCheckpoint(tmp_path / "{epoch:s}"))
        assert model.epoch == 0

    def test_a_curve_that_is_not_there(self, backend, data, tmp_path) -> None:
        with pytest.raises(nn.UnknownNameError, match="accuracy, epoch, loss, lr; received 'f1'"):
            make().fit(*data, verbose=0, callbacks=nn.ModelCheckpoint(tmp_path / "{f1}"))


class TestCSVLogger:
    def rows(self, path) -> list[dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def test_columns_go_by_name(self, backend, data, tmp_path) -> None:
        """A second fit with validation, a third without, a fourth with another metric."""
        model, log = make(), nn.CSVLogger(tmp_path / "log.csv")
        model.fit(*data, epochs=2, verbose=0, callbacks=log)
        model.fit(*data, epochs=1, verbose=0, callbacks=log, validation_split=0.5)
        model.fit(*data, epochs=1, verbose=0, callbacks=log)
        model.compile("softmax_cross_entropy", metrics=["f1"])
        model.fit(*data, epochs=1, verbose=0, callbacks=nn.CSVLogger(tmp_path / "log.csv"))
        rows = self.rows(tmp_path / "log.csv")
        assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
        assert [bool(row["val_loss"]) for row in rows] == [False, False, True, False, False]
        assert [bool(row["f1"]) for row in rows] == [False, False, False, False, True]
        for number, row in enumerate(rows):
            for name, curve in model.history.items():
                if row[name]:
                    assert float(row[name]) == curve[number]

    def test_lines_after_the_model_that_is_resumed_are_written_anew(
        self, backend, data, tmp_path
    ) -> None:
        model = make()
        model.fit(*data, epochs=2, verbose=0, callbacks=nn.CSVLogger(tmp_path / "log.csv"))
        model.save(tmp_path / "m")
        model.fit(*data, epochs=2, verbose=0, callbacks=nn.CSVLogger(tmp_path / "log.csv"))
        lines = (tmp_path / "log.csv").read_text()
        again = nn.load(tmp_path / "m")
        again.fit(*data, epochs=2, verbose=0, callbacks=nn.CSVLogger(tmp_path / "log.csv"))
        assert (tmp_path / "log.csv").read_text() == lines

    def test_another_file_is_not_written_to(self, backend, data, tmp_path) -> None:
        model = make()
        model.fit(*data, verbose=0)
        (tmp_path / "log.csv").write_text("a,b\n1,2\n")
        with pytest.raises(nn.DataError, match="log.csv is no log of CSVLogger"):
            model.fit(*data, verbose=0, callbacks=nn.CSVLogger(tmp_path / "log.csv"))
        assert (tmp_path / "log.csv").read_text() == "a,b\n1,2\n"
        (tmp_path / "log.csv").write_bytes(b"epoch,loss\n1,\xff\n")
        with pytest.raises(nn.DataError, match="log.csv is no log of CSVLogger"):
            model.fit(*data, verbose=0, callbacks=nn.CSVLogger(tmp_path / "log.csv"))
        assert model.epoch == 1  # found before anything is trained

    def test_where_it_cannot_be_written_is_found_before_training(
        self, backend, data, tmp_path
    ) -> None:
        model = make()
        with pytest.raises(nn.DataError, match="the log cannot be written"):
            model.fit(*data, verbose=0, callbacks=nn.CSVLogger(tmp_path / "no" / "log.csv"))
        assert model.epoch == 0


def test_a_misspelt_method_is_noticed() -> None:
    with pytest.raises(nn.UnknownNameError, match="Did you mean 'on_epoch_end'"):
        type("Mine", (nn.Callback,), {"on_epoch_ends": lambda self: None})
    with pytest.raises(nn.UnknownNameError, match="on_epoch_end, on_fit_begin, on_fit_end"):
        type("Mine", (nn.Callback,), {"on_train_begin": lambda self: None})


def test_a_state_that_does_not_fit_is_an_error_of_the_file(backend, data, tmp_path) -> None:
    model = make()
    model.fit(*data, verbose=0, callbacks=nn.EarlyStopping("loss"))
    model.save(tmp_path / "m")
    loaded = nn.load(tmp_path / "m")
    loaded.callback_states[0]["waited"] = "long"
    with pytest.raises(nn.CheckpointError, match="state of EarlyStopping does not fit"):
        loaded.fit(*data, verbose=0, callbacks=nn.EarlyStopping("loss"))
    loaded.callback_states = []
    loaded.fit(*data, verbose=0, callbacks=nn.EarlyStopping("loss"))


class Told(nn.Callback):
    """Notes what it is told, and fails where it is to."""

    def __init__(self, name: str, told: list, fails: str = "") -> None:
        self.name, self.told, self.fails = name, told, fails

    def note(self, what: str) -> None:
        self.told.append((self.name, what))
        if what == self.fails:
            raise ValueError(what)

    def on_fit_begin(self, model) -> None:
        self.note("begin")

    def on_epoch_end(self, model, epoch, figures, history) -> None:
        self.note("epoch")

    def on_fit_end(self, model, history) -> None:
        self.note("end")

    def on_fit_failed(self, model, error) -> None:
        assert isinstance(error, ValueError)
        self.note("failed")


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("begin", "a begin, b begin, a failed"),
        ("epoch", "a begin, b begin, c begin, a epoch, b epoch, a failed, b failed, c failed"),
        ("end", "a begin, b begin, c begin, a epoch, b epoch, c epoch, a end, b end, c failed"),
    ],
)
def test_callbacks_that_began_are_told_of_an_error(fails: str, told: str) -> None:
    found: list = []
    callbacks = [Told("a", found), Told("b", found, fails), Told("c", found)]
    model = nn.Sequential([nn.Dense(2, 2)], seed=0, backend="numpy")
    model.compile("mean_squared_error")
    with pytest.raises(ValueError, match=fails):
        model.fit(np.ones((4, 2)), np.ones((4, 2)), verbose=0, callbacks=callbacks)
    assert ", ".join(f"{name} {what}" for name, what in found) == told
