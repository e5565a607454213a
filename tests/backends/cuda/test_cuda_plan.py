"""How a graph's launches are planned: what is part of a product, beside another, in bfloat16.

Whatever way is taken, training has to be that of launches one by one.
"""

import json
import shutil

import numpy as np
import pytest
from cuda_stand_in import StandInBackend, compiler

import nnbackend as nn
from nnbackend.backends.cuda.gemm import Epilogue, ProductError
from nnbackend.backends.cuda.row_groups import groups_of
from nnbackend.backends.cuda.tuning import TuningCache
from nnbackend.data.sources import make_source
from nnbackend.executor.base import Run
from nnbackend.executor.python import PythonExecutor
from nnbackend.kernels.codes import Op

pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)
BIASES = (Epilogue.PLAIN, Epilogue.BIAS, Epilogue.RELU)
EPILOGUES = {"none": (Epilogue.PLAIN,), "biases": BIASES, "all": tuple(Epilogue)}
MODELS = {
    "relu": lambda: [nn.Dense(6, 9, "relu"), nn.Dense(9, 7, "relu"), nn.Dense(7, 4)],
    "linear": lambda: [nn.Dense(6, 9), nn.Dense(9, 7, "relu"), nn.Dense(7, 4, "relu")],
    "no bias": lambda: [
        nn.Dense(6, 9, "relu", bias=False), nn.Dense(9, 7, bias=False), nn.Dense(7, 4, bias=False),
    ],
    "curved": lambda: [
        nn.Dense(6, 9, "gelu"), nn.Dense(9, 9, "tanh"), nn.Dense(9, 7, "silu"), nn.Dense(7, 4),
    ],
    "softmax inside": lambda: [nn.Dense(6, 9, "softmax"), nn.Dense(9, 4)],
    "norms between": lambda: [
        nn.Standardize(6), nn.Dense(6, 9), nn.BatchNorm(9), nn.ReLU(), nn.Dense(9, 8, "relu"),
        nn.LayerNorm(8), nn.Dense(8, 7), nn.Dropout(0.3), nn.Dense(7, 4),
    ],
    "norms with what follows": lambda: [
        # a bias below a norm gets rounding for a gradient, which Adam makes large
        nn.BatchNorm(6), nn.Tanh(), nn.Dense(6, 9, bias=False), nn.BatchNorm(9), nn.GELU(),
        nn.Dropout(0.3), nn.Dense(9, 8), nn.LayerNorm(8), nn.SiLU(), nn.Dropout(0.2),
        nn.Dropout(0.1), nn.Dense(8, 7, bias=False), nn.BatchNorm(7), nn.Softmax(),
        nn.Dropout(0.1), nn.Dense(7, 4, bias=False), nn.BatchNorm(4), nn.ReLU(),
    ],
    "frozen with what follows": lambda: [
        nn.Dense(6, 9, trainable=False), nn.Tanh(), nn.Dropout(0.3), nn.Dense(9, 4),
    ],
    "frozen": lambda: [
        nn.Dense(6, 9, "relu", trainable=False), nn.Dense(9, 8, "relu"),
        nn.Dense(8, 8, "relu", trainable=False), nn.Dense(8, 4),
    ],
    "nothing to train": lambda: [nn.Dense(6, 4, trainable=False)],
    "penalties": lambda: [
        nn.Dense(6, 9, "relu", weight_l2=1e-2, bias_l1=1e-2), nn.Dense(9, 4, weight_l1=1e-3),
    ],
}  # fmt: skip


def model_of(layers: str, device: StandInBackend, precision: str = "fp32", dtype: str = "float32",
             loss: str = "softmax_cross_entropy") -> nn.Sequential:  # fmt: skip
    model = nn.Sequential(MODELS[layers](), seed=4, dtype=dtype, backend=device,
                          precision=precision)  # fmt: skip
    model.compile(loss, nn.AdamW(0.01), ["accuracy"] if "softmax" in loss else ["mae"])
    return model


def eager(model: nn.Sequential) -> nn.Sequential:
    model.executor = PythonExecutor(model.program, model.backend)
    return model


def train(model: nn.Sequential, rng, labels: bool = True, epochs: int = 3) -> list[float]:
    x = rng.normal(size=(50, 6))
    y = rng.integers(0, 4, 50) if labels else rng.normal(size=(50, 4))
    model.fit(x, y, epochs=epochs, batch_size=12, verbose=0)
    return [*model.history["loss"], *model.evaluate(x, y).values(), *model.predict(x).ravel()]


@pytest.fixture
def fresh():
    return lambda: np.random.default_rng(77)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("epilogues", EPILOGUES)
