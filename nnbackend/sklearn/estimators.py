"""The estimators: scikit-learn's parameters, and a few more."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval, StrOptions

from nnbackend.backends.contract import Backend
from nnbackend.sklearn.seam import neural_network
from nnbackend.sklearn.stochastic import StochasticMLP
from nnbackend.training.callback import Callback

_CONSTRAINTS: dict[str, Any] = {
    "backend": [str, None, Backend],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "callbacks": ["array-like", Callback, None],
}


class MLPClassifier(StochasticMLP, neural_network.MLPClassifier):
    """scikit-learn's MLPClassifier on a backend of nnbackend.

    Args, besides scikit-learn's own, which mean what they mean there:
        backend: "numpy", "numba", "cuda", "cuda:1" ...; None takes the current one, which
            ``NN_BACKEND`` sets.
        dropout: rate of the hidden layers' outputs that a training step leaves out; needs
            solver="adam" or "sgd".
        class_weight: dict from class to weight, or "balanced", which weights each class by the
            inverse of its share; multiplies ``sample_weight``.
        callbacks: nnbackend's, called after each epoch with the figures "loss", "lr" and, with
            early_stopping, "val_score"; needs solver="adam" or "sgd".

    Attributes: scikit-learn's.

    Example:
        >>> from nnbackend.sklearn import MLPClassifier
        >>> from sklearn.datasets import load_digits
        >>> x, y = load_digits(return_X_y=True)
        >>> MLPClassifier(max_iter=30, dropout=0.1, random_state=0).fit(x / 16, y).score(x / 16, y)
        0.98...
    """

    __module__ = "nnbackend.sklearn"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
        "class_weight": [StrOptions({"balanced"}), dict, list, None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        backend: str | Backend | None = None,
        dropout: float = 0.0,
        class_weight: Any = None,
        callbacks: Any = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.backend, self.dropout, self.class_weight, self.callbacks = (
            backend,
            dropout,
            class_weight,
            callbacks,
        )


class MLPRegressor(StochasticMLP, neural_network.MLPRegressor):
    """scikit-learn's MLPRegressor on a backend of nnbackend.

    Args, besides scikit-learn's own, which mean what they mean there:
        backend: "numpy", "numba", "cuda", "cuda:1" ...; None takes the current one, which
            ``NN_BACKEND`` sets.
        dropout: rate of the hidden layers' outputs that a training step leaves out; needs
            solver="adam" or "sgd".
        callbacks: nnbackend's, called after each epoch with the figures "loss", "lr" and, with
            early_stopping, "val_score"; needs solver="adam" or "sgd".

    Attributes: scikit-learn's.
    """

    __module__ = "nnbackend.sklearn"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **_CONSTRAINTS,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        backend: str | Backend | None = None,
        dropout: float = 0.0,
        callbacks: Any = None,
    ) -> None:
        super().__init__(
            loss=loss,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.backend, self.dropout, self.callbacks = backend, dropout, callbacks
