"""Targets of another shape than the predictions, which NumPy would make a matrix of."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.nnfs import (
    Accuracy_Categorical,
    Accuracy_Regression,
    Activation_Softmax_Loss_CategoricalCrossentropy,
    Loss_BinaryCrossentropy,
    Loss_CategoricalCrossentropy,
    Loss_MeanAbsoluteError,
    Loss_MeanSquaredError,
)

COLUMN = np.linspace(0.1, 0.9, 5)[:, None]
CLASSES = np.full((5, 3), 1 / 3)


@pytest.mark.parametrize(
    "loss", [Loss_MeanSquaredError, Loss_MeanAbsoluteError, Loss_BinaryCrossentropy]
)
@pytest.mark.parametrize("method", ["calculate", "backward"])
def test_numbers_have_the_shape_of_the_predictions(loss, method) -> None:
    with pytest.raises(
        nn.ShapeError, match=r"\(5, 1\); received \(5,\)\. Pass y\.reshape\(-1, 1\)"
    ):
        getattr(loss(), method)(COLUMN, COLUMN[:, 0])
    with pytest.raises(nn.ShapeError, match=r"received \(4, 1\)$"):
        getattr(loss(), method)(COLUMN, COLUMN[:4])
    getattr(loss(), method)(COLUMN, COLUMN)


@pytest.mark.parametrize("method", ["calculate", "backward"])
def test_classes_are_one_for_each_sample(method) -> None:
    loss, labels = Loss_CategoricalCrossentropy(), np.array([0, 1, 2, 0, 1])
    with pytest.raises(nn.ShapeError, match=r"received \(5, 1\)\. Pass y\.reshape\(-1\)"):
        getattr(loss, method)(CLASSES, labels[:, None])
    for given in (labels, np.eye(3)[labels]):
        getattr(loss, method)(CLASSES, given)


def test_softmax_and_loss_in_one() -> None:
    both, labels = Activation_Softmax_Loss_CategoricalCrossentropy(), np.array([[0], [1], [2]])
    with pytest.raises(nn.ShapeError, match="received"):
        both.forward(np.ones((3, 3)), labels)
    with pytest.raises(nn.ShapeError, match="received"):
        both.backward(np.full((3, 3), 1 / 3), labels)


def test_accuracies() -> None:
    regression = Accuracy_Regression()
    regression.init(COLUMN)
    for accuracy in (Accuracy_Categorical(binary=True), regression):
        with pytest.raises(nn.ShapeError, match="Pass y"):
            accuracy.calculate(COLUMN, COLUMN[:, 0])
        assert accuracy.calculate(COLUMN, COLUMN) == 1
    assert Accuracy_Categorical().calculate(np.array([0, 1]), np.eye(2)) == 1
