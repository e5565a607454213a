"""scikit-learn's multi-layer perceptrons on nnbackend's backends: a script changes its import.

    from nnbackend.sklearn import MLPClassifier

``MLPClassifier`` and ``MLPRegressor`` are subclasses of scikit-learn's own that do the arithmetic
elsewhere: the parameters and attributes are the same, and the same ``random_state`` gives the same
weights up to rounding.

Needs scikit-learn 1.9: ``pip install "nnbackend[sklearn]"``.
"""

from nnbackend.sklearn.converters import register_with_skl2onnx
from nnbackend.sklearn.estimators import MLPClassifier, MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor", "register_with_skl2onnx"]
