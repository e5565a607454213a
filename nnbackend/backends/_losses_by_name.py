"""The contract's losses for backends whose kernels take the loss as an argument."""

from __future__ import annotations

from abc import abstractmethod

from nnbackend.backends.base import Array, Backend


class LossesByName(Backend):
    """Every loss by way of one method."""

    @abstractmethod
    def _apply_loss(
        self,
        name: str,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        loss: Array,
        parameter: float = 0.0,
    ) -> None:
        """The loss ``name``, with what the contract says of it."""

    def softmax_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("softmax_cross_entropy", pred, target, weight, dpred, loss)

    def sigmoid_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("sigmoid_cross_entropy", pred, target, weight, dpred, loss)

    def categorical_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("categorical_cross_entropy", pred, target, weight, dpred, loss)

    def binary_cross_entropy(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("binary_cross_entropy", pred, target, weight, dpred, loss)

    def mean_squared_error(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("mean_squared_error", pred, target, weight, dpred, loss)

    def sum_squared_error(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("sum_squared_error", pred, target, weight, dpred, loss)

    def mean_absolute_error(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("mean_absolute_error", pred, target, weight, dpred, loss)

    def huber(
        self,
        pred: Array,
        target: Array,
        weight: Array | None,
        dpred: Array | None,
        loss: Array,
        delta: float,
    ) -> None:
        self._apply_loss("huber", pred, target, weight, dpred, loss, delta)

    def poisson(
        self, pred: Array, target: Array, weight: Array | None, dpred: Array | None, loss: Array
    ) -> None:
        self._apply_loss("poisson", pred, target, weight, dpred, loss)