@pytest.mark.parametrize("layers", MODELS)
def test_every_way_trains_as_launches_one_by_one_do(fresh, layers, epilogues, late, dtype) -> None:
    settings = {"epilogues": EPILOGUES[epilogues], "late": late}
    planned = model_of(layers, StandInBackend(**settings), dtype=dtype)
    launched = eager(model_of(layers, StandInBackend(), dtype=dtype))
    tolerance = 1e-11 if dtype == "float64" else 1e-4
    found, expected = train(planned, fresh()), train(launched, fresh())
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    arrays = launched.arrays()
    for name, array in planned.arrays().items():
        np.testing.assert_allclose(array, arrays[name], rtol=tolerance, atol=tolerance)


def test_a_kernel_does_what_follows_a_norm_or_an_activation() -> None:
    program = model_of("norms with what follows", StandInBackend()).program
    ops = [Op(row.op).name for row in program.rows]
    found = [ops[first : last + 1] for first, last in groups_of(program, program.rows).items()]
    assert found == [
        ["BATCH_NORM", "ACTIVATION"], ["BATCH_NORM", "ACTIVATION", "DROPOUT"],
        ["ACTIVATION", "DROPOUT"], ["BATCH_NORM", "ACTIVATION"],
    ]  # fmt: skip


@pytest.mark.parametrize("slow_epilogues", [False, True])
@pytest.mark.parametrize("layers", MODELS)
def test_bfloat16_between_layers_is_as_good_as_rounding_each_operand(
    fresh, layers, slow_epilogues
) -> None:
    """One step, since training amplifies what rounding does."""
    models = [
        model_of(layers, StandInBackend(slow_epilogues=slow_epilogues, late=True), "bf16"),
        eager(model_of(layers, StandInBackend(), "bf16")),
        eager(model_of(layers, StandInBackend())),
    ]
    x, y = fresh().normal(size=(50, 6)), fresh().integers(0, 4, 50)
    for model in models:
        model.compile("softmax_cross_entropy", nn.SGD(1.0))
        model.fit(x, y, batch_size=50, shuffle=False, verbose=0)
    found, expected, exact = (model.arrays() for model in models)
    for name, truth in exact.items():
        allowed = 2.5 * np.abs(expected[name] - truth).max() + 5e-4
        assert np.abs(found[name] - truth).max() <= allowed, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_over_numbers_hand_their_gradient_down(fresh, precision: str) -> None:
    for layers in ("relu", "linear", "curved"):
        models = [
            model_of(layers, StandInBackend(late=True), precision, loss="mean_squared_error"),
            eager(model_of(layers, StandInBackend(), precision, loss="mean_squared_error")),
        ]
        found, expected = (train(model, fresh(), labels=False) for model in models)
        tolerance = 1e-4 if precision == "fp32" else 0.05
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_the_fastest_way_is_taken_and_remembered(fresh) -> None:
    fast, slow = StandInBackend(), StandInBackend(slow_epilogues=True)
    for device in (fast, slow):
        train(model_of("relu", device), fresh())
        device.gpu.epilogues_done.clear()
        train(model_of("relu", device), fresh())  # asks nothing any more
    assert fast.gpu.epilogues_done == set(Epilogue)  # nothing can be part of what leads down
    assert slow.gpu.epilogues_done == {Epilogue.PLAIN}


def test_a_product_that_is_refused_after_all_is_not_taken(fresh) -> None:
    device = StandInBackend()
    multiply = device.gpu.product

    def product(product) -> None:
        if product.epilogue is Epilogue.RELU:
            raise ProductError("planted")
        multiply(product)

    device.gpu.product = product
    found = train(model_of("relu", device), fresh())
    expected = train(eager(model_of("relu", StandInBackend())), fresh())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert Epilogue.BIAS in device.gpu.epilogues_done
    assert Epilogue.RELU not in device.gpu.epilogues_done


