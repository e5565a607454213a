"""What a callback is, and the list of those that a training run calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nnbackend._checks import check_list
from nnbackend.errors import DTypeError, shown
from nnbackend.training.history import History

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential

Figures = Mapping[str, float]


class Callback:
    """Base of all callbacks; override what you need.

    With callbacks, ``fit`` returns to Python after every epoch, so they see the current model
    and may change it, ``model.optimizer.lr`` for example.
    """

    #: called after the others, as what saves the model must be
    runs_last: ClassVar[bool] = False

    def on_fit_begin(self, model: Sequential) -> None:
        """Before the first epoch."""

    def on_epoch_end(
        self, model: Sequential, epoch: int, figures: Figures, history: History
    ) -> str | None:
        """After an epoch and its validation.

        Args:
            epoch: counted from 1, over all calls of ``fit``.
            figures: the epoch's values, as they were appended to ``history``.

        Returns:
            A reason to stop, kept as ``history.stopped``; or None to continue.
        """
        return None

    def on_fit_end(self, model: Sequential, history: History) -> None:
        """After the last epoch, or after Ctrl-C."""

    def state(self) -> dict[str, Any]:
        """What a model file keeps so that resumed training continues exactly: numbers, text,
        None, and NumPy arrays."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""


def check_callbacks(callbacks: object) -> list[Callback]:
    """A list of callbacks, from a list, a single one or None."""
    if callbacks is None or isinstance(callbacks, Callback):
        return [] if callbacks is None else [callbacks]
    checked = check_list("callbacks", "[nn.EarlyStopping()]", callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            raise DTypeError(
                f"callbacks must be nn.Callback objects, such as nn.EarlyStopping(); "
                f"received {shown(callback)}"
            )
    return checked


class CallbackList:
    """The callbacks of a training run, called in order, each with the model."""

    def __init__(self, model: Sequential, callbacks: Sequence[Callback]) -> None:
        self.model = model
        # those that save the model come last, when the others have their new state
        self.callbacks = sorted(callbacks, key=lambda callback: callback.runs_last)

    def __len__(self) -> int:
        return len(self.callbacks)

    def fit_begins(self) -> None:
        for callback in self.callbacks:
            callback.on_fit_begin(self.model)

    def epoch_ends(self, epoch: int, figures: Figures, history: History) -> None:
        """Epoch number ``epoch`` is complete; a reason to stop is left in ``history``."""
        for callback in self.callbacks:
            reason = callback.on_epoch_end(self.model, epoch, figures, history)
            if reason:
                history.stopped = str(reason)

    def fit_ends(self, history: History) -> None:
        for callback in self.callbacks:
            callback.on_fit_end(self.model, history)
