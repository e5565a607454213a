"""The IDX format of MNIST and the data sets that follow it.

Source of the format: Y. LeCun, C. Cortes and C. Burges, the MNIST database's page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnbackend._files import existing_file
from nnbackend._types import HostArray, PathLike
from nnbackend.data.dataset import Dataset
from nnbackend.errors import DataError, ShapeError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: gzip cannot make data smaller than by this factor.
GZIP_RATIO = 1032
#: More classes than this are taken for a damaged file of labels.
_MOST_LABELS = 1 << 16
#: train-images-idx3-ubyte, train-images.idx3-ubyte.gz, emnist-letters-train-images-idx3-ubyte
_IMAGES = re.compile(r"(.*)images([-_.])idx3([-_.]ubyte)(\.gz)?", re.IGNORECASE | re.DOTALL)
#: How many folders down files are looked for: a downloader's MNIST/raw is two down.
_DEPTH = 2


def read_idx_array(path: PathLike) -> HostArray:
    """One array of the IDX format, plain or compressed with gzip.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not IDX, or its content is not what its header says.
    """
    import gzip
    import zlib

    path = existing_file(path)
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES:
                raise DataError(
                    f"{path} is not an IDX file: it must begin with two zero bytes and a known "
                    f"type; it begins with {head.hex(' ')}"
                )
            dtype, rank = np.dtype(_DTYPES[head[2]]), head[3]
            sizes = file.read(4 * rank)
            if rank == 0 or len(sizes) < 4 * rank:
                raise DataError(f"{path} ends inside its IDX header")
            shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
            # Python integers: a forged header must not overflow
            claimed = math.prod(shape) * dtype.itemsize
            most = path.stat().st_size * (GZIP_RATIO if compressed else 1)
            content = file.read(claimed + 1) if claimed <= most else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed: {error}") from error
    if claimed != len(content):
        held = f"it holds {path.stat().st_size - 4 - 4 * rank} bytes"
        if compressed:
            held = "it holds more" if len(content) > claimed else f"it holds {len(content)} bytes"
        raise DataError(
            f"{path} must hold {' x '.join(map(str, shape))} values, {claimed} bytes after its "
            f"header; {held}"
        )
    if rank > 32 or 0 in shape:
        raise DataError(f"{path} must hold values; its shape is {shape}")
    values = np.frombuffer(content, dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def read_idx(
    images: PathLike, labels: PathLike | None = None, *, with_targets: bool = True
) -> Dataset:
    """Images and labels in the format of MNIST, Fashion-MNIST and EMNIST.

    Args:
        images: the file of images, uint8 (N, height, width); or a folder that holds one for
            training, ``train-images-idx3-ubyte``, with a dot for a hyphen, something in front, or
            ``.gz``, up to two folders down.
        labels: the file of labels; None looks beside the images for the same name with
            "labels-idx1" for "images-idx3", and reads only images if there is none.
        with_targets: False reads images only.

    Returns:
        x in [0, 1], a row for each image, y the labels.
    """
    images = existing_file(images, folders=True)
    if images.is_dir():
        images = find_images(images, "train")
    found = existing_file(labels) if labels is not None else _labels_of(images)
    x = read_idx_array(images)
    if x.ndim < 2 or x.dtype != np.uint8:
        raise DataError(
            f"{images} must hold images: uint8, rank 3; it holds {x.dtype} of shape {x.shape}"
        )
    y = None if found is None or not with_targets else _read_labels(found, len(x))
    shape = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    rows = x.reshape(len(x), -1).astype(np.float32) / 255.0
    names = None if y is None else tuple(str(c) for c in range(int(y.max(initial=0)) + 1))
    return Dataset(rows, y, class_names=names, image_shape=shape, kind="idx")


def _read_labels(path: Path, count: int) -> HostArray:
    labelled = read_idx_array(path)
    if labelled.ndim != 1 or len(labelled) != count:
        raise ShapeError(
            f"{path} must hold one label for each of the {count} images; it holds {labelled.shape}"
        )
    with np.errstate(invalid="ignore"):  # NaN is refused next
        y = labelled.astype(np.int64)
    wrong = (y != labelled) | (y < 0) | (y >= _MOST_LABELS)
    if wrong.any():
        raise DataError(
            f"{path}: labels must be whole numbers in 0 ... {_MOST_LABELS - 1}; found "
            f"{labelled[wrong][0]}"
        )
    return y


def holds_idx(folder: Path) -> bool:
    """Whether files of images lie in a folder or below it."""
    return next(_image_files(folder), None) is not None


def find_images(folder: Path, *parts: str) -> Path:
    """The file of images whose name has one of ``parts`` in it, in a folder or below it.

    Raises:
        DataError: there is none, or files of several data sets.
    """
    found = {
        file: match[1]
        for file, match in _image_files(folder)
        if any(part in match[1].lower() for part in parts)
    }
    if not found:
        raise DataError(f"the folder {folder} holds no {parts[0]}-images-idx3-ubyte[.gz]")
    # of a file and its compressed copy, the first in the order of names is the plain one
    nearest = min(len(file.parts) for file in found)
    first = sorted(file for file in found if len(file.parts) == nearest)
    sets = sorted({found[file] for file in first})
    if len(sets) > 1:
        raise DataError(
            f"the folder {folder} holds the images of several data sets: "
            f"{', '.join(file.name for file in first)}; name one of these files instead"
        )
    return first[0]


def _image_files(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for file in _files(folder, _DEPTH):
        match = _IMAGES.fullmatch(file.name)
        if match:
            yield file, match


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Files in a folder and some folders down; what is hidden is passed over."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif depth and entry.is_dir():
            yield from _files(entry, depth - 1)


def _labels_of(images: Path) -> Path | None:
    """The labels that belong to a file of images: beside it, or, where a folder was made around
    each file, in the folder beside its own."""
    match = _IMAGES.fullmatch(images.name)
    if match is None:
        return None
    front, separator, end, _ = match.groups()
    word = "LABELS" if "IMAGES" in images.name else "labels"
    for between in (separator, "-", "."):
        name = f"{front}{word}{between}idx1{end}"
        for candidate in (name, f"{name}.gz"):
            for folder in (images.parent, images.parent.parent / candidate):
                if (folder / candidate).is_file():
                    return folder / candidate
    return None
