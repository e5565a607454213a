"""Files whose headers promise what they do not hold."""

import contextlib
import gzip
import os
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx

import nnbackend as nn
from nnbackend.cli.settings import read_config

if os.name == "posix":
    import resource


def peak_bytes() -> int:
    if os.name != "posix":
        pytest.skip("the most memory that was used cannot be asked for")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("label", [2_000_000_000, -1, 70_000])
def test_labels_that_are_no_classes(tmp_path, rng, label) -> None:
    images = write_idx(tmp_path / "a-images-idx3-ubyte", np.zeros((2, 1, 1), np.uint8))
    write_idx(tmp_path / "a-labels-idx1-ubyte", np.array([0, label], np.int32))
    before = peak_bytes()
    with pytest.raises(nn.DataError, match=f"labels must be whole numbers in 0.*found {label}"):
        nn.datasets.read_idx(images)
    assert peak_bytes() - before < 1 << 26


def test_fractional_labels_are_refused(tmp_path) -> None:
    images = write_idx(tmp_path / "a-images-idx3-ubyte", np.zeros((2, 1, 1), np.uint8))
    write_idx(tmp_path / "a-labels-idx1-ubyte", np.array([0, 1.5], np.float32))
    with pytest.raises(nn.DataError, match=r"found 1\.5"):
        nn.datasets.read_idx(images)


@pytest.mark.parametrize("claimed", [10, 1 << 31, (1 << 32) - 1])
def test_a_compressed_file_takes_no_more_memory_than_it_should(tmp_path, claimed) -> None:
    """300 MB of zeros in 300 kB."""
    path = tmp_path / "a-images-idx1-ubyte.gz"
    bomb = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", claimed) + bytes(300_000_000), 9)
    path.write_bytes(bomb)
    before = peak_bytes()
    with pytest.raises(nn.DataError, match="bytes after its header"):
        nn.datasets.read_idx_array(path)
    grown = peak_bytes() - before
    assert grown < (1 << 26 if claimed == 10 else 700_000_000)


def test_many_columns_of_one_name_are_refused_at_once(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(["a"] * 20_000) + "\n" + ",".join(["1"] * 20_000) + "\n")
    start = time.perf_counter()
    with pytest.raises(nn.DataError, match="two columns named 'a'"):
        nn.datasets.read_csv(path)
    assert time.perf_counter() - start < 5


def test_settings_that_are_nested_too_deeply(tmp_path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("hidden = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(nn.DataError, match="nested too deeply"):
        read_config(path)


@pytest.mark.parametrize("spec", ["numpy:²", "numpy:٣"])
def test_digits_that_are_no_numbers(spec) -> None:
    with pytest.raises(nn.DeviceError, match="NAME:NUMBER"):
        nn.get_backend(spec)


def archive(path: Path, header: bytes = b"", values: bytes = b"", **arrays) -> Path:
    """An npz whose x has this header, or is whole and damaged later."""
    np.savez_compressed(path, y=np.arange(4) % 2, **arrays)
    if header:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            length = struct.pack("<H", len(header))
            file.writestr("x.npy", b"\x93NUMPY\x01\x00" + length + header + values)
    return path


HEADERS = {
    "a name": b"{'descr': f8, 'fortran_order': False, 'shape': (4, 2), }\n",
    "not closed": b"{'descr': '<f8', 'fortran_order': False, 'shape': (4, 2\n",
    "nothing": b"\n",
    "another key": b"{'descr': '<f8', 'order': False, 'shape': (4, 2), }\n",
    "a shape of text": b"{'descr': '<f8', 'fortran_order': False, 'shape': ('4', 2), }\n",
    "a negative shape": b"{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 2), }\n",
    "no type": b"{'descr': '<q9', 'fortran_order': False, 'shape': (4, 2), }\n",
    "a list for a type": b"{'descr': [[1]], 'fortran_order': False, 'shape': (4, 2), }\n",
    "a huge shape": b"{'descr': '<f8', 'fortran_order': False, 'shape': (2000000, 1000000), }\n",
    "past every integer": b"{'descr': '<f8', 'fortran_order': False, 'shape': (1%s,), }\n"
    % (b"0" * 400),
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 2), }\n",
    "bytes that are no text": b"{'descr': '\xff\xfe', 'shape': (4,)}\n",
    "nested": b"[" * 5000 + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_of_arrays_that_are_not_true(tmp_path, header) -> None:
    path = archive(tmp_path / "a.npz", header, bytes(64))
    before = peak_bytes()
    with pytest.raises(nn.DataError, match="a.npz"):
        nn.datasets.read_npz(path)
    assert peak_bytes() - before < 1 << 27


def test_an_array_of_targets_without_rows(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=3)
    with pytest.raises(nn.ShapeError, match="a.npz: x has 4 rows and y is a single value"):
        nn.datasets.read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["npz", "stored npz", "idx.gz", "npy"])
