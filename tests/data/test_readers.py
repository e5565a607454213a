"""Readers of users' files: what they give, and where they say a file is wrong."""

from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx
from PIL import Image

import nnbackend as nn

datasets = nn.datasets


class TestIdx:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize("how", ["folder", "images", "both"])
    def test_images_and_labels(self, tmp_path, rng, suffix, how) -> None:
        pixels = rng.integers(0, 256, (7, 3, 2)).astype("uint8")
        images = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", pixels)
        labels = write_idx(
            tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(7, dtype="uint8") % 3
        )
        arguments = {"folder": [tmp_path], "images": [images], "both": [images, labels]}[how]
        data = datasets.read_idx(*arguments)
        x, y = data
        np.testing.assert_allclose(x, pixels.reshape(7, 6) / 255, rtol=1e-6)
        np.testing.assert_array_equal(y, np.arange(7) % 3)
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert (data.image_shape, data.class_names) == ((3, 2), ("0", "1", "2"))
        assert datasets.read(arguments[0]).kind == "idx"

    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
    def test_every_type_of_the_format(self, tmp_path, rng, dtype) -> None:
        values = (100 * rng.uniform(size=(4, 5))).astype(dtype)
        read = datasets.read_idx_array(write_idx(tmp_path / "a-idx", values))
        np.testing.assert_array_equal(read, values)

    def test_images_alone(self, tmp_path) -> None:
        path = write_idx(tmp_path / "new-images-idx3-ubyte", np.zeros((2, 4, 4), "uint8"))
        assert datasets.read_idx(path).y is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not an IDX file"),
            (b"\x89PNG....", "it begins with 89 50 4e 47"),
            (b"\0\0\x07\x01", "not an IDX file"),
            (b"\0\0\x08\x03\0\0\0\x01", "ends inside its IDX header"),
            (b"\0\0\x08\x01\0\0\0\x09abc", "9 values, 9 bytes after its header; it holds 3 bytes"),
            (b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", "it holds 3 bytes"),
            (b"\0\0\x08\x01\0\0\0\x01abc", "1 bytes after its header; it holds 3"),
            (b"\x1f\x8b\x08broken", "cannot be decompressed"),
        ],
    )
    def test_broken_files(self, tmp_path, content, message) -> None:
        path = tmp_path / "a-images-idx3-ubyte"
        path.write_bytes(content)
        with pytest.raises(nn.DataError, match=message):
            datasets.read_idx(path)

    def test_labels_of_another_length_and_folders_without_images(self, tmp_path) -> None:
        images = write_idx(tmp_path / "images-idx3", np.zeros((2, 2, 2), "uint8"))
        labels = write_idx(tmp_path / "labels-idx1", np.zeros(3, "uint8"))
        with pytest.raises(nn.ShapeError, match="one label for each of the 2 images"):
            datasets.read_idx(images, labels)
        with pytest.raises(nn.DataError, match="holds no train-images"):
            datasets.read_idx(tmp_path)
        with pytest.raises(nn.DataError, match="must hold images"):
            datasets.read_idx(write_idx(tmp_path / "x-idx1", np.zeros(3, "int32")))


