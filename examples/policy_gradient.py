"""Policy gradients (REINFORCE, Williams 1992) teach a network to balance a pole.

The network gives logits of "left" and "right". For an episode's state s, action a and advantage A,
the loss is -A log p(a | s), whose gradient by the logits is A (p - onehot(a)): it is computed here,
outside the model, and handed to model.backward.

    python examples/policy_gradient.py [PICTURE.png]
"""

import sys
import time

import cart_pole
import numpy as np

import nnbackend as nn

CARTS, UPDATES, DISCOUNT = 32, 80, 0.99

rng = np.random.default_rng(0)
model = nn.Sequential([nn.Dense(4, 64, "tanh"), nn.Dense(64, 2)], seed=0)
model.compile(loss=None, optimizer=nn.Adam(0.01))
to_numpy = model.backend.to_numpy


def chances(logits: np.ndarray) -> np.ndarray:
    """Softmax of two logits."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def play() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Episodes of all carts: states (T, carts, 4), actions (T, carts), still up (T, carts)."""
    states, up = cart_pole.start(CARTS, rng), np.ones(CARTS, bool)
    seen, done, alive = [], [], []
    while up.any() and len(seen) < cart_pole.MOST_STEPS:
        right = (rng.random(CARTS) < chances(to_numpy(model(states)))[:, 1]).astype(int)
        seen.append(states)
        done.append(right)
        alive.append(up)
        states, fell = cart_pole.push(states, right)
        up = up & ~fell
    return np.stack(seen), np.stack(done), np.stack(alive)


def advantages(alive: np.ndarray) -> np.ndarray:
    """Discounted steps to come, less their mean over the carts at that time, in units of their
    spread."""
    to_come = np.zeros(alive.shape)
    total = np.zeros(alive.shape[1])
    for t in range(len(alive) - 1, -1, -1):
        total = alive[t] * (1.0 + DISCOUNT * total)
        to_come[t] = total
    better = to_come - to_come.sum(axis=1, keepdims=True) / alive.sum(axis=1, keepdims=True)
    return better / (better[alive].std() + 1e-6)


began, curve = time.perf_counter(), []
for update in range(1, UPDATES + 1):
    states, actions, alive = play()
    curve.append(alive.sum() / CARTS)
    if update % 10 == 0:
        print(f"update {update:3}  mean steps {curve[-1]:5.1f} of {cart_pole.MOST_STEPS}")
    x, a, advantage = states[alive], actions[alive], advantages(alive)[alive]
    p = chances(to_numpy(model.forward(x)))
    dy = advantage[:, None] * (p - np.eye(2)[a]) / len(x)
    model.backward(dy, input_gradient=False)
    model.apply_gradients()
    if np.mean(curve[-5:]) > 0.95 * cart_pole.MOST_STEPS:
        break
print(f"solved in {update} updates, {time.perf_counter() - began:.1f} s: "
      f"mean steps {np.mean(curve[-5:]):.1f}")  # fmt: skip

if len(sys.argv) > 1:
    ax = nn.plot.history({"steps": curve}, "steps")
    ax.set(xlabel="update", ylabel="mean steps that the pole stays up")
    ax.get_legend().remove()
    ax.figure.savefig(sys.argv[1])
