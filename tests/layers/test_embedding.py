"""Embedding: a dense layer's rows, looked up."""

import numpy as np
import pytest
from cuda_stand_in import STAND_IN

import nnbackend as nn
from nnbackend.testing import gradient_error


def rows(rng, counts=(7, 40), others=3, n=60):
    """Columns of categories, then of numbers; and targets that depend on both."""
    codes = np.stack([rng.integers(0, count, n) for count in counts], axis=1)
    numbers = rng.normal(size=(n, others))
    y = (codes[:, 0] % 3 + (numbers[:, 0] > 0)) % 3
    return np.hstack([codes, numbers]), y


def embedded(counts=(7, 40), widths=(3, 5), others=3, outputs=3, **options):
    layers, width = [], len(counts) + others
    for count, each in zip(counts, widths, strict=True):
        layers.append(nn.Embedding(width, count, each))
        width += each - 1
    layers += [nn.Dense(width, 16, "tanh"), nn.Dense(16, outputs)]
    model = nn.Sequential(layers, seed=3, **options)
    model.compile("softmax_cross_entropy", nn.AdamW(0.01), ["accuracy"])
    return model


def test_it_is_a_dense_layer_of_a_column_for_each_category(backend, rng) -> None:
    layer, dense = nn.Embedding(3, 6, 4, seed=0), nn.Dense(6, 4, bias=False, seed=0)
    codes, numbers = rng.integers(0, 6, 30), rng.normal(size=(30, 2)).astype("float32")
    x = np.column_stack([codes, numbers]).astype("float32")
    one_hot = np.eye(6, dtype="float32")[codes]
    dy = rng.normal(size=(30, 6)).astype("float32")
    dense.weight = backend.to_numpy(layer.weight)
    y, dx = (backend.to_numpy(a) for a in (layer.forward(x), layer.backward(dy)))
    np.testing.assert_array_equal(y[:, :2], numbers)
    np.testing.assert_allclose(y[:, 2:], backend.to_numpy(dense.forward(one_hot)), rtol=1e-6)
    dense.backward(dy[:, 2:])
    found = backend.to_numpy(layer.weight_grad)
    np.testing.assert_allclose(found, backend.to_numpy(dense.weight_grad), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(dx, np.column_stack([np.zeros(30, "float32"), dy[:, :2]]))


def test_gradients_of_a_model(backend, rng) -> None:
    model = embedded(dtype="float64", backend=backend)
    x, y = rows(rng)
    assert gradient_error(model, x, y, rng) < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_training_is_that_of_numpy(backend, rng, weighted: bool) -> None:
    x, y = rows(rng)
    weight = rng.uniform(0.5, 2, len(x)) if weighted else None
    models = [embedded(dtype="float64", backend=b) for b in (backend, "numpy")]
    curves = [
        m.fit(x, y, epochs=5, batch_size=13, sample_weight=weight, verbose=0)["loss"]
        for m in models
    ]
    np.testing.assert_allclose(*curves, rtol=1e-8)
    arrays = models[1].arrays()
    for name, array in models[0].arrays().items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(models[0].predict(x), models[1].predict(x), rtol=1e-6)


def test_it_trains_behind_other_layers_clipped_and_frozen(backend, rng) -> None:
    """Columns that are standardised but for the codes; a gradient whose norm is limited."""
    x, y = rows(rng, counts=(5,))
    models = []
    for where in (backend, "numpy"):
        layers = [nn.Standardize(4, skip=1), nn.Embedding(4, 5, 2), nn.Dense(5, 8, "relu"),
                  nn.BatchNorm(8), nn.Dense(8, 3)]  # fmt: skip
        model = nn.Sequential(layers, seed=1, dtype="float64", backend=where)
        model.compile("softmax_cross_entropy", nn.Adam(0.01, clip_norm=0.1))
        model.fit(x, y, epochs=2, batch_size=20, verbose=0)
        model.layers[1].trainable = False
        kept = model.arrays()["layers.1.weight"].copy()
        model.fit(x, y, epochs=1, batch_size=20, verbose=0)
        np.testing.assert_array_equal(model.arrays()["layers.1.weight"], kept)
        models.append(model)
    arrays = models[1].arrays()
    assert arrays["layers.0.mean"][0] == 0
    assert arrays["layers.0.scale"][0] == 1
    for name, array in models[0].arrays().items():
        np.testing.assert_allclose(array, arrays[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_threads_change_nothing(rng) -> None:
    """Each thread has its categories; rows of a category are added up in their order."""
    x, y = rows(rng, counts=(3, 900), n=4000)
    curves = []
    for threads in (1, 2):
        before = nn.get_num_threads()
        nn.set_num_threads(threads)
        try:
            model = embedded(counts=(3, 900), backend=None)
            curves.append(model.fit(x, y, epochs=2, batch_size=1000, verbose=0)["loss"])
        finally:
            nn.set_num_threads(before)
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_driven_from_outside_it_gives_the_gradient_of_numbers(backend, rng) -> None:
    x, _ = rows(rng, n=20)
    model = embedded(dtype="float64", backend=backend)
    model.forward(x)
    dx = backend.to_numpy(model.backward(rng.normal(size=(20, 3))))
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dx[:, :2], 0)
    assert np.abs(dx[:, 2:]).min() > 0


@pytest.mark.parametrize("wrong", [-1.0, 40.0, 1e12, -0.6, 39.49999999])
def test_a_number_that_is_none_of_a_category_is_named(backend, rng, wrong: float) -> None:
    x, y = rows(rng)
    model = embedded(backend=backend)
    before = model.arrays()
    x[17, 1] = wrong
    message = rf"column 1 of x holds numbers of categories, 0 ... 39.*received {wrong} in row 17"
    for call in (lambda: model.fit(x, y, verbose=0), lambda: model.evaluate(x, y),
                 lambda: model.predict(x)):  # fmt: skip
        with pytest.raises(nn.DataError, match=message):
            call()
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_it_is_saved_and_loaded_and_described(backend, rng, tmp_path, capsys) -> None:
    x, y = rows(rng)
    model = embedded(backend=backend)
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.safetensors")
    loaded = nn.load(tmp_path / "model.safetensors", backend)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert loaded.layers[1].config() == model.layers[1].config()
    model.summary()
    assert "0  Embedding          7          21" in capsys.readouterr().out
    if backend.name != STAND_IN:
        model.to("numpy")
        np.testing.assert_allclose(model.predict(x), loaded.predict(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 2), "Embedding.n_inputs must be at least 1"),
        ((3, 0, 2), "Embedding.n_categories must be at least 1"),
        ((3, 4, 1.5), "Embedding.width must be a whole number"),
        ((3, 1 << 25, 2), "up to which float32 can be rounded"),
    ],
)
def test_sizes_are_checked(arguments, message: str) -> None:
    with pytest.raises(nn.NNBackendError, match=message):
        nn.Embedding(*arguments)


def test_columns_that_are_skipped_are_some_of_those_there_are() -> None:
    with pytest.raises(nn.ShapeError, match="skip must be at most n, 3; received 4"):
        nn.Standardize(3, skip=4)
    assert nn.Standardize(3, skip=3).config() == {"n": 3, "skip": 3}
