"""Whatever ends a fit, the model stands at the end of an epoch, and its history says which."""

import signal

import numpy as np
import pytest
from sample_models import Scale, data, weights

import nnbackend as nn
from nnbackend.training.interrupt import Interrupt
from nnbackend.training.recovery import Recovery
from nnbackend.training.trainer import Trainer

EPOCHS = 3


def make(layers=None, **settings) -> nn.Sequential:
    model = nn.Sequential(layers or [nn.Dense(4, 5, "tanh"), nn.Dense(5, 3)], seed=0)
    model.compile("softmax_cross_entropy", **settings)
    return model


def state_of(model: nn.Sequential) -> tuple:
    block = model.training.orders.block
    slots = [value.tobytes() for value in model.optimizer_state().values()]
    return weights(model).tobytes(), slots, model.step, model.epoch, model.history.epochs, block


class UsersError(Exception):
    """Something of the user's."""


class TestExceptions:
    @pytest.mark.parametrize("bad", ["raises", "shape", "nothing"])
    def test_an_iterable_that_fails_leaves_the_model_at_an_epochs_end(
        self, backend, rng, bad
    ) -> None:
        x, y = data(rng)
        model, passes = make(), []

        def batches():
            passes.append(1)
            yield x[:20], y[:20]
            if len(passes) == 2 and bad == "raises":
                raise UsersError
            yield (x[:20, :3] if len(passes) == 2 and bad == "shape" else x[20:40]), y[20:40]
            if len(passes) == 2 and bad == "nothing":
                yield 3

        with pytest.raises((UsersError, nn.NNBackendError)):
            model.fit(batches, epochs=EPOCHS, verbose=0)
        other, passes = make(), [0, 0]
        other.fit(batches, epochs=1, verbose=0)
        assert state_of(model) == state_of(other)

    @pytest.mark.parametrize("where", ["layer", "loss", "validation", "metric"])
    def test_so_does_an_error_in_a_part_of_the_users(self, backend, rng, where) -> None:
        x, y = data(rng)
        calls = []

        class Fails(Scale):
            def forward(self, inputs, training=False):
                if training and where == "layer":
                    calls.append(1)
                    if len(calls) == 9:
                        raise UsersError
                return super().forward(inputs, training)

        def loss(y_true, y_pred):
            calls.append(1)
            if where == "loss" and len(calls) == 9:
                raise UsersError
            error = y_pred.copy()
            return (error**2).mean(), 2 * error / error.size

        def metric(y_true, y_pred):
            calls.append(1)
            if where == "metric" and len(calls) == 2:
                raise UsersError
            return 0.0

        def build() -> nn.Sequential:
            model = nn.Sequential([nn.Dense(4, 5, "tanh"), Fails(5), nn.Dense(5, 3)], seed=0)
            kind = loss if where == "loss" else "softmax_cross_entropy"
            model.compile(kind, metrics=[metric] if where == "metric" else [])
            return model

        def validation():
            calls.append(1)
            if where == "validation" and len(calls) == 2:
                raise UsersError
            yield x, y

        settings = {"validation_data": validation} if where == "validation" else {}
        model = build()
        with pytest.raises(UsersError):
            model.fit(x, y, epochs=EPOCHS, batch_size=10, verbose=0, **settings)
        assert model.epoch == model.history.epochs == 1
        calls[:] = range(100)
        other = build()
        other.fit(x, y, epochs=1, batch_size=10, verbose=0, **settings)
        assert state_of(model) == state_of(other)

    def test_what_fails_again_while_it_is_undone_leads_further_back(
        self, backend, rng, monkeypatch
    ) -> None:
        x, y = data(rng)
        model, other = make(), make()
        start = state_of(model)

        class Ends(nn.Callback):
            def on_epoch_end(self, model, epoch, figures, history):
                if epoch == 2:
                    run = model.executor.run

                    def fails(asked):
                        monkeypatch.setattr(model.executor, "run", run)
                        raise UsersError

                    monkeypatch.setattr(model.executor, "run", fails)

        def forget(self, *_):
            raise UsersError

        monkeypatch.setattr(Recovery, "forget", forget)
        with pytest.raises(UsersError):
            model.fit(x, y, epochs=EPOCHS, verbose=0, callbacks=[Ends()])
        other.fit(x, y, epochs=2, verbose=0)
        assert state_of(model)[0] in (start[0], state_of(other)[0])
        assert model.epoch == model.history.epochs

    @pytest.mark.parametrize(
        "why", ["callback", "attached", "nan", "verbose", "shuffle", "a later layer"]
    )
    def test_a_refused_fit_leaves_the_model_as_it_was(self, backend, rng, why, tmp_path) -> None:
        class Refuses(nn.Callback):
            def attach(self, model) -> None:
                raise nn.DataError("not with me")

        x, y = data(rng)
        more = [nn.Standardize(4)] if why == "a later layer" else []
        model = nn.Sequential([nn.Standardize(4), *more, nn.Dense(4, 3)], seed=0)
        model.compile("mean_squared_error", nn.SGD(1e30 if why == "nan" else 1e-3))
        model.callback_states = states = [{"type": "EarlyStopping"}]
        gone = nn.ModelCheckpoint(tmp_path / "gone" / "m.safetensors")
        settings = {
            "callback": {"callbacks": gone, "verbose": 0},
            "attached": {"callbacks": Refuses(), "verbose": 0},
            "verbose": {"verbose": 7},
            "shuffle": {"shuffle": "no", "verbose": 0},
        }
        with pytest.raises(nn.NNBackendError):
            model.fit(x, np.eye(3)[y], **settings.get(why, {"verbose": 0}))
        assert not model.layers[0].adapted
        assert model.callback_states is states
        assert not model.callbacks
        with pytest.raises(nn.DataError, match="has not seen data"):
            model.predict(x)


