"""The network behind an estimator: scikit-learn's objective in nnbackend's terms.

scikit-learn's gradient for a batch of n rows is that of

    1/n (sum of the rows' losses + alpha/2 sum of the squared weights),

where a row's loss is summed over the outputs, squared errors halved. nnbackend's losses are means
over the outputs, so its gradient is ``scale`` times that; the penalties, SGD's rate and Adam's
epsilon are chosen such that the weights take the same course.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import is_
from threading import current_thread, main_thread
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.special

from nnbackend._types import HostArray
from nnbackend.backends.contract import Backend
from nnbackend.executor.base import Data, Run, SparseRows
from nnbackend.kernels.codes import TRACE_LOSS, TRACE_PENALTY, TRACE_WEIGHT
from nnbackend.layers.base import Layer
from nnbackend.layers.dense import Dense
from nnbackend.layers.dropout import Dropout
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import SGD, Optimizer

#: scikit-learn's names of activations -> nnbackend's.
ACTIVATIONS = {"identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
#: Rows of a sparse matrix are made dense in pieces of so many bytes.
DENSE_BYTES = 1 << 24
#: Share of numbers that are not zero up to which a sparse matrix is the faster one.
SPARSE_SHARE = 0.1
#: From so many rows on outputs are computed in pieces.
MANY_ROWS = 1 << 12


def is_mostly_zeros(x: Any) -> bool:
    """Whether products with a matrix are faster if it stays sparse."""
    return bool(scipy.sparse.issparse(x) and x.nnz <= SPARSE_SHARE * x.shape[0] * float(x.shape[1]))


def _softmax(z: HostArray) -> None:
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)


class Output(NamedTuple):
    """What the last layer and the loss are, for a network of O outputs.

    Attributes:
        activation: of the last layer.   loss: nnbackend's.
        scale: its gradient over scikit-learn's, times O ** ``power``.
        value: scikit-learn's value over its own, times O ** -``power`` but for the squared error,
            which scikit-learn averages over the outputs although its gradient is that of the sum.
        finish: makes predictions of outputs, in place.
    """

    activation: str | None
    loss: str
    scale: float
    value: float
    power: int
    finish: Callable[[HostArray], object]

    def scale_of(self, n_outputs: int) -> float:
        return self.scale * float(n_outputs) ** self.power

    def value_of(self, n_outputs: int) -> float:
        halves = self.loss == "mean_squared_error"
        return self.value if halves else self.value * float(n_outputs) ** -self.power


#: By scikit-learn's ``out_activation_``.
OUTPUTS = {
    "softmax": Output(None, "softmax_cross_entropy", 1.0, 1.0, 0, _softmax),
    "logistic": Output(
        None, "sigmoid_cross_entropy", 1.0, 1.0, -1, lambda z: scipy.special.expit(z, out=z)
    ),
    "identity": Output(None, "mean_squared_error", 2.0, 0.5, -1, lambda z: None),
    "exp": Output("exponential", "poisson", 1.0, 1.0, -1, lambda z: None),
}


class Shape(NamedTuple):
    """What an estimator's network looks like.

    Attributes:
        units: widths, from the input's to the output's.
        activation, output: scikit-learn's names, of the hidden layers and of the last one.
        dropout: rate after each hidden layer, in training.
        decays: whether squared weights add to the loss.
    """

    units: tuple[int, ...]
    activation: str
    output: str
    dtype: np.dtype[Any]
    backend: Backend
    dropout: float = 0.0
    decays: bool = False


class Network:
    """A Sequential that trains and predicts for an estimator.

    Attributes:
        coefs, intercepts: the weights as NumPy arrays.
        is_live: whether these are what the network computes with, as on the CPU.
        is_shown: whether somebody else has these: then they are not for other weights.
        steps: updates made with the optimizer as it is.
    """

    def __init__(
        self,
        shape: Shape,
        make_optimizer: Callable[[float], Optimizer] | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            make_optimizer: an optimizer for gradients of which each is so many times
                scikit-learn's.
        """
        self.shape, self.output = shape, OUTPUTS[shape.output]
        n_outputs = shape.units[-1]
        self.scale, self._value = self.output.scale_of(n_outputs), self.output.value_of(n_outputs)
        layers: list[Layer] = []
        *hidden, last = pairwise(shape.units)
        # how much they decay is said before a training: see ``l2``
        settings: dict[str, Any] = {"weight_init": "zeros", "weight_l2": float(shape.decays)}
        for pair in hidden:
            layers.append(Dense(*pair, ACTIVATIONS[shape.activation], **settings))
            if shape.dropout:
                layers.append(Dropout(shape.dropout))
        layers.append(Dense(*last, self.output.activation, **settings))
        self.model = Sequential(layers, seed=seed, dtype=str(shape.dtype), backend=shape.backend)
        optimizer = "sgd" if make_optimizer is None else make_optimizer(self.scale)
        self.model.compile(self.output.loss, optimizer, penalties_per_row=True)
        if current_thread() is not main_thread():
            # joblib's threads and the like share the processors out among themselves
            self.model.executor.use_threads(1)
        # what SGD's steps are proportional to, Adam's are not
        self._rate_factor = self.scale if isinstance(self.model.optimizer, SGD) else 1.0
        self._dense: list[Any] = [layer for layer in layers if isinstance(layer, Dense)]
        self.steps, self.is_shown = 0, False
        self._kept: tuple[tuple[Any, ...], Data | None] | None = None
        self._read()

    # -- weights --------------------------------------------------------------------------------

    def _read(self) -> None:
        to_numpy = self.model.backend.to_numpy
        self.coefs: list[HostArray] = [to_numpy(layer.weight) for layer in self._dense]
        self.intercepts: list[HostArray] = [to_numpy(layer.bias) for layer in self._dense]
        self.is_live = self.coefs[0] is self._dense[0].weight

    def has(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> bool:
        """Whether these are the network's own arrays."""
        return (
            len(coefs) == len(intercepts) == len(self.coefs)
            and all(map(is_, coefs, self.coefs))
            and all(map(is_, intercepts, self.intercepts))
        )

    def is_free_for(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> bool:
        """Whether weights can be written without changing arrays that somebody else has."""
        return not (self.is_live and self.is_shown) or self.has(coefs, intercepts)

    def write(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> None:
        """Take over weights, unless they are the network's own."""
        backend, dtype, live = self.model.backend, self.shape.dtype, self.is_live
        for i, layer in enumerate(self._dense):
            for name, own, given in (
                ("weight", self.coefs[i], coefs[i]), ("bias", self.intercepts[i], intercepts[i])
            ):  # fmt: skip
                if given is not own or not live:
                    host = np.ascontiguousarray(given, dtype)
                    layer.array(name)[...] = backend.asarray(host, dtype)

    def show(self) -> tuple[list[HostArray], list[HostArray]]:
        """``coefs`` and ``intercepts``, up to date, for whoever wants to keep them."""
        if not self.is_live:
            self._read()
        self.is_shown = True
        return list(self.coefs), list(self.intercepts)

    def set_to_nan(self) -> None:
        """What a training that diverged leaves."""
        self.model.get_flat(copy=False)[...] = np.nan

    # -- the optimizer's state --------------------------------------------------------------------

    def _keys(self) -> list[str]:
        """Of weights and then biases in the optimizer's state."""
        numbers = [self.model.layers.index(layer) for layer in self._dense]
        return [f"layers.{i}.{name}" for name in ("weight", "bias") for i in numbers]

    def slots(self, name: str, power: int) -> list[HostArray]:
        """A slot in scikit-learn's order and units, which are those of the gradient ** ``power``;
        zeros if the optimizer has none of that name."""
        state, factor = self.model.optimizer_state(), self.scale**-power
        found = [state.get(f"{name}.{key}") for key in self._keys()]
        return [
            np.zeros_like(a) if slot is None else (slot * factor).astype(a.dtype)
            for slot, a in zip(found, (*self.coefs, *self.intercepts), strict=True)
        ]

    def set_slots(self, name: str, power: int, arrays: Sequence[HostArray]) -> None:
        """Restore what ``slots`` returned."""
        factor, there = self.scale**power, self.model.optimizer_state()
        given = {f"{name}.{key}": a for key, a in zip(self._keys(), arrays, strict=True)}
        self.model.set_optimizer_state({k: a * factor for k, a in given.items() if k in there})

    def reset_optimizer(self) -> None:
        state = self.model.optimizer_state()
        self.model.set_optimizer_state({key: np.zeros_like(slot) for key, slot in state.items()})
        self.steps = 0

    # -- training -------------------------------------------------------------------------------

    def data(self, x: Any, y: HostArray, weight: HostArray | None) -> Data:
        """Rows on the device: x (N, I), y (N, O), bool or numbers, weight (N,) or None. A sparse
        matrix stays one, as rows for the executor or as one whose rows are quickly taken."""
        backend, dtype = self.model.backend, self.shape.dtype
        if y.dtype.kind not in "biuf":
            raise ValueError(f"y must be numbers; received {y.dtype}")
        if self.shape.output == "softmax":
            target = backend.asarray(y.argmax(axis=1).astype(np.int32), np.dtype(np.int32))
        else:
            target = backend.asarray(np.ascontiguousarray(y, dtype), dtype)
        if weight is not None:
            weight = backend.asarray(np.ascontiguousarray(weight, dtype), dtype)
        if self.takes(x):
            rows: Any = self._sparse_rows(x.tocsr())
        else:
            rows = x.tocsr() if scipy.sparse.issparse(x) else self._device_rows(x)
        return Data(rows, target, weight)

    def takes(self, x: Any) -> bool:
        """Whether this is a sparse matrix which is trained on as it is."""
        return is_mostly_zeros(x) and self.model.executor.takes_sparse_rows

    def _sparse_rows(self, x: Any) -> SparseRows:
        # behind the last row's end there may be more
        values, columns = x.data[: x.nnz], x.indices[: x.nnz]
        values = values.astype(self.shape.dtype, copy=False)  # SparseRows copies
        return SparseRows(values, columns, x.indptr, x.shape[1])

    def _host_rows(self, x: Any) -> HostArray:
        return np.ascontiguousarray(np.asarray(x), self.shape.dtype)

    def _device_rows(self, x: Any) -> Any:
        return self.model.backend.asarray(self._host_rows(x), self.shape.dtype)

    def _rows_at_once(self, x: Any, multiple: int = 1) -> int:
        """How many rows of a sparse matrix are made dense at a time, a multiple of this."""
        row_bytes = int(x.shape[1]) * self.shape.dtype.itemsize
        return multiple * max(1, DENSE_BYTES // (row_bytes * multiple))

    @property
    def rate(self) -> float:
        """The learning rate, in scikit-learn's terms, in which callbacks see it, too."""
        return float(self.model.optimizer.lr)  # type: ignore[arg-type]

    @rate.setter
    def rate(self, value: float) -> None:
        self.model.optimizer.lr = value

    @property
    def l2(self) -> float:
        """Factor of the squared weights in scikit-learn's loss of one row, alpha / 2."""
        return float(self._dense[0].weight_l2) / self.scale

    @l2.setter
    def l2(self, value: float) -> None:
        for layer in self._dense:
            if layer.weight_l2 != self.scale * value:
                layer.weight_l2 = self.scale * value

    def epochs(
        self, data: Data, orders: HostArray | None, batch_size: int, rates: Sequence[float]
    ) -> HostArray:
        """One pass over the rows for each rate, in these orders (E, N), or in the order that they
        have. The loss of each step, with its penalty, (E, steps)."""
        steps = -(-len(data.target) // batch_size)
        each = np.repeat(np.asarray(rates) / self._rate_factor, steps)
        run = self.model.executor.run
        if scipy.sparse.issparse(data.x):
            traces = [
                run(Run(part, None, batch_size, each[first:last], self.steps + first, False))
                for part, first, last in self._pieces(data, orders, batch_size, len(rates))
            ]
        else:
            asarray = self.model.backend.asarray
            order = None if orders is None else asarray(orders, np.dtype(np.int64))
            traces = [run(Run(data, order, batch_size, each, self.steps, False))]
        self.steps += len(each)
        trace = np.concatenate(traces)
        weight = trace[:, TRACE_WEIGHT]
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.where(weight != 0, trace[:, TRACE_LOSS] / weight, 0.0)
        losses: HostArray = value * self._value + trace[:, TRACE_PENALTY] / self.scale
        return losses.reshape(len(rates), steps)

    def _pieces(
        self, data: Data, orders: HostArray | None, batch_size: int, epochs: int
    ) -> Iterator[tuple[Data, int, int]]:
        """Rows of a sparse matrix made dense, some batches at a time, and the steps they make."""
        rows, at_once = len(data.target), self._rows_at_once(data.x, batch_size)
        number = 0
        for epoch in range(epochs):
            for start in range(0, rows, at_once):
                stop = min(start + at_once, rows)
                piece = np.arange(start, stop) if orders is None else orders[epoch, start:stop]
                where = self.model.backend.asarray(piece, np.dtype(np.int64))
                dense = self._device_rows(data.x[piece].toarray())
                weight = None if data.weight is None else data.weight[where]
                count = -(-(stop - start) // batch_size)
                yield Data(dense, data.target[where], weight), number, number + count
                number += count

    def gradient(
        self, x: Any, y: HostArray, weight: HostArray | None
    ) -> tuple[float, list[HostArray], list[HostArray]]:
        """The loss over all rows without penalties, and its gradient by weights and biases."""
        total = float(len(y) if weight is None else weight.sum())
        loss, sums = 0.0, None
        to_numpy = self.model.backend.to_numpy
        for data, share in self._shares(x, y, weight, total):
            loss += share * self.model.executor.gradient(data)
            factor = share / self.scale
            found = [to_numpy(layer.weight_grad) * factor for layer in self._dense]
            found += [to_numpy(layer.bias_grad) * factor for layer in self._dense]
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        gradients, last = sums or [], len(self.coefs)
        return loss * self._value, gradients[:last], gradients[last:]

    def _shares(
        self, x: Any, y: HostArray, weight: HostArray | None, total: float
    ) -> Iterator[tuple[Data, float]]:
        """The rows on the device, with each piece's share of them; those of a large sparse matrix
        in several pieces. One piece is kept from call to call."""
        is_made_dense = scipy.sparse.issparse(x) and not self.takes(x)
        rows = self._rows_at_once(x)
        if not is_made_dense or x.shape[0] <= rows:
            asked = (x, y, weight)
            known, data = self._kept or ((None, None, None), None)
            if data is None or any(a is not b for a, b in zip(known, asked, strict=True)):
                data = self.data(x.toarray() if is_made_dense else x, y, weight)
                self._kept = asked, data
            yield data, 1.0
            return
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            own = None if weight is None else weight[part]
            share = (len(y[part]) if own is None else own.sum()) / total
            yield self.data(x[part].toarray(), y[part], own), float(share)

    def forget_data(self) -> None:
        """Let go of the rows that ``gradient`` keeps on the device from call to call."""
        self._kept = None

    # -- inference ------------------------------------------------------------------------------

    def predictions(self, x: Any) -> HostArray:
        """(N, O) in the network's dtype, after the last layer's activation."""
        if scipy.sparse.issparse(x):
            x, rows = x.tocsr(), self._rows_at_once(x)
            out = np.empty((x.shape[0], self.shape.units[-1]), self.shape.dtype)
            for start in range(0, x.shape[0], rows):
                part = slice(start, start + rows)
                out[part] = self.model.predict(x[part].toarray())
        else:
            x = self._host_rows(x)
            many = len(x) > MANY_ROWS
            out = self.model.predict(x) if many else self.model.backend.to_numpy(self.model(x))
        self.output.finish(out)
        return out
