"""The contract: every operation a backend offers, with shapes, dtypes and formulas.

Letters in shapes: B rows of the batch, I inputs, O outputs, N width of a layer that keeps it,
C classes, P parameters. Rules for every method:

- Arrays are C-contiguous and of the model's dtype (float32 or float64) unless stated otherwise.
- The caller owns every array, ``out`` and ``saved`` included: nothing that grows with the batch
  is allocated. Outputs are overwritten, never read; no input is changed, not even ``dy``.
- Input is assumed valid: layers and models have checked it. NaN in, NaN out.
- Operations of layers are in ``layer_contract.py``, the others here.
- ``NumpyBackend`` is the reference; the easiest way to write a new backend is to subclass it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.layer_contract import LayerOperations
from nnbackend.backends.orders import draw_orders
from nnbackend.backends.types import (
    Array,
    Availability,
    DType,
    LossFormula,
    UpdateRule,
    check_full_precision,
    is_on_gpu,
)
from nnbackend.backends.uploads import Uploads
from nnbackend.errors import DeviceError, DTypeError


class Backend(LayerOperations):
    """One implementation of the array operations, on one device."""

    name: ClassVar[str]
    #: the class of its arrays, if operations can take a caller's as they are
    array_type: ClassVar[Any] = None
    #: the class that runs whole programs here, as text, module and class with a colon between
    executor: ClassVar[str] = "nnbackend.executor.python:PythonExecutor"
    #: bytes to which the parts of flat vectors are aligned
    alignment: ClassVar[int] = 64
    #: dtypes that models can have here, the widest last; a device may change it for itself
    dtypes: tuple[str, ...] = ("float32", "float64")

    def __init__(self, index: int | str | None = None) -> None:
        """Open the device of this number, or name; backends with one device accept None only."""
        self.device = self.name if index is None else f"{self.name}:{index}"

    def __repr__(self) -> str:
        return f"<backend {self.device}>"

    # -- arrays ---------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def is_available(cls) -> Availability:
        """Say whether this backend can run here, without side effects."""

    @abstractmethod
    def owns(self, x: object) -> bool:
        """Whether ``x`` is an array on this backend's device."""

    def adopt(self, x: Any) -> Array | None:
        """``x`` as an array on this backend's device, of its own dtype and without a copy; None
        for host data that must be copied or converted; DeviceError for another device."""
        if self.owns(x):
            return x
        if is_on_gpu(x):
            raise DeviceError(
                f"a model on {self.device} takes host arrays; received an array on a GPU. "
                f"Copy it with .get() or move the model with model.to('cuda')"
            )
        return None

    @abstractmethod
    def asarray(self, data: Any, dtype: DType) -> Array:
        """A C-contiguous array of ``dtype`` on the device; no copy if none is needed;
        DeviceError for data on another device."""

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """``x`` as a NumPy array, possibly sharing its memory; waits until ``x`` is ready."""

    def dtype_of(self, x: Array) -> DType:
        """NumPy's dtype of ``x``; DTypeError if it has no counterpart."""
        dtype: DType = x.dtype
        return dtype

    @abstractmethod
    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        """A new array of zeros, its start aligned to 64 bytes."""

    def empty(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """A new array for an operation to fill; of zeros where that costs nothing more."""
        return self.zeros(shape, dtype)

    def copy(self, x: Array) -> Array:
        """A new array with what is in ``x``."""
        new = self.empty(tuple(x.shape), self.dtype_of(x))
        new[...] = x
        return new

    def total(self, x: Array) -> Array:
        """The sum of ``x``, 0-d float64, on the device."""
        return x.sum(dtype=np.float64)

    def check_dtype(self, dtype: DType) -> None:
        """Refuse a dtype that models cannot have on this device."""
        if dtype.name not in self.dtypes:
            raise DTypeError(
                f"{self.device} has no {dtype.name}; give the model dtype={self.dtypes[-1]!r}, or "
                f"choose another backend"
            )

    def spare_bytes(self) -> int | None:
        """Bytes free for data on the device; None if host arrays are used in place."""
        return None

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work started so far has finished."""

    def one_thread(self) -> AbstractContextManager[None]:
        """Inside, its kernels use one thread, if it has threads on which bits may depend."""
        return nullcontext()

    def at_precision(self, precision: str) -> Backend:
        """This backend with products of float32 matrices in another precision of ``PRECISIONS``.

        Raises:
            UnknownNameError: no precision has that name.
            DeviceError: this backend has full precision only."""
        check_full_precision(self.device, precision)
        return self

    def make_uploads(self) -> Uploads | None:
        """A way to copy to the device while it works; None if data is used in place."""
        return None

    def compile_ahead(self, dtypes: tuple[str, ...]) -> None:
        """Compile what is compiled once per machine, for these dtypes; nothing by default."""
        return

    def kept_in(self) -> str:
        """The folder of compiled code; empty if there is nothing to compile."""
        return ""

    @abstractmethod
    def take_rows(self, x: Array, idx: Array, out: Array) -> None:
        """out[i] = x[idx[i]]; x (N, ...) of any dtype, idx (B,) int64 within range."""

    @abstractmethod
    def all_finite(self, x: Array) -> bool:
        """Whether no element of ``x`` is NaN or infinite; waits for it."""

    @abstractmethod
    def random_bits(self, out: Array, seed: int, stream: int, offset: int) -> None:
        """Philox4x32-10 words (Salmon et al., SC11), a pure function of the arguments.

        out[i] is word e % 4 of counter (e // 4, stream), e = offset + i.

        Args:
            out: (n,) uint32.
            seed: the key, 64 bits.
            stream: the counter's upper three words, 96 bits.
            offset: of the first element, a multiple of 4.
        """

    def random_orders(self, out: Array, key: int, block: int) -> None:
        """Rows 0 ... N - 1 in random orders, a pure function of the arguments.

        out[k, j] is the row with the j-th smallest random number, equal ones in the rows' order.
        That of row i is the word i % 4 of block ``block + k ceil(N / 4) + i // 4`` of
        Philox4x64-10 without its lowest bits: those that a row's number takes, and 12 more where
        N <= 2^20. The default draws and sorts on the host.

        Args:
            out: (K, N) int64, K and N >= 1.
            key: 128 bits.
            block: of the first number; its counter is block + 1, as NumPy counts.
        """
        orders = np.empty(out.shape, np.int64)
        draw_orders(orders, key, block)
        out[...] = self.asarray(orders, orders.dtype)

    # -- losses ---------------------------------------------------------------------------

    @abstractmethod
    def loss(
        self,
        formula: LossFormula,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        value: Array,
    ) -> None:
        """value = sum_i w_i l_i / sum_i w_i (0 where all weights are 0), dpred its gradient, where
        a prediction was clipped that of the formula at the clipped value.

        l_i is the mean over the row's outputs, p = pred and t = target, of

        - sigmoid_cross_entropy: max(p, 0) - p t + log(1 + exp(-|p|)), t in [0, 1];
        - binary_cross_entropy: -t log p - (1 - t) log(1 - p), p clipped to [1e-7, 1 - 1e-7];
        - mean_squared_error: e^2, e = p - t;
        - mean_absolute_error: |e|, its derivative 0 at 0;
        - huber: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), delta the parameter;
        - poisson: p - t log p, p the predicted rate, clipped to at least 1e-7.

        The others are not means over outputs:

        - softmax_cross_entropy: -sum_c t_c log softmax(p)_c, by log-sum-exp;
        - categorical_cross_entropy: -sum_c t_c log p_c, p clipped to [1e-7, 1 - 1e-7];
        - sum_squared_error: value = sum_i w_i sum_o e^2, nothing is averaged.

        Args:
            pred: (B, O).   dpred: (B, O), or None if it is not wanted.
            target: (B, O), or (B,) int32 class labels for the losses over classes c.
            weight: (B,) >= 0, or None for ones.
            value: () float64; it stays on the device.
        """

    # -- statistics for metrics: sums over the batch, float64, on the device ------------------

    @abstractmethod
    def count_correct(
        self,
        pred: Array,
        target: Array,
        weight: Array | None,
        threshold: float | None,
        top: int,
        out: Array,
    ) -> None:
        """out () = sum_i w_i [row i is right].

        Without a threshold: the label (or the largest of the row of t) is among the ``top``
        largest of pred, ties going to the lower class. With one: the share of outputs for which
        pred > threshold agrees with t > 0.5.
        """

    @abstractmethod
    def confusion_counts(
        self, pred: Array, target: Array, weight: Array | None, threshold: float | None, out: Array
    ) -> None:
        """out (3, C): weighted counts per class of hits, of predictions, of occurrences.

        The predicted class is the largest of pred; with a threshold each output is a separate
        class, predicted where pred > threshold and present where t > 0.5.
        """

    @abstractmethod
    def regression_sums(self, pred: Array, target: Array, weight: Array | None, out: Array) -> None:
        """out (4, O): sums of w |e|, w e^2, w t, w t^2 per output, e = pred - target."""

    # -- gradients and updates: flat vectors, in place ----------------------------------------

    @abstractmethod
    def penalty(self, param: Array, l1: float, l2: float, grad: Array | None, loss: Array) -> None:
        """loss += l1 sum|w| + l2 sum w^2;  grad += l1 sign(w) + 2 l2 w, sign(0) = 0."""

    @abstractmethod
    def clip_by_global_norm(self, grad: Array, limit: float) -> None:
        """grad *= min(1, limit / |grad|), the Euclidean norm of all of it."""

    @abstractmethod
    def step_scratch_size(self, size: int) -> int:
        """Elements of ``scratch`` that a step over ``size`` parameters needs."""

    @abstractmethod
    def update(
        self,
        rule: UpdateRule,
        param: Array,
        grad: Array,
        slots: Sequence[Array],
        lr: float,
        step: int,
        scratch: Array,
    ) -> None:
        """One step of an optimizer, w = param, g = grad:

        - sgd: w -= lr g;
        - momentum: v = momentum v - lr g;  w += v, or with Nesterov's look-ahead (Sutskever et
          al., 2013) momentum v - lr g;
        - adagrad: c += g^2;  w -= lr g / (sqrt(c) + eps)   (Duchi, Hazan and Singer, 2011);
        - rmsprop: c = rho c + (1 - rho) g^2;  w -= lr g / (sqrt(c) + eps)   (Hinton, 2012);
        - adam (Kingma and Ba, 2015), with a weight decay AdamW (Loshchilov and Hutter, 2019):
          m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  w -= lr weight_decay w;
          w -= lr m / (1 - beta1^t) / (sqrt(v) / root + eps + eps_hat / root),
          t = step + 1, root = sqrt(1 - beta2^t).

        param, grad and each slot of ``rule.slots`` (P,), scratch (step_scratch_size(P),).
        """
