"""The contract: every operation a backend offers, with shapes, dtypes and formulas.

Letters in shapes: B rows of the batch, I inputs, O outputs, N width of a layer that keeps it,
C classes, P parameters. Rules for every method:

- Arrays are C-contiguous and of the model's dtype (float32 or float64) unless stated otherwise.
- The caller owns every array, ``out`` and ``saved`` included: nothing that grows with the batch
  is allocated. Outputs are overwritten, never read; no input is changed, not even ``dy``.
- Input is assumed valid: layers and models have checked it. NaN in, NaN out.
- ``NumpyBackend`` is the reference; the easiest way to write a new backend is to subclass it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.types import (
    Activation,
    Array,
    Availability,
    DenseCalls,
    DType,
    LossFormula,
    UpdateRule,
    check_full_precision,
    is_on_gpu,
)
from nnbackend.backends.uploads import Uploads
from nnbackend.errors import DeviceError


class Backend(ABC):
    """One implementation of the array operations, on one device."""

    name: ClassVar[str]
    #: the class of its arrays, if operations can take a caller's as they are
    array_type: ClassVar[Any] = None
    #: what runs whole programs here, as "module:class"; see nnbackend.executor
    executor: ClassVar[str] = "nnbackend.executor.python:PythonExecutor"
    #: bytes to which the parts of flat vectors are aligned
    alignment: ClassVar[int] = 64
    #: whether the host has nothing to do while the device works
    works_by_itself: ClassVar[bool] = False

    def __init__(self, index: int | None = None) -> None:
        """Open device number ``index``; backends with one device accept None only."""
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

    @abstractmethod
    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        """A new array of zeros, its start aligned to 64 bytes."""

    def empty(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """A new array for an operation to fill; of zeros where that costs nothing more."""
        return self.zeros(shape, dtype)

    def spare_bytes(self) -> int | None:
        """Bytes free for data on the device; None if host arrays are used in place."""
        return None

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work started so far has finished."""

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

    # -- layers ---------------------------------------------------------------------------

    def bind_dense(
        self, w: Array, b: Array | None, act: Activation, dw: Array, db: Array | None
    ) -> DenseCalls | None:
        """Quicker calls of a dense layer that has these arrays, if there are any."""
        return None

    @abstractmethod
    def dense_forward(
        self, x: Array, w: Array, b: Array | None, act: Activation, out: Array, saved: Array | None
    ) -> None:
        """out = act(z), z = x w + b.

        Args:
            x: (B, I).   w: (I, O).   b: (O,) or None.   out: (B, O).
            saved: (B, O), receives z, where ``act.saves`` is "input" and a
                backward pass follows; otherwise None.
        """

    @abstractmethod
    def dense_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        act: Activation,
        saved: Array | None,
        dw: Array | None,
        db: Array | None,
        dx: Array | None,
        scratch: Array,
    ) -> None:
        """dz = dy act'(z);  dw = x^T dz;  db = column sums of dz;  dx = dz w^T.

        Args:
            dy: (B, O).   x: (B, I).   w: (I, O).
            saved: the forward's output or z, as ``act.saves`` says.
            dw, db, dx: (I, O), (O,), (B, I); None if it is not wanted.
            scratch: (B, O), overwritten; may be ``dy`` itself if the caller no longer needs it.
        """

    @abstractmethod
    def activation_forward(self, act: Activation, x: Array, out: Array) -> None:
        """out = act(x), (B, N); ``out`` may be ``x``. Softmax goes along rows."""

    @abstractmethod
    def activation_backward(self, act: Activation, dy: Array, saved: Array, out: Array) -> None:
        """out = dy act'(z), (B, N); ``out`` may be ``dy``, ``saved`` as for the dense layer."""

    @abstractmethod
    def batch_norm_forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        momentum: float,
        eps: float,
        out: Array,
        saved: Array,
    ) -> None:
        """Normalise each column by the batch's own statistics (Ioffe and Szegedy, 2015).

        out = gamma (x - mean) / sqrt(var + eps) + beta, var the biased variance.
        running += momentum (batch value - running), with the unbiased variance: in place.

        Args:
            x, out: (B, N), B >= 2.   gamma, beta, running_*: (N,).
            saved: (2, N), receives mean and 1 / sqrt(var + eps).
        """

    @abstractmethod
    def batch_norm_inference(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        running_mean: Array,
        running_var: Array,
        eps: float,
        out: Array,
    ) -> None:
        """out = gamma (x - running_mean) / sqrt(running_var + eps) + beta."""

    @abstractmethod
    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
    ) -> None:
        """With n = (x - mean) inv_std: dgamma = sum dy n, dbeta = sum dy over the batch,
        dx = gamma inv_std (dy - dbeta / B - n dgamma / B)."""

    @abstractmethod
    def layer_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float, out: Array, saved: Array | None
    ) -> None:
        """Normalise each row (Ba, Kiros and Hinton, 2016), then scale and shift its columns.

        Args:
            x, out: (B, N).   gamma, beta: (N,).
            saved: (2, B), receives mean and 1 / sqrt(var + eps), var biased; None in inference.
        """

    @abstractmethod
    def layer_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
    ) -> None:
        """With n = (x - mean) inv_std, g = dy gamma: dgamma = sum dy n, dbeta = sum dy over
        the batch; dx = inv_std (g - mean(g) - n mean(g n)), means along the row."""

    @abstractmethod
    def dropout_forward(
        self, x: Array, rate: float, seed: int, stream: int, out: Array, saved: Array
    ) -> None:
        """Inverted dropout (Srivastava et al., 2014): out = x saved.

        saved is 1 / (1 - rate) where the element's random word (``random_bits`` at
        row * N + column) is at least floor(rate 2^32), else 0; all (B, N).
        """

    @abstractmethod
    def dropout_backward(self, dy: Array, saved: Array, out: Array) -> None:
        """out = dy saved, (B, N)."""

    @abstractmethod
    def standardize_forward(self, x: Array, mean: Array, scale: Array, out: Array) -> None:
        """out = (x - mean) scale; x (B, N), mean and scale (N,)."""

    @abstractmethod
    def standardize_backward(self, dy: Array, scale: Array, out: Array) -> None:
        """out = dy scale."""

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
        """value = sum_i w_i l_i / sum_i w_i (0 where all weights are 0), dpred its gradient.

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
