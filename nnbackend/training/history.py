"""The curves of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnbackend._checks import check_mapping
from nnbackend._names import missing_attribute

_CURVES = "this is the dict of curves: history['loss']"


class History(dict[str, list[float]]):
    """Every curve by name, one value per epoch: ``history["val_accuracy"][-1]``.

    It is a dict, which ``pandas.DataFrame(history)`` and ``json.dumps(history)`` take as it is.

    Curves: "loss" (with penalties), "data_loss" (without; only if the model has penalties),
    the metrics, all of these with "val_" in front, and "lr", the rate of the epoch's last update.
    Training figures are averages over the epoch's batches as they were trained on.

    Attributes:
        seconds: wall-clock time of each epoch.
        stopped: why training ended before its last epoch: "interrupted" (Ctrl-C), or what a
            callback said; None if it did not.
    """

    def __init__(self, curves: Mapping[str, list[float]] | None = None) -> None:
        given = {} if curves is None else check_mapping("curves", curves)
        super().__init__({k: list(v) for k, v in given.items()})
        self.seconds: list[float] = []
        self.stopped: str | None = None

    @property
    def curves(self) -> dict[str, list[float]]:
        """The same dict."""
        return self

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        return max((len(values) for values in self.values()), default=0)

    def extend(self, epochs: Sequence[Mapping[str, float]], seconds: float) -> None:
        """Add the figures of some epochs, each of ``seconds``; all have the same curves."""
        if not epochs or epochs[0].keys() != self.keys():
            for values in epochs:
                self.append(values, seconds)
            return
        for name, curve in self.items():
            curve += [float(values[name]) for values in epochs]
        self.seconds += [seconds] * len(epochs)

    def append(self, values: Mapping[str, float], seconds: float) -> None:
        """Add the figures of one epoch; missing curves get NaN."""
        before = self.epochs
        for name in {**self, **values}:
            curve = self.setdefault(name, [math.nan] * before)
            curve.append(float(values.get(name, math.nan)))
        self.seconds.append(seconds)

    def truncate(self, epochs: int) -> None:
        """Keep the first ``epochs`` epochs."""
        for values in (*self.values(), self.seconds):
            del values[epochs:]

    def last(self) -> dict[str, float]:
        """The figures of the last epoch."""
        return {name: values[-1] for name, values in self.items() if values}

    def __getitem__(self, name: str) -> list[float]:
        try:
            return super().__getitem__(name)
        except (KeyError, TypeError):  # a list or an array cannot even be looked up
            if not self:
                raise KeyError("there are no curves yet: no epoch has been completed") from None
            from nnbackend.errors import unknown_name

            raise KeyError(str(unknown_name("curve", name, self))) from None

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, {"history": _CURVES})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state.pop("curves", {}))  # as they were kept once
        vars(self).update(state)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={value:.4g}" for name, value in self.last().items())
        stopped = f", stopped={self.stopped!r}" if self.stopped else ""
        return f"<History of {self.epochs} epochs: {figures}{stopped}>"

    def to_dict(self) -> dict[str, Any]:
        """Curves as plain lists, for JSON or a table."""
        return {name: list(values) for name, values in self.items()}
