"""Looking on while a model trains: notebooks, TensorBoard, MLflow."""

import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import nnbackend as nn


def model_of(inputs: int = 2) -> nn.Sequential:
    model = nn.Sequential([nn.Dense(inputs, 8, "tanh"), nn.Dense(8, 3)], seed=0, backend="numpy")
    model.compile("softmax_cross_entropy", nn.Adam(0.01), metrics=["accuracy"])
    return model


def exploding() -> nn.Sequential:
    """A model whose loss becomes infinite."""
    model = nn.Sequential([nn.Dense(2, 8, "relu"), nn.Dense(8, 3)], seed=0, backend="numpy")
    model.compile("mean_squared_error", nn.SGD(1e30))
    return model


@pytest.fixture
def xy():
    return nn.datasets.spiral(20, 3, seed=0)


class Notebook:
    """IPython as the kernel of a notebook has it, and what its cell shows, place by place."""

    def __init__(self) -> None:
        self.places: list[list[object]] = []
        self.module, display = ModuleType("IPython"), ModuleType("IPython.display")
        # matplotlib asks for the other two
        self.module.version_info = (9, 0, 0, "")
        shell = SimpleNamespace(kernel="a kernel", enable_gui=lambda gui=None: None)
        self.module.get_ipython = lambda: shell
        self.module.display, display.display = display, self.display
        display.Image = lambda data: data
        self.modules = {"IPython": self.module, "IPython.display": display}

    def display(self, what: object, display_id: bool) -> SimpleNamespace:
        assert display_id
        place = [what]
        self.places.append(place)
        return SimpleNamespace(update=place.append)


@pytest.fixture
def notebook(monkeypatch) -> Notebook:
    made = Notebook()
    for name, module in made.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


# -- a notebook ----------------------------------------------------------------------------------


def test_a_notebooks_bar_stays_in_its_place(notebook, xy, capsys) -> None:
    model_of().fit(*xy, epochs=4, batch_size=10)
    (place,) = notebook.places
    assert repr(place[-1]).startswith("epoch 4/4  0:00 left, ")
    assert "accuracy" in repr(place[-1])
    assert '<progress value="240" max="240"' in place[-1]._repr_html_()
    assert capsys.readouterr().out == ""


def test_it_says_why_training_stopped(notebook, xy, capsys) -> None:
    model_of().fit(*xy, epochs=4, callbacks=[nn.TimeLimit(seconds=1e-9)])
    assert repr(notebook.places[0][-1]).startswith("epoch 1/4")
    assert "stopped after epoch 1" in capsys.readouterr().out


def test_a_silent_fit_shows_nothing_there(notebook, xy) -> None:
    model_of().fit(*xy, epochs=2, verbose=0)
    assert notebook.places == []


def test_a_terminal_of_ipython_is_no_notebook(monkeypatch, xy, capsys) -> None:
    terminal = ModuleType("IPython")
    terminal.get_ipython = lambda: SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    model_of().fit(*xy, epochs=2)
    assert "epoch 2/2" in capsys.readouterr().out


def test_a_notebook_shows_a_model_as_a_table() -> None:
    class Odd(nn.Layer):
        def forward(self, x, training=False):
            return x

        def backward(self, dy):
            return dy

    Odd.__name__ = "A<B"
    model = nn.Sequential([nn.Dense(2, 3, "relu", trainable=False), Odd()], seed=0)
    text = model._repr_html_()
    assert text.count("<tr>") == 3
    assert "<td>Dense + relu (frozen)</td><td>3</td><td>9</td>" in text
    assert "A&lt;B" in text
    assert "A<B" not in text
    assert "9 parameters, 9 frozen" in text


# -- curves that are redrawn ---------------------------------------------------------------------


@pytest.mark.parametrize("regions", [False, True])
def test_live_curves_are_drawn_after_epochs_and_at_the_end(xy, regions: bool) -> None:
    pytest.importorskip("matplotlib")
    figures = []
    live = nn.LiveCurves(xy if regions else None, seconds=0, show=figures.append)
    model_of().fit(*xy, epochs=3, verbose=0, callbacks=[live])
    assert len(figures) == 4
    assert [len(figure.axes) for figure in figures] == [1 + regions] * 4
    (line,) = figures[-1].axes[0].lines
    assert len(line.get_ydata()) == 3
    rare = nn.LiveCurves(seconds=1e9, show=figures.append)
    model_of().fit(*xy, epochs=5, verbose=0, callbacks=[rare])
    assert len(figures) == 4 + 2


def test_in_a_notebook_they_stay_in_their_place(notebook, xy) -> None:
    pytest.importorskip("matplotlib")
    model_of().fit(*xy, epochs=2, verbose=0, callbacks=[nn.LiveCurves(seconds=0)])
    (place,) = notebook.places
    assert len(place) == 3
    assert all(png.startswith(b"\x89PNG") for png in place)


def test_what_live_curves_need(xy) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(nn.DataError, match=r"draws in a notebook.*show="):
        model_of().fit(*xy, epochs=1, verbose=0, callbacks=[nn.LiveCurves()])
    wide = nn.LiveCurves((np.ones((3, 4)), np.arange(3)), show=print)
    with pytest.raises(nn.DataError, match="two inputs; this one has 4"):
        model_of(4).fit(np.ones((3, 4)), np.arange(3), verbose=0, callbacks=[wide])
    with pytest.raises(nn.NNBackendError, match=r"LiveCurves\.seconds"):
        nn.LiveCurves(seconds=-1)


# -- trackers ------------------------------------------------------------------------------------


