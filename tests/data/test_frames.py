"""DataFrames where arrays are accepted, with the types that their columns have."""

import numpy as np
import pytest

import nnbackend as nn
from nnbackend.data.dataset import align_classes

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


# -- tables with columns of other types -----------------------------------------------------------


@pytest.fixture
def table(rng):
    n = 120
    return pandas.DataFrame({
        "town": rng.choice(list("abcdefghijkl"), n),
        "doors": pandas.Categorical(rng.choice([2, 4], n)),
        "sold": rng.random(n) < 0.5,
        "when": pandas.Timestamp("2024-01-01") + pandas.to_timedelta(rng.integers(0, 999, n), "h"),
        "size": np.where(np.arange(n) % 7 == 0, np.nan, rng.normal(size=n)),
        "index": np.arange(n),
        "price": rng.normal(size=n) + 1e6,
    })  # fmt: skip


def test_columns_of_a_frame_become_inputs_by_their_types(table) -> None:
    data = nn.datasets.read_frame(table, "price", embed=True)
    kinds = {column.name: (column.kind, column.width) for column in data.preparation.columns}
    assert kinds == {
        "town": ("category", 1), "doors": ("category", 2), "sold": ("category", 2),
        "when": ("time", 7), "size": ("number", 2), "index": ("left out", 0),
    }  # fmt: skip
    assert data.preparation.columns[1].values == ("2", "4")
    assert data.x.shape == (120, 14)
    first = data.input_layers()
    model = nn.Sequential([*first, nn.Dense(first[-1].n_outputs, 1)], seed=0)
    model.compile("mean_squared_error", nn.Adam(0.05))
    history = model.fit(data.x, data.y, epochs=20, verbose=0)
    assert history["loss"][-1] < history["loss"][0]


def test_other_rows_are_prepared_in_the_same_way(table) -> None:
    data = nn.datasets.read_frame(table, "price")
    some = table.iloc[40:50].drop(columns=["price", "index"])[::-1]
    again = nn.datasets.read_frame(some, preparation=data.preparation)
    np.testing.assert_array_equal(again.x[::-1], data.x[40:50])
    assert again.y is None
    new = nn.datasets.read_frame(some.assign(town="?new"), preparation=data.preparation)
    places = data.preparation.used[0].width
    np.testing.assert_array_equal(new.x[:, :places], 0)


def test_a_frame_gives_what_its_file_gives(table, tmp_path) -> None:
    pytest.importorskip("duckdb")
    plain = table.drop(columns=["doors"])
    plain.to_csv(tmp_path / "table.csv", index=False)
    one = nn.datasets.read_frame(plain, "price")
    other = nn.datasets.read_csv(tmp_path / "table.csv", "price")
    np.testing.assert_allclose(one.x, other.x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.y, other.y, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int64", "Int64", "float64", "str", "category", "object"])
def test_classes_have_the_same_names_in_every_type(kind: str, rng) -> None:
    x, y = rng.normal(size=30), np.arange(30) % 3 + 9
    frame = pandas.DataFrame({"x": x, "y": pandas.Series(y).astype(kind)})
    data = nn.datasets.read_frame(frame, "y", "classification")
    assert data.class_names == ("9", "10", "11")
    np.testing.assert_array_equal(data.y, y - 9)


def test_numbers_as_python_objects_are_numbers(rng) -> None:
    frame = pandas.DataFrame({"x": pandas.Series([1.5, None, 3] * 4, dtype=object), "y": range(12)})
    data = nn.datasets.read_frame(frame, "y", "regression")
    np.testing.assert_array_equal(data.x[:3], [[1.5, 0], [2.25, 1], [3, 0]])


def test_polars_and_arrow_need_no_pandas(table) -> None:
    plain = table.drop(columns=["doors"])
    expected = nn.datasets.read_frame(plain, "price")
    made = []
    for name in ("polars", "pyarrow"):
        module = pytest.importorskip(name)
        columns = {name: list(values) for name, values in plain.items()}
        made.append(module.DataFrame(columns) if name == "polars" else module.table(columns))
    for frame in made:
        np.testing.assert_array_equal(nn.datasets.read_frame(frame, "price").x, expected.x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:0], "empty"),
        (lambda t: t[["price"]], "one column only"),
        (lambda t: t.rename(columns={"size": "town"}), "columns of different names"),
        (lambda t: t.assign(price=np.nan), "row 1: the target 'price' is empty"),
        (lambda t: t.assign(size=np.inf), "row 1, column 'size': numbers must be finite"),
        (lambda t: t.drop(columns="price"), "target column must be one of .* received 'price'"),
    ],
)
def test_what_a_frame_must_hold(table, change, message: str) -> None:
    with pytest.raises(nn.DataError, match=message):
        nn.datasets.read_frame(change(table), "price")


@pytest.mark.parametrize("what", [[[1, 2]], "table.csv", pandas.Series([1.0, 2.0]), None])
def test_what_is_no_frame(what) -> None:
    with pytest.raises(nn.DTypeError, match="must be a DataFrame"):
        nn.datasets.read_frame(what, 0)


def test_fit_says_how_text_becomes_numbers(table) -> None:
    with pytest.raises(
        nn.DTypeError,
        match="column 'town' holds .* networks learn from numbers. nn.datasets.read_frame makes",
    ):
        model().fit(table[["size", "town", "index"]], np.zeros(120, int))


@pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean", "string", "object"])
def test_missing_values_of_pandas_own_kind(kind: str) -> None:
    values = {"boolean": [True, False], "string": ["u", "v"]}.get(kind, [1, 2])
    column = pandas.Series([*values, pandas.NA] * 5, dtype=kind)
    frame = pandas.DataFrame({"a": column, "y": np.arange(15) % 2})
    data = nn.datasets.read_frame(frame, "y")
    (used,) = data.preparation.used
    assert used.marks or "" in used.values
    assert used.width >= 2
    np.testing.assert_array_equal(data.x[2], data.x[5])
    assert not np.array_equal(data.x[2], data.x[0])


@pytest.mark.parametrize("also", ["frame", "numbers", "lower", "upper"])
def test_true_and_false_are_the_same_however_they_are_written(tmp_path, also: str) -> None:
    pytest.importorskip("duckdb")
    frame = pandas.DataFrame({"flag": [True, False] * 20, "y": [1.0, 0.0] * 20})
    frame.to_csv(tmp_path / "flags.csv", index=False)  # as True and False
    data = nn.datasets.read_csv(tmp_path / "flags.csv", "y", "regression")
    ways = {"frame": frame.flag, "numbers": frame.flag.astype(int),
            "lower": frame.flag.astype(str).str.lower(),
            "upper": frame.flag.astype(str).str.upper()}  # fmt: skip
    other = nn.datasets.read_frame(frame.assign(flag=ways[also]), preparation=data.preparation)
    np.testing.assert_array_equal(other.x, data.x)


def test_columns_named_by_numbers_are_asked_for_by_them() -> None:
    frame = pandas.DataFrame(np.arange(24.0).reshape(6, 4) ** 2, columns=[3, 2, 1, 0])
    data = nn.datasets.read_frame(frame, target=3, task="regression", drop=[1])
    assert (data.target_name, data.feature_names) == ("3", ("2", "0"))
    for kind in (np.int64, np.uint8):
        assert nn.datasets.read_frame(frame, target=kind(3)).target_name == "3"
    np.testing.assert_allclose(data.y[:, 0] + data.preparation.target_offset, frame[3])
    with pytest.raises(nn.DataError, match="different names"):
        nn.datasets.read_frame(frame.rename(columns={3: "2"}), target=1)


def test_columns_that_pandas_keeps_sparse_are_numbers(rng) -> None:
    values = np.where(rng.random(90) < 0.7, 0.0, rng.normal(size=90))
    columns = {"a": values, "b": pandas.arrays.SparseArray(values), "y": [0, 1, 2] * 30}
    data = nn.datasets.read_frame(pandas.DataFrame(columns), "y")
    np.testing.assert_array_equal(data.x[:, 0], data.x[:, 1])


def test_true_and_false_are_the_same_classes_however_they_are_written(tmp_path) -> None:
    frame = pandas.DataFrame({"a": np.arange(9) ** 2, "y": np.arange(9) % 3 == 0})
    data = nn.datasets.read_frame(frame, "y")
    frame.to_csv(tmp_path / "a.csv", index=False)
    again = nn.datasets.read_csv(tmp_path / "a.csv", "y")
    assert (data.class_names, again.class_names) == (("false", "true"), ("False", "True"))
    aligned = align_classes(again, data.class_names)
    np.testing.assert_array_equal(aligned.y, data.y)
    assert aligned.class_names == data.class_names


def test_classes_of_float32_have_short_names() -> None:
    y = (np.arange(9) % 3 / 10).astype(np.float32)
    frame = pandas.DataFrame({"a": np.arange(9) ** 2, "y": y})
    assert nn.datasets.read_frame(frame, "y", "classification").class_names == ("0", "0.1", "0.2")


def test_lengths_of_time_are_seconds(rng) -> None:
    seconds = np.array([1.5, 90061.25, np.nan] * 30)
    columns = {"a": pandas.to_timedelta(seconds, unit="s"), "b": seconds, "y": [0, 1, 2] * 30}
    data = nn.datasets.read_frame(pandas.DataFrame(columns), "y")
    first, second = data.preparation.columns
    assert (first.kind, first.marks) == (second.kind, second.marks) == ("number", True)
    np.testing.assert_allclose(data.x[:, :2], data.x[:, 2:], rtol=1e-6)


@pytest.mark.parametrize("also", [{"features": ["a"]}, {"drop": ["a"]}])
def test_a_preparation_says_which_columns_are_read(rng, also) -> None:
    frame = pandas.DataFrame({"a": rng.normal(size=9), "b": rng.normal(size=9), "y": [0, 1, 2] * 3})
    preparation = nn.datasets.read_frame(frame, "y").preparation
    with pytest.raises(nn.DataError, match=f"pass it without {next(iter(also))}"):
        nn.datasets.read_frame(frame, preparation=preparation, **also)


def test_lists_in_cells_are_text_that_differs() -> None:
    frame = pandas.DataFrame(
        {"a": [[k] for k in range(9)], "b": np.arange(9.0) ** 2, "y": [0, 1, 2] * 3}
    )
    data = nn.datasets.read_frame(frame, "y")
    assert [column.kind for column in data.preparation.columns] == ["left out", "number"]
