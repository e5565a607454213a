"""A dense layer by itself: compiled code looks at the arrays, and leaves what it does not know to
the usual way."""

import threading

import numpy as np
import pytest

import nnbackend as nn

pytest.importorskip("numba")
dense = pytest.importorskip("nnbackend.backends.numba.dense")


@pytest.fixture(autouse=True)
def _on_numba():
    with nn.use_backend("numba"):
        yield


def layers(**options) -> tuple[nn.Dense, nn.Dense]:
    """One as it is, and the same without quick calls."""
    found = []
    for quick in (True, False):
        layer = nn.Dense(6, 4, "gelu", seed=1, **options)
        if not quick:
            layer._bound()
            layer._calls = False
        found.append(layer)
    return found[0], found[1]


def unaligned(x: np.ndarray) -> np.ndarray:
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.uint8)
    array = np.frombuffer(memory.data, x.dtype).reshape(x.shape)
    array[...] = x
    return array


FORMS = {
    "as it is wanted": lambda x: x,
    "columns first": np.asfortranarray,
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "a part of the columns": lambda x: np.hstack([x, x])[:, : x.shape[1]],
    "double precision": lambda x: x.astype(np.float64),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": unaligned,
    "a subclass": lambda x: x.view(type("Own", (np.ndarray,), {})),
    "read only": lambda x: np.broadcast_to(x, x.shape),
    "lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of", ["inputs", "gradients"])
def test_arrays_of_any_form_give_the_same_results(rng, form: str, of: str) -> None:
    x, dy = (rng.normal(size=(5, n)).astype(np.float32) for n in (6, 4))
    given = (FORMS[form](x), dy) if of == "inputs" else (x, FORMS[form](dy))
    results = []
    for layer, arrays in zip(layers(), (given, (x, dy)), strict=True):
        y, dx = layer.forward(arrays[0]), layer.backward(arrays[1])
        results.append((y, dx, layer.weight_grad, layer.bias_grad))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 6), (5, 5), (5, 7), (0, 7)])
def test_other_shapes_are_refused_as_ever(shape) -> None:
    messages = []
    for layer in layers():
        with pytest.raises(nn.NNBackendError) as caught:
            layer.forward(np.ones(shape, np.float32))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("change", [
    lambda array: setattr(array, "shape", (array.size,)),
    lambda array: setattr(array, "shape", (array.shape[1], array.shape[0])),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inputs_whose_shape_was_changed_meanwhile_are_not_misread(rng, change) -> None:
    """Never memory that is not theirs: an error, or the gradient of what they are now."""
    layer = layers()[0]
    x = rng.normal(size=(5, 6)).astype(np.float32)
    layer.forward(x)
    change(x)
    try:
        dx = layer.backward(np.ones((5, 4), np.float32))
    except (nn.NNBackendError, ValueError):
        return
    assert dx.shape == x.shape


def test_any_number_of_rows_takes_the_way_that_suits_it(rng) -> None:
    """Few keep the GIL, more release it, and many are no shortcut's."""
    layer = nn.Dense(64, 64, seed=0)
    calls = layer._bound()
    weight, bias = layer.weight, layer.bias
    for rows in (1, calls._few_rows, calls._few_rows + 1, calls._most_rows + 1):
        x = rng.normal(size=(rows, 64)).astype(np.float32)
        np.testing.assert_allclose(layer.forward(x), x @ weight + bias, rtol=1e-4, atol=1e-4)


def test_threads_that_share_a_layer_get_their_own_results(rng) -> None:
    layer, wrong = nn.Dense(8, 8, "relu", seed=0), []
    xs = [rng.normal(size=(rows, 8)).astype(np.float32) for rows in (1, 3, 50, 4000)]
    expected = [layer.forward(x).copy() for x in xs]

    def work(i: int) -> None:
        for _ in range(300):
            if not np.array_equal(layer.forward(xs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arrays_of_another_numpy_are_taken_the_usual_way(rng, monkeypatch) -> None:
    from nnbackend.backends.numba import backend

    assert dense.reads_arrays(nn.get_backend("numba").runtime.calls)
    monkeypatch.setattr(backend, "reads_arrays", lambda calls: False)
    layer = nn.Dense(6, 4, seed=1)
    assert layer.forward(rng.normal(size=(3, 6)).astype(np.float32)).shape == (3, 4)
    assert layer._calls is False
