"""Fits by stochastic gradients: scikit-learn's rules, over epochs that a ``Network`` runs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from nnbackend._types import HostArray
from nnbackend.backends import get_backend
from nnbackend.executor.base import Data
from nnbackend.optimizers import SGD, Adam, Optimizer
from nnbackend.sklearn.mlp import NetworkMLP
from nnbackend.sklearn.network import Network
from nnbackend.sklearn.seam import AdamOptimizer, SGDOptimizer
from nnbackend.training.callback import CallbackList, check_callbacks
from nnbackend.training.history import History

#: The slots of scikit-learn's optimizers: its attribute, our name, and the power of the gradient
#: that a slot is in units of.
_SLOTS = {
    AdamOptimizer: (("ms", "m", 1), ("vs", "v", 2)),
    SGDOptimizer: (("velocities", "velocity", 0),),
}
#: Epochs that nothing can interrupt last about so long together, and are at most so many.
CHUNK_SECONDS, MOST_AHEAD = 0.2, 64


def batch_means(
    values: HostArray, weight: HostArray | None, order: HostArray, batch_size: int
) -> HostArray:
    """Means of values (N,), with weights (N,) or None, over the batches of rows in ``order``."""
    starts = np.arange(0, len(values), batch_size)
    w = np.ones(len(values)) if weight is None else weight
    sums: HostArray = np.add.reduceat((values * w)[order], starts)
    return sums / np.add.reduceat(w[order], starts)


class StochasticMLP(NetworkMLP):
    """Fits with solver="adam" or "sgd"."""

    _optimizer: Any
    _no_improvement_count: int
    #: what the network's optimizer was made of, and the rate that it was last given
    _settings_used: tuple[Any, ...] | None = None
    _rate_set: float | None = None

    def _fit_stochastic(
        self,
        X: Any,
        y: HostArray,
        sample_weight: HostArray | None,
        activations: Any,
        deltas: Any,
        coef_grads: Any,
        intercept_grads: Any,
        layer_units: Any,
        incremental: bool = False,
    ) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        x, target, weight, held_out = self._split(X, y, sample_weight)
        weight = self._weights(target, weight)
        batch_size = self._batch_rows(len(target))
        network = self._training_network(weight, layer_units, incremental)
        data, history = network.data(x, target, weight), History()
        self._begun = True
        callbacks = CallbackList(network.model, check_callbacks(self.callbacks))
        for callback in callbacks.callbacks:
            callback.attach(network.model)
        callbacks.fit_begins()
        try:
            self._train(network, data, target, weight, held_out, batch_size, callbacks, history,
                        incremental)  # fmt: skip
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            warnings.warn("Training interrupted by user.", stacklevel=4)
        except BaseException as error:
            callbacks.fit_failed(error)
            raise
        callbacks.fit_ends(history)
        if self.early_stopping:
            network.write(self._best_coefs, self._best_intercepts)
        self._take_weights(network)

    def _train(
        self,
        network: Network,
        data: Data,
        target: HostArray,
        weight: HostArray | None,
        held_out: tuple[Any, Any, Any],
        batch_size: int,
        callbacks: CallbackList,
        history: History,
        incremental: bool,
    ) -> None:
        """Epochs until one of scikit-learn's rules, or a callback, says stop."""
        rows = len(target)
        batches = np.full(-(-rows // batch_size), batch_size)
        batches[-1] = rows - batch_size * (len(batches) - 1)
        order = np.arange(rows)
        constants = self._constants(target)
        seconds = CHUNK_SECONDS
        self.n_iter_, stopped = 0, False
        while not stopped:
            start = time.perf_counter()
            ahead = self._epochs_ahead(len(callbacks) > 0 or incremental, seconds)
            rates = self._next_rates(network, rows, ahead)
            orders = self._next_orders(order, ahead) if self.shuffle else None
            losses = network.epochs(data, orders, batch_size, rates)
            if not np.isfinite(losses).all():
                network.set_to_nan()
            self._take_weights(network)
            seconds = (time.perf_counter() - start) / ahead
            for epoch, loss in enumerate(losses):
                if constants is not None:
                    where = order if orders is None else orders[epoch]
                    loss = loss + batch_means(constants, weight, where, batch_size)
                self._end_epoch(float(loss @ batches / rows), rows, held_out)
                self._tell(callbacks, history, rates[epoch], seconds)
                stopped = history.stopped is not None or self._stops() or incremental
                if stopped:
                    break
            if orders is not None:
                order = orders[-1]
            if self.n_iter_ == self.max_iter and not stopped:
                stopped = True
                # at the place that scikit-learn's own has, which filters may name
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                    f"optimization hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=5,
                )

    def _epochs_ahead(self, one: bool, seconds: float) -> int:
        """How many epochs there will be before anything can stop the training or change its rate,
        of ``seconds`` each: the losses are looked at afterwards."""
        if one or self.early_stopping:
            return 1
        left = self.n_iter_no_change + 1 - self._no_improvement_count
        fitting = max(1, int(CHUNK_SECONDS / max(seconds, 1e-9)))
        return int(max(1, min(left, fitting, MOST_AHEAD, self.max_iter - self.n_iter_)))

    def _next_rates(self, network: Network, rows: int, count: int) -> list[float]:
        optimizer = self._optimizer
        if self._rate_set != optimizer.learning_rate:
            network.rate = self._rate_set = float(optimizer.learning_rate)
        rates = [network.rate]
        for k in range(1, count):
            optimizer.iteration_ends(self.t_ + k * rows)
            rates.append(float(optimizer.learning_rate))
        return rates

    def _next_orders(self, order: HostArray, count: int) -> HostArray:
        """Orders (count, rows), each as sklearn.utils.shuffle makes it of the one before."""
        orders = np.empty((count, len(order)), np.int64)
        for row in orders:
            drawn = np.arange(len(order))
            self._random_state.shuffle(drawn)
            np.take(order, drawn, out=row, mode="clip")
            order = row
        return orders

    def _end_epoch(self, loss: float, rows: int, held_out: tuple[Any, Any, Any]) -> None:
        self.n_iter_ += 1
        self.t_ += rows
        self.loss_ = loss
        self.loss_curve_.append(loss)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {loss:.8f}")
        self._update_no_improvement_count(self.early_stopping, *held_out)
        self._optimizer.iteration_ends(self.t_)

    def _stops(self) -> bool:
        """Whether the loss, or the score of the rows held out, has stopped to improve; where the
        rate adapts to that, it falls instead."""
        if self._no_improvement_count <= self.n_iter_no_change:
            return False
        what = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} "
            f"consecutive epochs."
        )
        if self._optimizer.trigger_stopping(message, self.verbose):
            return True
        self._no_improvement_count = 0
        return False

    def _tell(self, callbacks: CallbackList, history: History, rate: float, seconds: float) -> None:
        if not len(callbacks):
            return
        figures = {"loss": self.loss_, "lr": rate}
        if self.early_stopping:
            figures["val_score"] = float(self.validation_scores_[-1])
        history.append(figures, seconds)
        callbacks.epoch_ends(self.n_iter_, figures, history)

    # -- before the first epoch -------------------------------------------------------------------

    def _split(
        self, X: Any, y: HostArray, sample_weight: HostArray | None
    ) -> tuple[Any, HostArray, HostArray | None, tuple[Any, Any, Any]]:
        """Rows to train on, and (x, y, weight) held out to decide when to stop."""
        if not self.early_stopping:
            return X, y, sample_weight, (None, None, None)
        # scikit-learn shares rows out evenly only where there are two classes
        two_classes = is_classifier(self) and self.n_outputs_ == 1
        arrays = [X, y] if sample_weight is None else [X, y, sample_weight]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if two_classes else None,
        )
        x, x_held, target, y_held = parts[:4]
        weight, weight_held = (None, None) if sample_weight is None else parts[4:]
        if x_held.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        # classes as numbers, which are compared in a tenth of the time that labels take
        if two_classes:
            y_held = y_held[:, 0]
        elif self.out_activation_ == "softmax":
            y_held = y_held.argmax(axis=1)
        elif is_classifier(self):
            y_held = self._label_binarizer.inverse_transform(y_held)
        return x, target, weight, (x_held, y_held, weight_held)

    def _score(self, X: Any, y: HostArray, sample_weight: HostArray | None = None) -> float:
        """Accuracy or R2 on the rows held out, as ``_split`` left them."""
        if not is_classifier(self) or y.ndim > 1:
            score: float = super()._score(X, y, sample_weight)
            return score
        pred = self._forward_pass_fast(X, check_input=False)
        if not np.isfinite(pred).all():
            return float("nan")
        if len(self.classes_) == 1:
            return 1.0
        chosen = pred.argmax(axis=1) if pred.shape[1] > 1 else pred[:, 0] > 0.5
        return float(np.average(chosen == y, weights=sample_weight))

    def _batch_rows(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(200, rows)
        if self.batch_size > rows:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be "
                "clipped",
                stacklevel=6,
            )
        return int(np.clip(self.batch_size, 1, rows))

    # -- the optimizer ----------------------------------------------------------------------------

    def _training_network(
        self, weight: HostArray | None, layer_units: Any, incremental: bool
    ) -> Network:
        """The network with the estimator's weights, and its optimizer: a new one, or as the last
        ``partial_fit`` left it."""
        kind = AdamOptimizer if self.solver == "adam" else SGDOptimizer
        goes_on = incremental and isinstance(getattr(self, "_optimizer", None), kind)
        mean = 1.0 if weight is None else float(weight.mean())
        l2 = 0.5 * self.alpha / mean if mean > 0.0 else 0.0
        shape = self._shape(get_backend(self.backend), self.dropout, l2 > 0.0)
        self._check_units(layer_units, shape)
        network, settings = self._network, self._optimizer_settings()
        if (
            network is None or network.shape != shape or self._settings_used != settings
            or not network.is_free_for(self.coefs_, self.intercepts_)
        ):  # fmt: skip
            if goes_on:
                self._keep_optimizer()
            seed = int(self._random_state.randint(1 << 31)) if self.dropout else 0
            network = Network(shape, self._optimizer_maker(), seed)
            if goes_on:
                for theirs, ours, power in _SLOTS[kind]:
                    network.set_slots(ours, power, getattr(self._optimizer, theirs))
                network.steps = getattr(self._optimizer, "t", 0)
        network.write(self.coefs_, self.intercepts_)
        network.l2 = l2
        if not goes_on:
            network.reset_optimizer()
            self._optimizer = self._new_optimizer()
        # from here on a callback may change it
        network.rate = self._rate_set = float(self._optimizer.learning_rate)
        self._network, self._settings_used = network, settings
        self._take_weights(network)
        return network

    def _keep_optimizer(self) -> None:
        network, optimizer = self._network, getattr(self, "_optimizer", None)
        if network is not None and type(optimizer) in _SLOTS:
            for theirs, ours, power in _SLOTS[type(optimizer)]:
                setattr(optimizer, theirs, network.slots(ours, power))
            if isinstance(optimizer, AdamOptimizer):
                optimizer.t = network.steps

    def _optimizer_settings(self) -> tuple[Any, ...]:
        if self.solver == "sgd":
            return "sgd", self.momentum, self.nesterovs_momentum
        return "adam", self.beta_1, self.beta_2, self.epsilon

    def _optimizer_maker(self) -> Callable[[float], Optimizer]:
        """Makes an optimizer for gradients that are so many times scikit-learn's."""
        rate = self.learning_rate_init
        if self.solver == "adam":
            return lambda scale: Adam(
                rate, beta1=self.beta_1, beta2=self.beta_2, eps=0.0, eps_hat=self.epsilon * scale
            )
        momentum = min(float(self.momentum), np.nextafter(1.0, 0.0))
        nesterov = bool(self.nesterovs_momentum) and momentum > 0.0
        return lambda scale: SGD(rate, momentum=momentum, nesterov=nesterov)

    def _new_optimizer(self) -> Any:
        """scikit-learn's optimizer, which keeps the rate and decides when to stop."""
        if self.solver == "adam":
            return AdamOptimizer(
                [], self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon
            )
        return SGDOptimizer(
            [], self.learning_rate_init, self.learning_rate, self.momentum,
            self.nesterovs_momentum, self.power_t,
        )  # fmt: skip
