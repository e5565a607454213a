"""Ranks that are processes: the command line under mpiexec, and what happens when one of them is in
trouble."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from mpi import COMMAND, run_ranks, run_script

import nnbackend as nn

START = """
import os, signal, sys, time
import numpy as np
import nnbackend as nn

comm = nn.distributed.init(backend="numpy", timeout=TIMEOUT)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(400, 6)), rng.integers(0, 3, 400)

def make(dtype="float64"):
    layers = [nn.Dense(6, 16, activation="tanh"), nn.Dropout(0.2), nn.Dense(16, 3)]
    model = nn.Sequential(layers, seed=1, dtype=dtype, backend="numpy")
    model.compile("softmax_cross_entropy", metrics=["accuracy"])
    return model
"""


def script(body: str, timeout: float | None = 60.0) -> str:
    return START.replace("TIMEOUT", repr(timeout)) + body


def parameters(path: Path) -> np.ndarray:
    return np.asarray(nn.load(path, backend="numpy").get_flat())


class TestCommandLine:
    """On 4 ranks, more than many machines have processors."""

    TRAIN = ("train", "digits", "--dtype", "float64", "--hidden", "32", "--backend", "numpy")

    def test_trains_resumes_evaluates_and_predicts_as_one_process_does(self, tmp_path):
        together, alone = (
            str(tmp_path / "together.safetensors"),
            str(tmp_path / "alone.safetensors"),
        )
        epochs = ("--schedule", "constant", "--epochs")
        done = run_ranks(4, [*COMMAND, *self.TRAIN, *epochs, "2", "--save", together], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("model   ") == done.stdout.count("epoch 2/2") == 1
        # with another number of ranks
        resumed = [*COMMAND, "train", "digits", "--resume", together, "--epochs", "4"]
        done = run_ranks(2, [*resumed, "--save", together], tmp_path)
        assert done.returncode == 0, done.stderr
        run(*self.TRAIN, *epochs, "4", "--save", alone, cwd=tmp_path)
        np.testing.assert_allclose(
            parameters(Path(together)), parameters(Path(alone)), rtol=0, atol=1e-12
        )
        for command in ("evaluate", "predict"):
            one = run(command, together, "digits", cwd=tmp_path)
            four = run_ranks(4, [*COMMAND, command, together, "digits"], tmp_path)
            assert four.returncode == 0, four.stderr
            assert four.stdout == one.stdout

    def test_an_error_is_said_once(self, tmp_path):
        done = run_ranks(3, [*COMMAND, "train", "nosuch.csv"], tmp_path)
        assert done.returncode != 0
        assert done.stderr.count("nosuch.csv") >= 1
        assert done.stderr.count("error: there is no file") == 1

    def test_standard_input_reaches_one_rank_only(self, tmp_path):
        done = run_ranks(2, [*COMMAND, "train", "-"], tmp_path)
        assert done.returncode != 0
        assert "standard input reaches one process only" in done.stderr


@pytest.mark.parametrize("size", [2, 4])
def test_exact_gives_the_same_bits_on_processes(tmp_path, size):
    body = """
model = make()
history = model.fit(x, y, epochs=3, verbose=0, comm=comm, exact=True)
if comm.rank == 0:
    np.save(sys.argv[0] + f".{comm.size}.npy", np.array([*history["loss"], *model.get_flat()]))
"""
    for ranks in (1, size):
        done = run_script(ranks, script(body), tmp_path, OPENBLAS_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    one, more = (np.load(tmp_path / f"script.py.{n}.npy") for n in (1, size))
    assert np.array_equal(one, more)


@pytest.mark.parametrize("change", ["", "MPI.Get_version = lambda: (3, 1)"], ids=["MPI 4", "MPI 3"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sums_of_all_sizes(tmp_path, ranks, change):
    """Often enough, and of enough sizes, for operations to be begun again, and to be forgotten."""
    body = """
import sys
import numpy as np
from mpi4py import MPI
import nnbackend as nn
from nnbackend.distributed.mpi import MpiCommunicator, SMALL_BYTES, SMALL_SUMS