class TestCtrlC:
    def test_a_second_one_while_the_first_is_answered_changes_nothing(
        self, backend, rng, monkeypatch
    ) -> None:
        """At every place of the answer: the handler is called as the system would call it."""
        x, y = data(rng, 200)
        expected = make()
        expected.fit(x, y, epochs=1, batch_size=10, verbose=0)
        monkeypatch.setattr("nnbackend.training.trainer.CHUNK_SECONDS", 0.0)
        for place in range(6):
            model, seen = make(), []
            handle = Interrupt._handle
            forget, restore = Recovery.forget, Recovery.restore

            def press(self=None, seen=seen) -> None:
                seen.append(1)
                signal.raise_signal(signal.SIGINT)

            def forget_(self, *rest, place=place, press=press, forget=forget):
                if place in (0, 2):
                    press()
                forget(self, *rest)
                if place in (1, 2):
                    press()

            def restore_(self, place=place, press=press, restore=restore):
                if place in (3, 5):
                    press()
                found = restore(self)
                if place in (4, 5):
                    press()
                return found

            run, steps = model.executor.run, []

            def run_(asked, run=run, steps=steps, press=press):
                steps.append(1)
                if len(steps) == 27:  # in the second epoch
                    press()
                return run(asked)

            with monkeypatch.context() as patch:
                patch.setattr(Recovery, "forget", forget_)
                patch.setattr(Recovery, "restore", restore_)
                patch.setattr(model.executor, "run", run_)
                history = model.fit(x, y, epochs=EPOCHS, batch_size=10, verbose=0)
            assert len(seen) >= 2
            assert history.stopped == "interrupted"
            assert state_of(model) == state_of(expected)
            assert Interrupt._handle is handle

    def test_the_second_one_interrupts_a_long_step_at_once(self, rng, monkeypatch) -> None:
        x, y = data(rng, 200)
        with nn.use_backend("numpy"):
            model = make()
        monkeypatch.setattr("nnbackend.training.trainer.CHUNK_SECONDS", 0.0)
        run, steps = model.executor.run, []

        def run_(asked):
            steps.append(1)
            if len(steps) == 5:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the step went on")
            return run(asked)

        monkeypatch.setattr(model.executor, "run", run_)
        history = model.fit(x, y, epochs=EPOCHS, batch_size=10, verbose=0)
        assert history.stopped == "interrupted"
        assert (model.epoch, model.step) == (0, 0)
        np.testing.assert_array_equal(weights(model), weights(make()))


def test_orders_go_back_with_the_rest_where_epochs_cannot_be_trained_again(
    rng, monkeypatch
) -> None:
    """The fallback: to the last copy of the state."""
    monkeypatch.setattr(Recovery, "forget", lambda *given: (_ for _ in ()).throw(UsersError()))
    x, y = data(rng)
    model, plain = make(), make()
    before = state_of(model)

    def stop(self, source, *given):
        monkeypatch.undo()
        monkeypatch.setattr(Recovery, "forget", lambda *given: (_ for _ in ()).throw(UsersError()))
        self.recovery.keep(self.looks_on)
        self._begin_epochs(source, 2, 1)
        raise UsersError

    monkeypatch.setattr(Trainer, "_train_arrays", stop)
    with pytest.raises(UsersError):
        model.fit(x, y, epochs=3, verbose=0)
    assert state_of(model) == before
    monkeypatch.undo()
    for own in (model, plain):
        own.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(weights(model), weights(plain))
