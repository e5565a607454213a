"""An estimator whose arithmetic a ``Network`` does: fits by L-BFGS, predictions, copies."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special
from sklearn.utils import compute_class_weight, compute_sample_weight
from sklearn.utils.validation import validate_data

from nnbackend._output import warn
from nnbackend._types import HostArray
from nnbackend.backends import get_backend
from nnbackend.backends.contract import Backend
from nnbackend.errors import BackendUnavailableError
from nnbackend.sklearn.network import Network, Shape, is_mostly_zeros
from nnbackend.sklearn.seam import BaseMultilayerPerceptron


class NetworkMLP(BaseMultilayerPerceptron):
    """What is done differently than in scikit-learn's class, which comes after this one among a
    class's bases."""

    class_weight: Any = None
    _network: Network | None = None
    #: whether a fit has come so far as to change anything
    _begun: bool = False

    # -- fitting --------------------------------------------------------------------------------

    def _fit(
        self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False
    ) -> NetworkMLP:
        self._check_settings(incremental)
        untouched = dict(vars(self))
        before = dict(untouched)
        for name in ("coefs_", "intercepts_"):  # which are changed in place
            if name in before:
                before[name] = copy.deepcopy(before[name])
        self._begun = False
        if not incremental and not self.warm_start:
            self._network = None  # arrays that a caller has of an earlier fit stay as they are
        try:
            super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)
        except Exception:
            begun = self._begun
            self.__dict__.clear()
            self.__dict__.update(before if begun else untouched)
            if begun:  # nothing half-trained stays behind, nor an optimizer that has seen it
                self._network = None
                self.__dict__.pop("_optimizer", None)
            raise
        self.__dict__.pop("_begun", None)
        return self

    def _check_settings(self, incremental: bool) -> None:
        if self.solver == "lbfgs":
            for name, unset in (("dropout", 0.0), ("callbacks", None)):
                if getattr(self, name) not in (unset, [], ()):
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

    def _check_units(self, layer_units: Sequence[int], shape: Shape) -> None:
        """Whether weights that are there are of the network that is asked for."""
        if tuple(layer_units) != shape.units:
            own, asked = ("-".join(map(str, units)) for units in (shape.units, layer_units))
            raise ValueError(
                f"the fitted network is {own}, and X, hidden_layer_sizes and y ask for {asked}: "
                f"pass what fits it, or fit with warm_start=False"
            )

    def _fit_lbfgs(self, X: Any, y: HostArray, sample_weight: HostArray | None, *work: Any) -> None:
        weight, layer_units = self._weights(y, sample_weight), work[-1]
        self._network = self._make_network()
        self._check_units(layer_units, self._network.shape)
        self._begun = True
        if scipy.sparse.issparse(X):
            X = X.tocsr()
        try:
            super()._fit_lbfgs(X, y, weight, *work)
        finally:
            self._network.forget_data()
        self._network.write(self.coefs_, self.intercepts_)  # not the last point that was tried
        self._take_weights(self._network)

    def _backprop(
        self, X: Any, y: HostArray, sample_weight: HostArray | None, *work: Any
    ) -> tuple[float, list[HostArray], list[HostArray]]:
        """The loss over all rows, and its gradient by weights and biases."""
        network = self._network
        if network is None:
            network = self._network = self._make_network()
        if is_mostly_zeros(X) and not network.takes(X):  # scikit-learn multiplies it as it is
            found: tuple[float, list[HostArray], list[HostArray]]
            found = super()._backprop(X, y, sample_weight, *work)
            return found
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
        weight = sample_weight
        if self.class_weight is not None:
            labels = self._label_binarizer.inverse_transform(y.astype(np.int64))
            weight = self._class_weights(labels)
            weight = weight if sample_weight is None else weight * sample_weight
        if weight is None:
            return None
        mean = float(weight.mean(dtype=np.float64))
        # only their proportions count, and the network's dtype may lack numbers of their size
        return weight if mean == 0.0 or 1e-30 < mean < 1e30 else weight / mean

    def _class_weights(self, labels: HostArray) -> HostArray:
        """The weight of each row's class. A class that a dict leaves out has 1, also where these
        rows have no other."""
        weight: HostArray
        if not isinstance(self.class_weight, Mapping) or labels.ndim > 1:
            weight = compute_sample_weight(self.class_weight, labels)
            return weight
        classes = self.classes_
        weight = compute_class_weight(self.class_weight, classes=classes, y=classes)
        return weight[np.searchsorted(classes, labels)]

    def _constants(self, y: HostArray) -> HostArray | None:
        """What scikit-learn's loss has for each row and ours has not: Poisson's is 0 there where
        predictions are right. None for the other losses."""
        if self.out_activation_ != "exp":
            return None
        terms: HostArray = (scipy.special.xlogy(y, y) - y).sum(axis=1)
        return terms

    # -- the network ------------------------------------------------------------------------------

    def _shape(self, backend: Backend, dropout: float = 0.0, decays: bool = False) -> Shape:
        """Of the network that the weights are of, in their dtype.

        Raises:
            ValueError: they are no network's.
        """
        shapes = [np.shape(coef) for coef in self.coefs_]
        biases = [np.shape(bias) for bias in self.intercepts_]
        fits = all(len(shape) == 2 for shape in shapes) and all(
            above[0] == below[1] for below, above in pairwise(shapes)
        )
        if not fits or biases != [shape[1:] for shape in shapes]:
            raise ValueError(
                f"coefs_ and intercepts_ are no network's: each layer has as many rows as the one "
                f"before has columns, and as many biases as columns. Received coefs_ of shapes "
                f"{shapes} and intercepts_ of {biases}"
            )
        dtype = np.result_type(np.float32, *(np.asarray(coef).dtype for coef in self.coefs_))
        return Shape(
            (shapes[0][0], *(shape[1] for shape in shapes)), self.activation,
            self.out_activation_, dtype, backend, dropout, decays,
        )  # fmt: skip

    def _make_network(self) -> Network:
        """For L-BFGS: SciPy has the optimizer, and the penalties are added here."""
        return Network(self._shape(get_backend(self.backend)))

    def _take_weights(self, network: Network) -> None:
        self.coefs_, self.intercepts_ = network.show()

    # -- predictions ------------------------------------------------------------------------------

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> HostArray:
        """Predictions (n_samples, n_outputs)."""
        if check_input and not self._is_plain(X):
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        if type(X) is not np.ndarray and is_mostly_zeros(X):
            out: HostArray = super()._forward_pass_fast(X, check_input=False)
            return out
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
            and math.isfinite(np.vdot(X, X))
        )

    def _inference_network(self) -> Network:
        network = self._network
        if network is not None:
            shape = network.shape
            same = (shape.activation, shape.output) == (self.activation, self.out_activation_)
            if same and network.has(self.coefs_, self.intercepts_):
                return network
            own = self._shape(shape.backend, shape.dropout, shape.decays)
            if same and own == shape and network.is_free_for(self.coefs_, self.intercepts_):
                return network
        try:
            backend = get_backend(self.backend)
        except BackendUnavailableError as error:
            backend = get_backend()
            warn(
                f"this estimator was fitted with backend={self.backend!r}, which cannot run here "
                f"({error}); predicting with {backend.device}",
            )
        self._network = Network(self._shape(backend))
        return self._network

    # -- copies ---------------------------------------------------------------------------------

    def _keep_optimizer(self) -> None:
        """Leave the optimizer's state where a copy finds it."""

    def __getstate__(self) -> dict[str, Any]:
        self._keep_optimizer()
        state: dict[str, Any] = super().__getstate__()
        state.pop("_network", None)
        return state
