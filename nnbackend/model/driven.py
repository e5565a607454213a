"""A model whose gradient is driven from outside: forward, back from a gradient of one's own, one
step of the optimizer; and its parameters as one flat vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nnbackend._checks import check_flag, check_number
from nnbackend.backends.conversion import as_device_array
from nnbackend.backends.types import Array
from nnbackend.data.sources import one_batch
from nnbackend.data.validation import as_predictions_input, check_categories, check_finite
from nnbackend.errors import (
    DataError,
    DeviceError,
    DTypeError,
    NonFiniteLossError,
    ShapeError,
    memory_errors,
    raise_as_ours,
)
from nnbackend.executor.base import NO_FORWARD, Data
from nnbackend.layers.base import Layer
from nnbackend.model.busy import one_at_a_time
from nnbackend.model.stack import LayerStack

#: Where the forward passes after the first of a step find their dropout masks.
_PASS = 1 << 32


class DrivenStack(LayerStack):
    """Layers whose passes are called one by one; see ``Sequential``."""

    #: rows of the last forward pass in training mode; 0 if there is none to go back from
    _rows_forward = 0
    #: forward passes since the last update
    _passes = 0
    #: whether the flat gradient is one to make a step from
    _has_gradient = False

    def _lower(self) -> None:
        self._rows_forward, self._passes, self._has_gradient = 0, 0, False
        super()._lower()

    def _check_adapted(self, but: Layer | None = None) -> None:
        """``but`` is about to learn."""
        for layer in self._adapting:
            if layer is not but:
                layer.check_adapted()

    def _batch(self, x: Any, y: Any, sample_weight: Any) -> Data:
        """A batch to be trained on, checked."""
        data = one_batch(self.program, x, y, sample_weight)
        self._check_adapted()
        self.program.check_batch(len(data.x))
        return data

    # -- straight through -----------------------------------------------------------------------

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
            out = self.backend.empty((len(x), self.n_outputs), self.dtype)
            self.executor.predict(x, out)
        return out

    @one_at_a_time
    def gradient(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Loss of one batch with penalties; leaves its gradient in ``layer.weight_grad`` and so
        on, and updates nothing."""
        self._rows_forward = 0
        loss = self.executor.gradient_of(x, y, self.training.step, sample_weight)
        if loss is None:
            with memory_errors:
                self._check_compiled()
                loss = self.executor.gradient(self._batch(x, y, sample_weight), self.step)
        self._has_gradient = True
        if loss != loss:
            check_categories(self.program, x)  # which would be why
        return loss

    # -- there, back, and a step ----------------------------------------------------------------

    @one_at_a_time
    def forward(self, x: Any, training: bool = True) -> Array:
        """Outputs (N, n_outputs) for x (N, n_inputs), as a new array of the backend.

        In training mode dropout drops, batch norms use the batch and move their running statistics,
        and ``backward`` can follow, until when x must not be changed. Otherwise this is
        ``model(x)``.
        """
        if training is not True and not check_flag("training", training):
            return self(x)
        self._rows_forward = 0
        self._check_adapted()
        number = self.training.step + self._passes * _PASS
        watched = self.storage.watched
        before = None if watched is None else watched.copy()
        with memory_errors:
            y = self.executor.forward_of(x, number)
            if y is None:
                y = self._checked_forward(x, number)
        if watched is not None and not np.isfinite(watched).all():
            watched[...] = before
            self._refuse(x)
        self._rows_forward, self._passes = len(y), self._passes + 1
        return y

    def _checked_forward(self, x: Any, number: int) -> Array:
        x = as_predictions_input(self.backend, x, self.n_inputs, self.dtype)
        if not len(x):
            raise DataError("x must have at least one row; received none")
        self.program.check_batch(len(x))
        return self.backend.copy(self.executor.forward(x, number))

    def _refuse(self, x: Any) -> None:
        """Say why norms would have learnt what is no number."""
        x = as_predictions_input(self.backend, x, self.n_inputs, self.dtype)
        check_finite(self.backend, x, self.dtype)
        raise DataError(
            f"x is finite, and what norms learn of it is not: its numbers are too large for "
            f"{self.dtype}. Scale them, or put nn.Standardize first"
        )

    @one_at_a_time
    def backward(
        self, dy: Any, accumulate: bool = False, input_gradient: bool = True
    ) -> Array | None:
        """Go back from the gradient with respect to the outputs of the last ``forward`` in training
        mode.

        Leaves the gradient of sum(dy y) and of the layers' penalties in the flat gradient, which
        ``layer.weight_grad`` and the like are views of.

        Args:
            dy: (N, n_outputs).
            accumulate: add to the gradient that is there, in which the penalties are already.
            input_gradient: return dx (N, n_inputs), the gradient with respect to x; else None.

        Raises:
            DataError: no forward pass goes before; dy is not finite (a GPU does not look).
            ShapeError, DTypeError, DeviceError: dy is of another shape, kind or device.
        """
        if not self._rows_forward:
            raise DataError(NO_FORWARD)
        add, dx = accumulate is not False and check_flag("accumulate", accumulate), None
        if add and not self._has_gradient:
            raise DataError("accumulate=True adds to a gradient, and there is none yet")
        with memory_errors:
            if input_gradient is not False and check_flag("input_gradient", input_gradient):
                dx = self.backend.empty((self._rows_forward, self.n_inputs), self.dtype)
            if add:
                self._accumulate(self._checked_gradient(dy), dx)
            elif not self.executor.backward_of(dy, dx, True):
                self.executor.backward(self._checked_gradient(dy), dx, True)
        self._has_gradient = True
        return dx

    def _accumulate(self, dy: Array, dx: Array | None) -> None:
        gradients = self.storage.gradients[: self.storage.trained]
        before = self.backend.copy(gradients)
        self.executor.backward(dy, dx, False)
        gradients += before

    def _checked_gradient(self, dy: Any) -> Array:
        """dy on the device, of the shape of the last outputs."""
        shape = (self._rows_forward, self.n_outputs)
        kind = self.backend.array_type
        fits = dy.__class__ is kind and dy.dtype is self.dtype and dy.shape == shape
        if not fits or not dy.flags.c_contiguous:
            dy = self._device_array("dy", dy, shape)
        if isinstance(dy, np.ndarray):
            flat = dy.reshape(-1)
            # one pass by the BLAS; a square that overflows asks for a closer look
            with np.errstate(all="ignore"):
                square = flat.dot(flat)
            if not math.isfinite(square) and not np.isfinite(flat).all():
                row, column = (int(i) for i in np.argwhere(~np.isfinite(dy))[0])
                raise DataError(
                    f"dy must be finite; received {dy[row, column]} in row {row}, column {column}"
                )
        return dy

    def _device_array(self, what: str, value: Any, shape: tuple[int, ...]) -> Array:
        array = as_device_array(self.backend, value, self.dtype)
        if tuple(array.shape) != shape:
            raise ShapeError(f"{what} must have shape {shape}; received {tuple(array.shape)}")
        return array

    @one_at_a_time
    def apply_gradients(self) -> None:
        """One step of the optimizer from the flat gradient, clipping included.

        Raises:
            DataError: there is no gradient: ``backward``, ``gradient`` or an assignment to
                ``flat_gradient`` leaves one, which is used up by this, ``train_step`` and ``fit``.
            NonFiniteLossError: the gradient is not finite, or the optimizer's state would not
                be; nothing is updated.
        """
        self._check_compiled()
        if not self._has_gradient:
            raise DataError(
                "there is no gradient to apply: call model.backward(dy) or "
                "model.gradient(x, y), or assign model.flat_gradient, before each step"
            )
        state = self.training
        rate = self.program.rate(state.step)
        with memory_errors:
            if not self.executor.apply(rate, state.step):
                raise NonFiniteLossError(
                    f"the gradient of step {state.step + 1} is NaN or infinite, or so large that "
                    f"its square is; nothing was updated. Try smaller outputs or clip dy",
                    step=state.step + 1,
                )
        state.step += 1
        self._has_gradient, self._rows_forward, self._passes = False, 0, 0

    # -- the parameters as one vector -------------------------------------------------------------

    def get_flat(self, copy: bool = True) -> Array:
        """All parameters in one vector on the backend, in the order of the model file's keys
        within trained weights, other trained parameters, frozen ones.

        Args:
            copy: True gives a copy (n_parameters,), which ``set_flat`` takes. False gives the
                model's own vector, whose elements are the parameters: changing it changes the
                model. There each array begins at a multiple of 64 bytes, so that the vector can be
                longer, by elements that belong to no parameter. It stays linked until the model
                moves to another device or a layer is frozen or thawed.
        """
        if not check_flag("copy", copy):
            return self.storage.parameters
        return self._gathered(self.storage.parameters)

    def set_flat(self, vector: Any) -> None:
        """Set all parameters from what ``get_flat`` gave, or numbers of that shape.

        Raises:
            ShapeError, DTypeError, DeviceError, DataError: another length, kind or device, or
                numbers that are not finite; then nothing changes.
        """
        with self.exclusive():
            self._scatter(self._checked_vector("a flat vector", vector), self.storage.parameters)

    @property
    def flat_gradient(self) -> Array:
        """The gradient of what ``get_flat`` returns, as the last backward pass left it, a copy on
        the backend; 0 for frozen parameters. Assign to it to apply a gradient of your own."""
        self.storage.gradients[self.storage.trained :] = 0  # some layers leave theirs there
        return self._gathered(self.storage.gradients)

    @flat_gradient.setter
    def flat_gradient(self, vector: Any) -> None:
        with self.exclusive():
            self._scatter(self._checked_vector("a gradient", vector), self.storage.gradients)
            self._has_gradient = True

    def _gathered(self, flat: Array) -> Array:
        with self.exclusive():
            out = self.backend.empty((self.n_parameters,), self.dtype)
            start = 0
            for segment in self.storage.segments:
                out[start : start + segment.size] = segment.of(flat).reshape(-1)
                start += segment.size
            return out

    def _scatter(self, vector: Array, flat: Array) -> None:
        start = 0
        for segment in self.storage.segments:
            segment.of(flat)[...] = vector[start : start + segment.size].reshape(segment.shape)
            start += segment.size

    def _checked_vector(self, what: str, vector: Any) -> Array:
        array = self._device_array(what, vector, (self.n_parameters,))
        if not self.backend.all_finite(array):
            raise DataError(f"{what} must be finite; received NaN or infinity")
        return array

    def copy_from(self, other: DrivenStack) -> None:
        """Take over the parameters and running statistics of a model with the same layers.

        Raises:
            ShapeError, DeviceError: it has other layers, or is on another device.
        """
        self._mix(other, 1.0)

    def soft_update(self, other: DrivenStack, tau: float) -> None:
        """w += tau (other's w - w), for all parameters and running statistics, as for the target
        networks of reinforcement learning (Lillicrap et al., 2016).

        Args:
            other: a model with the same layers, on the same device.
            tau: in [0, 1].
        """
        self._mix(other, check_number("tau", tau, 0.0, 1.0))

    def _mix(self, other: DrivenStack, tau: float) -> None:
        if not isinstance(other, DrivenStack):
            raise DTypeError(f"copying takes another model; received {type(other).__name__}")
        ours, theirs = self.storage, other.storage
        if not self.backend.owns(theirs.parameters):
            raise DeviceError(
                f"both models must be on one device; received {other.backend.device} for "
                f"{self.backend.device}"
            )
        if (ours.dtype, ours.key) != (theirs.dtype, theirs.key):
            raise ShapeError(
                f"both models need the same layers and dtype, and the same layers frozen; one has "
                f"{other!r}, the other {self!r}"
            )
        first, second = sorted((self, other), key=id)  # or two that mix wait for each other
        with first.exclusive(), second.exclusive():
            for layer, learnt in zip(self.layers, other.layers, strict=True):
                if learnt.adapts and learnt.adapted and not layer.adapted:
                    for name in learnt.saved_names:
                        layer.assign(name, self.backend.to_numpy(learnt.array(name)))
            for own, given in (
                (ours.parameters, theirs.parameters), (ours.state, theirs.state)
            ):  # fmt: skip
                if tau == 1.0:
                    own[...] = given
                else:
                    own += tau * (given - own)
