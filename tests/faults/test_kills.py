"""SIGKILL at random moments: what is on the disk loads, and a training goes on to the same end."""

from __future__ import annotations

import json
import os

import pytest
from python_process import run_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

#: Kills ``attempt`` of the test that follows at random moments, each in a forked process.
KILLER = """
import json, os, random, signal, sys, time, traceback
import numpy as np
import nnbackend as nn

nn.set_backend("numpy")
path, kills = sys.argv[1], int(sys.argv[2])

def attempt_and_kill(attempt, longest):
    child = os.fork()
    if not child:
        try:
            attempt()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    time.sleep(random.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(1)
    return os.WIFSIGNALED(status)  # not if it came to its end by itself
"""


def killed(source: str, folder: str, kills: int) -> dict[str, int]:
    """Run ``source`` behind the killer; it prints figures as JSON."""
    done = run_python(KILLER + source, argv=(folder, str(kills)))
    assert done.returncode == 0, done.stderr
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path, kills) -> None:
    figures = killed(
        """
file = os.path.join(path, "model.safetensors")
model = nn.Sequential([nn.Dense(400, 400)], seed=0)
versions = [model.layers[0].weight.copy(), np.ones((400, 400), "float32")]

def attempt():
    for version in range(10_000):
        model.layers[0].weight = versions[version % 2]
        model.save(file)

model.save(file)
done = wrong = 0
for _ in range(kills):
    done += attempt_and_kill(attempt, 0.03)
    wrong += not any(np.array_equal(nn.load(file).layers[0].weight, v) for v in versions)
print(json.dumps({"kills": done, "wrong": wrong}))
""",
        str(tmp_path),
        kills,
    )
    assert figures == {"kills": kills, "wrong": 0}


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_training_killed_again_and_again_ends_where_one_undisturbed_does(tmp_path, kills) -> None:
    """Each time it is started it goes on from the last checkpoint, and is killed while it writes
    the next one or between two; when it has been killed often enough it may end."""
    figures = killed(
        """
epochs = 12 * kills  # more than all attempts together get through
x, y = nn.datasets.spiral(20, 3, seed=0)

def fresh():
    model = nn.Sequential(
        [nn.Dense(2, 16, "relu"), nn.BatchNorm(16), nn.Dropout(0.2), nn.Dense(16, 3)],
        seed=1, dtype="float64",
    )
    rate = nn.schedules.InverseTimeDecay(0.01, 1e-3)
    model.compile("softmax_cross_entropy", nn.AdamW(rate), ["accuracy"])
    return model

def train(file):
    model = nn.load(file) if os.path.exists(file) else fresh()
    saves = nn.ModelCheckpoint(file)
    model.fit(x, y, epochs - model.epoch, batch_size=8, verbose=0, callbacks=[saves])

file = os.path.join(path, "killed.safetensors")
done = 0
for _ in range(kills):
    done += attempt_and_kill(lambda: train(file), 0.03)
train(file)
undisturbed = os.path.join(path, "undisturbed.safetensors")
train(undisturbed)
one, other = nn.load(file), nn.load(undisturbed)
same = one.history["loss"] == other.history["loss"] and one.step == other.step
for name, array in {**one.arrays(), **one.optimizer_state()}.items():
    same &= np.array_equal(array, {**other.arrays(), **other.optimizer_state()}[name])
print(json.dumps({"kills": done, "same": int(same)}))
""",
        str(tmp_path),
        kills,
    )
    assert figures["same"] == 1
    assert figures["kills"] == kills
