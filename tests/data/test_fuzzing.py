"""Files at random, and those that were found that way: data, or an error that names the file."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import lzma
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import fuzzing
import numpy as np
import pytest

import nnbackend as nn
from nnbackend.cli.settings import read_config
from nnbackend.nnfs import Model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="memory is asked for by resource")


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return {reader.name: reader for reader in fuzzing.readers(folder)}


@pytest.mark.parametrize("seconds", [0.15, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [
    "tables", "tables, gzip", "tables, bzip2", "tables, xz", "tables, zip", "parquet", "npz",
    "npz members", "idx", "idx, gzip", "images", "settings", "models", "models, metadata",
    "book models",
])  # fmt: skip
def test_files_that_are_nearly_right(readers, tmp_path, name, seconds) -> None:
    seed = np.random.default_rng().integers(1 << 31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count, faults = fuzzing.fuzz(readers[name], tmp_path, 100_000, seconds, int(seed))
    assert count  # few where other tests run at the same time
    assert faults == {}, f"seed {seed}"


def test_a_fault_would_be_seen(tmp_path) -> None:
    """Of a reader that fails on what begins with another letter."""

    def read(path: Path) -> None:
        {b"a"[0]: 1}[path.read_bytes()[0]]

    _, faults = fuzzing.fuzz(fuzzing.Reader("x", read, [b"abc"]), tmp_path, 300, 5.0, 0)
    assert any("KeyError" in fault for fault in faults)


# -- tables ---------------------------------------------------------------------------------------

SHORT = [
    b"a,\n1", b"a;\n2", b"\ts\n3", b'a,b\n"1,2', b'a,b\n"1,2\n3,4\n5,6\n', b"\xa9;\n0", b"x|\n0",
    b'"\n,2', b'""x,\na,,', b"2\r1\n", b"a,b\n1,1\n2," + b"1" * 5000 + b"\n3,1\n", b"x" * (3 << 20),
]  # fmt: skip


@pytest.mark.parametrize("content", SHORT, ids=range(len(SHORT)))
def test_tables_that_end_too_early(tmp_path, content) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    for task in ("auto", "classification", "regression"):
        with pytest.raises(nn.DataError, match="a.csv"):
            nn.datasets.read_csv(tmp_path / "a.csv", task=task)


def test_all_small_tables_are_data_or_an_error(tmp_path) -> None:
    path = tmp_path / "a.csv"
    for number, parts in enumerate(itertools.product([b"1", b"a", b",", b"\n", b'"'], repeat=5)):
        if number % 97 == 0:
            path.write_bytes(b"".join(parts))
            with contextlib.suppress(nn.NNBackendError):
                nn.datasets.read_csv(path)


def packed(kind: str, content: bytes) -> bytes:
    if kind == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.csv", content)
        return file.getvalue()
    return {"gz": gzip.compress, "xz": lzma.compress}[kind](content)


@pytest.mark.parametrize("kind", ["gz", "xz", "zip"])
def test_packed_tables_with_any_byte_changed(tmp_path, kind) -> None:
    path, whole = tmp_path / f"a.csv.{kind}", packed(kind, b"a,b\n1,2\n3,4\n" * 4)
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 0x41
        path.write_bytes(content)
        with contextlib.suppress(nn.NNBackendError, FileNotFoundError):
            nn.datasets.read_csv(path)


def test_a_small_file_that_becomes_a_large_one(tmp_path) -> None:
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(b"a,b\n" + b"1,2\n" * (24 << 20)))
    with pytest.raises(nn.DataError, match="1000 times as large when it is unpacked"):
        nn.datasets.read_csv(tmp_path / "a.csv.xz")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a" * (100 << 20), 1))
    with pytest.raises(nn.DataError, match="a line of more than 2000000 characters"):
        nn.datasets.read_csv(tmp_path / "a.csv.gz")


def test_parquet_files_of_many_columns_take_no_minute(tmp_path) -> None:
    import duckdb

    path = tmp_path / "a.parquet"
    columns = ", ".join(f"(i + {k}) % 2 c{k}" for k in range(1000))
    duckdb.sql(f"copy (select {columns} from range(30) r(i)) to '{path}' (format parquet)")
    assert nn.datasets.read_csv(path).x.shape == (30, 999)


@pytest.mark.parametrize("name", ["a.csv", "a-idx3-ubyte", "a.npz", "a.toml"])
def test_pipes_and_devices_are_no_files(tmp_path, name) -> None:
    os.mkfifo(tmp_path / name)
    read = read_config if name == "a.toml" else nn.datasets.read
    for path in (tmp_path / name, Path("/dev/zero")):
        with pytest.raises(nn.DataError, match="a device or a pipe"):
            read(path)
    with pytest.raises(nn.DataError, match="a device or a pipe"):
        Model.load("/dev/zero")


@pytest.mark.parametrize(("setting", "values"), [
    ("sep", [1, ";;", "", b";", "\n"]), ("decimal", ["x", 1, np.ones(2)]),
    ("encoding", [1, "a\0b", "no such"]), ("header", ["x", np.ones(2)]),
    ("features", ["ab", 1, range(10**12), [1]]), ("drop", ["a", 1]), ("keep", ["a", 1]),
    ("preparation", [1]), ("learn_from", [1]), ("embed", ["x"]), ("target", ["1" * 5000, 1.5]),
])  # fmt: skip
def test_settings_of_the_wrong_kind(tmp_path, setting, values) -> None:
    (tmp_path / "a.csv").write_text("a,b,y\n1,2,x\n3,4,z\n")
    for value in values:
        with pytest.raises(nn.NNBackendError):
            nn.datasets.read_csv(tmp_path / "a.csv", **{setting: value})


# -- arrays and pictures --------------------------------------------------------------------------


def test_a_description_of_an_array_that_is_a_bomb(tmp_path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(b"\x93NUMPY\2\0" + struct.pack("<I", 3 << 20) + b" " * (3 << 20))
    with pytest.raises(nn.DataError, match="longer than headers are"):
        nn.datasets.read_npz(tmp_path / "a.npz")


def test_text_that_is_none_and_numbers_too_large(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.frombuffer(b"\xff" * 8, "<U1"))
    with pytest.raises(nn.DataError, match="characters that do not exist"):
        nn.datasets.read_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array([1e308, 0.5]))
    with pytest.raises(nn.DataError, match="must fit into float32"):
        nn.datasets.read_npz(tmp_path / "a.npz", "regression")


@pytest.mark.parametrize("order", "<>")
def test_text_of_either_order_of_bytes(tmp_path, order) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=np.array(["a", "ü", "a", "ü"], f"{order}U1"))
    data = nn.datasets.read_npz(tmp_path / "a.npz")
    assert data.class_names == ("a", "ü")
    assert data.y.tolist() == [0, 1, 0, 1]


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(nn.DataError, match=r"a\.png cannot be read as an image"):
        nn.datasets.read_images(tmp_path / "pictures")
    assert not (tmp_path / "ran").exists()


def test_a_small_picture_of_many_pixels(tmp_path) -> None:
    from PIL import Image

    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(nn.DataError, match="9000 x 9000 pixels"):
        nn.datasets.read_images(tmp_path)


# -- settings and models --------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "epochs = " + "1" * 5001, "sep = 1", "sep = true", "sep = 1979-05-27", "encoding = []",
    'encoding = "\\u0000"', "decimal = 1",
])  # fmt: skip
def test_settings_of_a_file(tmp_path, text) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(nn.NNBackendError, match="a.toml"):
        read_config(tmp_path / "a.toml")


def test_a_model_of_a_layer_wider_than_its_file(tmp_path) -> None:
    path = tmp_path / "m"
    nn.Sequential([nn.Standardize(4)], seed=0).save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length].replace(b'\\"n\\": 4', b'\\"n\\": 200000000')
    assert text != content[8 : 8 + length]
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(nn.CheckpointError, match="does not hold it"):
        nn.load(path)


def test_book_files_that_are_larger_than_they_look(tmp_path) -> None:
    shared = b"\x80\x02N\x85q\0" + b"h\0h\0\x86q\0" * 40 + b"}h\0Ns."
    big = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
    again = (
        b"\x80\x03" + big + b"q\x010cnumpy\ndtype\nX\2\0\0\0f8\x85Rq\x020"
        b"cnumpy.core.numeric\n_frombuffer\nq\x030J" + struct.pack("<i", 1 << 17)
        + b"\x85q\x040X\1\0\0\0Cq\x050](" + b"h\3(h\1h\2h\4h\5tR" * 2000 + b"e."
    )  # fmt: skip
    for content in (shared, again, b"\x80\x02cx\nModel\n)\x81."):
        (tmp_path / "m").write_bytes(content)
        with pytest.raises(nn.CheckpointError):
            Model.load(tmp_path / "m")


def test_arrays_of_any_order_come_back_from_a_book_file(tmp_path) -> None:
    """What is made of a file is bounded, and no file that somebody writes comes near."""
    parameters = [(np.asfortranarray(np.ones((200, 300))), np.zeros((1, 300), "f4"))]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "p").write_bytes(pickle.dumps(parameters, protocol))
        from nnbackend.nnfs import files

        ((weights, biases),) = files.load(tmp_path / "p", {})
        assert weights.sum() == 60_000
        assert biases.shape == (1, 300)
