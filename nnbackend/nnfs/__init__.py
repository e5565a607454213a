"""The class names of the book "Neural Networks from Scratch in Python" (Kinsley and Kukieła, 2020).

A script typed along with the book runs on any backend, and faster, if its class definitions are
replaced by one line:

    from nnbackend.nnfs import *

All results are NumPy arrays. ``init``, ``spiral_data``, ``vertical_data`` and ``sine_data`` do what
those of the book's own package do; that package can be used as well.
"""

from nnbackend.nnfs.accuracies import Accuracy, Accuracy_Categorical, Accuracy_Regression
from nnbackend.nnfs.activations import (
    Activation_Linear,
    Activation_ReLU,
    Activation_Sigmoid,
    Activation_Softmax,
)
from nnbackend.nnfs.datasets import init, sine_data, spiral_data, vertical_data
from nnbackend.nnfs.layers import Layer_Dense, Layer_Dropout, Layer_Input
from nnbackend.nnfs.losses import (
    Activation_Softmax_Loss_CategoricalCrossentropy,
    Loss,
    Loss_BinaryCrossentropy,
    Loss_CategoricalCrossentropy,
    Loss_MeanAbsoluteError,
    Loss_MeanSquaredError,
)
from nnbackend.nnfs.model import Model
from nnbackend.nnfs.optimizers import (
    Optimizer_Adagrad,
    Optimizer_Adam,
    Optimizer_RMSprop,
    Optimizer_SGD,
)

__all__ = [
    "Accuracy",
    "Accuracy_Categorical",
    "Accuracy_Regression",
    "Activation_Linear",
    "Activation_ReLU",
    "Activation_Sigmoid",
    "Activation_Softmax",
    "Activation_Softmax_Loss_CategoricalCrossentropy",
    "Layer_Dense",
    "Layer_Dropout",
    "Layer_Input",
    "Loss",
    "Loss_BinaryCrossentropy",
    "Loss_CategoricalCrossentropy",
    "Loss_MeanAbsoluteError",
    "Loss_MeanSquaredError",
    "Model",
    "Optimizer_Adagrad",
    "Optimizer_Adam",
    "Optimizer_RMSprop",
    "Optimizer_SGD",
    "init",
    "sine_data",
    "spiral_data",
    "vertical_data",
]
