"""Products in reduced precision: numbers are rounded before they are multiplied, nothing else is.

The stand-in rounds as tensor cores do; that a GPU does so too is for ``test_gpu.py`` to show.
"""

import copy
import shutil

import numpy as np
import pytest
from cuda_stand_in import StandInBackend, compiler

import nnbackend as nn

#: Largest relative error of a number rounded to so many bits of mantissa.
ROUNDING = {"tf32": 2.0**-11, "bf16": 2.0**-8}
pytestmark = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason="the stand-in device needs a C++ compiler"
)


@pytest.mark.parametrize("precision", ROUNDING)
def test_products_are_off_by_the_rounding_of_their_numbers(rng, precision: str) -> None:
    layers = [nn.Sequential([nn.Dense(300, 40)], seed=0, backend=StandInBackend(), precision=p)
              for p in ("fp32", precision)]  # fmt: skip
    x = rng.normal(size=(50, 300)).astype("float32")
    exact, rounded = (model.predict(x) for model in layers)
    sizes = np.abs(x) @ np.abs(layers[0].layers[0].weight.view(np.ndarray))
    error = np.abs(exact - rounded) / sizes
    assert 0 < error.max() < 2.1 * ROUNDING[precision]


def test_rounding_to_bfloat16_goes_to_even_and_keeps_what_is_special(rng) -> None:
    device = StandInBackend()
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-7, np.inf, -np.inf, np.nan, 0, -0.0, 3e38],
                 np.float32)  # fmt: skip
    bits = device.to_numpy(device._in_bf16("a", device.asarray(x, x.dtype)))
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    expected = [1, 1, 1 + 2**-6, -1 - 2**-7, np.inf, -np.inf, np.nan, 0, -0.0]
    np.testing.assert_array_equal(back[:-1], np.array(expected, np.float32))
    assert np.signbit(back[8])
    numbers = rng.normal(size=10_000).astype("float32")
    bits = device.to_numpy(device._in_bf16("a", device.asarray(numbers, numbers.dtype)))
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.abs(back / numbers - 1).max() <= ROUNDING["bf16"]


@pytest.mark.parametrize("precision", ROUNDING)
def test_digits_are_learnt_and_weights_stay_float32(precision: str) -> None:
    x, y = nn.datasets.digits()
    model = nn.Sequential(
        [nn.Dense(64, 32, "relu"), nn.Dense(32, 10)], seed=0, backend=StandInBackend(),
        precision=precision,
    )  # fmt: skip
    model.compile("softmax_cross_entropy", nn.Adam(3e-3), ["accuracy"])
    history = model.fit(x, y, epochs=10, batch_size=64, verbose=0)
    assert history["accuracy"][-1] > 0.95
    weight = model.arrays()["layers.0.weight"]
    assert (weight.view(np.uint32) & 0xFFFF).any()  # master weights are not rounded


def test_models_of_several_precisions_share_a_device(rng) -> None:
    device = StandInBackend()
    models = [nn.Sequential([nn.Dense(4, 3)], seed=0, backend=device, precision=p)
              for p in ("fp32", "tf32", "bf16", "bf16")]  # fmt: skip
    assert models[2].backend is models[3].backend
    assert all(model.backend.gpu is device.gpu for model in models)
    # one captures at a time: what it runs beside is on the device's second stream
    assert all(model.backend.lock is device.lock for model in models)
    x = rng.normal(size=(5, 4))
    outputs = [model.predict(x) for model in models]
    assert not np.array_equal(outputs[0], outputs[2])
    np.testing.assert_array_equal(outputs[2], outputs[3])


def test_a_model_moves_with_its_precision_or_to_another_one(rng) -> None:
    device = StandInBackend()
    model = nn.Sequential([nn.Dense(4, 3)], seed=0, backend=device, precision="bf16")
    other = copy.deepcopy(model)
    assert model.to(StandInBackend()).precision == "bf16"
    assert other.to("numpy", precision="fp32").precision == "fp32"
    assert other.to(device, precision="tf32").backend.precision == "tf32"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"precision": "fp16"}, nn.UnknownNameError, "precision must be one of bf16, fp32, tf32"),
        ({"precision": "tf32"}, nn.DeviceError, "must be 'fp32' on the backend numpy"),
        ({"precision": "bf16", "dtype": "float64"}, nn.DTypeError, "models of dtype float32"),
    ],
)
def test_precisions_that_cannot_be(settings, error, message: str) -> None:
    with pytest.raises(error, match=message):
        nn.Sequential([nn.Dense(2, 2)], backend="numpy", **settings)


def test_a_model_that_cannot_keep_its_precision_stays_where_it_is() -> None:
    model = nn.Sequential([nn.Dense(2, 2)], backend=StandInBackend(), precision="bf16")
    with pytest.raises(nn.DeviceError, match=r"model.to\('numpy', precision='fp32'\)"):
        model.to("numpy")
    assert model.precision == "bf16"
