"""An estimator whose arithmetic a ``Network`` does: fits by L-BFGS, predictions, copies."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import scipy.special
from sklearn.utils import compute_sample_weight
from sklearn.utils.validation import validate_data

from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.errors import BackendUnavailableError
from nnbackend.sklearn.network import HostArray, Network, Shape
from nnbackend.sklearn.seam import BaseMultilayerPerceptron


class NetworkMLP(BaseMultilayerPerceptron):
    """What is done differently than in scikit-learn's class, which comes after this one among a
    class's bases."""

    class_weight: Any = None
    _network: Network | None = None

    # -- fitting --------------------------------------------------------------------------------

    def _fit(
        self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False
    ) -> NetworkMLP:
        self._check_settings(incremental)
        before = dict(vars(self))
        for name in ("coefs_", "intercepts_"):  # which are changed in place
            if name in before:
                before[name] = copy.deepcopy(before[name])
        if not incremental and not self.warm_start:
            self._network = None  # arrays that a caller has of an earlier fit stay as they are
        try:
            super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)
        except Exception:
            # nothing half-trained stays behind, nor an optimizer that has seen what failed
            self.__dict__.clear()
            self.__dict__.update(before, _network=None)
            self.__dict__.pop("_optimizer", None)
            raise
        return self

    def _check_settings(self, incremental: bool) -> None:
        if self.solver == "lbfgs":
            for name, unset in (("dropout", 0.0), ("callbacks", None)):
                if getattr(self, name) != unset and getattr(self, name) != []:
                    raise ValueError(
                        f"{name} needs solver='adam' or 'sgd': lbfgs minimises one function of all "
                        f"rows, without epochs. Received solver='lbfgs', "
                        f"{name}={getattr(self, name)!r}"
                    )
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' needs all rows, and partial_fit has only some. Compute "
                "the weights with sklearn.utils.compute_class_weight('balanced', classes=..., "
                "y=...) and pass them as a dict"
            )

    def _fit_lbfgs(self, X: Any, y: HostArray, sample_weight: HostArray | None, *work: Any) -> None:
        weight = self._weights(y, sample_weight)
        self._network = self._make_network(X.dtype)
        super()._fit_lbfgs(X, y, weight, *work)
        self._network.forget_data()
        self._take_weights(self._network)

    def _backprop(
        self, X: Any, y: HostArray, sample_weight: HostArray | None, *work: Any
    ) -> tuple[float, list[HostArray], list[HostArray]]:
        """The loss over all rows, and its gradient by weights and biases."""
        network = self._network
        if network is None:
            network = self._network = self._make_network(X.dtype)
        network.write(self.coefs_, self.intercepts_)
        loss, coef_grads, intercept_grads = network.gradient(X, y, sample_weight)
        total = len(y) if sample_weight is None else sample_weight.sum()
        squares = 0.0
        for coef, gradient in zip(self.coefs_, coef_grads, strict=True):
            squares += np.vdot(coef, coef)
            gradient += (self.alpha / total) * coef
        constants = self._constants(y)
        if constants is not None:
            loss += np.average(constants, weights=sample_weight)
        loss += 0.5 * self.alpha * squares / total
        return loss, coef_grads, intercept_grads

    def _weights(self, y: HostArray, sample_weight: HostArray | None) -> HostArray | None:
        """The rows' weights, with those of their classes."""
        if sample_weight is not None and (sample_weight < 0).any():
            raise ValueError(f"sample_weight must not be negative; received {sample_weight.min()}")
        if self.class_weight is None:
            return sample_weight
        labels = self._label_binarizer.inverse_transform(y.astype(np.int64))
        weight: HostArray = compute_sample_weight(self.class_weight, labels)
        return weight if sample_weight is None else weight * sample_weight

    def _constants(self, y: HostArray) -> HostArray | None:
        """What scikit-learn's loss has for each row and ours has not: Poisson's is 0 there where
        predictions are right. None for the other losses."""
        if self.out_activation_ != "exp":
            return None
        terms: HostArray = (scipy.special.xlogy(y, y) - y).sum(axis=1)
        return terms

    # -- the network ------------------------------------------------------------------------------

    def _shape(self, dtype: Any, backend: Backend, dropout: float = 0.0, l2: float = 0.0) -> Shape:
        units = [np.shape(self.coefs_[0])[0], *(np.shape(coef)[1] for coef in self.coefs_)]
        return Shape(
            tuple(units), self.activation, self.out_activation_, np.dtype(dtype), backend,
            dropout, l2,
        )  # fmt: skip

    def _make_network(self, dtype: Any) -> Network:
        """For L-BFGS: SciPy has the optimizer, and the penalties are added here."""
        return Network(self._shape(dtype, get_backend(self.backend)))

    def _take_weights(self, network: Network) -> None:
        network.refresh()
        self.coefs_, self.intercepts_ = list(network.coefs), list(network.intercepts)

    # -- predictions ------------------------------------------------------------------------------

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> HostArray:
        """Predictions (n_samples, n_outputs)."""
        if check_input and not self._is_plain(X):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        network = self._inference_network()
        network.write(self.coefs_, self.intercepts_)
        out = network.predictions(X)
        wider = np.result_type(X.dtype, out.dtype)
        return out if wider == out.dtype or wider.kind != "f" else out.astype(wider)

    def _is_plain(self, X: Any) -> bool:
        """Whether it is seen at a glance that scikit-learn's checks, which take ten times as long
        as one row's outputs, would find nothing in X and leave it as it is."""
        return (
            type(X) is np.ndarray
            and X.dtype.char in "fd"
            and X.ndim == 2
            and len(X) > 0
            and X.shape[1] == getattr(self, "n_features_in_", -1)
            and not hasattr(self, "feature_names_in_")
            and bool(np.isfinite(X.sum()))
        )

    def _inference_network(self) -> Network:
        network = self._network
        if network is not None:
            shape = network.shape
            same = (shape.activation, shape.output) == (self.activation, self.out_activation_)
            if same and len(self.coefs_) == len(network.coefs) and all(
                given is own
                or (np.shape(given) == own.shape and getattr(given, "dtype", None) == own.dtype)
                for given, own in zip(self.coefs_, network.coefs, strict=True)
            ):  # fmt: skip
                return network
        try:
            backend = get_backend(self.backend)
        except BackendUnavailableError as error:
            backend = get_backend()
            warnings.warn(
                f"this estimator was fitted with backend={self.backend!r}, which cannot run here "
                f"({error}); predicting with {backend.device}",
                stacklevel=5,
            )
        dtype = np.result_type(*(np.asarray(coef).dtype for coef in self.coefs_))
        self._network = Network(self._shape(dtype, backend))
        return self._network

    # -- copies ---------------------------------------------------------------------------------

    def _keep_optimizer(self) -> None:
        """Leave the optimizer's state where a copy finds it."""

    def __getstate__(self) -> dict[str, Any]:
        self._keep_optimizer()
        state: dict[str, Any] = super().__getstate__()
        state.pop("_network", None)
        return state
