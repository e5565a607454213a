"""Readers for your own files: IDX, npz, folders of PNG images, and CSV (``csv``).

Each gives a ``Dataset``, which unpacks like every data set, ``x, y = read_csv("wine.csv")``,
and also knows the names of classes and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnbackend.data.csv import CSV_SUFFIXES, read_csv
from nnbackend.data.dataset import Dataset, HostArray, PathLike, Task, as_targets, existing
from nnbackend.errors import DataError, ShapeError

_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: gzip cannot make data smaller than by this factor.
_GZIP_RATIO = 1032
#: More classes than this are taken for a damaged file of labels.
_MOST_LABELS = 1 << 16


# -- IDX --------------------------------------------------------------------------------------


def read_idx_array(path: PathLike) -> HostArray:
    """One array of the IDX format (that of MNIST), plain or compressed with gzip.

    Source of the format: Y. LeCun, C. Cortes and C. Burges, the MNIST database's page.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not IDX, or shorter than its header says.
    """
    import gzip
    import zlib

    path = existing(path)
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES:
                raise DataError(
                    f"{path} is not an IDX file: it must begin with two zero bytes and a known "
                    f"type; it begins with {head.hex(' ')}"
                )
            dtype, rank = np.dtype(_IDX_DTYPES[head[2]]), head[3]
            sizes = file.read(4 * rank)
            if rank == 0 or len(sizes) < 4 * rank:
                raise DataError(f"{path} ends inside its IDX header")
            shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
            # Python integers: a forged header must not overflow
            claimed = math.prod(shape) * dtype.itemsize
            most = path.stat().st_size * (_GZIP_RATIO if compressed else 1)
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
    values = np.frombuffer(content, dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def read_idx(images: PathLike, labels: PathLike | None = None) -> Dataset:
    """Images and labels in the format of MNIST and Fashion-MNIST.

    Args:
        images: the file of images, uint8 (N, height, width); or a folder that holds
            ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, with or without ``.gz``.
        labels: the file of labels; None looks beside the images for the same name with
            "labels-idx1" for "images-idx3", and reads only images if there is none.

    Returns:
        x in [0, 1], a row for each image, y the labels.
    """
    images = existing(images)
    if images.is_dir():
        images = _idx_images(images)
    found = existing(labels) if labels is not None else _idx_labels(images)
    x = read_idx_array(images)
    if x.ndim < 2 or x.dtype != np.uint8:
        raise DataError(
            f"{images} must hold images: uint8, rank 3; it holds {x.dtype} of shape {x.shape}"
        )
    y = None
    if found is not None:
        labelled = read_idx_array(found)
        if labelled.ndim != 1 or len(labelled) != len(x):
            raise ShapeError(
                f"{found} must hold one label for each of the {len(x)} images; it holds "
                f"{labelled.shape}"
            )
        y = labelled.astype(np.int64)
        wrong = (y != labelled) | (y < 0) | (y >= _MOST_LABELS)
        if wrong.any():
            raise DataError(
                f"{found}: labels must be whole numbers in 0 ... {_MOST_LABELS - 1}; found "
                f"{labelled[wrong][0]}"
            )
    shape = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    rows = x.reshape(len(x), -1).astype(np.float32) / 255.0
    names = None if y is None else tuple(str(c) for c in range(int(y.max(initial=0)) + 1))
    return Dataset(rows, y, class_names=names, image_shape=shape, kind="idx")


def _idx_images(folder: Path) -> Path:
    for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"the folder {folder} holds no train-images-idx3-ubyte[.gz]")


def _idx_labels(images: Path) -> Path | None:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    for candidate in (name, name + ".gz", name.removesuffix(".gz")):
        beside = images.with_name(candidate)
        if candidate != images.name and beside.is_file():
            return beside
    return None


# -- npz --------------------------------------------------------------------------------------


def read_npz(path: PathLike, task: Task = "auto") -> Dataset:
    """A NumPy archive with the arrays x (N, ...) and y, also named x_train and y_train.

    uint8 values are taken as pixels and scaled to [0, 1]; rows of rank above 1 are flattened.
    """
    import zipfile

    path = existing(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a NumPy archive: {error}") from error
    x = next((arrays[name] for name in ("x", "X", "x_train", "data") if name in arrays), None)
    y = next((arrays[name] for name in ("y", "Y", "y_train", "target") if name in arrays), None)
    if x is None:
        raise DataError(f"{path} must hold an array x (and y); it holds {', '.join(arrays)}")
    if x.dtype.kind not in "fiub" or x.ndim < 1 or len(x) == 0:
        raise DataError(f"{path}: x must be rows of numbers; it is {x.dtype} of shape {x.shape}")
    image_shape = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    rows = x.reshape(len(x), -1).astype(np.float32)
    if x.dtype == np.uint8:
        rows /= 255.0
    if y is None:
        return Dataset(rows, None, image_shape=image_shape, kind="npz")
    if len(y) != len(x):
        raise ShapeError(f"{path}: x has {len(x)} rows and y {len(y)}; the numbers must be equal")
    labels, names = as_targets(y, task, str(path))
    return Dataset(rows, labels, class_names=names, image_shape=image_shape, kind="npz")


# -- images -----------------------------------------------------------------------------------


def read_images(folder: PathLike) -> Dataset:
    """PNG images, in grey, in one folder for each class: ``folder/cat/1.png``.

    A folder of images without subfolders gives x and no y. All images must have the same
    size. Needs Pillow: ``pip install "nnbackend[images]"``.

    Returns:
        x in [0, 1], a row for each image, in the order of the sorted names.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            'reading images needs Pillow, which is not installed: pip install "nnbackend[images]"'
        ) from error
    folder = existing(folder)
    classes = sorted(f for f in folder.iterdir() if f.is_dir() and any(f.glob("*.png")))
    groups = [sorted(f.glob("*.png")) for f in classes] or [sorted(folder.glob("*.png"))]
    files = [file for group in groups for file in group]
    if not files:
        raise DataError(f"the folder {folder} holds no .png images or folders of them")
    rows: list[HostArray] = []
    shape: tuple[int, ...] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("L"), np.uint8)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise ShapeError(
                f"{file} is {pixels.shape[1]} x {pixels.shape[0]} pixels; {files[0].name}, the "
                f"first image, is {shape[1]} x {shape[0]}, and all must be the same size"
            )
        rows.append(pixels.reshape(-1))
    x = np.stack(rows).astype(np.float32) / 255.0
    y = None
    if classes:
        y = np.repeat(np.arange(len(classes)), [len(g) for g in groups]).astype(np.int64)
    names = tuple(f.name for f in classes) or None
    height, width = shape or (0, 0)
    files_read = tuple(str(file.relative_to(folder)) for file in files)
    return Dataset(
        x, y, class_names=names, image_shape=(height, width), kind="images", row_names=files_read
    )


# -- any --------------------------------------------------------------------------------------


def read(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
) -> Dataset:
    """Read a file or folder according to its kind: .csv (or .tsv), .npz, IDX, or PNG images."""
    path = existing(path)
    if path.is_dir():
        if any(path.glob("train-images-idx3-ubyte*")):
            return read_idx(path)
        return read_images(path)
    if path.suffix == ".npz":
        return read_npz(path, task)
    if "idx" in path.name or path.suffix == ".gz":
        return read_idx(path)
    if path.suffix in CSV_SUFFIXES:
        return read_csv(path, target, task, features)
    raise DataError(
        f"{path} is of no known kind: .csv, .tsv, .npz, IDX (idx in its name), or a folder of "
        f"IDX files or PNG images"
    )
