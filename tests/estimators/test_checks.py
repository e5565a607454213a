"""scikit-learn's own checks of what an estimator must do, with nothing expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import nnbackend as nn
from nnbackend.sklearn import MLPClassifier, MLPRegressor

pytestmark = [
    pytest.mark.slow_on_stand_in,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # data that some checks let overflow
]


@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_check(backend: nn.Backend, estimator, check) -> None:
    check(estimator)