class TestCsv:
    def read(self, tmp_path, text: str, **settings) -> datasets.Dataset:
        path = tmp_path / "data.csv"
        path.write_text(text, encoding="utf-8")
        return datasets.read_csv(path, **settings)

    def test_text_targets_become_class_names(self, tmp_path) -> None:
        data = self.read(tmp_path, "a,kind,b\n1,cat,2\n3,dog,4\n5,cat,6\n", target="kind")
        np.testing.assert_array_equal(data.x, [[1, 2], [3, 4], [5, 6]])
        np.testing.assert_array_equal(data.y, [0, 1, 0])
        assert (data.class_names, data.feature_names) == (("cat", "dog"), ("a", "b"))
        assert data.target_name == "kind"
        assert (data.x.dtype, data.y.dtype) == (np.float32, np.int64)

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_separators_quotes_byte_order_marks_and_blank_lines(self, tmp_path, separator) -> None:
        text = '\ufeff"a",b\n"1",2.5\n\n"-3e2",4\n'.replace(",", separator)
        data = self.read(tmp_path, text)
        np.testing.assert_array_equal(data.x, [[1], [-300]])
        np.testing.assert_array_equal(data.y, [[2.5], [4]])
        assert data.class_names is None

    def test_without_a_header_columns_have_numbers(self, tmp_path) -> None:
        data = self.read(tmp_path, "1,2,3.5\n4,5,6.5\n", target=0, task="regression")
        assert (data.feature_names, data.target_name) == (("1", "2"), "0")
        np.testing.assert_array_equal(data.y, [[1], [4]])

    @pytest.mark.parametrize(
        ("values", "task", "classes"),
        [
            ("1 2 1", "auto", ("1", "2")),
            ("1.5 2 1", "auto", None),
            ("1 2 1", "regression", None),
            ("1.5 2 1.5", "classification", ("1.5", "2")),
            (" ".join(map(str, range(30))), "auto", None),
        ],
    )
    def test_task(self, tmp_path, values, task, classes) -> None:
        text = "a,t\n" + "".join(f"{k * k},{v}\n" for k, v in enumerate(values.split()))
        assert self.read(tmp_path, text, task=task).class_names == classes

    def test_first_lines_that_are_rows_and_first_lines_that_are_names(self, tmp_path) -> None:
        rows = "".join(f"{k}.5,{k},{'ab'[k % 2]}\n" for k in range(6))
        assert len(self.read(tmp_path, rows).x) == 6  # a text target, and no header
        assert len(self.read(tmp_path, "u,v,w\n" + rows).x) == 6
        assert len(self.read(tmp_path, "u,2020,w\n" + rows).x) == 6
        assert self.read(tmp_path, rows).feature_names == ("0", "1")

    def test_a_column_may_have_a_number_for_a_name(self, tmp_path) -> None:
        text = "1,2020,0\n1.5,2.5,3.5\n2.5,3.5,4.5\n"
        two = "a,2020\n1,2.5\n2,3.5\n"
        assert self.read(tmp_path, two, target="2020").target_name == "2020"
        assert self.read(tmp_path, "a,b\n1.5,2\n2,3\n", target="0").target_name == "a"
        assert self.read(tmp_path, text, target="0").feature_names == ("1", "2")

    def test_named_features_alone_in_their_order(self, tmp_path) -> None:
        data = self.read(tmp_path, "c,a,b\n3,1,2\n", features=["a", "b"])
        np.testing.assert_array_equal(data.x, [[1, 2]])
        assert data.y is None

    @pytest.mark.parametrize(
        ("text", "settings", "message"),
        [
            ("a,b\n1,2\n1,2,3\n", {}, "line 3: 3 fields; every row must have 2"),
            ("a,b\n1,2\n1\n", {}, "line 3: 1 fields"),
            (
                "a,b\n1,2\nx,2\n",
                {"features": ["a"]},
                "line 3, column 'a': a number belongs here; f",
            ),
            ("a,b\n1,2\n,2\n", {"features": ["a"]}, "'a'.*found ''. Fill the missing value"),
            ("a,b\n1,2\ninf,2\n", {}, "line 3, column 'a': numbers must be finite; found 'inf'"),
            ("a,b\n1,2\n1e999,2\n", {}, "must be finite"),
            ("a,b\n1,2\n1,3\n", {}, "no column to learn from: 'a': it is the same in every row"),
            ("a,b\n1,\n", {}, "line 2: the target 'b' is empty"),
            ("a,b\n1,x\n2,3\n", {"task": "regression"}, "line 2, column 'b': regression needs"),
            ("a,b\n1,2\n", {"target": "c"}, "target column must be one of a, b; received 'c'"),
            ("a,b\n1,2\n", {"target": 5}, "in 0 ... 1; received 5"),
            ("a,b\n1,2\n", {"features": ["z"]}, "no column 'z', which the model was trained on"),
            ("a,b\n1,2\n", {"task": "guess"}, "task must be one of"),
            ("a\n1\n", {}, "one column only"),
            ("a,a\n1,2\n", {}, "two columns named 'a'"),
            ("a,b\n", {}, "a header and no rows"),
            ("", {}, "is empty"),
        ],
    )
    def test_wrong_files_are_named_by_line_and_column(
        self, tmp_path, text, settings, message
    ) -> None:
        with pytest.raises(ValueError, match=message):
            self.read(tmp_path, text, **settings)

    def test_not_text(self, tmp_path) -> None:
        path = tmp_path / "x.csv"
        path.write_bytes(b"a,b\n\x00\x01,1\n")
        with pytest.raises(nn.DataError, match="is not text: it holds bytes that are zero"):
            datasets.read(path)


