"""A stack of layers on a backend: its arrays, and where they are."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self, TypeVar

import numpy as np

from nnbackend._checks import check_dtype, check_list, check_mapping, check_name, check_seed
from nnbackend._names import AnswersModelNames
from nnbackend._output import warn
from nnbackend._settings import Fixed, FixedList, fix
from nnbackend._types import HostArrays
from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import DType, check_precision
from nnbackend.errors import (
    DataError,
    DeviceError,
    DTypeError,
    NotCompiledError,
    memory_errors,
    shown,
)
from nnbackend.executor.base import Executor
from nnbackend.executor.choice import make_executor
from nnbackend.layers.base import Layer
from nnbackend.losses import Loss, LossFunction
from nnbackend.metrics import AnyMetric, Metric
from nnbackend.model.busy import held, new_lock
from nnbackend.optimizers import Optimizer
from nnbackend.program.lowering import check_widths, lay_out, lower, take_numbers
from nnbackend.program.table import NO_LOSS
from nnbackend.training.callback import Callback
from nnbackend.training.history import History
from nnbackend.training.orders import Orders
from nnbackend.training.state import TrainingState

#: How what was compiled is changed, and what a model is made of.
BY_COMPILE = "call model.compile(loss, optimizer, metrics)"
NEW_MODEL = "make a new model of the layers that you want, nn.Sequential([...])"
T = TypeVar("T")


class FixedInModel(Fixed[T]):
    """What a model is made of, or was told by its methods."""

    made = "executor"


class Layers(FixedList[Layer]):
    """A model's layers."""

    remedy = NEW_MODEL


class Metrics(FixedList[AnyMetric]):
    """A model's metrics."""

    remedy = BY_COMPILE


