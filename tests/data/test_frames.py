"""DataFrames where arrays are accepted, with the types that their columns have."""

import numpy as np
import pytest

import nnbackend as nn

pandas = pytest.importorskip("pandas")


def model() -> nn.Sequential:
    layers = [nn.Dense(3, 4, "relu"), nn.Dense(4, 2)]
    made = nn.Sequential(layers, seed=0, dtype="float64")
    made.compile("softmax_cross_entropy", nn.Adam(0.01), metrics=["accuracy"])
    return made


@pytest.fixture
def xy(rng) -> tuple[np.ndarray, np.ndarray]:
    x = np.c_[rng.normal(size=40), rng.integers(0, 9, 40), rng.integers(0, 2, 40)].astype(float)
    return x, (x[:, 0] > 0).astype(int)


def frames(x: np.ndarray, y: np.ndarray) -> dict:
    plain = pandas.DataFrame(x, columns=["a", "b", "c"])
    labels = pandas.Series(y)
    found = {
        "plain": (plain, labels),
        "several types": (plain.astype({"b": int, "c": bool}), labels.astype(bool)),
        "nullable": (plain.astype({"a": "Float64", "b": "Int64", "c": "boolean"}),
                     labels.astype("Int64")),
        "categories": (plain, labels.astype("category")),
        "another index": (plain.set_index(np.arange(40)[::-1]), labels),
    }  # fmt: skip
    try:
        import pyarrow
    except ImportError:
        pass
    else:
        found["arrow types"] = (plain.astype("double[pyarrow]"), labels.astype("int64[pyarrow]"))
        found["arrow"] = (pyarrow.table(dict(zip("abc", x.T, strict=True))), pyarrow.array(y))
    try:
        import polars
    except ImportError:
        return found
    found["polars"] = (polars.DataFrame(plain.astype({"b": int, "c": bool}).to_dict("list")),
                       polars.Series(y))  # fmt: skip
    return found


def test_every_kind_gives_what_the_array_gives(backend: nn.Backend, xy) -> None:
    expected = model()
    expected.fit(*xy, epochs=2, verbose=0)
    for kind, (x, y) in frames(*xy).items():
        one = model()
        one.fit(x, y, epochs=2, verbose=0)
        np.testing.assert_array_equal(one.predict(x), expected.predict(xy[0]), err_msg=kind)
        assert one.evaluate(x, y) == expected.evaluate(*xy), kind
        np.testing.assert_array_equal(
            backend.to_numpy(one(x)), backend.to_numpy(expected(xy[0])), err_msg=kind
        )


def test_missing_values_and_text_are_named(xy) -> None:
    x, y = frames(*xy)["nullable"]
    x.iloc[3, 1] = pandas.NA
    with pytest.raises(nn.DataError, match="must be finite.*nan in row 3, column 1"):
        model().fit(x, y, verbose=0)
    x["c"] = "red"
    with pytest.raises(nn.DTypeError, match="x: column 'c' holds String, and networks learn from"):
        model().fit(x, y, verbose=0)
    y[5] = pandas.NA
    with pytest.raises(nn.NNBackendError, match="row 5"):
        model().fit(xy[0], y, verbose=0)
    with pytest.raises(nn.DTypeError, match="turn class names into numbers"):
        model().fit(xy[0], pandas.Series(["a", "b"] * 20), verbose=0)


def test_without_narwhals_the_extra_is_named(xy, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "narwhals", None)
    x, y = frames(*xy)["nullable"]
    with pytest.raises(ImportError, match=r'pip install "nnbackend\[tables\]"'):
        model().fit(x, y, verbose=0)
    plain, labels = frames(*xy)["plain"]
    model().fit(plain, labels, verbose=0)
