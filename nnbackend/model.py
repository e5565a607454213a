"""Sequential: a stack of layers with a loss and an optimizer."""

from __future__ import annotations

import copy
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnbackend._checks import check_dtype, check_number, check_seed, check_size
from nnbackend.activations import (
    ActivationLayer,
    last_activation,
    warn_without_probabilities,
)
from nnbackend.backends import get_backend
from nnbackend.backends.base import Activation, Array, Backend, check_precision
from nnbackend.callbacks import Callback
from nnbackend.errors import DataError, DTypeError, ModelBusyError, NNBackendError, ShapeError
from nnbackend.evaluation import evaluate_source, function_metrics
from nnbackend.executor import Executor
from nnbackend.history import History
from nnbackend.layer import Layer
from nnbackend.layers import Dense, Standardize, check_batch_norm_rows
from nnbackend.losses import (
    BinaryCrossEntropy,
    CategoricalCrossEntropy,
    Loss,
    LossFunction,
    loss_name,
    resolve_loss,
)
from nnbackend.metrics import Metric, MetricFunction, resolve_metric
from nnbackend.optimizers import Optimizer, resolve_optimizer
from nnbackend.program import Program, Segment, Storage, check_widths, native_class, view
from nnbackend.progress import make_progress
from nnbackend.python_executor import PythonExecutor
from nnbackend.sources import (
    ArraySource,
    BatchSource,
    ClassWeight,
    Source,
    as_predictions_input,
    check_finite,
    check_matrix,
    class_factors,
    make_source,
    one_batch,
    release_pages,
)
from nnbackend.summary import summary_text
from nnbackend.training import Trainer, check_metric_names

Arrays = dict[str, np.ndarray[Any, Any]]
RowNumbers = np.ndarray[Any, np.dtype[np.int64]]

BUSY = "this model is being trained by another thread; wait for it, or train a copy.deepcopy(model)"
#: The most rows, and bytes of them, that predict brings to the device at a time.
PREDICT_ROWS, PREDICT_BYTES = 1 << 16, 1 << 26


