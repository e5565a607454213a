"""Q-learning with a target network (Mnih et al., 2015) balances a pole.

The network gives Q(s, a), what is to come after each action. The target of the action taken is
r + discount max_a' Q'(s', a'), Q' the target network, which follows slowly by soft updates; the
error goes through Huber's slope. The gradient is computed here and handed to model.backward.

    python examples/q_learning.py [PICTURE.png]
"""

import sys
import time

import cart_pole
import numpy as np

import nnbackend as nn

CARTS, STEPS, BATCH, KEPT, DISCOUNT, TAU = 8, 15_000, 128, 20_000, 0.99, 0.01

rng = np.random.default_rng(1)


def network() -> nn.Sequential:
    return nn.Sequential(
        [nn.Dense(4, 64, "relu"), nn.Dense(64, 64, "relu"), nn.Dense(64, 2)], seed=1
    )


model, target = network(), network()
model.compile(loss=None, optimizer=nn.Adam(1e-3, clip_norm=10.0))
target.copy_from(model)
to_numpy = model.backend.to_numpy

# what was met: state, action, reward, state after, whether it ended there
states = np.empty((KEPT, 4), "float32")
actions, rewards = np.empty(KEPT, int), np.empty(KEPT, "float32")
after, ended = np.empty((KEPT, 4), "float32"), np.empty(KEPT, bool)


def learn(rows: np.ndarray) -> None:
    """One step on these memories."""
    future = to_numpy(target(after[rows])).max(axis=1)
    wanted = rewards[rows] + DISCOUNT * future * ~ended[rows]
    q = to_numpy(model.forward(states[rows]))
    number = np.arange(len(rows))
    error = q[number, actions[rows]] - wanted
    dy = np.zeros_like(q)
    dy[number, actions[rows]] = np.clip(error, -1, 1) / len(rows)  # the slope of Huber's loss
    model.backward(dy, input_gradient=False)
    model.apply_gradients()
    target.soft_update(model, TAU)


began = time.perf_counter()
now, ages, lengths, met = cart_pole.start(CARTS, rng), np.zeros(CARTS, int), [], 0
for step in range(1, STEPS + 1):
    chance = max(0.02, 1.0 - step / 1500)
    best = to_numpy(model(now)).argmax(axis=1)
    right = np.where(rng.random(CARTS) < chance, rng.integers(0, 2, CARTS), best)
    then, fell = cart_pole.push(now, right)
    rows = (met + np.arange(CARTS)) % KEPT
    states[rows], actions[rows], rewards[rows] = now, right, -1.0 * fell
    after[rows], ended[rows] = then, fell  # a fall costs 1, all else nothing
    met, ages = met + CARTS, ages + 1
    over = fell | (ages == cart_pole.MOST_STEPS)
    lengths += ages[over].tolist()
    now = np.where(over[:, None], cart_pole.start(CARTS, rng), then)
    ages[over] = 0
    for _ in range(2 if met > 500 else 0):
        learn(rng.integers(0, min(met, KEPT), BATCH))
    if step % 1000 == 0:
        print(f"step {step:5}  mean steps of the last 20 {np.mean(lengths[-20:]):5.1f}")
    if len(lengths) > 50 and np.mean(lengths[-20:]) > 0.9 * cart_pole.MOST_STEPS:
        break
print(f"solved in {step} steps, {time.perf_counter() - began:.1f} s: "
      f"mean steps {np.mean(lengths[-20:]):.1f}")  # fmt: skip

if len(sys.argv) > 1:
    smooth = np.convolve(lengths, np.ones(20) / 20, "valid")
    ax = nn.plot.history({"steps": smooth.tolist()}, "steps")
    ax.set_xlabel("episode (mean of 20)")
    ax.figure.savefig(sys.argv[1])