class TestNpz:
    def test_arrays(self, tmp_path, rng) -> None:
        pixels = rng.integers(0, 256, (5, 4, 4)).astype("uint8")
        np.savez(tmp_path / "a.npz", x_train=pixels, y_train=[0, 1, 2, 1, 0])
        data = datasets.read(tmp_path / "a.npz")
        np.testing.assert_allclose(data.x, pixels.reshape(5, 16) / 255, rtol=1e-6)
        assert (data.image_shape, data.class_names) == ((4, 4), ("0", "1", "2"))
        np.savez(tmp_path / "b.npz", x=rng.normal(size=(5, 3)), y=rng.normal(size=(5, 2)))
        data = datasets.read_npz(tmp_path / "b.npz")
        assert data.y.shape == (5, 2)
        assert data.class_names is None
        np.savez(tmp_path / "c.npz", x=np.ones((5, 3)))
        assert datasets.read_npz(tmp_path / "c.npz").y is None

    def test_wrong_files(self, tmp_path) -> None:
        path = tmp_path / "a.npz"
        for arrays, message in (
            ({"z": np.ones(3)}, "must hold an array x .*; it holds z"),
            ({"x": np.array(["a"])}, "x must be rows of numbers"),
            ({"x": np.ones((3, 2)), "y": np.ones(2)}, "x has 3 rows and y 2"),
            ({"x": np.ones((2, 2)), "y": [0.0, np.nan]}, "targets must be finite"),
            ({"x": np.ones((2, 2)), "y": [1 + 2j, 0]}, "numbers or text"),
        ):
            np.savez(path, **arrays)
            with pytest.raises(ValueError, match=message):
                datasets.read_npz(path)
        np.savez(path, x=np.array([{}], dtype=object))
        with pytest.raises(nn.DataError, match="cannot|not a NumPy archive"):
            datasets.read_npz(path)  # pickled objects are not loaded
        path.write_bytes(b"PK\x03\x04broken")
        with pytest.raises(nn.DataError, match="not a NumPy archive"):
            datasets.read_npz(path)
        np.savez(path, x=np.ones((2, 2)), y=np.ones((2, 2)))
        with pytest.raises(nn.DataError, match="must be one column"):
            datasets.read_npz(path, "classification")


