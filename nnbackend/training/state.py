"""How far training has progressed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nnbackend.training.history import History


@dataclass
class TrainingState:
    """What training continues from, besides parameters and optimizer; a model and its trainer
    share one.

    Attributes:
        shuffle_generator: draws the orders of the rows.
        step, epoch: completed updates and epochs.
        history: the curves of all epochs so far.
    """

    shuffle_generator: np.random.Generator
    step: int = 0
    epoch: int = 0
    history: History = field(default_factory=History)
