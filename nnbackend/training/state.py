"""How far training has progressed."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnbackend.training.history import History
from nnbackend.training.orders import Orders


@dataclass
class TrainingState:
    """What training continues from, besides parameters and optimizer; a model and its trainer
    share one.

    Attributes:
        orders: those in which the rows are taken.
        step, epoch: completed updates and epochs.
        history: the curves of all epochs so far.
    """

    orders: Orders
    step: int = 0
    epoch: int = 0
    history: History = field(default_factory=History)
