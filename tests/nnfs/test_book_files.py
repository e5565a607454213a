"""Model files of the book: what comes out of one, and what is refused."""

import io
import os
import pickle
import sys
import tracemalloc
import types
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from book_models import classifier

import nnbackend as nn
from nnbackend.nnfs import (
    Activation_ReLU,
    Layer_Dense,
    Model,
)


def trained() -> tuple[Model, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    model = classifier(Layer_Dense(4, 8, 0, 1e-3), Layer_Dense(8, 3), learning_rate=0.01)
    train(model, X, y)
    return model, X, y


def train(model, X, y) -> None:
    with redirect_stdout(io.StringIO()):
        model.train(X, y, epochs=3, batch_size=10)


def test_a_model_goes_on_where_it_was_saved(backend, tmp_path) -> None:
    model, X, y = trained()
    before = model.predict(X)
    model.save(tmp_path / "spiral.model")
    np.testing.assert_array_equal(model.predict(X), before)
    loaded = Model.load(tmp_path / "spiral.model")
    np.testing.assert_array_equal(loaded.predict(X), before)
    train(model, X, y)
    train(loaded, X, y)
    np.testing.assert_allclose(loaded.predict(X), model.predict(X), rtol=1e-12)


def test_parameters_alone(backend, tmp_path) -> None:
    model, X, _ = trained()
    model.save_parameters(tmp_path / "spiral.params")
    other, _, _ = trained()
    other.set_parameters([(0 * w, 0 * b) for w, b in other.get_parameters()])
    other.load_parameters(tmp_path / "spiral.params")
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


def as_typed(module_name: str, X, y) -> bytes:
    """A file as the book's own classes write it: plain objects of a script's classes."""
    module = types.ModuleType(module_name)
    names = ("Model", "Layer_Dense", "Layer_Input", "Activation_ReLU", "Activation_Softmax",
             "Loss_CategoricalCrossentropy", "Optimizer_Adam", "Accuracy_Categorical",
             "Activation_Softmax_Loss_CategoricalCrossentropy")  # fmt: skip
    made = {}
    for name in names:
        kind = type(name, (), {"__module__": module_name})
        setattr(module, name, kind)
        made[name] = kind()
    own, _, _ = trained()
    layers = []
    for layer in own.layers:
        plain = getattr(module, type(layer).__name__)()
        if hasattr(layer, "weights"):
            plain.__dict__.update(
                weights=layer.weights, biases=layer.biases, weight_regularizer_l1=0,
                weight_regularizer_l2=1e-3, bias_regularizer_l1=0, bias_regularizer_l2=0,
                weight_momentums=layer.weight_momentums, bias_momentums=layer.bias_momentums,
                weight_cache=layer.weight_cache, bias_cache=layer.bias_cache,
            )  # fmt: skip
        layers.append(plain)
    chain = [made["Layer_Input"], *layers, made["Loss_CategoricalCrossentropy"]]
    for before, layer, after in zip(chain, chain[1:], chain[2:], strict=False):
        layer.prev, layer.next = before, after
    trainable = [layers[0], layers[2]]
    made["Loss_CategoricalCrossentropy"].__dict__.update(
        trainable_layers=trainable, accumulated_sum=np.float64(0.0), accumulated_count=0
    )
    made["Accuracy_Categorical"].__dict__.update(
        binary=False, accumulated_sum=0, accumulated_count=0
    )
    made["Optimizer_Adam"].__dict__.update(vars(own.optimizer))
    made["Model"].__dict__.update(
        layers=layers, trainable_layers=trainable, input_layer=made["Layer_Input"],
        output_layer_activation=layers[-1], loss=made["Loss_CategoricalCrossentropy"],
        optimizer=made["Optimizer_Adam"], accuracy=made["Accuracy_Categorical"],
        softmax_classifier_output=made["Activation_Softmax_Loss_CategoricalCrossentropy"],
    )  # fmt: skip
    sys.modules[module_name] = module
    try:
        return pickle.dumps(made["Model"])
    finally:
        del sys.modules[module_name]


@pytest.mark.parametrize("module", ["__main__x", "my_classes"])
def test_a_file_of_classes_that_a_script_defined(backend, tmp_path, module: str) -> None:
    model, X, y = trained()
    (tmp_path / "typed.model").write_bytes(as_typed(module, X, y))
    loaded = Model.load(tmp_path / "typed.model")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    probabilities = loaded.predict(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    before = [w.copy() for w, _ in loaded.get_parameters()]
    train(loaded, X, y)
    assert all((w != b).any() for (w, _), b in zip(loaded.get_parameters(), before, strict=True))


class Evil:
    def __init__(self, what, *arguments) -> None:
        self.what, self.arguments = what, arguments

    def __reduce__(self):
        return self.what, self.arguments


@pytest.mark.parametrize(
    ("what", "named"),
    [
        (Evil(os.system, "touch hacked"), f"{os.system.__module__}.system"),
        (Evil(eval, "open('hacked', 'w')"), "builtins.eval"),
        (Evil(getattr, "x", "upper"), "builtins.getattr"),
        (Evil(np.load, "x.npy"), "load"),
        (Evil(np.memmap, "hacked", "uint8", "w+", 0, (3,)), "memmap"),
        (Evil(pickle.loads, b"."), "loads"),
        (nn.Sequential, "nnbackend.model.sequential.Sequential"),
        ([os.path.join], "join"),
    ],
    ids=["system", "eval", "getattr", "np.load", "memmap", "loads", "a class", "in a list"],
)
def test_other_names_are_refused_and_said(tmp_path, monkeypatch, what, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.model"
    path.write_bytes(pickle.dumps(what))
    model, _, _ = trained()
    for load in (Model.load, model.load_parameters):
        with pytest.raises(nn.CheckpointError, match=named):
            load(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(3), pickle.dumps([1, 2]), b"\x80\x05."]
)
def test_what_is_no_model(tmp_path, content: bytes) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    model, X, _ = trained()
    before = model.predict(X)
    for load in (Model.load, model.load_parameters):
        with pytest.raises(nn.CheckpointError, match="broken.model"):
            load(path)
    np.testing.assert_array_equal(model.predict(X), before)


def test_a_class_of_the_books_name_is_ours_wherever_it_was_defined(tmp_path) -> None:
    """It is never imported: a module of that name could run anything."""
    path = tmp_path / "x.model"
    # GLOBAL antigravity Layer_Input, then an empty object of it
    path.write_bytes(b"\x80\x02cantigravity\nLayer_Input\n)\x81.")
    with pytest.raises(nn.CheckpointError, match="holds Layer_Input and no model"):
        Model.load(path)
    assert "antigravity" not in sys.modules


#: An array of Python objects at an address of the file's choice, as the weights of a layer.
FORGED = (
    b"\x80\x02cx\nLayer_Dense\n)\x81}(X\x07\0\0\0weights"
    b"cnumpy\nndarray\nK\x01K\x01\x86cnumpy\ndtype\nX\x01\0\0\0O\x85RC\x08AAAAA\0\0\0\x87R"
    b"X\x06\0\0\0biasesNub."
)


@pytest.mark.parametrize(
    "content",
    [
        FORGED,
        # a class's attribute, and one of the standard library's
        b"\x80\x02cx\nLoss_MeanSquaredError\nN}X\x07\0\0\0forwardcx\nModel\ns\x86b.",
        b"\x80\x02ccopyreg\n_reconstructor\nN}X\x08\0\0\0__name__X\x01\0\0\0xs\x86b.",
        # a class that is called, with sizes that take all memory
        b"\x80\x02cx\nLayer_Dense\nM\xff\xffM\xff?\x86R.",
        b"\x80\x02cx\nModel\n)\x81}X\x08\0\0\0__dict__}sb.",
        # arrays with other sizes than their bytes
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
        b"(K\x01J\xff\xff\xff\x7f\x85cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R\x89C\x04abcdtb.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02N" + b"\x85" * 100_000 + b".",
    ],
)
def test_forged_files_are_refused_and_change_nothing(tmp_path, content: bytes) -> None:
    from copyreg import _reconstructor

    from nnbackend.nnfs import Loss_MeanSquaredError

    path, forward = tmp_path / "forged.model", Loss_MeanSquaredError.forward
    path.write_bytes(content)
    state = np.random.get_state()[1].copy()
    model, _, _ = trained()
    state = np.random.get_state()[1].copy()
    for load in (Model.load, model.load_parameters):
        with pytest.raises(nn.CheckpointError):
            load(path)
    assert Loss_MeanSquaredError.forward is forward
    assert _reconstructor.__name__ == "_reconstructor"
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_large_numbers_of_a_shape_are_not_multiplied(tmp_path) -> None:
    """A hundred thousand bits each, a thousand times."""
    number = b"\x8b" + (12500).to_bytes(4, "little") + b"\x7f" * 12500 + b"q\x00"
    shape = b"(" + b"h\x00" * 1000 + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\x01btR"
    kind = b"cnumpy\ndtype\n(X\x02\0\0\0f8I00\nI01\ntR"
    path = tmp_path / "forged.model"
    path.write_bytes(
        b"\x80\x03" + number + b"0" + array + b"(K\x01" + shape + kind + b"I00\nC\0tb."
    )
    with pytest.raises(nn.CheckpointError, match="a shape that no array has"):
        Model.load(path)


def test_a_large_number_in_a_small_file_takes_no_memory(tmp_path) -> None:
    path = tmp_path / "memo.model"
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff0cx\nModel\n)\x81}X\x06\0\0\0layers]sb.")
    tracemalloc.start()
    try:
        with pytest.raises(nn.CheckpointError, match="a model without input_layer"):
            Model.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_files_of_every_protocol(tmp_path, protocol: int) -> None:
    model, X, _ = trained()
    path = tmp_path / "old.params"
    parameters = [(w.astype(">f8"), np.asfortranarray(b)) for w, b in model.get_parameters()]
    path.write_bytes(pickle.dumps(parameters, protocol))
    other, _, _ = trained()
    other.set_parameters([(0 * w, 0 * b) for w, b in other.get_parameters()])
    other.load_parameters(path)
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