class Writer:
    """What tensorboardX's SummaryWriter is asked for."""

    made: list["Writer"]

    def __init__(self, folder: str, filename_suffix: str) -> None:
        self.suffix = filename_suffix
        self.folder, self.scalars, self.histograms, self.closed = folder, [], [], False
        Writer.made.append(self)

    def add_scalar(self, name, value, epoch) -> None:
        self.scalars.append((name, float(value), epoch))

    def add_histogram(self, name, values, epoch) -> None:
        assert np.isfinite(values).all()
        self.histograms.append((name, epoch))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_the_figures_of_each_epoch(monkeypatch, xy, tmp_path) -> None:
    Writer.made = []
    module = ModuleType("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    board = nn.TensorBoard(tmp_path / "run", histograms=2)
    history = model_of().fit(*xy, epochs=3, validation_split=0.2, verbose=0, callbacks=[board])
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path / "run")
    assert writer.closed
    for name in ("loss", "val_loss", "accuracy", "val_accuracy", "lr"):
        kind = "validation" if name.startswith("val_") else "training"
        own = f"{name.removeprefix('val_')}/{kind}"
        found = [(value, epoch) for label, value, epoch in writer.scalars if label == own]
        assert found == [(value, k) for k, value in enumerate(history[name], 1)]
    assert ("layers.0.weight", 2) in writer.histograms
    assert {epoch for _, epoch in writer.histograms} == {2}
    pickle.loads(pickle.dumps(board))


def test_trainings_of_the_same_second_have_files_of_their_own(xy, tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    board, model = nn.TensorBoard(tmp_path), model_of()
    for _ in range(3):
        model.fit(*xy, epochs=1, verbose=0, callbacks=[board])
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3


def test_a_training_that_fails_closes_what_it_opened(monkeypatch, xy, tmp_path) -> None:
    Writer.made = []
    module = ModuleType("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    model = exploding()
    with pytest.raises(nn.NonFiniteLossError):
        model.fit(xy[0], np.ones((60, 3)), 5, verbose=0, callbacks=[nn.TensorBoard(tmp_path)])
    assert [writer.closed for writer in Writer.made] == [True]


def test_tensorboards_file_is_there(xy, tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    model_of().fit(*xy, epochs=2, verbose=0, callbacks=[nn.TensorBoard(tmp_path, histograms=1)])
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"accuracy/training" in events.read_bytes()
    assert b"layers.1.bias" in events.read_bytes()


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    module = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    module.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield module
    while module.active_run() is not None:
        module.end_run()


def test_mlflow_gets_settings_and_figures(mlflow, xy, tmp_path) -> None:
    model = model_of()
    history = model.fit(*xy, epochs=3, verbose=0, callbacks=[nn.MLflow("spiral", log_model=True)])
    assert mlflow.active_run() is None
    run = mlflow.last_active_run()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "spiral"
    assert run.data.params["optimizer.name"] == "Adam"
    assert run.data.params["optimizer.lr"] == "0.01"
    assert run.data.params["layers"] == "Dense(2, 8) Dense(8, 3)"
    assert run.data.metrics["loss"] == pytest.approx(history["loss"][-1])
    client = mlflow.MlflowClient()
    steps = client.get_metric_history(run.info.run_id, "accuracy")
    assert [(metric.step, metric.value) for metric in steps] == list(
        enumerate(history["accuracy"], 1)
    )
    saved = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="model.safetensors", dst_path=str(tmp_path)
    )
    np.testing.assert_array_equal(
        nn.load(saved, backend="numpy").predict(xy[0]), model.predict(xy[0])
    )


def test_a_run_of_a_training_that_failed_is_over(mlflow, xy) -> None:
    bad, good = exploding(), model_of()
    with pytest.raises(nn.NonFiniteLossError):
        bad.fit(xy[0], np.ones((60, 3)), 5, verbose=0, callbacks=[nn.MLflow("bad")])
    assert mlflow.active_run() is None
    assert mlflow.last_active_run().info.status == "FAILED"
    callback = nn.MLflow("good")
    good.fit(*xy, epochs=1, verbose=0, callbacks=[callback])
    assert mlflow.last_active_run().info.run_name == "good"
    with mlflow.start_run() as run:
        good.fit(*xy, epochs=1, verbose=0, callbacks=[callback])
        assert mlflow.active_run().info.run_id == run.info.run_id


def test_a_run_whose_settings_cannot_be_written_is_over(mlflow, xy, monkeypatch) -> None:
    def no_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(mlflow, "log_param", no_disk)
    with pytest.raises(OSError, match="no space left"):
        model_of().fit(*xy, epochs=1, verbose=0, callbacks=[nn.MLflow()])
    assert mlflow.active_run() is None
    assert mlflow.last_active_run().info.status == "FAILED"


def test_mlflow_goes_on_with_the_run_that_is_active(mlflow, xy) -> None:
    with mlflow.start_run() as run:
        model = model_of()
        for _ in range(2):
            model.fit(*xy, epochs=2, verbose=0, callbacks=[nn.MLflow()])
        assert mlflow.active_run().info.run_id == run.info.run_id
    steps = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in steps] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("module", "callback"),
    [("tensorboardX", lambda: nn.TensorBoard("runs")), ("mlflow", lambda: nn.MLflow())],
)
def test_what_is_missing_is_said_before_training(monkeypatch, xy, module, callback) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    model = model_of()
    with pytest.raises(ImportError, match=rf"nnbackend\[{module.lower().rstrip('x')}\]"):
        model.fit(*xy, epochs=2, verbose=0, callbacks=[callback()])
    assert model.epoch == 0
