"""What follows a row of a network and can be done by its kernel: an activation, and dropout."""

from __future__ import annotations

from typing import NamedTuple

from nnbackend.backends.cuda.arrays import words_of
from nnbackend.backends.types import LINEAR, Activation, Array


def stream_words(seed: int, stream: int) -> tuple[int, int, int, int]:
    """A stream of random numbers as kernels take it: the key's words, the step, the layer."""
    key_0, key_1 = words_of(seed, 2)
    return key_0, key_1, stream & (1 << 64) - 1, stream >> 64


def threshold_and_scale(rate: float) -> tuple[int, float]:
    """Which random words keep a number, and what it is multiplied by."""
    return int(rate * 2.0**32), 1.0 / (1.0 - rate)


class Following(NamedTuple):
    """Arguments of a kernel that does what follows, in this order."""

    activation: tuple[int, bool, float]  #: code, whether its slope is found from its input, alpha
    stream: tuple[int, int, int, int]
    kept: tuple[int, float]  #: threshold and scale
    slopes: Array | None  #: receives what the gradient is multiplied by

    @classmethod
    def of(
        cls, act: Activation, rate: float, seed: int, layer: int, slopes: Array | None
    ) -> Following:
        """An activation, then dropout by ``layer``, in the step that the device knows."""
        activation = act.code, act.saves == "input", act.parameter
        return cls(activation, stream_words(seed, layer << 64), threshold_and_scale(rate), slopes)


NOTHING_FOLLOWS = Following.of(LINEAR, 0.0, 0, 0, None)