class Activation_Swish(Activation_ReLU):  # noqa: N801
    """A reader's own."""

    def forward(self, inputs, training=True) -> None:
        self.inputs = inputs
        self.output = inputs / (1 + np.exp(-inputs))


def test_a_class_of_ones_own_comes_back_where_it_is_given(tmp_path) -> None:
    model, X, _ = trained()
    model.layers[1] = Activation_Swish()
    model.finalize()
    model.save(tmp_path / "swish.model")
    with pytest.raises(nn.CheckpointError, match="custom_objects={'Activation_Swish': "):
        Model.load(tmp_path / "swish.model")
    own = {"Activation_Swish": Activation_Swish}
    loaded = Model.load(tmp_path / "swish.model", custom_objects=own)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_what_could_not_be_loaded_is_not_saved(tmp_path) -> None:
    model, _, _ = trained()
    model.note = Path("a path")
    path = tmp_path / "x.model"
    with pytest.raises(nn.CheckpointError, match="Path"):
        model.save(path)
    assert not path.exists()


def test_parameters_that_do_not_all_fit_change_nothing() -> None:
    model, _, _ = trained()
    before = [(w.copy(), b.copy()) for w, b in model.get_parameters()]
    wrong = [(0 * before[0][0], 0 * before[0][1]), (np.zeros((8, 4)), np.zeros((1, 4)))]
    with pytest.raises(nn.ShapeError):
        model.set_parameters(wrong)
    for found, expected in zip(model.get_parameters(), before, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda m, X, y: m.train(X, y, batch_size=-1),
        lambda m, X, y: m.train(X, y, print_every=0),
        lambda m, X, y: m.evaluate(X, y, batch_size=0),
        lambda m, X, y: m.predict(X[:0]),
    ],
)
def test_sizes_that_make_no_sense(call) -> None:
    with pytest.raises(nn.NNBackendError):
        call(*trained())