def test_mutated_files_are_errors_that_name_them(tmp_path, kind) -> None:
    """Flipped bits, cuts and doubled pieces, at random."""
    rng = np.random.default_rng(7)
    suffix = "npz" if "np" in kind else "gz"
    path = tmp_path / f"a-images-idx3-ubyte.{suffix}"
    if kind == "idx.gz":
        write_idx(path, rng.integers(0, 255, (4, 5, 6)).astype(np.uint8))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones((4, 2)))
    else:
        save = np.savez_compressed if kind == "npz" else np.savez
        save(path, x=rng.normal(size=(4, 30)), y=np.arange(4))
    good = path.read_bytes()
    refused = 0
    for _ in range(300):
        content = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(content)))
            match rng.integers(4):
                case 0:
                    content[place] ^= 1 << int(rng.integers(8))
                case 1:
                    del content[place:]
                case 2:
                    content[place:place] = content[: int(rng.integers(20))]
                case _:
                    content[place] = 0xFF
            content = content or bytearray(b"x")
        path.write_bytes(content)
        with contextlib.suppress(nn.NNBackendError):  # a bit may be one that nothing depends on
            nn.datasets.read(path)
            continue
        refused += 1
        with pytest.raises(nn.NNBackendError, match=path.name):
            nn.datasets.read(path)
    assert refused > 100


SETTINGS = {
    "target = true": "target must be",
    "target = 1.5": "target must be",
    "lr = 1e400": "lr must be",
    f"lr = 1{'0' * 400}": "lr must be",
    f"epochs = 1{'0' * 400}": "epochs must be",
    "epochs = true": "epochs must be",
    "hidden = [true]": "hidden must be",
    "hidden = {}": "hidden must be",
    "hidden = 1e400": "hidden must be",
    "dtype = 'f4,f4'": "dtype must be",
    "dtype = 4": "dtype must be",
    "optimizer = ['adam']": "optimizer must be",
    "activation = 3": "an activation is",
    "seed = 'x'": "seed must be",
    "task = 1979-05-27": "task must be",
    "validation = nan": "validation must be",
    "dropout = '0.5'": "dropout must be",
}


@pytest.mark.parametrize(("line", "message"), SETTINGS.items())
def test_settings_of_another_type_name_the_file(tmp_path, line, message) -> None:
    path = tmp_path / "job.toml"
    path.write_text(line)
    with pytest.raises(nn.NNBackendError, match=f"job.toml: {message}"):
        read_config(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_settings_with_a_byte_order_mark(tmp_path, encoding) -> None:
    path = tmp_path / "job.toml"
    path.write_text("epochs = 7\ntarget = 2\n", encoding=encoding)
    assert read_config(path) == {"epochs": 7, "target": "2"}
    path.write_text("epochs = 7", encoding="utf-16")
    with pytest.raises(nn.DataError, match="job.toml is not TOML"):
        read_config(path)