class TestImages:
    def write(self, path: Path, value: int, size: tuple[int, int] = (4, 3)) -> None:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (value,) * 3).save(path)

    def test_a_folder_for_each_class(self, tmp_path) -> None:
        for k, name in enumerate(("cat", "dog")):
            for i in range(2):
                self.write(tmp_path / name / f"{i}.png", 100 * k + i)
        data = datasets.read(tmp_path)
        assert (data.class_names, data.image_shape) == (("cat", "dog"), (3, 4))
        np.testing.assert_array_equal(data.y, [0, 0, 1, 1])
        np.testing.assert_allclose(data.x[3], np.full(12, 101 / 255), rtol=1e-6)
        flat = datasets.read_images(tmp_path / "dog")
        assert flat.y is None
        assert len(flat.x) == 2

    def test_wrong_folders(self, tmp_path) -> None:
        with pytest.raises(nn.DataError, match=r"holds no images \(.png"):
            datasets.read(tmp_path)
        self.write(tmp_path / "a" / "1.png", 1)
        self.write(tmp_path / "a" / "2.png", 1, (5, 5))
        with pytest.raises(nn.ShapeError, match="2.png is 5 x 5 pixels; 1.png.*4 x 3"):
            datasets.read(tmp_path)
        (tmp_path / "a" / "2.png").write_bytes(b"no image")
        with pytest.raises(nn.DataError, match="2.png cannot be read as an image"):
            datasets.read(tmp_path)

    def test_without_pillow_the_extra_is_named(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        with pytest.raises(ImportError, match=r'pip install "nnbackend\[images\]"'):
            datasets.read_images(tmp_path)


def test_unknown_kinds_and_missing_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        datasets.read(tmp_path / "none.csv")
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(nn.DataError, match="of no known kind"):
        datasets.read(tmp_path / "a.xlsx")


def test_moons_and_circles() -> None:
    x, y = datasets.moons(50, noise=0.0, seed=0)
    np.testing.assert_allclose(np.hypot(*x[:50].T), 1, atol=1e-6)
    np.testing.assert_allclose(np.hypot(1 - x[50:, 0], 0.5 - x[50:, 1]), 1, atol=1e-6)
    np.testing.assert_array_equal(np.bincount(y), [50, 50])
    x, y = datasets.circles(50, noise=0.0, factor=0.3)
    np.testing.assert_allclose(np.hypot(*x.T), np.where(y == 0, 1, 0.3), atol=1e-6)
    assert not np.array_equal(datasets.moons(seed=1)[0], datasets.moons(seed=2)[0])
    with pytest.raises(nn.DataError, match="factor"):
        datasets.circles(factor=1.0)


class TestIdxNames:
    """Names under which these files are handed on."""

    def write(self, images: Path, labels: Path) -> None:
        images.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        write_idx(images, np.full((3, 2, 2), 51, np.uint8))
        write_idx(labels, np.array([2, 0, 1], np.uint8))

    @pytest.mark.parametrize(
        "name",
        [
            "train-{}-idx{}-ubyte", "train-{}.idx{}-ubyte", "train-{}.idx{}-ubyte.gz",
            "emnist-letters-train-{}-idx{}-ubyte.gz", "Train-{}-idx{}-ubyte",
            "train_{}_idx{}_ubyte", "MNIST/raw/train-{}-idx{}-ubyte",
            "archive/train-{}-idx{}-ubyte.gz", "train-{0}-idx{1}-ubyte/train-{0}-idx{1}-ubyte",
        ],
    )  # fmt: skip
    def test_in_a_folder(self, tmp_path, name) -> None:
        self.write(tmp_path / name.format("images", 3), tmp_path / name.format("labels", 1))
        (tmp_path / "README.txt").write_text("about")
        data = datasets.read(tmp_path)
        np.testing.assert_allclose(data.x, 0.2, atol=1e-6)
        np.testing.assert_array_equal(data.y, [2, 0, 1])

    def test_labels_with_and_without_compression(self, tmp_path) -> None:
        self.write(tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels.idx1-ubyte")
        np.testing.assert_array_equal(datasets.read(tmp_path).y, [2, 0, 1])

    def test_a_file_and_its_compressed_copy_are_one(self, tmp_path) -> None:
        for end in ("", ".gz"):
            self.write(
                tmp_path / f"train-images-idx3-ubyte{end}",
                tmp_path / f"train-labels-idx1-ubyte{end}",
            )
        assert len(datasets.read(tmp_path).x) == 3

    def test_several_data_sets_are_not_guessed_at(self, tmp_path) -> None:
        for front in ("emnist-letters-", "emnist-digits-"):
            self.write(
                tmp_path / f"{front}train-images-idx3-ubyte",
                tmp_path / f"{front}train-labels-idx1-ubyte",
            )
        with pytest.raises(nn.DataError, match="several data sets: emnist-digits.*emnist-letters"):
            datasets.read(tmp_path)
        data = datasets.read(tmp_path / "emnist-letters-train-images-idx3-ubyte")
        np.testing.assert_array_equal(data.y, [2, 0, 1])

    def test_what_is_hidden_is_passed_over(self, tmp_path) -> None:
        self.write(
            tmp_path / ".cache" / "train-images-idx3-ubyte",
            tmp_path / ".cache" / "train-labels-idx1-ubyte",
        )
        (tmp_path / "._train-images-idx3-ubyte").write_bytes(b"x")
        with pytest.raises(nn.DataError, match="holds no images"):
            datasets.read(tmp_path)


class TestOneHot:
    def test_rows_with_a_single_one_are_classes(self, tmp_path) -> None:
        for dtype in ("float32", "int64", "bool"):
            np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=np.eye(3)[[2, 0, 1, 2]].astype(dtype))
            data = datasets.read(tmp_path / "a.npz")
            np.testing.assert_array_equal(data.y, [2, 0, 1, 2])
            assert data.class_names == ("0", "1", "2")

    def test_other_rows_of_numbers_are_not(self, tmp_path) -> None:
        for y in (
            np.eye(3) * 0.5,
            np.ones((3, 3)),
            np.zeros((3, 3)),
            np.eye(3) * 2,
            [[1, -1, 1]] * 3,
        ):
            np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=y)
            assert datasets.read(tmp_path / "a.npz").class_names is None
        np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.eye(3))
        assert datasets.read_npz(tmp_path / "a.npz", "regression").class_names is None


@pytest.mark.parametrize("target", [True, False, 1.0, ["y"], b"y"])
def test_a_target_column_is_a_name_or_a_number(tmp_path, target) -> None:
    (tmp_path / "a.csv").write_text("a,y\n1,2\n3,4\n")
    with pytest.raises(nn.DTypeError, match="the target column must be a name or a number"):
        datasets.read_csv(tmp_path / "a.csv", target)
