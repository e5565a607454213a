"""A model that learns from data and is measured on them, by one process or by several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from nnbackend._checks import check_flag, check_name, check_number, check_size
from nnbackend._names import answers_names
from nnbackend.backends.types import Array
from nnbackend.data.sources import (
    ArraySource,
    BatchSource,
    Source,
    make_source,
    training_sources,
)
from nnbackend.data.split import HOW, How, split_rows
from nnbackend.data.validation import ClassWeight, check_categories
from nnbackend.distributed.communicator import Communicator
from nnbackend.distributed.executor import SharedTraining
from nnbackend.distributed.joining import (
    OwnRows,
    adapt_together,
    check_alike,
    check_coupled,
    join,
    share_start,
    weights_of,
)
from nnbackend.distributed.ranks import Ranks
from nnbackend.errors import (
    DataError,
    NonFiniteLossError,
    memory_errors,
    raise_as_ours,
)
from nnbackend.executor.base import Trains
from nnbackend.layers.base import Layer
from nnbackend.metrics import Metric, MetricFunction, ScoreMetric
from nnbackend.model.busy import one_at_a_time
from nnbackend.model.driven import DrivenStack
from nnbackend.training.callback import Callback, CallbackList, check_callbacks, restore_states
from nnbackend.training.evaluation import evaluate_source, function_metrics
from nnbackend.training.history import History
from nnbackend.training.progress import check_verbose, make_progress
from nnbackend.training.trainer import Trainer

if TYPE_CHECKING:
    from nnbackend.model.sequential import Sequential


class TrainedStack(DrivenStack):
    """Layers with a loss and an optimizer; see ``Sequential``."""

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
        drop_last, shuffle = check_flag("drop_last", drop_last), check_flag("shuffle", shuffle)
        verbose = check_verbose(verbose)
        check_name("validation_rows", validation_rows, HOW)
        split = check_number("validation_split", validation_split, 0.0, 1.0, high_open=True)
        if split and validation_data is not None:
            raise DataError("pass validation_data or validation_split, not both")
        callbacks = check_callbacks(callbacks)
        ranks = join(comm, sharded, exact)
        with self._training(fits=True):
            self._rows_forward, self._has_gradient = 0, False
            functions = self._function_metrics
            with nullcontext() if ranks is None else ranks.together():
                source, validation = training_sources(
                    self.program, x, y, sample_weight, class_weight, validation_data,
                    partial(split_rows, share=split, seed=self.seed, how=validation_rows)
                    if split else None,
                )  # fmt: skip
                rows = self._rows_of(source, batch_size, drop_last, ranks)
                if isinstance(source, BatchSource):
                    source.check_passes(2 * epochs if functions else epochs)
                if isinstance(validation, BatchSource):
                    validation.check_passes(epochs)
                if ranks is not None and ranks.sharded and class_weight == "balanced":
                    raise DataError(
                        "class_weight='balanced' counts the rows of all ranks, of which each has "
                        "some; pass a dict from class to weight"
                    )
            trained_on, executor = self._shared(
                ranks, source, validation, batch_size, shuffle, drop_last, epochs
            )
            if isinstance(trained_on, OwnRows):
                rows = trained_on.total
            last, before = self.epoch + epochs, (self.callbacks, self.callback_states)
            adapted = self._adapt(source, ranks)
            try:
                if ranks is not None:
                    share_start(ranks, self.program)
                self._begin_callbacks(callbacks)
                trainer = Trainer(
                    self.program,
                    executor,
                    self.training,
                    trained_on,
                    epochs=last,
                    batch_size=batch_size,
                    shuffle=shuffle,
                    rows_per_epoch=rows,
                    callbacks=CallbackList(
                        cast("Sequential", self), callbacks, 0 if ranks is None else ranks.rank
                    ),
                    validate=None
                    if validation is None
                    else partial(self._figures, validation, ranks),
                    python_metrics=partial(self._training_figures, source, ranks)
                    if functions
                    else None,
                    progress=make_progress(
                        verbose if ranks is None or not ranks.rank else 0, self.epoch, last, rows
                    ),
                    history=History(),
                    ranks=ranks,
                )
                with self.backend.one_thread() if exact else nullcontext():
                    return trainer.run()
            except BaseException:
                if self.epoch == last - epochs:  # nothing was learnt
                    self.callbacks, self.callback_states = before
                    if adapted is not None:
                        adapted.forget()
                raise

    def _rows_of(
        self, source: Source, batch_size: int, drop_last: bool, ranks: Ranks | None
    ) -> int | None:
        """Rows of an epoch, checked, if they are known."""
        if ranks is not None:
            check_coupled(self.program)
        if not isinstance(source, ArraySource):
            if drop_last:
                raise DataError(
                    "drop_last works only with arrays; an iterable gives batches as they are"
                )
            return None
        if ranks is not None and ranks.sharded:
            return source.n_rows
        rows = source.rows_per_epoch(batch_size, drop_last)
        self.program.check_batch(min(rows, batch_size))
        self.program.check_batch(rows % batch_size or batch_size)
        return rows

    def _shared(
        self, ranks: Ranks | None, source: Source, validation: Source | None, batch_size: int,
        shuffle: bool, drop_last: bool, epochs: int,
    ) -> tuple[Source, Trains]:  # fmt: skip
        """What is trained on and what trains, after all ranks were found to do the same."""
        if ranks is None:
            return source, self.executor
        more = {"seed": self.seed, "epochs": epochs, "batch_size": batch_size, "shuffle": shuffle}
        more |= {"epochs before": self.epoch, "steps before": self.step, "drop_last": drop_last}
        check_alike(
            ranks, "fit", self.program, self.layers, self.metrics,
            {"": source, "validation ": validation}, more,
        )  # fmt: skip
        executor = SharedTraining(self.program, self.executor, ranks)
        if not (ranks.sharded and isinstance(source, ArraySource)):
            return source, executor
        shards = OwnRows(
            self.program, source, ranks, batch_size, shuffle, drop_last, self.seed, self.epoch
        )
        return shards, executor

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
        watched = self.storage.watched
        before = None if watched is None else watched.copy()
        try:
            self._rows_forward, self._has_gradient = 0, False
            state = self.training
            loss = self.executor.step(x, y, state.step, sample_weight)
            if loss is None:
                loss = self._checked_step(x, y, sample_weight)
            state.step += 1
        except Exception as error:
            if watched is not None:
                watched[...] = before
            if isinstance(error, MemoryError):
                raise_as_ours(error)
            if isinstance(error, NonFiniteLossError):
                check_categories(self.program, x)  # which would be why
            raise
        return loss

    def _checked_step(self, x: Any, y: Any, sample_weight: Any) -> Array:
        self._check_compiled()
        data = self._batch(x, y, sample_weight)
        rate = float(self.program.rates(self.step, 1)[0])
        return self.executor.train_on(data, rate, self.step)

    def _begin_callbacks(self, callbacks: Sequence[Callback]) -> None:
        """Pass the states from a model file to the first fit's callbacks, matched by class."""
        for callback in callbacks:
            callback.attach(cast("Sequential", self))
        restore_states(callbacks, self.callback_states)
        self.callbacks, self.callback_states = list(callbacks), []

    def _adapt(self, source: Source, ranks: Ranks | None) -> Layer | None:
        """Show arrays to the first layer, if it learns from them; the layer that has learnt."""
        first = None
        if isinstance(source, ArraySource) and not self.layers[0].adapted:
            first = self.layers[0]
        self._check_adapted(but=first)
        if first is None or not isinstance(source, ArraySource):
            return None
        if ranks is not None and ranks.sharded:
            adapt_together(ranks, first, source.x)
        else:
            first.adapt(source.x)
        return first

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
            The figures by name, "loss" with penalties and "accuracy" for example; also "data_loss"
            where there are penalties.
        """
        self._check_compiled()
        self._check_adapted()
        ranks = join(comm, sharded, exact)
        with memory_errors, self.backend.one_thread() if exact else nullcontext():
            with nullcontext() if ranks is None else ranks.together():
                source = make_source(self.program, x, y, sample_weight)
            if ranks is not None:
                check_alike(
                    ranks, "evaluate", self.program, self.layers, self.metrics, {"": source},
                    weights_of(self.program),
                )  # fmt: skip
            return self._figures(source, ranks)