@pytest.mark.parametrize("wrong", [e for e in Epilogue if e is not Epilogue.PLAIN])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_epilogue_that_computes_something_else_is_not_taken(fresh, wrong, precision) -> None:
    device = StandInBackend()
    multiply = device.gpu._multiply

    def spoilt(product) -> None:
        multiply(product)
        if product.epilogue is wrong:
            x = product.vector if wrong is Epilogue.COLUMN_SUMS else product.out
            x.view(np.ndarray)[...] = np.roll(x.view(np.ndarray), 1, axis=-1)

    device.gpu._multiply = spoilt
    models = [
        model_of("relu", device, precision), eager(model_of("relu", StandInBackend(), precision)),
    ]  # fmt: skip
    x, y = fresh().normal(size=(50, 6)), fresh().integers(0, 4, 50)
    for model in models:
        model.compile("softmax_cross_entropy", nn.SGD(0.1))
    with pytest.warns(UserWarning, match="give other results than kernels of their own"):
        models[0].fit(x, y, batch_size=50, verbose=0)
    device.gpu.epilogues_done.clear()
    models[0].fit(x, y, batch_size=50, verbose=0)
    models[1].fit(x, y, epochs=2, batch_size=50, verbose=0)
    assert wrong not in device.gpu.epilogues_done
    arrays = models[1].arrays()
    for name, array in models[0].arrays().items():
        np.testing.assert_allclose(array, arrays[name], atol=1e-5 if precision == "fp32" else 1e-2)


def test_bfloat16_rounds_nothing_between_dense_layers(fresh, monkeypatch) -> None:
    """One pass over the parameters at the beginning of a run, none in a step."""
    device = StandInBackend()
    launched, launch = [], device.gpu._launch
    monkeypatch.setattr(
        device.gpu, "_launch", lambda each: (launched.append(each.kernel), launch(each))
    )
    model = model_of("relu", device, "bf16")
    train(model, fresh())
    launched.clear()
    x, y = fresh().normal(size=(48, 6)), fresh().integers(0, 4, 48)
    source = make_source(model.program, x, y)
    model.executor.run(Run(source.data, None, 12, model.program.rates(model.step, 8), model.step))
    assert launched.count("begin_step") == 8
    assert launched.count("round_to_bf16") == 1


def test_parameters_set_from_outside_reach_bfloat16_products(fresh) -> None:
    model = model_of("relu", StandInBackend(), "bf16")
    x = fresh().normal(size=(5, 6))
    model.predict(x)
    for layer in model.layers:
        layer.weight = np.zeros(layer.weight.shape)
        layer.bias = np.full(layer.bias.shape, 0.5)
    np.testing.assert_array_equal(model.predict(x), 0.5)


class TestChoices:
    def test_they_are_kept_for_later_processes(self, tmp_path) -> None:
        path = tmp_path / "new" / "choices.json"
        TuningCache("one", path).keep("question", "answer")
        TuningCache("other", path).keep("question", "else")
        assert TuningCache("one", path).get("question") == "answer"
        assert TuningCache("other", path).get("question") == "else"
        assert TuningCache("third", path).get("question") is None
        assert json.loads(path.read_text()) == {
            "one": {"question": "answer"}, "other": {"question": "else"},
        }  # fmt: skip

    @pytest.mark.parametrize("content", ["", "[1]", '{"one": 3}', "\x00"])
    def test_a_broken_file_is_one_without_answers(self, tmp_path, content: str) -> None:
        path = tmp_path / "choices.json"
        path.write_text(content)
        choices = TuningCache("one", path)
        assert choices.get("question") is None
        choices.keep("question", "answer")
        assert TuningCache("one", path).get("question") == "answer"

    def test_a_folder_that_cannot_be_written_keeps_them_in_memory(self, tmp_path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        choices = TuningCache("one", blocked / "choices.json")
        choices.keep("question", "answer")
        assert choices.get("question") == "answer"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("layers", MODELS)
def test_driven_from_outside_it_does_what_launches_one_by_one_do(fresh, layers, precision) -> None:
    """The two ways of a step are graphs of their own; the gradient by the input is a product more,
    or the whole way again."""
    planned = model_of(layers, StandInBackend(), precision)
    alone = eager(model_of(layers, StandInBackend(), precision))
    rng = fresh()
    x, dy = rng.normal(size=(6, 20, 6)), rng.normal(size=(6, 20, 4)) / 20
    if planned.layers[0].adapts:
        for model in (planned, alone):
            model.layers[0].adapt(x[0])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.1, "atol": 0.02}
    for step in range(6):
        found = []
        for model in (planned, alone):
            y = model.forward(x[step])
            dx = model.backward(dy[step], input_gradient=step % 2 == 0)
            gradient = model.flat_gradient
            model.apply_gradients()
            found.append([np.zeros(1) if a is None else model.backend.to_numpy(a)
                          for a in (y, dx, gradient)])  # fmt: skip
        for ours, theirs in zip(*found, strict=True):
            np.testing.assert_allclose(ours, theirs, **tolerance)
    # what Adam makes of a gradient that is nothing but rounding says nothing
    for name, values in alone.arrays().items() if precision == "fp32" else ():
        np.testing.assert_allclose(planned.arrays()[name], values, **tolerance)
