"""Sequential: a stack of layers with a loss and an optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from nnbackend._checks import check_flag, check_list, check_name, check_number, check_size
from nnbackend._files import release_pages
from nnbackend._names import answers_names
from nnbackend._output import write_line
from nnbackend.backends.types import Array
from nnbackend.data.sources import (
    ArraySource,
    BatchSource,
    Source,
    make_source,
    training_sources,
)
from nnbackend.data.split import HOW, How, split_rows
from nnbackend.data.validation import (
    ClassWeight,
    as_predictions_input,
    check_categories,
    check_finite,
    check_matrix,
)
from nnbackend.distributed.communicator import Communicator
from nnbackend.distributed.executor import SharedTraining
from nnbackend.distributed.joining import (
    OwnRows,
    adapt_together,
    check_alike,
    check_same_source,
    join,
    one_thread,
    share_start,
)
from nnbackend.distributed.ranks import Ranks
from nnbackend.errors import (
    DataError,
    DTypeError,
    memory_errors,
    raise_as_ours,
    shown,
)
from nnbackend.layers.base import Layer
from nnbackend.losses import Loss, LossFunction, loss_name, resolve_loss, to_probabilities
from nnbackend.metrics import AnyMetric, Metric, MetricFunction, ScoreMetric, resolve_metric
from nnbackend.model import serialization
from nnbackend.model.busy import one_at_a_time
from nnbackend.model.driven import DrivenStack
from nnbackend.model.ending import check_ending, check_no_layers
from nnbackend.model.summary import summary_html, summary_text
from nnbackend.optimizers import Optimizer, resolve_optimizer
from nnbackend.training.callback import Callback, CallbackList, check_callbacks, restore_states
from nnbackend.training.evaluation import check_metrics, evaluate_source, function_metrics
from nnbackend.training.history import History
from nnbackend.training.progress import make_progress
from nnbackend.training.trainer import Trainer

#: The most rows, and bytes of them, that predict brings to the device at a time.
PREDICT_ROWS, PREDICT_BYTES = 1 << 16, 1 << 26


class Sequential(DrivenStack):
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
        new_metrics = [resolve_metric(metric) for metric in metrics]
        check_metrics(new_metrics, new_loss)
        check_ending(self.layers, new_loss)
        new_optimizer = resolve_optimizer(optimizer)
        per_row = check_flag("penalties_per_row", penalties_per_row)
        before = (self.loss, self._optimizer, self.metrics, self.penalties_per_row)
        with self._training():
            self.loss, self._optimizer, self.metrics = new_loss, new_optimizer, new_metrics
            self.penalties_per_row = per_row
            try:
                self._lower()
            except Exception:
                self.loss, self._optimizer, self.metrics, self.penalties_per_row = before
                raise
            self.training.step = 0

    @property
    def _function_metrics(self) -> list[ScoreMetric | MetricFunction]:
        return [metric for metric in self.metrics if not isinstance(metric, Metric)]

    # -- training -----------------------------------------------------------------------------

    @answers_names
    def fit(
        self,
        x: Any,
        y: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: Any = None,
        validation_split: float = 0.0,
        validation_rows: How = "auto",
        callbacks: Sequence[Callback] | Callback | None = (),
        shuffle: bool = True,
        drop_last: bool = False,
        sample_weight: Any = None,
        class_weight: ClassWeight | None = None,
        verbose: int = 1,
        comm: Communicator | None = None,
        sharded: bool = False,
        exact: bool = False,
    ) -> History:
        """Train for ``epochs`` more epochs.

        Args:
            x: (N, n_inputs) array; a ``np.memmap`` larger than memory is read in blocks. Or an
                iterable of ``(x, y)`` or ``(x, y, weight)`` batches, or a function that returns
                one.
            y: (N,) class labels, (N, n_outputs) targets, or (N,) for one output.
            batch_size: rows per step; the last batch of an epoch may be smaller.
            validation_data: ``(x, y)`` or ``(x, y, weight)`` arrays, or an iterable of batches.
            validation_split: share of rows kept for validation.
            validation_rows: which they are, the same for the same seed: "stratified" takes the same
                share of each class, "random" any, "last" the last ones; "auto" is stratified where
                there are classes, else random.
            callbacks: see ``nnbackend.training.callbacks``.
            shuffle: draw a new order of the rows for every epoch.
            drop_last: leave out an epoch's last batch if it is smaller than the others.
            sample_weight: (N,) weight of each row.
            class_weight: dict from class to weight, or "balanced".
            verbose: 0 nothing, 1 a progress bar (plain lines without a terminal), 2 lines.
            comm: what ``nn.distributed.init()`` returns: the processes that share the rows of each
                batch. Every one calls this alike; see docs/distributed.md.
            sharded: each process has rows of its own; else each passes all rows.
            exact: same bits for any number of processes, on the CPU; slower.

        Returns:
            The curves of these epochs. After Ctrl-C, those so far, ``stopped="interrupted"``.

        Raises:
            ShapeError, DataError, DTypeError: bad input, found before the model is touched.
            NonFiniteLossError: the loss became NaN or infinite; the weights are those at the
                end of the last good epoch.
            RankError: another process differs, died, or did not come in time.
            ModelBusyError: another thread is training this model.
        """
        self._check_compiled()
        epochs, batch_size = check_size("epochs", epochs), check_size("batch_size", batch_size)
        drop_last = check_flag("drop_last", drop_last)
        check_name("validation_rows", validation_rows, HOW)
        split = check_number("validation_split", validation_split, 0.0, 1.0, high_open=True)
        if split and validation_data is not None:
            raise DataError("pass validation_data or validation_split, not both")
        callbacks = check_callbacks(callbacks)
        ranks = join(comm, sharded, exact)
        with self._training():
            self._rows_forward = 0
            functions = self._function_metrics
            source, validation = training_sources(
                self.program, x, y, sample_weight, class_weight, validation_data,
                partial(split_rows, share=split, seed=self.seed, how=validation_rows)
                if split else None,
            )  # fmt: skip
            if ranks is not None:
                more = {
                    "seed": self.seed,
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "shuffle": shuffle,
                }
                more |= {"epochs before": self.epoch, "steps before": self.step}
                more |= {"drop_last": drop_last, "validation": validation is not None}
                self._check_alike(ranks, "fit", source, more, validation)
            rows = source.n_rows
            if isinstance(source, ArraySource) and not (ranks and ranks.sharded):
                rows = source.rows_per_epoch(batch_size, drop_last)
                self.program.check_batch(min(rows, batch_size))
                self.program.check_batch(rows % batch_size or batch_size)
            elif isinstance(source, BatchSource):
                source.may_be_empty = ranks is not None and ranks.sharded
                if drop_last:
                    raise DataError(
                        "drop_last goes with arrays; an iterable gives batches as they are"
                    )
                source.check_passes(2 * epochs if functions else epochs)
            if isinstance(validation, BatchSource):
                validation.check_passes(epochs)
            adapted = self._adapt(source, ranks)
            trained_on: Source = source
            if ranks is not None:
                share_start(ranks, self.program)
                if ranks.sharded and isinstance(source, ArraySource):
                    trained_on = OwnRows(
                        self.program, source, ranks, batch_size, shuffle, drop_last, self.seed,
                        self.epoch,
                    )  # fmt: skip
                    rows = trained_on.total
            self._begin_callbacks(callbacks)
            last = self.epoch + epochs
            trainer = Trainer(
                self.program,
                self.executor
                if ranks is None
                else SharedTraining(self.program, self.executor, ranks),
                self.training,
                trained_on,
                epochs=last,
                batch_size=batch_size,
                shuffle=check_flag("shuffle", shuffle),
                rows_per_epoch=rows,
                callbacks=CallbackList(self, callbacks, 0 if ranks is None else ranks.rank),
                validate=None if validation is None else partial(self._figures, validation, ranks),
                python_metrics=partial(self._training_figures, source, ranks)
                if functions
                else None,
                progress=make_progress(
                    verbose if ranks is None or not ranks.rank else 0, self.epoch, last, rows
                ),
                history=History(),
                ranks=ranks,
            )
            with one_thread(exact, self.backend):
                try:
                    return trainer.run()
                except BaseException:
                    if adapted is not None and self.epoch == last - epochs:
                        adapted.forget()  # what was refused has not been seen
                    raise

    def _check_alike(
        self, ranks: Ranks, call: str, source: Source, more: dict[str, Any],
        validation: Source | None = None,
    ) -> None:  # fmt: skip
        check_same_source(ranks, source, validation)
        check_alike(ranks, call, self.program, self.layers, source, more)

    def _figures(self, source: Source, ranks: Ranks | None = None) -> dict[str, float]:
        return evaluate_source(self.executor, source, self._function_metrics, self, ranks)

    def _training_figures(self, source: Source, ranks: Ranks | None) -> dict[str, float]:
        return function_metrics(self.program, source, self._function_metrics, self, ranks)

    @one_at_a_time
    def train_step(self, x: Any, y: Any, sample_weight: Any = None) -> Array:
        """One update on one batch, for your own training loop.

        Args:
            x, y, sample_weight: as in ``fit``, any number of rows.

        Returns:
            The loss with penalties before the update, a 0-d float64 array of the backend.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite; the step is not
                completed. On a GPU, which nobody waits for, such a loss is returned instead, and
                nothing is updated.
        """
        try:
            self._rows_forward = 0
            state = self.training
            loss = self.executor.step(x, y, state.step, sample_weight)
            if loss is None:
                loss = self._checked_step(x, y, sample_weight)
            state.step += 1
        except MemoryError as error:
            raise_as_ours(error)
        return loss

    def _checked_step(self, x: Any, y: Any, sample_weight: Any) -> Array:
        self._check_compiled()
        data = self._batch(x, y, sample_weight)
        rate = float(self.program.rates(self.step, 1)[0])
        return self.executor.train_on(data, rate, self.step)

    def _begin_callbacks(self, callbacks: Sequence[Callback]) -> None:
        """Pass the states from a model file to the first fit's callbacks, matched by class."""
        for callback in callbacks:
            callback.attach(self)
        restore_states(callbacks, self.callback_states)
        self.callbacks, self.callback_states = list(callbacks), []

    def _adapt(self, source: Source, ranks: Ranks | None) -> Layer | None:
        """Show arrays to the first layer, if it learns from them; the layer that has learnt."""
        first = None
        if isinstance(source, ArraySource) and not self.layers[0].adapted:
            first = self.layers[0]
            if ranks is not None and ranks.sharded:
                adapt_together(ranks, first, source.x)
            else:
                first.adapt(source.x)
        self._check_adapted()
        return first

    # -- inference ----------------------------------------------------------------------------

    def __call__(self, x: Any) -> Array:
        """Outputs (N, n_outputs) for x (N, n_inputs), as an array of the backend, with the
        least overhead. Values are not checked."""
        self._check_adapted()
        try:
            quick = self.executor.call(x)
        except MemoryError as error:  # costs nothing where there is none, as ``with`` would
            raise_as_ours(error)
        if quick is not None:
            return quick
        with memory_errors:
            x = as_predictions_input(self.backend, x, self.n_inputs, self.dtype)
            out = self.backend.zeros((len(x), self.n_outputs), self.dtype)
            self.executor.predict(x, out)
        return out

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
        with memory_errors:
            x = check_matrix(self.backend, x, self.n_inputs)
            ranks = join(comm)
            if ranks is not None:
                return self._predict_together(ranks, x)
            out = np.empty((len(x), self.n_outputs), self.dtype)
            row_bytes = self.n_inputs * self.dtype.itemsize
            some = max(1, min(PREDICT_ROWS, PREDICT_BYTES // row_bytes))
            for start in range(0, len(x), some):
                part = slice(start, min(start + some, len(x)))
                out[part] = self.backend.to_numpy(self(x[part]))
                release_pages(x)
            with np.errstate(over="ignore", invalid="ignore"):
                suspicious = not np.isfinite(out.sum())
            if suspicious:
                check_finite(self.backend, x, self.dtype)
                check_categories(self.program, x)
        return out

    def _predict_together(self, ranks: Ranks, x: Any) -> np.ndarray[Any, Any]:
        ranks.check_alike({"call": "predict", "rows": len(x), "row width": self.n_inputs})
        parts = [self.predict(x[first:last]) for first, last in ranks.blocks(len(x))]
        nothing = np.zeros((0, self.n_outputs), self.dtype)
        return ranks.gather_blocks(np.concatenate([nothing, *parts]))

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

    @answers_names
    def evaluate(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        comm: Communicator | None = None,
        sharded: bool = False,
        exact: bool = False,
    ) -> dict[str, float]:
        """Loss and metrics in inference mode.

        Args:
            x, y, sample_weight: arrays, or an iterable of batches, as in ``fit``.
            comm, sharded, exact: processes that share the rows, as in ``fit``.

        Returns:
            {"loss": with penalties, "accuracy": ...}; also "data_loss" where there are penalties.
        """
        self._check_compiled()
        self._check_adapted()
        ranks = join(comm, sharded, exact)
        with memory_errors, one_thread(exact, self.backend):
            source = make_source(self.program, x, y, sample_weight)
            if ranks is not None:
                self._check_alike(ranks, "evaluate", source, {})
            return self._figures(source, ranks)

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its optimizer's state, seeds and history to a safetensors file.

        The file is written whole or not at all; ``nn.load(path)`` reads it.
        """
        with self.exclusive():
            serialization.save_model(self, path)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Read parameters and layer state, in place, from a file that ``save`` wrote.

        Raises:
            CheckpointError: the file cannot be read, or holds another architecture.
        """
        with self.exclusive():
            serialization.load_weights(self, path)
