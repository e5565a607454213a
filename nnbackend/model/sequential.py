"""Sequential: a stack of layers with a loss and an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from nnbackend._checks import check_flag, check_list
from nnbackend._files import release_pages
from nnbackend._names import answers_names
from nnbackend._output import write_line
from nnbackend._settings import fix
from nnbackend._types import PathLike
from nnbackend.data.sources import fingerprint
from nnbackend.data.validation import (
    check_categories,
    check_finite,
    check_matrix,
)
from nnbackend.distributed.communicator import Communicator
from nnbackend.distributed.joining import check_alike, join, weights_of
from nnbackend.errors import (
    DataError,
    DTypeError,
    memory_errors,
    shown,
)
from nnbackend.losses import Loss, LossFunction, loss_name, resolve_loss, to_probabilities
from nnbackend.metrics import AnyMetric, Metric, resolve_metric
from nnbackend.model import serialization
from nnbackend.model.ending import check_ending, check_no_layers, fitted
from nnbackend.model.stack import Metrics
from nnbackend.model.summary import summary_html, summary_text
from nnbackend.model.trained import TrainedStack
from nnbackend.optimizers import Optimizer, resolve_optimizer
from nnbackend.training.evaluation import check_metrics

#: The most rows, and bytes of them, that predict brings to the device at a time.
PREDICT_ROWS, PREDICT_BYTES = 1 << 16, 1 << 26


class Sequential(TrainedStack):
    """A stack of layers, each fed the output of the one before.

    >>> model = Sequential([Dense(2, 8, activation="tanh"), Dense(8, 1)], seed=0)
    >>> model.compile(loss="mean_squared_error", optimizer="adam")

    Args:
        layers: at least one; each belongs to this model from now on.
        seed: of initial weights, shuffling and dropout; None draws one and records it.
        dtype: "float32" or "float64".
        backend: a name such as "cuda:1"; None takes the current backend.
        precision: of products on a GPU. "fp32" multiplies float32 numbers as they are, "tf32"
            rounds them to ten bits of mantissa and "bf16" to seven, which tensor cores multiply
            many times as fast; sums, weights and everything else stay float32.

    Attributes:
        layers, backend, dtype, seed, precision: as given.
        loss, optimizer, metrics, penalties_per_row: as compiled; ``optimizer.lr`` may be changed
            between steps.
        epoch, step: completed epochs and updates.
        history: the curves of all epochs so far.
        info: your own notes, which JSON can hold; saved with the model.
        callbacks: of the last ``fit``; their states are saved with the model.
        n_inputs, n_outputs: widths.

    Raises:
        ShapeError: neighbouring layers do not fit.
    """

    # -- settings -----------------------------------------------------------------------------

    @answers_names
    def compile(
        self,
        loss: str | Loss | LossFunction | None,
        optimizer: str | Optimizer = "adam",
        metrics: Sequence[str | AnyMetric] | str | AnyMetric | None = (),
        *,
        penalties_per_row: bool = False,
    ) -> None:
        """Choose what to minimise and how; resets the optimizer's state.

        Args:
            loss: a name from ``nnbackend.losses``, an object such as ``nn.losses.Huber(2.0)``, or
                a function ``(y_true, y_pred) -> (loss, dpred)`` on the backend's arrays; None
                if only ``backward`` and ``apply_gradients`` will be used.
            optimizer: a name, or an object such as ``nn.Adam(lr=1e-3)``.
            metrics: names from ``nnbackend.metrics``, objects, or functions
                ``(y_true, y_pred) -> number`` on NumPy arrays.
            penalties_per_row: divide the layers' penalties by the number of rows, of a batch in
                training and of all data in ``evaluate``, as scikit-learn does with ``alpha``.

        Raises:
            UnknownNameError: with the choices.
            DataError: a loss from logits after a softmax or sigmoid; a metric that does not
                fit the loss.
        """
        if metrics is None or isinstance(metrics, str | Metric) or callable(metrics):
            metrics = [] if metrics is None else [metrics]
        metrics = check_list("metrics", "['accuracy']", metrics)
        check_no_layers(loss, *metrics)
        new_loss = None if loss is None else resolve_loss(loss)
        new_metrics = [fitted(resolve_metric(metric), new_loss, self.layers) for metric in metrics]
        check_metrics(new_metrics, new_loss)
        check_ending(self.layers, new_loss)
        new_optimizer = resolve_optimizer(optimizer)
        per_row = check_flag("penalties_per_row", penalties_per_row)
        with self._training(), self._unchanged_on_error():
            fix(self, loss=new_loss, _optimizer=new_optimizer, metrics=Metrics(new_metrics))
            fix(self, penalties_per_row=per_row)
            self.resting = {}
            self._lower()
            self.training.step = 0

    # -- inference ----------------------------------------------------------------------------

    def predict(self, x: Any, comm: Communicator | None = None) -> np.ndarray[Any, Any]:
        """Raw outputs (N, n_outputs) as a NumPy array. Thread-safe.

        Args:
            x: (N, n_inputs).
            comm: processes that each pass the same x, compute a share of its rows and receive all
                outputs; see ``fit``.

        Raises:
            ShapeError, DTypeError: wrong rank, width or type.
            DataError: x holds NaN or infinity that reached the outputs.
        """
        ranks = join(comm)
        with memory_errors:
            with nullcontext() if ranks is None else ranks.together():
                x = check_matrix(self.backend, x, self.n_inputs)
            if ranks is None:
                out = self._outputs(x)
            else:
                more = {"rows": len(x), "x": fingerprint(self.backend, x)}
                more |= weights_of(self.program)
                check_alike(ranks, "predict", self.program, self.layers, (), {}, more)
                parts = [self._outputs(x[first:last]) for first, last in ranks.blocks(len(x))]
                nothing = np.zeros((0, self.n_outputs), self.dtype)
                out = ranks.gather_blocks(np.concatenate([nothing, *parts]))
            with np.errstate(over="ignore", invalid="ignore"):
                suspicious = not np.isfinite(out.sum())
            if suspicious:
                check_finite(self.backend, x, self.dtype)
                check_categories(self.program, x)
        return out

    def _outputs(self, x: Any) -> np.ndarray[Any, Any]:
        out = np.empty((len(x), self.n_outputs), self.dtype)
        row_bytes = self.n_inputs * self.dtype.itemsize
        some = max(1, min(PREDICT_ROWS, PREDICT_BYTES // row_bytes))
        for start in range(0, len(x), some):
            part = slice(start, min(start + some, len(x)))
            out[part] = self.backend.to_numpy(self(x[part]))
            release_pages(x)
        return out

    def predict_proba(self, x: Any, comm: Communicator | None = None) -> np.ndarray[Any, Any]:
        """Probabilities (N, n_outputs): the loss's link (softmax, sigmoid) applied to
        ``predict``, or the outputs themselves if the loss takes probabilities."""
        self._check_compiled()
        if not isinstance(self.loss, Loss) or not self.loss.probabilities:
            raise DataError(
                f"predict_proba needs a loss over classes, such as softmax_cross_entropy; this "
                f"model was compiled with {loss_name(self.loss)}"
            )
        return to_probabilities(self.loss, self.predict(x, comm))

    # -- for people, and for later ----------------------------------------------------------------

    def summary(self, print_fn: Callable[[str], object] | None = None) -> None:
        """Print a table of the layers and what the model runs on.

        Args:
            print_fn: called with the text instead of printing it.
        """
        if print_fn is not None and not callable(print_fn):
            raise DTypeError(f"print_fn must be a function; received {shown(print_fn)}")
        (write_line if print_fn is None else print_fn)(summary_text(self))

    def _repr_html_(self) -> str:
        """What a notebook shows of the model."""
        return summary_html(self)

    def save(self, path: PathLike) -> None:
        """Write the model, its optimizer's state, seeds and history to a safetensors file.

        The file is written whole or not at all; ``nn.load(path)`` reads it.
        """
        with self.exclusive():
            serialization.save_model(self, path)

    def load_weights(self, path: PathLike) -> None:
        """Read parameters and layer state, in place, from a file that ``save`` wrote.

        Raises:
            CheckpointError: the file cannot be read, or holds another architecture.
        """
        with self.exclusive():
            serialization.load_weights(self, path)
