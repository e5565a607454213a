"""What changes a model as a whole: it works, or the model is as it was."""

from __future__ import annotations

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.errors import OutOfMemoryError

CHANGES = {
    "compile": lambda model: model.compile("mean_squared_error", nn.SGD(0.1, momentum=0.9)),
    "to": lambda model: model.to(type(model.backend)()),
    "freeze": lambda model: setattr(model.layers[0], "trainable", False),
}


def make() -> nn.Sequential:
    layers = [nn.Dense(4, 6, activation="tanh"), nn.BatchNorm(6), nn.Dense(6, 3)]
    model = nn.Sequential(layers, seed=3, dtype="float64")
    model.compile("softmax_cross_entropy", nn.Adam(0.01))
    return model


@pytest.mark.parametrize("error", [OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_fails_leaves_the_model_as_it_was(
    backend, rng, tmp_path, monkeypatch, change, error
) -> None:
    """Wherever memory ends, or Ctrl-C is pressed while it is taken."""
    x, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    expected = make()
    expected.train_step(x, y)
    losses = [float(expected.train_step(x, y)) for _ in range(4)]
    kind, failed, after = type(backend), 0, 0
    zeros = kind.zeros
    while True:
        model, left = make(), after
        model.train_step(x, y)

        def no_more(self, *arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise error("no more")
            return zeros(self, *arguments)

        trainable, device = model.layers[0].trainable, model.backend
        monkeypatch.setattr(kind, "zeros", no_more)
        try:
            CHANGES[change](model)
            break
        except error:
            failed += 1
        finally:
            monkeypatch.setattr(kind, "zeros", zeros)
        assert (model.backend, model.layers[0].trainable) == (device, trainable)
        assert (model.loss.name, model.optimizer.lr) == ("softmax_cross_entropy", 0.01)
        assert [float(model.train_step(x, y)) for _ in range(4)] == losses
        # what trains is what is saved
        model.save(tmp_path / "model.safetensors")
        loaded = nn.load(tmp_path / "model.safetensors", backend=backend)
        np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
        CHANGES[change](model)
        after += 1
    assert failed >= (1 if change == "compile" else 3)


def test_layers_of_a_model_that_could_not_be_made_are_free(backend, monkeypatch) -> None:
    layers = [nn.Dense(4, 6), nn.Dense(6, 3)]

    def fails(*_, **__):
        raise OutOfMemoryError("no more")

    monkeypatch.setattr("nnbackend.model.stack.make_executor", fails)
    with pytest.raises(OutOfMemoryError):
        nn.Sequential(layers, seed=0)
    monkeypatch.undo()
    assert nn.Sequential(layers, seed=0).n_parameters == 51
