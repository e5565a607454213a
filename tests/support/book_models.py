"""Models of the book's classes."""

from nnbackend.nnfs import (
    Accuracy_Categorical,
    Activation_ReLU,
    Activation_Softmax,
    Layer_Dense,
    Loss_CategoricalCrossentropy,
    Model,
    Optimizer_Adam,
)


def classifier(first: Layer_Dense, last: Layer_Dense, learning_rate: float = 0.001) -> Model:
    """Two layers for classes, ready to be trained."""
    model = Model()
    for layer in (first, Activation_ReLU(), last, Activation_Softmax()):
        model.add(layer)
    model.set(
        loss=Loss_CategoricalCrossentropy(), optimizer=Optimizer_Adam(learning_rate),
        accuracy=Accuracy_Categorical(),
    )  # fmt: skip
    model.finalize()
    return model
