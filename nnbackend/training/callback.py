"""What a callback is, and the list of those that a training run calls."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from nnbackend._checks import check_list
from nnbackend._names import AnswersNames, check_signature
from nnbackend.errors import CheckpointError, DTypeError, shown, unknown_name
from nnbackend.training.history import History

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential

Figures = Mapping[str, float]


#: What a callback's methods are called with.
_CALLED_WITH = {
    "on_fit_begin": ("model",), "on_epoch_end": ("model", "epoch", "figures", "history"),
    "on_fit_end": ("model", "history"), "on_fit_failed": ("model", "error"),
}  # fmt: skip


class Callback(AnswersNames):
    """Base of all callbacks; override what you need.

    With callbacks, ``fit`` returns to Python after every epoch, so they see the current model
    and may change it, ``model.optimizer.lr`` for example.
    """

    #: called after the others, as what saves the model must be
    runs_last: ClassVar[bool] = False
    #: of processes that train together, called on the first alone, as what writes files must be;
    #: what changes the model or stops the training must be called on all
    on_rank_zero: ClassVar[bool] = False
    #: the model that it trained last, and its state before the first one
    _model: weakref.ref[Sequential] | None = None
    _initial: Mapping[str, Any] | None = None

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name in vars(cls):
            if name.startswith("on_") and not hasattr(Callback, name):
                known = [n for n in vars(Callback) if n.startswith("on_")]
                raise unknown_name(f"a callback's method on_..., in {cls.__name__},", name, known)
        for name, arguments in _CALLED_WITH.items():
            check_signature(cls, name, *arguments)

    def attach(self, model: Sequential) -> None:
        """Start afresh, unless ``model`` is the one that was trained last."""
        if self._initial is None:
            self._initial = copy.deepcopy(self.state())
        elif self._model is None or self._model() is not model:
            self.set_state(copy.deepcopy(self._initial))
        self._model = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_model"}

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

    def on_fit_failed(self, model: Sequential, error: BaseException) -> None:
        """In place of ``on_fit_end``, if training ends in an error."""

    def state(self) -> dict[str, Any]:
        """What a model file keeps so that resumed training continues exactly: numbers, text,
        None, and NumPy arrays. What it is before the first training is restored where another
        model is trained."""
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


def restore_states(callbacks: Sequence[Callback], states: Sequence[Mapping[str, Any]]) -> None:
    """Hand out the states of a model file, matched by class."""
    left = list(states)
    for callback in callbacks:
        name = type(callback).__name__
        state = next((s for s in left if s["type"] == name), None)
        if state is None:
            continue
        left = [s for s in left if s is not state]
        try:
            callback.set_state({k: v for k, v in state.items() if k != "type"})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the model file's state of {name} does not fit this one "
                f"({type(error).__name__}: {error}). To start it afresh, set "
                f"model.callback_states = []"
            ) from error


class CallbackList:
    """The callbacks of a training run, called in order, each with the model."""

    def __init__(self, model: Sequential, callbacks: Sequence[Callback], rank: int = 0) -> None:
        self.model = model
        callbacks = [callback for callback in callbacks if not (rank and callback.on_rank_zero)]
        # those that save the model come last, when the others have their new state
        self.callbacks = sorted(callbacks, key=lambda callback: callback.runs_last)

    def __len__(self) -> int:
        return len(self.callbacks)

    def fit_begins(self) -> None:
        for begun, callback in enumerate(self.callbacks):
            try:
                callback.on_fit_begin(self.model)
            except BaseException as error:
                self.fit_failed(error, begun)
                raise

    def epoch_ends(self, epoch: int, figures: Figures, history: History) -> None:
        """Epoch number ``epoch`` is complete; a reason to stop is left in ``history``."""
        for callback in self.callbacks:
            reason = callback.on_epoch_end(self.model, epoch, figures, history)
            if reason:
                history.stopped = str(reason)

    def fit_ends(self, history: History) -> None:
        for ended, callback in enumerate(self.callbacks):
            try:
                callback.on_fit_end(self.model, history)
            except BaseException as error:
                self.callbacks = self.callbacks[ended + 1 :]
                self.fit_failed(error)
                raise

    def fit_failed(self, error: BaseException, begun: int | None = None) -> None:
        """Tell those that have begun; what they raise in turn is not the cause."""
        for callback in self.callbacks[:begun]:
            with suppress(Exception):
                callback.on_fit_failed(self.model, error)
