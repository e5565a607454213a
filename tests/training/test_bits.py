"""The same seed gives the same bits, wherever chunks end, and with a file between or not."""

from pathlib import Path

import numpy as np
import pytest
from needs import need_backend
from random_models import Drawn, draw

import nnbackend as nn
from nnbackend.training.trainer import Trainer

#: Backends with a number of threads; None where that is not ours to choose.
CPU = [("numpy", None), ("numba", 1), ("numba", 2)]
EPOCHS = 4


@pytest.fixture(params=CPU, ids=lambda pair: f"{pair[0]}-{pair[1] or 'any'}")
def cpu(request, monkeypatch):
    """A CPU backend."""
    name, threads = request.param
    need_backend(name)
    if threads is not None:
        before = nn.get_num_threads()
        if threads > before:
            pytest.skip("one processor")
        nn.set_num_threads(threads)
    with nn.use_backend(name):
        yield
    if threads is not None:
        nn.set_num_threads(before)


def split_whole_batches_only(model: nn.Sequential, rows: int, monkeypatch) -> None:
    """Threads share a whole batch, but none that is shorter."""
    if model.backend.name == "numba":
        from nnbackend.backends.numba.executor import table

        monkeypatch.setattr(table, "STEP_GRAIN", model.executor.compiled.step_work * rows // 2)


def cut_at_random(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Chunks of any length from one step on, as no clock would cut them."""
    rng = np.random.default_rng(seed)

    def adapt(self: Trainer, steps: int, seconds: float) -> None:
        self.chunk_steps = int(rng.integers(1, rng.choice([2, 4, 12, 80])))

    monkeypatch.setattr(Trainer, "_adapt_chunk", adapt)


def bits(model: nn.Sequential, history: dict[str, list[float]], drawn: Drawn) -> list[bytes]:
    arrays = [*model.arrays().values(), *model.optimizer_state().values()]
    figures = [np.array(history[name]) for name in sorted(history)]
    return [a.tobytes() for a in (*arrays, *figures, model.predict(drawn.x))]


def check_bits(seed: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    drawn, dtype = draw(seed), "float64" if seed % 3 == 0 else "float32"
    found = []
    for cut in (0, 1):
        cut_at_random(monkeypatch, 10 * seed + cut)
        model = drawn.model(dtype)
        split_whole_batches_only(model, drawn.settings["batch_size"], monkeypatch)
        found.append(bits(model, drawn.fit(model, EPOCHS).to_dict(), drawn))
    cut_at_random(monkeypatch, 10 * seed + 5)
    first = drawn.model(dtype)
    drawn.fit(first, 1 + seed % (EPOCHS - 1))
    first.save(folder / "half.safetensors")
    resumed = nn.load(folder / "half.safetensors")
    drawn.fit(resumed, EPOCHS - resumed.epoch)
    found.append(bits(resumed, resumed.history.to_dict(), drawn))
    assert found[0] == found[1], f"seed {seed}: chunks decide about bits"
    assert found[0] == found[2], f"seed {seed}: the resumed training differs"


def test_chunks_and_files_change_no_bit(cpu, monkeypatch, tmp_path) -> None:
    for seed in range(12):
        check_bits(seed, monkeypatch, tmp_path)


@pytest.mark.slow
def test_two_hundred_random_models_keep_their_bits(cpu, monkeypatch, tmp_path) -> None:
    for seed in range(100, 300):
        check_bits(seed, monkeypatch, tmp_path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8, 100])
def test_a_short_last_batch_alone_in_its_chunk(cpu, monkeypatch, rng, chunk) -> None:
    """As it was found: 704 rows in batches of 92, a batch norm, two threads."""
    x, y = rng.normal(size=(704, 114)), rng.integers(0, 7, 704)

    def train(steps: int) -> bytes:
        monkeypatch.setattr(Trainer, "_adapt_chunk", lambda self, *_: None)
        monkeypatch.setattr(Trainer, "_next_steps", lambda self, left: min(steps, left))
        layers = [nn.Dense(114, 179, "relu"), nn.BatchNorm(179), nn.Dense(179, 7)]
        model = nn.Sequential(layers, seed=0)
        model.compile("softmax_cross_entropy")
        split_whole_batches_only(model, 92, monkeypatch)
        history = model.fit(x, y, epochs=2, batch_size=92, verbose=0)
        arrays = [*model.arrays().values(), np.array(history["loss"])]
        return b"".join(a.tobytes() for a in arrays)

    assert train(chunk) == train(8)
