"""Files whose headers promise what they do not hold."""

import gzip
import resource
import struct
import time

import numpy as np
import pytest
from idx_files import write_idx

import nnbackend as nn


def peak_bytes() -> int:
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
    path.write_text(",".join(["a"] * 50_000) + "\n" + ",".join(["1"] * 50_000) + "\n")
    start = time.perf_counter()
    with pytest.raises(nn.DataError, match="two columns named 'a'"):
        nn.datasets.read_csv(path)
    assert time.perf_counter() - start < 5


def test_settings_that_are_nested_too_deeply(tmp_path) -> None:
    from nnbackend.cli.train_job import read_config

    path = tmp_path / "a.toml"
    path.write_text("hidden = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(nn.DataError, match="nested too deeply"):
        read_config(path)


@pytest.mark.parametrize("spec", ["numpy:²", "numpy:٣"])
def test_digits_that_are_no_numbers(spec) -> None:
    with pytest.raises(nn.DeviceError, match="NAME:NUMBER"):
        nn.get_backend(spec)
