"""scikit-learn's MLPClassifier and MLPRegressor: partial_fit for a step, fit for epochs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from nnbackend.benchmark.cases import EPOCH_BATCHES, Case
from nnbackend.benchmark.operations import Trial
from peers.system import CHECKED_STEPS, Material, System, UnsupportedError, trial

#: Its regressor minimises half of the mean squared error; Adam is indifferent to that factor.
LOSS_FACTOR = {"mean_squared_error": 2.0}


def estimator_of(case: Case, epochs: int = 1, shuffle: bool = False) -> Any:
    """An untrained network that will not stop before ``epochs``."""
    kind = MLPRegressor if case.loss == "mean_squared_error" else MLPClassifier
    return kind(
        hidden_layer_sizes=case.widths[1:-1], activation=case.activation, alpha=0.0,
        solver="adam" if case.optimizer == "adam" else "sgd", batch_size=case.batch,
        learning_rate_init=1e-3 if case.optimizer == "adam" else 0.01, epsilon=1e-7,
        momentum=0.9, nesterovs_momentum=False, shuffle=shuffle, random_state=0,
        max_iter=epochs, n_iter_no_change=epochs + 1, tol=0.0, early_stopping=False,
    )  # fmt: skip


def targets_of(case: Case, y: np.ndarray) -> np.ndarray:
    """One column as (N,); yes and no as classes."""
    if case.loss == "softmax_cross_entropy":
        return y
    if case.loss == "mean_squared_error":
        return y if y.shape[1] > 1 else y[:, 0]
    return y[:, 0].astype(np.int64)


def check_possible(case: Case) -> None:
    if case.dropout or case.batch_norm:
        raise UnsupportedError("has no dropout and no BatchNorm")
    if case.widths[-1] == 2 and case.loss == "softmax_cross_entropy":
        raise UnsupportedError("has one output, not two, for two classes")


class ScikitLearn(System):
    packages = ("scikit-learn",)

    def learner(self, case: Case, material: Material) -> Any:
        """An estimator that partial_fit has made ready, with the weights that everybody gets."""
        check_possible(case)
        estimator = estimator_of(case)
        (x, y), *_ = material.batches(case)
        self._partial_fit(estimator, case, x, targets_of(case, y))
        for k, (weight, bias) in enumerate(material.weights):
            estimator.coefs_[k], estimator.intercepts_[k] = weight.copy(), bias.copy()
        del estimator._optimizer  # the next partial_fit makes a new one, of these weights
        return estimator

    def _partial_fit(self, estimator: Any, case: Case, x: np.ndarray, y: np.ndarray) -> Any:
        if isinstance(estimator, MLPRegressor):
            return estimator.partial_fit(x, y)
        return estimator.partial_fit(x, y, classes=np.arange(max(case.widths[-1], 2)))

    def losses(self, case: Case, material: Material) -> list[float]:
        estimator = self.learner(case, material)
        found = []
        for x, y in material.batches(case)[:CHECKED_STEPS]:
            estimator.partial_fit(x, targets_of(case, y))
            found.append(float(estimator.loss_) * LOSS_FACTOR.get(case.loss, 1.0))
        return found

    def step(self, case: Case, material: Material) -> Trial:
        estimator = self.learner(case, material)
        batches = [(x, targets_of(case, y)) for x, y in material.batches(case)]
        return trial(estimator.partial_fit, batches)

    def epoch(self, case: Case, material: Material) -> Trial:
        check_possible(case)
        x, y = material.epoch(case)
        targets = targets_of(case, y)

        def repeat(count: int) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                estimator_of(case, count, shuffle=True).fit(x, targets)

        return Trial(repeat, 0, 0, EPOCH_BATCHES)
