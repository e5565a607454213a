"""Where scikit-learn's classes are taken over: parts of them that are not public, checked once."""

from __future__ import annotations

import inspect

INSTALL = 'pip install "nnbackend[sklearn]"'

try:
    import sklearn
    from sklearn import neural_network
    from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
except ImportError as error:
    raise ImportError(
        f"nnbackend.sklearn needs scikit-learn 1.9 ({error}); install it with: {INSTALL}"
    ) from error

__all__ = ["AdamOptimizer", "BaseMultilayerPerceptron", "SGDOptimizer", "neural_network"]

_WORK = "activations deltas coef_grads intercept_grads"
#: Methods that are replaced or relied on, with their parameters.
_EXPECTED = {
    "_fit": "X y sample_weight incremental",
    "_fit_stochastic": f"X y sample_weight {_WORK} layer_units incremental",
    "_fit_lbfgs": f"X y sample_weight {_WORK} layer_units",
    "_backprop": f"X y sample_weight {_WORK}",
    "_forward_pass_fast": "X check_input",
    "_update_no_improvement_count": "early_stopping X y sample_weight",
}


def _check() -> None:
    for kind in (neural_network.MLPClassifier, neural_network.MLPRegressor):
        for name, parameters in _EXPECTED.items():
            method = getattr(kind, name, None)
            found = [] if method is None else list(inspect.signature(method).parameters)[1:]
            if found != parameters.split():
                raise ImportError(
                    f"nnbackend.sklearn was written for scikit-learn 1.9, and {kind.__name__}."
                    f"{name} is another one in {sklearn.__version__}; install one that fits with: "
                    f"{INSTALL}"
                )


_check()
