"""The base of all layers, and how their parameters are held.

A layer used by itself owns its arrays and draws them at first use. Inside a model its
parameters are views of the model's flat vectors; ``layer.weight`` is the current view.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar
from weakref import ReferenceType, ref

import numpy as np

from nnbackend._checks import check_dtype, check_flag, check_seed, check_size, check_values
from nnbackend._names import (
    LAYER_ATTRIBUTES,
    AnswersNames,
    as_made,
    check_signature,
    missing_attribute,
)
from nnbackend._settings import fix
from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.backends.conversion import as_device_array
from nnbackend.backends.types import Array, DType
from nnbackend.errors import DataError, DTypeError, ShapeError
from nnbackend.initializers import InitializerLike, draw
from nnbackend.layers.parameters import ParameterKind, ParameterSpec, check_no_inner_layer


class Layer(AnswersNames, ABC):
    """A differentiable step: ``y = layer.forward(x)``, ``dx = layer.backward(dy)``.

    ``layer(x)`` is ``layer.forward(x)``.

    A custom layer subclasses this, declares what it learns and defines both methods:

        class Scale(nn.Layer):
            factor = nn.Parameter()

            def __init__(self, width):
                super().__init__(width, width)
                self.add_parameter("factor", (width,), "ones")

            def forward(self, x, training=False):
                self.x = x
                return x * self.factor

            def backward(self, dy):
                self.factor_grad = (dy * self.x).sum(axis=0)
                return dy * self.factor

    Args:
        n_inputs, n_outputs: widths; None for a layer that takes and keeps any width.
        trainable: False keeps the parameters as they are during training.
        seed: for the initial weights, instead of the model's seed.
        dtype: "float32" or "float64", for use outside a model.
    """

    n_inputs: int | None
    n_outputs: int | None
    #: attributes that copies and pickles leave behind: caches of a forward pass
    transient: ClassVar[tuple[str, ...]] = ()
    #: whether the layer learns from data once, by ``adapt(x)``, before it can be used
    adapts: ClassVar[bool] = False
    adapted = True
    #: whether a row's outputs in training depend on the other rows of the batch, of which there
    #: must be at least two
    couples_rows: ClassVar[bool] = False

    def __init__(
        self,
        n_inputs: int | None = None,
        n_outputs: int | None = None,
        *,
        trainable: bool = True,
        seed: int | None = None,
        dtype: str = "float32",
    ) -> None:
        name = type(self).__name__
        fix(
            self,
            n_inputs=None if n_inputs is None else check_size(f"{name}.n_inputs", n_inputs),
            n_outputs=None if n_outputs is None else check_size(f"{name}.n_outputs", n_outputs),
        )
        if (n_inputs is None) != (n_outputs is None):
            raise ShapeError(
                f"{name} needs n_inputs and n_outputs, or neither to keep any width; received "
                f"n_inputs={n_inputs}, n_outputs={n_outputs}"
            )
        self._trainable = check_flag(f"{name}.trainable", trainable)
        self.seed = check_seed(seed)
        self.dtype: DType = check_dtype(dtype)
        self.specs: dict[str, ParameterSpec] = {}
        self._arrays: dict[str, Array] = {}
        self._gradients: dict[str, Array] = {}
        self._backend: Backend | None = None
        self._owner: ReferenceType[Any] | None = None

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        check_signature(cls, "forward", "x", training="False")
        check_signature(cls, "backward", "dy")

    @property
    def owner(self) -> Any:
        """The model that the layer is part of, as long as somebody uses that: its memory is then
        given back at once, and its layers are free."""
        return None if self._owner is None else self._owner()

    @owner.setter
    def owner(self, model: Any) -> None:
        self._owner = None if model is None else ref(model)

    # -- what a subclass writes -----------------------------------------------------------

    @abstractmethod
    def forward(self, x: Any, training: bool = False) -> Array:
        """y of shape (batch, n_outputs) for x of shape (batch, n_inputs).

        Keeps what ``backward`` needs; x and y must not be changed before it is called.
        """

    @abstractmethod
    def backward(self, dy: Any) -> Array:
        """dx of shape (batch, n_inputs) for the last forward; overwrites the gradients."""

    def __call__(self, x: Any, training: bool = False) -> Array:
        """``forward(x, training)``."""
        return self.forward(x, training)

    def __getattr__(self, name: str) -> Any:
        if "specs" not in vars(self):
            raise AttributeError(
                f"{type(self).__name__}.__init__ must first call super().__init__(n_inputs, "
                f"n_outputs): {name} is missing", name=name, obj=self,
            )  # fmt: skip
        raise missing_attribute(self, name, LAYER_ATTRIBUTES)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for a model file; values that JSON can hold."""
        raise DTypeError(
            f"{type(self).__name__} cannot be saved: give it a method config() that returns the "
            f"constructor's arguments as a dict"
        )

    @property
    def declaration(self) -> Any:
        """The layer, a NativeLayer, as a row of a program, if the row describes it fully; None if a
        custom class writes ``forward`` or ``backward`` in Python."""
        return None

    @property
    def penalties(self) -> Mapping[str, tuple[float, float]]:
        """Rates (l1, l2) of the terms l1 sum|w| + l2 sum w^2 of the loss, by parameter."""
        return {}

    def adapt(self, x: Any) -> None:
        """Learn from data (N, n_inputs), if ``adapts`` is set; ``adapted`` is true afterwards."""
        raise DTypeError(f"{type(self).__name__} has nothing to learn from data by itself")

    def forget(self) -> None:
        """Undo ``adapt``."""
        return

    def check_adapted(self) -> None:
        """Raise an error if ``adapts`` is set and ``adapt`` has not been called yet."""
        return

    def add_parameter(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: InitializerLike,
        kind: ParameterKind = "weight",
    ) -> None:
        """Declare an array of this layer; see ``ParameterKind`` for ``kind``."""
        self.specs[name] = ParameterSpec(shape, initializer, kind)

    @property
    def trainable(self) -> bool:
        """Whether the parameters are updated. Changing it inside a model acts at once; earlier
        views of the model's parameters are then no longer linked."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        trainable = check_flag(f"{type(self).__name__}.trainable", value)
        if trainable != self._trainable:
            if self.owner is not None:
                self.owner.change_trainable(self, trainable)
            self._trainable = trainable

    # -- arrays -----------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The backend of this layer; outside a model, the current backend at first use."""
        if self._backend is None:
            self._backend = get_backend()
        return self._backend

    @property
    def parameter_names(self) -> list[str]:
        """Names of the trained arrays, in order of declaration."""
        return [name for name, spec in self.specs.items() if spec.kind != "state"]

    @property
    def state_names(self) -> list[str]:
        """Names of the arrays that are saved but not trained."""
        return [name for name, spec in self.specs.items() if spec.kind == "state"]

    @property
    def saved_names(self) -> list[str]:
        """Names of the arrays that a model file holds."""
        return list(self.specs)

    @property
    def n_parameters(self) -> int:
        """Number of trained values."""
        return sum(math.prod(self.specs[name].shape) for name in self.parameter_names)

    def array(self, name: str) -> Array | None:
        """The array ``name``, drawn now if needed; None if the layer has none."""
        if name not in self.specs:
            return None
        if not self._arrays:
            self._draw_standalone()
        return self._arrays[name]

    def gradient(self, name: str) -> Array | None:
        """The gradient of the array ``name``, as the last backward pass left it."""
        if name not in self.specs or self.specs[name].kind == "state":
            return None
        if not self._arrays:
            self._draw_standalone()
        return self._gradients[name]

    def assign(self, name: str, value: Any) -> None:
        """Copy ``value`` into the array ``name``; (1, N) is accepted for (N,)."""
        current = self.array(name)
        if current is None:
            raise DataError(f"this {type(self).__name__} has no {name}, so it cannot be assigned")
        values = self.checked(name, value)
        with nullcontext() if self.owner is None else self.owner.exclusive():
            current[...] = self.backend.asarray(values, self.dtype)

    def checked(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        """``value`` on the host, if it can be assigned to the array ``name``."""
        value = self.backend.to_numpy(value) if self.backend.owns(value) else value
        what = f"{type(self).__name__}.{name}"
        return check_values(what, value, self.specs[name].shape, self.dtype)

    def initial_values(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Initial values: those already here, else drawn with the layer's own seed or from
        ``rng``. Float64 on the host, for every backend."""
        if self._arrays:
            return {n: self.backend.to_numpy(a).copy() for n, a in self._arrays.items()}
        if self.seed is not None:
            rng = np.random.default_rng(self.seed)
        return {
            name: draw(spec.initializer, f"{type(self).__name__}.{name}", spec.shape, rng)
            for name, spec in self.specs.items()
        }

    def bind(
        self,
        backend: Backend,
        dtype: DType,
        arrays: dict[str, Array],
        gradients: dict[str, Array],
    ) -> None:
        """Use these arrays from now on; earlier views stay readable but are no longer linked."""
        self._backend = backend
        fix(self, dtype=dtype)
        self._arrays, self._gradients = arrays, gradients

    def _draw_standalone(self) -> dict[str, Array]:
        """Draw the arrays of a layer that is used by itself."""
        backend = self.backend
        backend.check_dtype(self.dtype)
        values = self.initial_values(np.random.default_rng(self.seed))
        arrays, gradients = {}, {}
        for name, spec in self.specs.items():
            arrays[name] = backend.zeros(spec.shape, self.dtype)
            arrays[name][...] = backend.asarray(values[name], self.dtype)
            if spec.kind != "state":
                gradients[name] = backend.zeros(spec.shape, self.dtype)
        self.bind(backend, self.dtype, arrays, gradients)
        return arrays

    # -- helpers for the built-in layers ------------------------------------------------------

    def _input(self, x: Any) -> Array:
        """``x`` on this layer's backend, as (batch, n_inputs) of its dtype."""
        backend = self._backend
        if (
            backend is not None
            and x.__class__ is backend.array_type
            and x.dtype is self.dtype
            and x.flags.c_contiguous
            and x.ndim == 2
            and x.shape[1] == self.n_inputs
        ):
            return x
        if not self.specs and self.owner is None:
            fix(self, dtype=np.dtype("float64" if _is_float64(self.backend, x) else "float32"))
        x = as_device_array(self.backend, x, self.dtype)
        width = self.n_inputs
        if x.ndim != 2 or x.shape[1] == 0 or (width is not None and x.shape[1] != width):
            raise ShapeError(
                f"{type(self).__name__} takes x of shape (batch, {width or 'width'}); "
                f"received {tuple(x.shape)}"
            )
        return x

    def _unchanged(self, x: Array, rows: int) -> Array:
        """The inputs of the last forward pass, so many rows, which a caller may have given another
        shape."""
        shape = (rows, self.n_inputs)
        if tuple(x.shape) != shape:
            raise ShapeError(
                f"{type(self).__name__}.backward needs the inputs of forward as they were, "
                f"{shape}; they have the shape {tuple(x.shape)} now"
            )
        return x

    def _output_gradient(self, dy: Any, output: Array | None) -> Array:
        """``dy`` on this layer's backend, of the shape of the last ``output``."""
        shape = None if output is None else output.shape
        if shape is None:
            raise DataError(
                f"{type(self).__name__}.backward needs a forward pass before it; "
                f"call forward(x, training=True) first"
            )
        backend = self._backend
        if (
            backend is not None
            and dy.__class__ is backend.array_type
            and dy.shape == shape
            and dy.dtype is self.dtype
            and dy.flags.c_contiguous
        ):
            return dy
        dy = as_device_array(self.backend, dy, self.dtype)
        if dy.shape != shape:
            raise ShapeError(
                f"{type(self).__name__}.backward takes dy of the shape of its output, "
                f"{shape}; received {tuple(dy.shape)}"
            )
        return dy

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_arrays", "_gradients", "_backend", *self.transient}
        state = {k: v for k, v in self.__dict__.items() if k not in left_out}
        state["_owner"] = None
        if self._arrays:
            to_numpy = self.backend.to_numpy
            state["values"] = {name: to_numpy(a).copy() for name, a in self._arrays.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = state.pop("values", None)
        self.__dict__.update(state)
        self._arrays, self._gradients, self._backend = {}, {}, None
        for attribute in self.transient:
            setattr(self, attribute, None)
        for name, value in (values or {}).items():
            self.assign(name, value)

    def __repr__(self) -> str:
        try:
            # initial values are of no meaning once there are others
            settings = {k: v for k, v in self.config().items() if not k.endswith("_init")}
            if settings.get("activation") == "linear":
                del settings["activation"]
            return as_made(self, settings)
        except Exception:  # a layer of somebody's own, in a message about its mistakes
            widths = [str(w) for w in (self.n_inputs, self.n_outputs) if w is not None]
            return f"{type(self).__name__}({', '.join(widths)})"

    def check_free(self, others: Sequence[Layer]) -> None:
        """Refuse a layer that is part of a model: a layer belongs to one model only. It may know of
        ``others``, which will be part of the same model."""
        if self.owner is not None:
            raise DataError(
                f"{self!r} belongs to another model; make a new layer for this one, or "
                f"use copy.deepcopy(layer)"
            )
        check_no_inner_layer(self, others)


def _is_float64(backend: Backend, x: Any) -> bool:
    dtype = backend.dtype_of(x) if backend.owns(x) else getattr(x, "dtype", None)
    return bool(dtype == np.float64) and "float64" in backend.dtypes