class LayerStack(AnswersModelNames):
    """Layers whose arrays lie in flat vectors on a backend, with what was compiled for them.

    Arguments and attributes: see ``Sequential``, which trains and predicts.
    """

    layers = FixedInModel[list[Layer]](NEW_MODEL)
    loss = FixedInModel[Loss | LossFunction | None](BY_COMPILE)
    metrics = FixedInModel[list[AnyMetric]](BY_COMPILE)
    penalties_per_row = FixedInModel[bool](BY_COMPILE)
    backend = FixedInModel[Backend]("move the model with model.to(backend)")
    precision = FixedInModel[str]("call model.to(backend, precision=...)")
    dtype = FixedInModel[DType]("make a new model with nn.Sequential(layers, dtype=...)")
    seed = FixedInModel[int]("make a new model with nn.Sequential(layers, seed=...)")
    training = FixedInModel[TrainingState](
        "nothing has to be switched: fit and train_step train, predict does not"
    )

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
        fix(self, layers=Layers(check_list("layers", "[nn.Dense(2, 3)]", layers)))
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise DTypeError(
                    f"layers must be nn.Layer objects, such as nn.Dense(2, 3); received "
                    f"{shown(layer)}"
                )
        self.n_inputs = check_widths(self.layers)
        fix(self, dtype=check_dtype(dtype))
        fix(self, precision=self._checked_precision(precision))
        fix(self, backend=get_backend(backend).at_precision(precision))
        seed = check_seed(seed)
        fix(self, seed=np.random.SeedSequence().entropy if seed is None else seed)
        init, shuffle, dropout = np.random.SeedSequence(self.seed).spawn(3)
        #: how far training has come, which a trainer at work moves on
        self.training = TrainingState(Orders.seeded(shuffle))
        self.dropout_key = int(dropout.generate_state(1, np.uint64)[0])
        fix(self, loss=None, metrics=Metrics(), penalties_per_row=False)
        self._optimizer: Optimizer | None = None
        #: optimizer state of frozen layers
        self.resting: HostArrays = {}
        self.info: dict[str, Any] = {}
        self.callbacks: list[Callback] = []
        self.callback_states: list[dict[str, Any]] = []
        self._free()
        rng = np.random.Generator(np.random.PCG64(init))
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise DataError("a model can hold a layer only once; make two layers")
        for layer in self.layers:
            layer.check_free(self.layers)
        with memory_errors, self._unchanged_on_error():
            self._build(self.backend, [layer.initial_values(rng) for layer in self.layers])

    # -- what it is -----------------------------------------------------------------------------

    @property
    def n_outputs(self) -> int:
        """Width of the last layer."""
        return self.program.n_outputs

    @property
    def n_parameters(self) -> int:
        """Number of values in all layers, including frozen ones but not running statistics."""
        return sum(layer.n_parameters for layer in self.layers)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer given to ``compile``."""
        self._check_compiled()
        return self._optimizer  # type: ignore[return-value]

    @optimizer.setter
    def optimizer(self, value: object) -> None:
        raise AttributeError(f"Sequential.optimizer cannot be assigned: {BY_COMPILE}")

    @property
    def step(self) -> int:
        """Completed updates."""
        return self.training.step

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.training.epoch

    @property
    def history(self) -> History:
        """The curves of all epochs so far."""
        return self.training.history

    @property
    def is_compiled(self) -> bool:
        """Whether ``compile`` has given it a loss, or an optimizer."""
        return self._optimizer is not None

    def _check_compiled(self) -> None:
        if self._optimizer is None:
            raise NotCompiledError(NO_LOSS)

    def _free(self) -> None:
        """Nobody works on this model: see nnbackend.model.busy."""
        self._busy = new_lock()
        self._gate = new_lock()
        self._fits = False
        self._trained_by: int | None = None

    @contextmanager
    def _training(self, fits: bool = False, reads: bool = False) -> Iterator[None]:
        with held(self, reads):
            self._trained_by, self._fits = threading.get_ident(), fits
            try:
                with memory_errors:
                    yield
            finally:
                self._trained_by, self._fits = None, False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Inside, nobody trains: for what reads or writes arrays that belong together. A callback
        may do that, too. It waits for others who do, and for single steps.

        Raises:
            ModelBusyError: this model is in another thread's ``fit``.
        """
        if self._trained_by == threading.get_ident():
            yield
        else:
            with self._training(reads=True):
                yield

    # -- where it is ----------------------------------------------------------------------------

    def _checked_precision(self, precision: str) -> str:
        if check_precision(precision) != "fp32" and self.dtype != np.float32:
            raise DTypeError(
                f"precision={precision!r} is for models of dtype float32; received {self.dtype}"
            )
        return precision

    def keep_precision(self, precision: str) -> None:
        """Go on with the precision that the model was saved with."""
        wanted = self._checked_precision(precision)
        with self._unchanged_on_error():
            fix(self, precision=wanted)
            backend = self._at_precision(self.backend)
            if backend is not self.backend:
                self._build(backend)

    def _at_precision(self, backend: Backend) -> Backend:
        """``backend`` at the model's precision; in full precision, said so, where it has no other.
        The model keeps its precision for backends that have it."""
        try:
            return backend.at_precision(self.precision)
        except DeviceError:
            warn(
                f"this model multiplies matrices in {self.precision} where it can; "
                f"{backend.device} has full precision only, which it uses",
            )
            return backend

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """What is laid out and lowered inside is taken back if that fails: arrays are made anew
        then, never overwritten."""
        holders = [self, *self.layers]
        before = [dict(vars(holder)) for holder in holders]
        try:
            yield
        except BaseException:
            for holder, attributes in zip(holders, before, strict=True):
                own = vars(holder)
                own.update(attributes)
                for name in own.keys() - attributes.keys():
                    del own[name]
            raise

    def _build(self, backend: Backend, values: list[HostArrays] | None = None) -> None:
        """Lay out the flat vectors on ``backend`` and lower the model; the layers' values are
        kept, or replaced by ``values``."""
        if values is None:
            rng = np.random.default_rng(0)  # not used: every layer has its values
            values = [layer.initial_values(rng) for layer in self.layers]
        self.storage = lay_out(self.layers, backend, self.dtype, values)
        fix(self, backend=backend)
        for layer in self.layers:
            layer.owner = self
        self._adapting = [layer for layer in self.layers if layer.adapts]
        self._lower()

    def _lower(self) -> None:
        self.program = lower(
            self.layers,
            self.n_inputs,
            self.storage,
            self.dropout_key,
            self.loss,
            self._optimizer,
            [metric for metric in self.metrics if isinstance(metric, Metric)],
            self.penalties_per_row,
        )
        self.executor: Executor = make_executor(self.program, self.backend)

    def change_trainable(self, layer: Layer, value: bool) -> None:
        """Freeze or unfreeze a layer, which decides where its parameters lie in the flat vectors.
        The optimizer's state of a frozen layer waits until it is trained again."""
        with self._training(), self._unchanged_on_error():
            slots = {} if self._optimizer is None else self.resting | self.optimizer_state()
            layer._trainable = value
            self._build(self.backend)
            kept = self.program.slot_views().keys() & slots.keys()
            self.resting = {key: slots[key] for key in slots.keys() - kept}
            self.set_optimizer_state({key: slots[key] for key in kept})

    def change_number(self, layer: Layer, name: str, value: float) -> None:
        """Change a number of a layer's formula, such as a dropout's rate, from the next step on.

        Raises:
            ModelBusyError: another thread trains this model.
        """
        # the thread that works on the model may do that, in a callback or a layer of its own
        with nullcontext() if self._busy._is_owned() else held(self, reads=True):
            vars(layer)[name] = value
            take_numbers(self.program, self.layers)
            if layer.declaration is not None:
                self.executor.numbers_changed()

    def to(self, backend: str | Backend, precision: str | None = None) -> Self:
        """Move the model, including optimizer state, and return it. Earlier views of parameters
        stay readable but are no longer linked. The precision stays as it is if none is given."""
        wanted = self.precision if precision is None else self._checked_precision(precision)
        target = get_backend(backend).at_precision(wanted)
        if target is self.backend:
            fix(self, precision=wanted)
            return self
        with self._training(), self._unchanged_on_error():
            fix(self, precision=wanted)
            slots = {} if self._optimizer is None else self.optimizer_state()
            self._build(target)
            self.set_optimizer_state(slots)
        return self

    # -- its arrays -----------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and running statistics by key, ``layers.{i}.{name}``."""
        with self.exclusive():
            return {
                f"layers.{number}.{name}": self.backend.to_numpy(layer.array(name)).copy()
                for number, layer in enumerate(self.layers)
                for name in layer.saved_names
            }

    def set_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Restore what ``arrays`` returned, in place; missing keys stay as they are.

        Raises:
            DataError, DTypeError, ShapeError: an unknown key, another shape, values that are not
                finite numbers; then nothing changes.
        """
        known = {
            f"layers.{number}.{name}": (layer, name)
            for number, layer in enumerate(self.layers)
            for name in layer.saved_names
        }
        given = check_mapping("arrays", arrays)
        checked = {}
        for key, value in given.items():
            layer, name = known[check_name("a key of arrays", key, known)]
            checked[layer, name] = layer.checked(name, value)
        with self.exclusive():
            for (layer, name), values in checked.items():
                layer.assign(name, values)

    def optimizer_state(self) -> dict[str, np.ndarray[Any, Any]]:
        """The optimizer's arrays by key, ``{slot}.layers.{i}.{name}``, as NumPy copies."""
        self._check_compiled()
        to_numpy = self.backend.to_numpy
        with self.exclusive():
            return {key: to_numpy(view).copy() for key, view in self.program.slot_views().items()}

    def set_optimizer_state(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Restore what ``optimizer_state`` returned; missing keys stay as they are.

        Raises:
            DataError, ShapeError: an unknown key, another shape, values that are not finite;
                then nothing changes.
        """
        with self.exclusive():
            self.program.set_slots(state)

    # -- copies ---------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        left_out = (
            "_busy", "_gate", "_fits", "_trained_by", "_adapting", "storage", "program",
            "executor", "backend", "callbacks",
        )  # fmt: skip
        with self.exclusive():
            state = {k: v for k, v in self.__dict__.items() if k not in left_out}
            state["backend_name"] = self.backend.device
            state["slots"] = self.optimizer_state() if self._optimizer is not None else {}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        slots, backend = state.pop("slots"), state.pop("backend_name")
        self.__dict__.update(state)
        self._free()
        self.callbacks = []
        self._build(self._at_precision(get_backend(backend)))
        self.set_optimizer_state(slots)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a layer belongs to one model only

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        with self.exclusive():
            state = copy.deepcopy(self.__getstate__(), memo)
        state["backend_name"] = self.backend  # an object that need not be registered
        other = object.__new__(type(self))
        other.__setstate__(state)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{', '.join(map(repr, self.layers))}])"
