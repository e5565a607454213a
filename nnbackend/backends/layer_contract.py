"""The contract's part for layers; the rules are those of ``nnbackend.backends.contract``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from nnbackend.backends.types import Activation, Array, DenseCalls


class LayerOperations(ABC):
    """What layers ask of a backend."""

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
    def embedding_forward(self, x: Array, weight: Array, out: Array) -> None:
        """out = [x_2 ... x_I, weight[x_1]]; NaN for weight where x_1, rounded, is no row of it.

        Args:
            x: (B, I).   weight: (K, D).   out: (B, I - 1 + D).
        """

    @abstractmethod
    def embedding_backward(self, dy: Array, x: Array, dweight: Array, dx: Array | None) -> None:
        """dweight[k] = the sum of dy's last D columns over rows whose x_1 is k, rounded; dx is dy's
        first I - 1 columns behind a column of zeros."""

    @abstractmethod
    def dropout_forward(
        self,
        x: Array,
        rate: float,
        seed: int,
        stream: int,
        out: Array,
        saved: Array,
        first: int = 0,
    ) -> None:
        """Inverted dropout (Srivastava et al., 2014): out = x saved.

        saved is 1 / (1 - rate) where the element's random word (``random_bits`` at
        first + row * N + column) is at least floor(rate 2^32), else 0; all (B, N). ``first`` is
        a multiple of 4, above 0 where these rows are a part of a larger batch.
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