class Sequential:
    """A stack of layers, each fed with the output of the one before.

    >>> model = Sequential([Dense(2, 8, activation="tanh"), Dense(8, 1)], seed=0)
    >>> model.compile(loss="mean_squared_error", optimizer="adam")

    Args:
        layers: at least one; each belongs to this model from now on.
        seed: of initial weights, shuffling and dropout; None draws one and records it.
        dtype: "float32" or "float64".
        backend: a name such as "cuda:1"; None takes the current backend.
        precision: of products on a GPU. "fp32" multiplies float32 numbers as they are, "tf32"
            rounds them to ten bits of mantissa and "bf16" to seven, which tensor cores multiply
            many times as fast; sums, weights and all else stay float32.

    Attributes:
        layers, backend, dtype, seed, precision: as given.
        loss, optimizer, metrics: as compiled; ``optimizer.lr`` may be changed between steps.
        epoch, step: completed epochs and updates.
        history: the curves of all epochs so far.
        info: notes of one's own that JSON can hold; saved with the model.
        callbacks: of the last ``fit``; their states are saved with the model.
        n_inputs, n_outputs: widths.

    Raises:
        ShapeError: neighbouring layers do not fit.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        seed: int | None = None,
        dtype: str = "float32",
        backend: str | Backend | None = None,
        precision: str = "fp32",
    ) -> None:
        if isinstance(layers, Layer):
            raise DTypeError("layers come in a list: nn.Sequential([nn.Dense(2, 3), ...])")
        self.layers: list[Layer] = list(layers)
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise DTypeError(
                    f"layers must be nn.Layer objects, such as nn.Dense(2, 3); received {layer!r}"
                )
        self.n_inputs = check_widths(self.layers)
        self.dtype = check_dtype(dtype)
        self.precision = self._checked_precision(precision)
        self.backend = get_backend(backend).at_precision(precision)
        seed = check_seed(seed)
        self.seed: int = int(np.random.SeedSequence().entropy) if seed is None else seed  # type: ignore[arg-type]
        init, shuffle, dropout = np.random.SeedSequence(self.seed).spawn(3)
        self.shuffle_generator = np.random.Generator(np.random.PCG64(shuffle))
        self.dropout_key = int(dropout.generate_state(1, np.uint64)[0])
        self.loss: Loss | LossFunction | None = None
        self._optimizer: Optimizer | None = None
        self.metrics: list[Metric | MetricFunction] = []
        self.step = 0
        self.epoch = 0
        self.history = History()
        self.info: dict[str, Any] = {}
        self.callbacks: list[Callback] = []
        self.callback_states: list[dict[str, Any]] = []
        self._busy = threading.Lock()
        rng = np.random.Generator(np.random.PCG64(init))
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise DataError("a layer can stand in a model only once; make two layers")
        for layer in self.layers:
            layer.check_free()
        self._build(self.backend, [layer.initial_values(rng) for layer in self.layers])

    def _checked_precision(self, precision: str) -> str:
        if check_precision(precision) != "fp32" and self.dtype != np.float32:
            raise DTypeError(
                f"precision={precision!r} is for models of dtype float32; received {self.dtype}"
            )
        return precision

    def _build(self, backend: Backend, values: list[Arrays] | None = None) -> None:
        """Lay out the flat vectors on ``backend`` and lower the model; the layers' values are
        kept, or replaced by ``values``. Nothing changes if it fails."""
        if values is None:
            rng = np.random.default_rng(0)  # not used: every layer has its values
            values = [layer.initial_values(rng) for layer in self.layers]
        storage = Storage(self.layers, backend, self.dtype, values)
        self.backend, self.storage = backend, storage
        for layer in self.layers:
            layer.owner = self
        self._standardizers = [k for k in self.layers if isinstance(k, Standardize)]
        self._lower()

    def change_trainable(self, layer: Layer, value: bool) -> None:
        """Freeze or thaw a layer, which decides where its parameters lie in the flat vectors.
        The optimizer's state of other layers is kept."""
        with self._training():
            slots = {} if self._optimizer is None else self.optimizer_state()
            layer._trainable = value
            self._build(self.backend)
            trained = {f"layers.{s.layer}.{s.name}" for s in self._trained_segments()}
            self.set_optimizer_state(
                {k: v for k, v in slots.items() if k.partition(".")[2] in trained}
            )

    def _trained_segments(self) -> list[Segment]:
        return [s for s in self.storage.segments if s.offset < self.storage.trained]

    def _lower(self) -> None:
        self.program = Program(
            self.layers,
            self.n_inputs,
            self.storage,
            self.dropout_key,
            self.loss,
            self._optimizer,
            [metric for metric in self.metrics if isinstance(metric, Metric)],
        )
        self.executor: Executor = make_executor(self.program, self.backend)

    # -- settings -----------------------------------------------------------------------------

    @property
    def n_outputs(self) -> int:
        """Width of the last layer."""
        return self.program.n_outputs

    @property
    def n_parameters(self) -> int:
        """Number of values in all layers, frozen ones included, running statistics not."""
        return sum(layer.n_parameters for layer in self.layers)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer given to ``compile``."""
        self._check_compiled()
        return self._optimizer  # type: ignore[return-value]

    def compile(
        self,
        loss: str | Loss | LossFunction,
        optimizer: str | Optimizer = "adam",
        metrics: Sequence[str | Metric | MetricFunction] | str | Metric | None = (),
    ) -> None:
        """Choose what to minimise and how; starts the optimizer's state anew.

        Args:
            loss: a name of ``nnbackend.losses``, an object such as ``nn.losses.Huber(2.0)``, or
                a function ``(y_true, y_pred) -> (loss, dpred)`` of arrays of the backend.
            optimizer: a name, or an object such as ``nn.Adam(lr=1e-3)``.
            metrics: names of ``nnbackend.metrics``, objects, or functions
                ``(y_true, y_pred) -> number`` of NumPy arrays.

        Raises:
            UnknownNameError: with the choices.
            DataError: a loss from logits after a softmax or sigmoid; a metric that does not
                fit the loss.
        """
        if metrics is None or isinstance(metrics, str | Metric) or callable(metrics):
            metrics = [] if metrics is None else [metrics]
        new_loss = resolve_loss(loss)
        new_metrics = [resolve_metric(metric) for metric in metrics]
        check_metric_names(new_metrics)
        if isinstance(new_loss, Loss) and new_loss.from_logits:
            last_activation(self._last_activation(), new_loss.name, new_loss.link)
        over_probabilities = isinstance(new_loss, CategoricalCrossEntropy | BinaryCrossEntropy)
        if over_probabilities and native_class(self.layers[-1]) is not None:
            warn_without_probabilities(self._last_activation(), loss_name(new_loss))
        new_optimizer = resolve_optimizer(optimizer)
        before = (self.loss, self._optimizer, self.metrics)
        with self._training():
            self.loss, self._optimizer, self.metrics = new_loss, new_optimizer, new_metrics
            try:
                self._lower()
            except Exception:
                self.loss, self._optimizer, self.metrics = before
                raise
            self.step = 0

    def _last_activation(self) -> Activation:
        for layer in reversed(self.layers):
            if isinstance(layer, ActivationLayer) and layer.activation.name == "linear":
                continue
            if isinstance(layer, Dense | ActivationLayer):
                return layer.activation
            if layer.n_inputs is not None:
                break
        return Activation("linear")

    def _check_compiled(self) -> None:
        if self._optimizer is None:
            raise DataError("the model has no loss yet; call model.compile(loss=..., "
                            "optimizer=...) first")  # fmt: skip

    def rates(self, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Learning rates of the next ``count`` steps."""
        if len(self.optimizer.slots) != len(self.program.slots):
            raise DataError(
                "the optimizer's momentum was switched on or off after compile; call "
                "model.compile again, which starts the optimizer's state anew"
            )
        return self.optimizer.rates(self.step, count)

    # -- training -----------------------------------------------------------------------------

    def fit(
        self,
        x: Any,
        y: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: Any = None,
        validation_split: float = 0.0,
        callbacks: Sequence[Callback] | Callback | None = (),
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: ClassWeight | None = None,
        verbose: int = 1,
    ) -> History:
        """Train for ``epochs`` more epochs.

        Args:
            x: (N, n_inputs) array; a ``np.memmap`` is read batch by batch. Or an iterable of
                ``(x, y)`` or ``(x, y, weight)`` batches, or a function that returns one.
            y: (N,) class labels, (N, n_outputs) targets, or (N,) for one output.
            batch_size: rows of a step; the last batch of an epoch may be smaller.
            validation_data: ``(x, y)`` or ``(x, y, weight)`` arrays, or an iterable of batches.
            validation_split: share of rows, drawn at random by the seed, kept for validation.
            callbacks: see ``nnbackend.callbacks``.
            shuffle: a new order of the rows in every epoch.
            sample_weight: (N,) weight of each row.
            class_weight: dict of class: weight, or "balanced".
            verbose: 0 nothing, 1 a progress bar (plain lines without a terminal), 2 lines.

        Returns:
            The curves of these epochs. Ctrl-C returns what there is, ``stopped="interrupted"``.

        Raises:
            ShapeError, DataError, DTypeError: bad input, found before the model is touched.
            NonFiniteLossError: the loss became NaN or infinite; the weights are those of the
                last good epoch's end.
            ModelBusyError: another thread trains this model.
        """
        self._check_compiled()
        epochs, batch_size = check_size("epochs", epochs), check_size("batch_size", batch_size)
        split = check_number("validation_split", validation_split, 0.0, 1.0, high_open=True)
        if split and validation_data is not None:
            raise DataError("pass validation_data or validation_split, not both")
        if callbacks is None or isinstance(callbacks, Callback):
            callbacks = [] if callbacks is None else [callbacks]
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise DTypeError(
                    f"callbacks must be nn.Callback objects, such as nn.EarlyStopping(); "
                    f"received {type(callback).__name__}"
                )
        with self._training():
            source = make_source(self, x, y, sample_weight, class_weight)
            functions = [m for m in self.metrics if not isinstance(m, Metric)]
            validation: Source | None = None
            if validation_data is not None:
                validation = self._validation_source(validation_data)
            if isinstance(source, ArraySource):
                if split:
                    source, validation = source.split(*self.split_rows(source.n_rows, split))
                if class_weight is not None:
                    # for training alone: validation figures are those of evaluate
                    source.multiply_weights(class_factors(self, class_weight, source.target))
                self.check_batch(min(source.n_rows, batch_size))
                self.check_batch(source.n_rows % batch_size or batch_size)
                self._adapt(source)
            elif split:
                raise DataError(
                    "validation_split goes with arrays; for an iterable pass validation_data"
                )
            else:
                source.check_passes(2 * epochs if functions else epochs)
                self._check_adapted()
            if isinstance(validation, BatchSource):
                validation.check_passes(epochs)
            history = History()
            self._begin_callbacks(callbacks)
            validating, training_source = validation, source
            trainer = Trainer(
                self,
                source,
                epochs=self.epoch + epochs,
                batch_size=batch_size,
                shuffle=shuffle,
                callbacks=callbacks,
                validate=(
                    None if validating is None else lambda: evaluate_source(self, validating)
                ),
                python_metrics=(
                    (lambda: function_metrics(self, training_source)) if functions else None
                ),
                progress=make_progress(verbose, self.epoch, self.epoch + epochs, source.n_rows),
                history=history,
            )
            return trainer.run()

    def train_step(self, x: Any, y: Any, sample_weight: Any = None) -> Array:
        """One update on one batch, for a loop of one's own.

        Args:
            x, y, sample_weight: as in ``fit``, any number of rows.

        Returns:
            The loss with penalties before the update, a 0-d float64 array of the backend.
        """
        if not self._busy.acquire(False):
            raise ModelBusyError(BUSY)
        try:
            loss = self.executor.step(x, y, self.step) if sample_weight is None else None
            if loss is None:
                loss = self._checked_step(x, y, sample_weight)
            self.step += 1
        finally:
            self._busy.release()
        return loss

    def _checked_step(self, x: Any, y: Any, sample_weight: Any) -> Array:
        self._check_compiled()
        data = one_batch(self, x, y, sample_weight)
        self._check_adapted()
        self.check_batch(len(data.x))
        return self.executor.train_on(data, float(self.rates(1)[0]), self.step)

    def gradient(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Loss with penalties of one batch, its gradient left in ``layer.weight_grad`` and so
        on; nothing is updated."""
        self._check_compiled()
        with self._training():
            data = one_batch(self, x, y, sample_weight)
            self._check_adapted()
            self.check_batch(len(data.x))
            return self.executor.gradient(data, self.step)

    @contextmanager
    def _training(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise ModelBusyError(BUSY)
        try:
            yield
        finally:
            self._busy.release()

    def _begin_callbacks(self, callbacks: Sequence[Callback]) -> None:
        """Give the states that a file held to the first fit's callbacks, matched by class."""
        states, self.callback_states = self.callback_states, []
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            name = type(callback).__name__
            state = next((s for s in states if s["type"] == name), None)
            if state is not None:
                states.remove(state)
                callback.set_state({k: v for k, v in state.items() if k != "type"})

    def _validation_source(self, data: Any) -> Source:
        arrays = isinstance(data, tuple) or (
            isinstance(data, list) and data and not isinstance(data[0], tuple | list)
        )
        try:
            if arrays and len(data) in (2, 3):
                return make_source(self, *data)
            return make_source(self, data, None)
        except NNBackendError as error:
            raise type(error)(f"validation_data: {error}") from error

    def split_rows(self, n_rows: int, share: float) -> tuple[RowNumbers, RowNumbers]:
        """Numbers of the rows for training and for validation that ``validation_split=share``
        chooses; they depend on the model's seed and the number of rows only."""
        held_out = round(n_rows * share)
        if held_out == 0 or held_out == n_rows:
            raise DataError(
                f"validation_split={share:g} of {n_rows} rows leaves no rows on one side"
            )
        seed = np.random.SeedSequence(self.seed, spawn_key=(3,))
        order = np.random.Generator(np.random.PCG64(seed)).permutation(n_rows)
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    def _adapt(self, source: ArraySource) -> None:
        first = self.layers[0]
        if isinstance(first, Standardize) and not first.adapted:
            first.adapt(source.x)
        self._check_adapted()

    def _check_adapted(self) -> None:
        for layer in self._standardizers:
            layer.check_adapted()

    def check_batch(self, rows: int) -> None:
        """Refuse a training batch that is too small for the model's layers."""
        if self.program.couples_rows:
            check_batch_norm_rows(rows)

    # -- inference ----------------------------------------------------------------------------

    def __call__(self, x: Any) -> Array:
        """Outputs (N, n_outputs) for x (N, n_inputs), as an array of the backend: the way of
        least overhead. Values are not checked."""
        for layer in self._standardizers:
            layer.check_adapted()
        quick = self.executor.call(x)
        if quick is not None:
            return quick
        x = as_predictions_input(self.backend, x, self.n_inputs, self.dtype)
        out = self.backend.zeros((len(x), self.n_outputs), self.dtype)
        self.executor.predict(x, out)
        return out

    def predict(self, x: Any) -> np.ndarray[Any, Any]:
        """Raw outputs (N, n_outputs) as a NumPy array. Thread-safe.

        Raises:
            ShapeError, DTypeError: wrong rank, width or type.
            DataError: x holds NaN or infinity that reached the outputs.
        """
        x = check_matrix(self.backend, x, self.n_inputs)
        out = np.empty((len(x), self.n_outputs), self.dtype)
        row_bytes = self.n_inputs * self.dtype.itemsize
        some = max(1, min(PREDICT_ROWS, PREDICT_BYTES // row_bytes))
        for start in range(0, len(x), some):
            part = slice(start, start + some)
            out[part] = self.backend.to_numpy(self(x[part]))
            release_pages(x)
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(out.sum())
        if suspicious:
            check_finite(self.backend, x, self.dtype)
        return out

    def predict_proba(self, x: Any) -> np.ndarray[Any, Any]:
        """Probabilities (N, n_outputs): the loss's link (softmax, sigmoid) applied to
        ``predict``, or the outputs themselves where the loss is one over probabilities."""
        self._check_compiled()
        if not isinstance(self.loss, Loss) or not self.loss.probabilities:
            raise DataError(
                f"predict_proba needs a loss over classes, such as softmax_cross_entropy; this "
                f"model was compiled with {loss_name(self.loss)}"
            )
        out = self.predict(x)
        if self.loss.link is None:
            return out
        get_backend("numpy").activation_forward(Activation(self.loss.link), out, out)
        return out

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
    ) -> dict[str, float]:
        """Loss and metrics in inference mode.

        Args:
            x, y, sample_weight: arrays, or an iterable of batches, as in ``fit``.

        Returns:
            {"loss": with penalties, "accuracy": ...}; also "data_loss" where there are penalties.
        """
        self._check_compiled()
        self._check_adapted()
        return evaluate_source(self, make_source(self, x, y, sample_weight))

    # -- moving, copying, saving ----------------------------------------------------------------

    def to(self, backend: str | Backend, precision: str | None = None) -> Sequential:
        """Move the model, optimizer state included, and return it. Earlier views of parameters
        stay readable but are no longer linked. The precision stays as it is if none is given."""
        wanted = self.precision if precision is None else self._checked_precision(precision)
        target = get_backend(backend).at_precision(wanted)
        self.precision = wanted
        if target is self.backend:
            return self
        with self._training():
            slots = {} if self._optimizer is None else self.optimizer_state()
            self._build(target)
            self.set_optimizer_state(slots)
        return self

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and running statistics by key, ``layers.{i}.{name}``."""
        return {
            f"layers.{number}.{name}": self.backend.to_numpy(layer.array(name)).copy()
            for number, layer in enumerate(self.layers)
            for name in layer.saved_names
        }

    def set_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put back what ``arrays`` gave, in place."""
        for key, value in arrays.items():
            _, number, name = key.split(".")
            self.layers[int(number)].assign(name, value)

    def optimizer_state(self) -> dict[str, np.ndarray[Any, Any]]:
        """The optimizer's arrays by key, ``{slot}.layers.{i}.{name}``, as NumPy copies."""
        state = {}
        for name, slot in zip(self.optimizer.slots, self.program.slots, strict=True):
            for segment in self._trained_segments():
                key = f"{name}.layers.{segment.layer}.{segment.name}"
                state[key] = self.backend.to_numpy(view(slot, segment)).copy()
        return state

    def set_optimizer_state(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put back what ``optimizer_state`` gave; keys that are missing stay as they are.

        Raises:
            DataError, ShapeError: an unknown key, another shape, values that are not finite;
                nothing is changed then.
        """
        views = {
            f"{name}.layers.{segment.layer}.{segment.name}": view(slot, segment)
            for name, slot in zip(self._slot_names(), self.program.slots, strict=True)
            for segment in self._trained_segments()
        }
        for key, value in state.items():
            if key not in views:
                raise DataError(f"the optimizer has no state {key}; it has {', '.join(views)}")
            if np.shape(value) != views[key].shape:
                raise ShapeError(
                    f"optimizer state {key} has shape {views[key].shape}; received "
                    f"{np.shape(value)}"
                )
            if not np.isfinite(value).all():
                raise DataError(f"optimizer state {key} must be finite")
        for key, value in state.items():
            views[key][...] = self.backend.asarray(value, self.dtype)

    def _slot_names(self) -> tuple[str, ...]:
        return () if self._optimizer is None else self._optimizer.slots

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its optimizer's state, seeds and history to a safetensors file.

        The file appears whole or not at all; ``nn.load(path)`` reads it.
        """
        from nnbackend.serialization import save_model

        save_model(self, path)

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Read parameters and layer state, in place, from a file that ``save`` wrote.

        Raises:
            CheckpointError: the file cannot be read, or is of another architecture.
        """
        from nnbackend.serialization import load_weights

        load_weights(self, path)

    def __getstate__(self) -> dict[str, Any]:
        left_out = (
            "_busy",
            "_standardizers",
            "storage",
            "program",
            "executor",
            "backend",
            "callbacks",
        )
        state = {k: v for k, v in self.__dict__.items() if k not in left_out}
        state["backend_name"] = self.backend.device
        state["slots"] = self.optimizer_state() if self._optimizer is not None else {}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        slots, backend = state.pop("slots"), state.pop("backend_name")
        self.__dict__.update(state)
        self._busy = threading.Lock()
        self.callbacks = []
        self._build(get_backend(backend))
        self.set_optimizer_state(slots)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sequential:
        state = copy.deepcopy(self.__getstate__(), memo)
        state["backend_name"] = self.backend  # an object that need not be registered
        other = object.__new__(type(self))
        other.__setstate__(state)
        return other

    # -- for people -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Sequential([{', '.join(map(repr, self.layers))}])"

    def summary(self, print_fn: Callable[[str], object] | None = None) -> None:
        """Print a table of the layers and what the model runs on.

        Args:
            print_fn: called with the text instead of printing it.
        """
        text = summary_text(self)
        if print_fn is None:
            sys.stdout.write(text + "\n")
        else:
            print_fn(text)


def make_executor(program: Program, backend: Backend) -> Executor:
    """The backend's executor, or Python's where a part of the model is written in Python."""
    if not program.python_parts:
        return backend.make_executor(program)
    if type(backend).make_executor is not Backend.make_executor:
        names = tuple(program.python_parts)
        if names not in _announced:
            _announced.add(names)
            warnings.warn(
                f"{', '.join(names)} is written in Python, so this model runs layer by layer "
                f"instead of in the compiled executor of the backend {backend.name}",
                stacklevel=4,
            )
    return PythonExecutor(program, backend)


_announced: set[tuple[str, ...]] = set()
