"""Several threads and one model: consistent, or refused."""

import copy
import pickle
import signal
import threading

import numpy as np
import pytest
from sample_models import Scale, data, weights

import nnbackend as nn
from nnbackend.model import busy


class Waits(nn.Callback):
    """Holds a training between two epochs until it is let go on."""

    def __init__(self) -> None:
        self.there, self.go = threading.Event(), threading.Event()

    def on_epoch_end(self, model, epoch, figures, history):
        self.there.set()
        self.go.wait(30)


@pytest.fixture
def training(backend, rng):
    """A model that another thread trains, held between two epochs."""
    x, y = data(rng)
    model = nn.Sequential([nn.Dense(4, 8, "tanh"), nn.Dense(8, 3)], seed=0)
    model.compile("softmax_cross_entropy")
    waits = Waits()
    thread = threading.Thread(
        target=model.fit, args=(x, y), kwargs={"callbacks": [waits], "verbose": 0, "epochs": 2}
    )
    thread.start()
    assert waits.there.wait(30)
    yield model
    waits.go.set()
    thread.join()


@pytest.mark.parametrize(
    "change",
    [
        lambda m, path: m.save(path),
        lambda m, path: m.load_weights(path),
        lambda m, path: m.arrays(),
        lambda m, path: m.set_arrays({}),
        lambda m, path: m.optimizer_state(),
        lambda m, path: m.set_optimizer_state({}),
        lambda m, path: setattr(m.layers[0], "weight", np.zeros((4, 8))),
        lambda m, path: setattr(m.layers[0], "trainable", False),
        lambda m, path: copy.deepcopy(m),
        lambda m, path: pickle.dumps(m),
        lambda m, path: m.compile("softmax_cross_entropy"),
        lambda m, path: m.gradient(np.zeros((2, 4)), np.zeros(2, int)),
        lambda m, path: m.train_step(np.zeros((2, 4)), np.zeros(2, int)),
    ],
)
def test_what_reads_or_writes_arrays_is_refused_while_another_thread_trains(
    training, tmp_path, change
) -> None:
    path = tmp_path / "m.safetensors"
    same = nn.Sequential([nn.Dense(4, 8, "tanh"), nn.Dense(8, 3)], seed=1)
    same.save(path)
    with pytest.raises(nn.ModelBusyError, match="trained by another thread"):
        change(training, path)
    assert training.predict(np.zeros((2, 4))).shape == (2, 3)


def test_callbacks_may_read_and_write(backend, rng, tmp_path) -> None:
    class Uses(nn.Callback):
        def on_epoch_end(self, model, epoch, figures, history):
            model.set_arrays(model.arrays())
            model.set_optimizer_state(model.optimizer_state())
            model.layers[0].bias = np.zeros(3)
            model.save(tmp_path / "m.safetensors")
            copy.deepcopy(model)

    model = nn.Sequential([nn.Dense(4, 3)], seed=0)
    model.compile("softmax_cross_entropy")
    model.fit(*data(rng), epochs=2, verbose=0, callbacks=[Uses()])
    assert nn.load(tmp_path / "m.safetensors").epoch == 2


def test_predictions_do_not_come_between_forward_and_backward(backend, rng) -> None:
    """A layer of one's own keeps its input for its backward pass."""
    x, y = data(rng, 400)

    def train(predicts: bool) -> np.ndarray:
        layers = [nn.Dense(4, 8, "tanh"), Scale(8), nn.Dense(8, 3)]
        model = nn.Sequential(layers, seed=0, dtype="float64")
        model.compile("softmax_cross_entropy")
        done, wrong = threading.Event(), []

        def predict() -> None:
            while not done.is_set():
                try:
                    model.predict(x[:7])
                except Exception as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=predict) for _ in range(2 * predicts)]
        for thread in threads:
            thread.start()
        model.fit(x, y, epochs=6, batch_size=16, verbose=0)
        done.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        return weights(model)

    np.testing.assert_array_equal(train(False), train(True))


def test_predicting_within_a_step_is_refused(backend, rng) -> None:
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 2))
    model = nn.Sequential([Scale(4), nn.Dense(4, 2)], seed=0)

    def loss(y_true, y_pred):
        model.predict(x)
        return 0.0, 0 * y_pred

    model.compile(loss)
    with pytest.raises(nn.ModelBusyError, match="between its forward and its backward"):
        model.train_step(x, y)


READERS = {
    "copy": lambda m, other, path: copy.deepcopy(m),
    "pickle": lambda m, other, path: pickle.dumps(m),
    "save": lambda m, other, path: m.save(path),
    "arrays": lambda m, other, path: m.set_arrays(m.arrays()),
    "flat": lambda m, other, path: m.set_flat(m.get_flat()),
    "take over": lambda m, other, path: other.copy_from(m),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_wait_for_each_other_and_for_single_steps(backend, rng, tmp_path, reader) -> None:
    """As actors do that take over what a learner has learnt, and a server that saves it."""
    x, y = data(rng)
    models = [nn.Sequential([nn.Dense(4, 8), nn.Dense(8, 3)], seed=0) for _ in range(3)]
    learner, *others = models
    learner.compile("softmax_cross_entropy")
    done, wrong = threading.Event(), []

    def read(other: nn.Sequential, path) -> None:
        try:
            while not done.is_set():
                READERS[reader](learner, other, path)
        except Exception as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=read, args=(other, tmp_path / f"{k}.safetensors"))
        for k, other in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            learner.train_step(x, y)
            learner.gradient(x, y)
            learner.apply_gradients()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert learner.step == 40


def test_two_models_that_take_over_from_each_other_do_not_wait_forever(backend) -> None:
    models = [nn.Sequential([nn.Dense(4, 3)], seed=seed) for seed in (0, 1)]

    def mix(one: nn.Sequential, other: nn.Sequential) -> None:
        for _ in range(200):
            one.soft_update(other, 0.5)

    threads = [threading.Thread(target=mix, args=pair) for pair in (models, models[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_what_is_never_free_is_not_waited_for_forever(backend, rng, monkeypatch) -> None:
    monkeypatch.setattr(busy, "PATIENCE", 0.05)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 2))
    model = nn.Sequential([nn.Dense(4, 2)], seed=0)
    refused = []

    def loss(y_true, y_pred):
        def read() -> None:
            with pytest.raises(nn.ModelBusyError, match="trained by another thread") as caught:
                model.arrays()
            refused.append(caught)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        return 0.0, 0 * y_pred

    model.compile(loss)
    model.train_step(x, y)
    assert len(refused) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
# Python swallows an interruption within what it calls where it can raise nothing
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", [lambda m: m.get_flat(), lambda m: m.arrays(), pickle.dumps])
def test_ctrl_c_at_any_moment_of_reading_leaves_no_model_locked(call) -> None:
    model = nn.Sequential([nn.Dense(2, 2)], seed=0, backend="numpy")
    pauses, interrupts = np.random.default_rng(0).uniform(20e-6, 200e-6, 2000), 0

    def interrupt(number, frame) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for pause in pauses:
            try:
                signal.setitimer(signal.ITIMER_REAL, pause)
                for _ in range(1000):
                    call(model)
            except KeyboardInterrupt:
                interrupts += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert not model._busy._is_owned()
            assert not model._gate._is_owned()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 100
