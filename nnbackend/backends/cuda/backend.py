"""The CUDA backend: the contract's operations as launches of kernels and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from nnbackend.backends.cuda.arrays import BF16, INT32, CudaArrays
from nnbackend.backends.cuda.following import (
    NOTHING_FOLLOWS,
    Following,
    stream_words,
    threshold_and_scale,
)
from nnbackend.backends.cuda.kernels import THREADS, WARPS
from nnbackend.backends.cuda.sums import LossSums, SharedBatch, SharedNorm
from nnbackend.backends.types import Activation, Array, LossFormula, UpdateRule

#: Widths of rows whose softmax a warp keeps in registers.
_KEPT_OUTPUTS = range(33, 1025)


class CudaBackend(CudaArrays):
    """CUDA kernels and cuBLASLt on one GPU, over CuPy's arrays."""

    name: ClassVar[str] = "cuda"
    executor: ClassVar[str] = "nnbackend.backends.cuda.executor:GraphExecutor"

    # -- layers ---------------------------------------------------------------------------

    def dense_forward(
        self, x: Array, w: Array, b: Array | None, act: Activation, out: Array, saved: Array | None
    ) -> None:
        self.multiply(x, w, out)
        if act.name == "softmax":
            self.softmax(out, b, out)
        elif b is not None or saved is not None or act.name != "linear":
            self.bias_and_activation(act, out, b, saved, out, None)

    def softmax(self, x: Array, bias: Array | None, out: Array) -> None:
        """out = softmax(x + bias) of each row; may be x."""
        self.by_row("softmax_forward", x, x, bias, *x.shape, out)

    def bias_and_activation(
        self,
        act: Activation,
        x: Array,
        bias: Array | None,
        kept: Array | None,
        out: Array | None,
        rounded: Array | None,
    ) -> None:
        """kept = x + bias, out = act(x + bias), all but softmax, and ``out`` in bfloat16; each
        where there is a place for it."""
        code, parameter = act.code, act.parameter
        self.by_element(
            "activation_forward", x, x, bias, x.size, x.shape[1], code, parameter, kept, out,
            rounded,
        )  # fmt: skip

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
        dz = dy
        if act.name != "linear":
            dz = scratch
            self.activation_backward(act, dy, saved, dz)
        if dw is not None:
            self.multiply(x, dz, dw, a_t=True)
        if db is not None:
            self.column_sums(dz, db)
        if dx is not None:
            self.multiply(dz, w, dx, b_t=True)

    def activation_forward(self, act: Activation, x: Array, out: Array) -> None:
        if act.name == "softmax":
            self.softmax(x, None, out)
        else:
            self.bias_and_activation(act, x, None, None, out, None)

    def activation_backward(self, act: Activation, dy: Array, saved: Array, out: Array) -> None:
        if act.name == "softmax":
            self.by_row("softmax_backward", dy, dy, saved, *dy.shape, out)
            return
        self.slope_times(act, dy, dy if act.name == "linear" else saved, out, None)

    def slope_times(
        self, act: Activation, dy: Array, saved: Array, out: Array | None, rounded: Array | None
    ) -> None:
        """out = dy act'(z), all but softmax, and ``out`` in bfloat16; dy and what is saved may be
        so, too."""
        code, parameter = act.code, act.parameter
        forms = [(None, x) if x.dtype == BF16 else (x, None) for x in (dy, saved)]
        real = np.dtype(np.float32) if dy.dtype == BF16 else dy.dtype
        self.run(
            "activation_backward", real, self.blocks(dy.size), *forms[0], *forms[1], dy.size, code,
            parameter, out, rounded,
        )  # fmt: skip

    def column_sums(self, x: Array, out: Array) -> None:
        """out (N,) = sums of the columns of x (B, N), which may be bfloat16."""
        forms = (None, x) if x.dtype == BF16 else (x, None)
        self.by_column("column_sums", out, x.shape[1], *forms, *x.shape, out)

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
        following: Following = NOTHING_FOLLOWS,
        shared: SharedNorm | None = None,
    ) -> None:
        """As the contract says, then what follows; of rows that may be a part of a batch."""
        rows, width = x.shape
        sizes, sums = (rows, rows, width), None
        if shared is not None:
            batch, sums = shared
            sizes = (rows, batch.rows, width)
            for known, found in ((None, sums[0]), (sums[0], sums[1])):
                self.by_column("batch_norm_sums", x, width, x, known, *sizes, found)
                batch.add(found)
        self.by_column(
            "batch_norm_forward", x, width, x, gamma, beta, running_mean, running_var, momentum,
            eps, self._state(), sums, *sizes, *following.activation,
            *following.stream, *following.kept, out, saved, following.slopes,
        )  # fmt: skip

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
        self.by_element(
            "batch_norm_inference", out, x, gamma, beta, running_mean, running_var, eps, x.size,
            x.shape[1], out,
        )  # fmt: skip

    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        gamma: Array,
        saved: Array,
        dgamma: Array,
        dbeta: Array,
        dx: Array | None,
        slopes: Array | None = None,
        shared: SharedNorm | None = None,
    ) -> None:
        """As the contract says, of dy times the slopes of what follows, if there are any; of rows
        that may be a part of a batch, whose part of dgamma and dbeta is then given."""
        rows, width = x.shape
        given = (dy, slopes, x, gamma, saved)
        name, results = "batch_norm_backward", (dgamma, dbeta)
        if shared is None:
            self.by_column(name, x, width, *given, None, rows, rows, width, *results, None, dx)
            return
        batch, sums = shared
        sizes = (rows, batch.rows, width)
        self.by_column(name, x, width, *given, None, *sizes, *results, sums, None)
        if dx is not None:
            batch.add(sums)
            self.by_column(name, x, width, *given, sums, *sizes, *results, None, dx)

    def layer_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float, out: Array, saved: Array | None
    ) -> None:
        self.by_row("layer_norm_forward", x, x, gamma, beta, eps, *x.shape, out, saved)

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
        self.by_column(
            "layer_norm_parameters", x, x.shape[1], dy, x, saved, *x.shape, dgamma, dbeta
        )
        if dx is not None:
            self.by_row("layer_norm_data", x, dy, x, gamma, saved, *x.shape, dx)

    def embedding_forward(self, x: Array, weight: Array, out: Array) -> None:
        self.by_element("embedding_forward", out, x, weight, *x.shape, *weight.shape, out)

    def embedding_backward(self, dy: Array, x: Array, dweight: Array, dx: Array | None) -> None:
        self.by_element("embedding_weights", dweight, dy, x, *x.shape, *dweight.shape, dweight)
        if dx is not None:
            self.by_element("embedding_data", dx, dy, *x.shape, dweight.shape[1], dx)

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
        self.run(
            "dropout_forward", x.dtype, self.blocks(x.size, 4 * THREADS), x,
            *stream_words(seed, stream), self._state(), *threshold_and_scale(rate), first // 4,
            x.size, x.shape[-1], out, saved,
        )  # fmt: skip

    def activation_and_dropout(self, following: Following, x: Array, out: Array) -> None:
        """out = what follows x."""
        self.by_element(
            "activation_and_dropout", out, x, *following.activation, *following.stream,
            self._state(), *following.kept, x.size, x.shape[1], out, following.slopes,
        )  # fmt: skip

    def dropout_backward(self, dy: Array, saved: Array, out: Array) -> None:
        self.by_element("multiply", out, dy, saved, dy.size, out)

    def standardize_forward(self, x: Array, mean: Array, scale: Array, out: Array) -> None:
        self.by_element("standardize", out, x, mean, scale, x.size, x.shape[1], out)

    def standardize_backward(self, dy: Array, scale: Array, out: Array) -> None:
        self.by_element("standardize", out, dy, None, scale, dy.size, dy.shape[1], out)

    # -- losses ---------------------------------------------------------------------------

    def loss(
        self,
        formula: LossFormula,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        value: Array,
    ) -> None:
        with self.lock:
            sums = self.sum_loss(formula, pred, target, weight, dpred)
            self.run(
                "finish_loss", pred.dtype, 1, formula.averages, sums.loss, sums.blocks, sums.weight,
                len(pred), value.reshape(-1),
            )  # fmt: skip

    def sum_loss(
        self,
        formula: LossFormula,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        rounded: Array | None = None,
        count_hits: bool = False,
        shared: SharedBatch | None = None,
    ) -> LossSums:
        """The loss's gradient, which may be wanted in bfloat16, too, and its sum over the rows,
        which may be a part of a batch: then it is the gradient of the batch's loss."""
        rows, own, total = len(pred), None, None
        batch_rows = rows if shared is None else shared.rows
        hits = self._hits if count_hits else None
        blocks = self.blocks(rows, WARPS)
        if weight is not None:
            own = total = self._weight_sum
            self.run("sum_weights", pred.dtype, 1, weight, rows, own)
            if shared is not None:
                total = self._batch_weight
                self.run("sum_partials", None, 1, own, 1, 1.0, False, total)  # a copy
                shared.add(total)
        kernel: tuple[Any, ...] = (
            "loss_rows", pred.dtype, blocks, formula.code, formula.parameter,
        )  # fmt: skip
        if formula.name == "softmax_cross_entropy" and pred.shape[1] in _KEPT_OUTPUTS:
            kernel = ("softmax_loss_rows", pred.dtype, blocks)
        self.run(
            *kernel, pred, *_labels_or_rows(target), weight, total, rows, batch_rows,
            pred.shape[1], dpred, rounded, hits, self._partial,
        )  # fmt: skip
        return LossSums(self._partial, hits, blocks, own)

    # -- statistics for metrics -----------------------------------------------------------

    def count_correct(
        self,
        pred: Array,
        target: Array,
        weight: Array | None,
        threshold: float | None,
        top: int,
        out: Array,
    ) -> None:
        blocks = self.blocks(len(pred), WARPS)
        with self.lock:
            self.run(
                "correct_rows", pred.dtype, blocks, pred, *_labels_or_rows(target), weight,
                *pred.shape, threshold is not None, threshold or 0.0, top, self._partial,
            )  # fmt: skip
            self._add_up(blocks, 1.0, False, out)

    def _add_up(self, blocks: int, factor: float, add: bool, out: Array) -> None:
        """out () = or += factor times the sum of what the blocks left."""
        number = out.reshape(-1)
        self.run("sum_partials", None, 1, self._partial, blocks, factor, add, number)

    def confusion_counts(
        self, pred: Array, target: Array, weight: Array | None, threshold: float | None, out: Array
    ) -> None:
        rows, classes = pred.shape
        labels, onehot = _labels_or_rows(target)
        with self.lock:
            guesses = truths = None
            if threshold is None:
                both = self._scratch_of("classes", 2 * rows, INT32)
                guesses, truths = both[:rows], both[rows:]
                self.by_row(
                    "row_classes", pred, pred, labels, onehot, rows, classes, guesses, truths
                )
            self.run(
                "class_counts", pred.dtype, classes, guesses, truths, pred, onehot, weight,
                threshold or 0.0, rows, classes, out,
            )  # fmt: skip

    def regression_sums(self, pred: Array, target: Array, weight: Array | None, out: Array) -> None:
        self.run(
            "regression_sums", pred.dtype, pred.shape[1], pred, target, weight, *pred.shape, out
        )

    # -- gradients and updates --------------------------------------------------------------

    def penalty(self, param: Array, l1: float, l2: float, grad: Array | None, loss: Array) -> None:
        with self.lock:
            self.by_element("penalty", param, param, param.size, l1, l2, grad, self._partial)
            self._add_up(self.blocks(param.size), 1.0, True, loss)

    def clip_by_global_norm(self, grad: Array, limit: float) -> None:
        # every block of the second kernel adds up what those of the first one left
        blocks = min(self.blocks(grad.size), max(1, self.gpu.most_blocks // 4))
        with self.lock:
            self.run("sum_squares", grad.dtype, blocks, grad, grad.size, self._partial)
            self.by_element("scale_to_norm", grad, grad, grad.size, self._partial, blocks, limit)

    def step_scratch_size(self, size: int) -> int:
        return 0

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
        numbers: tuple[Any, ...]
        if rule.name == "sgd":
            numbers = (lr,)
        elif rule.name == "momentum":
            numbers = (lr, rule.momentum, rule.nesterov)
        elif rule.name == "adagrad":
            numbers = (lr, rule.eps)
        elif rule.name == "rmsprop":
            numbers = (lr, rule.rho, 1.0 - rule.rho, rule.eps)
        elif rule.name == "adam":
            rate, eps = rule.corrected(lr, step)
            kept = 1.0 - lr * rule.weight_decay
            betas = (rule.beta1, 1.0 - rule.beta1, rule.beta2, 1.0 - rule.beta2)
            numbers = (rate, kept, *betas, eps, rule.weight_decay != 0.0)
        else:
            raise NotImplementedError(f"no kernel updates by the rule {rule.name!r}")
        self.run(
            f"{rule.name}_step", param.dtype, self.blocks(param.size, 4 * THREADS), param, grad,
            *slots, param.size, *numbers, self._rounded_part(param), self._state(),
        )  # fmt: skip


def _labels_or_rows(target: Array) -> tuple[Array | None, Array | None]:
    """Class labels (B,), or rows of targets (B, O); the other is None."""
    return (target, None) if target.ndim == 1 else (None, target)
