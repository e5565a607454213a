"""Callbacks, and resuming a training as if it had never stopped."""

import csv

import numpy as np
import pytest

import nnbackend as nn


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
        stop = nn.EarlyStopping("val_acc")
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
