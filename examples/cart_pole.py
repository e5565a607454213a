"""A pole that is hinged to a cart: push the cart left or right so that the pole stays up.

The physics of Barto, Sutton and Anderson (1983), for many carts at once. Used by policy_gradient.py
and q_learning.py; by itself it shows how long chance keeps a pole up.
"""

import numpy as np

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MOST_STEPS = 500


def start(carts: int, rng: np.random.Generator) -> np.ndarray:
    """(carts, 4) float32: position, speed, angle of the pole, its angular speed."""
    return rng.uniform(-0.05, 0.05, (carts, 4)).astype("float32")


def push(states: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The states 0.02 s later, and whether each pole fell or its cart left the track."""
    _, speed, angle, spin = states.T
    sin, cos, mass = np.sin(angle), np.cos(angle), CART + POLE
    pull = (FORCE * (2.0 * right - 1.0) + POLE * HALF_LENGTH * spin**2 * sin) / mass
    turn = (GRAVITY * sin - cos * pull) / (HALF_LENGTH * (4 / 3 - POLE * cos**2 / mass))
    gain = pull - POLE * HALF_LENGTH * turn * cos / mass
    rates = np.stack([speed, gain, spin, turn], axis=1)
    after = (states + SECONDS * rates).astype("float32")
    return after, (np.abs(after[:, 0]) > 2.4) | (np.abs(after[:, 2]) > 0.2095)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    states, up, steps = start(1000, rng), np.ones(1000, bool), 0
    while up.any():
        states, fell = push(states, rng.integers(0, 2, 1000))
        steps, up = steps + up.sum(), up & ~fell
    print(f"pushed at random, a pole stays up for {steps / 1000:.1f} steps of {MOST_STEPS}")