CHANGE
comm = MpiCommunicator()
limit = SMALL_BYTES // 8
sizes = [*range(SMALL_SUMS + 4), limit // 2, limit, limit + 1, 2 * limit + 1, 50_000]
rng = np.random.default_rng(comm.rank)
for size in 3 * sizes:
    for dtype in (np.float32, np.float64):
        array = rng.standard_normal(size).astype(dtype)
        parts = comm.gather(array)
        comm.all_reduce(array)
        sums = comm.gather(array)
        assert all(np.array_equal(sums[0], other) for other in sums), size
        tolerance = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(array, sum(parts), rtol=0, atol=tolerance)
matrix = np.full((2, 3), comm.rank + 1.0)
for part in (matrix, matrix.T):
    comm.all_reduce(part)
assert (matrix == matrix[0, 0]).all()
print("right", flush=True)
"""
    done = run_script(ranks, body.replace("CHANGE", change), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right") == ranks
    assert not done.stderr


TROUBLE = """
class Trouble(nn.Callback):
    def on_epoch_end(self, model, epoch, figures, history):
        if comm.rank == 1 and epoch == 3:
            BODY

try:
    make().fit(x, y, epochs=1000, verbose=0, comm=comm, callbacks=Trouble())
except nn.RankError as error:
    print(f"[{comm.rank}] {error}", flush=True)
    raise
"""
#: mpiexec must not notice, as on machines where nobody looks after the processes
UNNOTICED = ["sh", "-c", f'"{sys.executable}" script.py || sleep 30']


class TestFaults:
    def trouble(self, body: str, tmp_path: Path, timeout: float, command: list[str] | None = None):
        (tmp_path / "script.py").write_text(script(TROUBLE.replace("BODY", body), timeout))
        start = time.monotonic()
        done = run_ranks(3, command or [sys.executable, "script.py"], tmp_path, timeout=60)
        assert done.returncode != 0
        return done, time.monotonic() - start

    def test_a_rank_that_is_killed_is_named_at_once(self, tmp_path):
        done, seconds = self.trouble(
            "os.kill(os.getpid(), signal.SIGKILL)", tmp_path, 50, UNNOTICED
        )
        assert "for rank 1 (process " in done.stdout
        assert "which has died" in done.stdout
        assert seconds < 25

    def test_mpiexec_ends_all_when_one_is_killed(self, tmp_path):
        _, seconds = self.trouble("os.kill(os.getpid(), signal.SIGKILL)", tmp_path, 50)
        assert seconds < 25

    @pytest.mark.parametrize(
        "body",
        [
            "time.sleep(100)",
            pytest.param("os.kill(os.getpid(), signal.SIGSTOP)", marks=pytest.mark.slow),
            pytest.param("sys.exit(0)", marks=pytest.mark.slow),
        ],
    )
    def test_a_rank_that_does_not_come_is_named_in_time(self, tmp_path, body):
        done, seconds = self.trouble(body, tmp_path, 1.5)
        assert "waited" in done.stdout
        assert "for rank 1 (process " in done.stdout
        assert "which has died" not in done.stdout
        assert seconds < 25

    def test_an_error_of_one_rank_ends_all_with_its_traceback(self, tmp_path):
        done, seconds = self.trouble('raise ValueError("my own mistake")', tmp_path, 50)
        assert "ValueError: my own mistake" in done.stderr
        assert seconds < 25

    def test_ctrl_c_on_one_rank_ends_the_training_of_all(self, tmp_path):
        body = """
import threading
model = make()
for delay in (0.5, 0.61, 0.72):
    if comm.rank:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    history = model.fit(x, y, epochs=10**6, batch_size=16, verbose=0, comm=comm)
    epochs = {int(part[0]) for part in comm.gather(np.array([history.epochs]))}
    assert history.stopped == "interrupted" and len(epochs) == 1
    model.evaluate(x, y, comm=comm)
    comm.barrier()
    time.sleep(0.05)
print("alike", flush=True)
"""
        done = run_script(2, script(body, 10), tmp_path)
        assert done.stdout.count("alike") == 2, done.stderr

    def test_a_call_that_is_broken_off_ends_the_communicator(self, tmp_path):
        body = """
if comm.rank == 0:
    import threading
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        comm.barrier()
    except KeyboardInterrupt:
        pass
    try:
        comm.gather(np.zeros(3))
    except nn.RankError as error:
        print(error, flush=True)
else:
    time.sleep(1)
"""
        done = run_script(2, script(body, 3), tmp_path)
        assert "an operation between ranks (barrier) was broken off" in done.stdout

    def test_after_an_error_the_model_can_be_saved(self, tmp_path):
        body = TROUBLE.replace("BODY", "time.sleep(100)").replace(
            "    raise\n", '    last.save(f"{comm.rank}.safetensors")\n'
        ).replace("make().fit", "last = make()\n    last.fit")  # fmt: skip
        run_script(3, script(body, 1.5), tmp_path)
        saved = list(tmp_path.glob("*.safetensors"))
        assert saved
        assert nn.load(saved[0], backend="numpy").epoch == 3


def test_shards_of_a_folder(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, rows in enumerate((50, 33, 70)):
        x = rng.normal(size=(rows, 6))
        np.savez(folder / f"{number}.npz", x=x, y=rng.permutation(np.arange(rows) % 3))
    body = """
shards = nn.datasets.Shards("shards", batch_size=24, comm=comm)
seen = sum(len(x) for x, _ in shards)
total = sum(int(part[0]) for part in comm.gather(np.array([seen])))
model = make()
history = model.fit(shards, epochs=2, verbose=0, comm=comm, sharded=True)
losses = {float(part[0]) for part in comm.gather(np.array(history["loss"][-1:]))}
if comm.rank == 0:
    print(f"{total} rows, {len(losses)} loss")
"""
    for size in (2, 4):  # fewer files than ranks, too
        done = run_script(size, script(body), tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "153 rows, 1 loss\n"


def test_processors_are_divided(tmp_path):
    pytest.importorskip("numba")
    body = """
import numpy as np
import nnbackend as nn
comm = nn.distributed.init(backend="numpy")
counts = comm.gather(np.array([nn.get_num_threads()]))
if comm.rank == 0:
    print(*(int(count[0]) for count in counts), nn.distributed.init(backend="numpy") is comm)
"""
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert run_script(2, body, tmp_path).stdout.split() == [threads, threads, "True"]
    done = run_script(2, body, tmp_path, NN_NUM_THREADS="1")
    assert done.stdout.split() == ["1", "1", "True"]


def test_ranks_need_no_numba(tmp_path):
    done = run_script(2, 'import sys\nsys.modules["numba"] = None\n' + script("""
history = make().fit(x, y, verbose=0, comm=comm)
losses = {float(part[0]) for part in comm.gather(np.array(history["loss"]))}
if comm.rank == 0:
    print(len(losses))
"""), tmp_path)  # fmt: skip
    assert done.stdout == "1\n", done.stderr


def test_without_an_mpi_the_error_says_how_to_install_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr("nnbackend.distributed.launch._made", {})
    monkeypatch.setenv("PMI_RANK", "0")
    with pytest.raises(ImportError, match=r'pip install "nnbackend\[mpi\]"'):
        nn.distributed.init(backend="numpy")
