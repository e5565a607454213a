"""The book's model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nnbackend._checks import check_size
from nnbackend.errors import CheckpointError, DataError, DTypeError
from nnbackend.nnfs import accuracies, activations, files, layers, losses, optimizers
from nnbackend.nnfs.arrays import Array

_MODULES = (accuracies, activations, layers, losses, optimizers)
_PREFIXES = ("Accuracy", "Activation", "Layer", "Loss", "Optimizer")
#: The book's classes, by name.
CLASSES: dict[str, type] = {
    name: value for module in _MODULES for name, value in vars(module).items()
    if isinstance(value, type) and name.startswith(_PREFIXES)
}  # fmt: skip
#: What a model file leaves out of each layer.
_OF_A_BATCH = ("inputs", "output", "dinputs", "dweights", "dbiases", "binary_mask")


class Model:
    """Layers and activations one after another, trained with a loss, an optimizer and an accuracy.

    Use ``add``, ``set``, ``finalize``, then ``train``.
    """

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.softmax_classifier_output: Any = None
        self.loss: Any = None
        self.optimizer: Any = None
        self.accuracy: Any = None

    def add(self, layer: Any) -> None:
        self.layers.append(layer)

    def set(self, *, loss: Any = None, optimizer: Any = None, accuracy: Any = None) -> None:
        for name, value in (("loss", loss), ("optimizer", optimizer), ("accuracy", accuracy)):
            if isinstance(value, type):
                raise DTypeError(
                    f"{name} is the class {value.__name__}; make one: {value.__name__}()"
                )
            if value is not None:
                setattr(self, name, value)

    def finalize(self) -> None:
        """Connect the layers; call it when all have been added."""
        if not self.layers:
            raise DataError("a model needs layers: add(Layer_Dense(...)) before finalize()")
        self.input_layer = layers.Layer_Input()
        chain = [self.input_layer, *self.layers, self.loss]
        for before, layer, after in zip(chain, chain[1:], chain[2:], strict=False):
            layer.prev, layer.next = before, after
        self.output_layer_activation = self.layers[-1]
        self.trainable_layers = [layer for layer in self.layers if hasattr(layer, "weights")]
        if self.loss is not None:
            self.loss.remember_trainable_layers(self.trainable_layers)
        is_softmax = isinstance(self.layers[-1], activations.Activation_Softmax)
        if is_softmax and isinstance(self.loss, losses.Loss_CategoricalCrossentropy):
            self.softmax_classifier_output = (
                losses.Activation_Softmax_Loss_CategoricalCrossentropy()
            )

    def train(
        self,
        X: Array,
        y: Array,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        print_every: int = 1,
        validation_data: tuple[Array, Array] | None = None,
    ) -> None:
        """Train, in the samples' order, and print how it goes.

        Args:
            batch_size: samples of a step; all without one.
            print_every: steps from one line to the next.
            validation_data: X and y to evaluate on after each epoch.
        """
        self._check(X, y)
        _check_batch_size(batch_size)
        check_size("print_every", print_every)
        self.accuracy.init(y)
        steps = 1 if batch_size is None else -(-len(X) // batch_size)
        for epoch in range(1, epochs + 1):
            print(f"epoch: {epoch}")
            self.loss.new_pass()
            self.accuracy.new_pass()
            for step, (batch_X, batch_y) in enumerate(_batches(batch_size, X, y)):
                output = self.forward(batch_X, training=True)
                data_loss, penalty = self.loss.calculate(
                    output, batch_y, include_regularization=True
                )
                predictions = self.output_layer_activation.predictions(output)
                accuracy = self.accuracy.calculate(predictions, batch_y)
                self.backward(output, batch_y)
                self._update()
                if not step % print_every or step == steps - 1:
                    self._print(f"step: {step}", accuracy, data_loss, penalty)
            data_loss, penalty = self.loss.calculate_accumulated(include_regularization=True)
            self._print("training", self.accuracy.calculate_accumulated(), data_loss, penalty)
            if validation_data is not None:
                self.evaluate(*validation_data, batch_size=batch_size)

    def _check(self, X: Array, y: Array) -> None:
        if self.loss is None or self.accuracy is None or not hasattr(self, "input_layer"):
            raise DataError(
                "a model needs set(loss=..., optimizer=..., accuracy=...) and finalize() first"
            )
        if len(X) != len(y) or not len(X):
            raise DataError(f"X and y need as many samples, at least one; received "
                            f"{len(X)} and {len(y)}")  # fmt: skip

    def _update(self) -> None:
        self.optimizer.pre_update_params()
        for layer in self.trainable_layers:
            self.optimizer.update_params(layer)
        self.optimizer.post_update_params()

    def _print(self, what: str, accuracy: float, data_loss: float, penalty: float) -> None:
        print(
            f"{what}, acc: {accuracy:.3f}, loss: {data_loss + penalty:.3f} "
            f"(data_loss: {data_loss:.3f}, reg_loss: {penalty:.3f}), "
            f"lr: {self.optimizer.current_learning_rate}"
        )

    def evaluate(self, X_val: Array, y_val: Array, *, batch_size: int | None = None) -> None:
        """Print the accuracy and the loss, without penalties."""
        self._check(X_val, y_val)
        _check_batch_size(batch_size)
        self.loss.new_pass()
        self.accuracy.new_pass()
        for batch_X, batch_y in _batches(batch_size, X_val, y_val):
            output = self.forward(batch_X, training=False)
            self.loss.calculate(output, batch_y)
            self.accuracy.calculate(self.output_layer_activation.predictions(output), batch_y)
        accuracy, loss = self.accuracy.calculate_accumulated(), self.loss.calculate_accumulated()
        print(f"validation, acc: {accuracy:.3f}, loss: {loss:.3f}")

    def predict(self, X: Array, *, batch_size: int | None = None) -> Array:
        """The outputs of the last layer."""
        _check_batch_size(batch_size)
        if not len(X):
            raise DataError("predict needs at least one sample; received none")
        batches = _batches(batch_size, X, X)
        return np.vstack([self.forward(batch_X, training=False) for batch_X, _ in batches])

    def forward(self, X: Array, training: bool) -> Array:
        self.input_layer.forward(X, training)
        value = self.input_layer.output
        for layer in self.layers:
            layer.forward(value, training)
            value = layer.output
        return np.asarray(value)

    def backward(self, output: Array, y: Array) -> None:
        """Gradients of all layers, from the last forward's output."""
        rest = self.layers
        if self.softmax_classifier_output is not None:
            self.softmax_classifier_output.backward(output, y)
            gradient = self.layers[-1].dinputs = self.softmax_classifier_output.dinputs
            rest = self.layers[:-1]
        else:
            self.loss.backward(output, y)
            gradient = self.loss.dinputs
        for layer in reversed(rest):
            layer.backward(gradient)
            gradient = layer.dinputs

    # -- parameters and files ---------------------------------------------------------------------

    def get_parameters(self) -> list[tuple[Array, Array]]:
        """Weights and biases of each layer that has them."""
        return [layer.get_parameters() for layer in self.trainable_layers]

    def set_parameters(self, parameters: Any) -> None:
        if len(parameters) != len(self.trainable_layers):
            raise DataError(f"the model has {len(self.trainable_layers)} layers with weights; "
                            f"received parameters of {len(parameters)}")  # fmt: skip
        for own, layer in zip(parameters, self.trainable_layers, strict=True):
            layer.check_parameters(*own)  # all of them, before one is changed
        for own, layer in zip(parameters, self.trainable_layers, strict=True):
            layer.set_parameters(*own)

    def save_parameters(self, path: Any) -> None:
        """Write ``get_parameters`` to a file."""
        files.save(path, self.get_parameters(), {})

    def load_parameters(self, path: Any) -> None:
        """Read them again; see ``load`` for what a file may hold.

        Raises:
            CheckpointError: the file holds something else.
        """
        found = files.load(path, {})
        pairs = isinstance(found, list) and all(
            isinstance(own, tuple | list) and len(own) == 2
            and all(isinstance(array, np.ndarray) for array in own) for own in found
        )  # fmt: skip
        if not pairs:
            raise CheckpointError(f"{path} holds no parameters: a list of weights and biases")
        self.set_parameters(found)

    def save(self, path: Any) -> None:
        """Write the model and its optimizer to a file, without what it knows of a batch."""
        model = copy.deepcopy(self)
        if model.loss is not None:
            model.loss.new_pass()
            model.loss.__dict__.pop("dinputs", None)
        if model.accuracy is not None:
            model.accuracy.new_pass()
        model.input_layer.__dict__.pop("output", None)
        for layer in model.layers:
            for name in _OF_A_BATCH:
                layer.__dict__.pop(name, None)
            if isinstance(layer, layers.Layer_Dense):
                layer.forget_gradients()
        parts = (*self.layers, self.loss, self.optimizer, self.accuracy)
        own = {kind.__name__: kind for kind in files.classes_in(*parts)}
        files.save(path, model, {**CLASSES, **own, "Model": type(self)})

    @staticmethod
    def load(path: Any, custom_objects: Mapping[str, type] | None = None) -> Model:
        """A model that ``save`` or the book's own ``save`` wrote. Only the book's classes and
        NumPy's arrays come out of a file.

        Args:
            custom_objects: your own classes that it may hold, by name.

        Raises:
            CheckpointError: it asks for anything else, which the message names, or is no model.
        """
        found = files.load(path, {**CLASSES, "Model": Model, **(custom_objects or {})})
        if not isinstance(found, Model):
            raise CheckpointError(f"{path} holds {type(found).__name__} and no model")
        missing = [name for name in _OF_A_MODEL if not hasattr(found, name)]
        if missing:
            raise CheckpointError(f"{path} holds a model without {', '.join(missing)}")
        return found


#: What every model that ``finalize`` has been called of has.
_OF_A_MODEL = (
    "layers", "input_layer", "trainable_layers", "loss", "optimizer", "accuracy",
    "softmax_classifier_output",
)  # fmt: skip


def _check_batch_size(size: Any) -> None:
    if size is not None:
        check_size("batch_size", size)


def _batches(size: int | None, X: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    size = len(X) if size is None else size
    for start in range(0, len(X), size):
        yield X[start : start + size], y[start : start + size]
