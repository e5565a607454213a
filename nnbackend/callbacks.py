"""What can look on and step in between epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnbackend.history import History
    from nnbackend.model import Sequential


class Callback:
    """Base of all callbacks; override what you need.

    ``fit`` comes back to Python after every epoch when it has callbacks, so they see the model
    as it is and may change it, ``model.optimizer.lr`` for example.
    """

    def on_fit_begin(self, model: Sequential) -> None:
        """Before the first epoch."""

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Mapping[str, float], history: History
    ) -> str | None:
        """After an epoch and its validation.

        Args:
            epoch: counted from 1.
            figures: the epoch's values, as they were appended to ``history``.

        Returns:
            A reason to stop, kept as ``history.stopped``; or None to go on.
        """
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        """After the last epoch, or after Ctrl-C."""
