"""Readers of users' own files: IDX, npz, CSV, folders of PNG images.

Each gives a ``Dataset``, which unpacks like every data set, ``x, y = read_csv("wine.csv")``,
and knows the names of classes and columns besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnbackend.errors import DataError, ShapeError, unknown_name

HostArray = np.ndarray[Any, Any]
PathLike = str | Path
Task = Literal["auto", "classification", "regression"]
TASKS = ("auto", "classification", "regression")

#: In task "auto", whole numbers with more distinct values than this are quantities, not classes.
MOST_CLASSES = 20
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class Dataset:
    """Rows and what is known about them; unpacks to ``(x, y)``.

    Attributes:
        x: (N, I) float32.
        y: (N,) int64 class numbers, (N, O) float32 quantities, or None where the file has none.
        class_names: name of each class, or None for quantities.
        feature_names, target_name: of columns, where the file names them.
        image_shape: (height, width) where rows are pictures.
        kind: "idx", "npz", "csv", "images" or "builtin".
    """

    x: HostArray
    y: HostArray | None
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    target_name: str | None = None
    image_shape: tuple[int, int] | None = None
    kind: str = "builtin"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.y))


# -- IDX --------------------------------------------------------------------------------------


def read_idx_array(path: PathLike) -> HostArray:
    """One array of the IDX format (that of MNIST), plain or compressed with gzip.

    Source of the format: Y. LeCun, C. Cortes and C. Burges, the MNIST database's page.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not IDX, or shorter than its header says.
    """
    import gzip

    path = existing(path)
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be decompressed: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_DTYPES:
        raise DataError(
            f"{path} is not an IDX file: it must begin with two zero bytes and a known type; "
            f"it begins with {content[:4].hex(' ')}"
        )
    dtype, rank = np.dtype(_IDX_DTYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if rank == 0 or len(content) < start:
        raise DataError(f"{path} ends inside its IDX header")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", rank, 4))
    # Python integers: a forged header must not overflow
    claimed, held = math.prod(shape) * dtype.itemsize, len(content) - start
    if claimed != held:
        raise DataError(
            f"{path} must hold {' x '.join(map(str, shape))} values, {claimed} bytes after its "
            f"header; it holds {held} bytes"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def read_idx(images: PathLike, labels: PathLike | None = None) -> Dataset:
    """Images and labels in the format of MNIST and Fashion-MNIST.

    Args:
        images: the file of images, uint8 (N, height, width); or a folder that holds
            ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, with or without ``.gz``.
        labels: the file of labels; None looks beside the images for the same name with
            "labels-idx1" for "images-idx3", and reads images alone where there is none.

    Returns:
        x in [0, 1], a row for each image, y the labels.
    """
    images = existing(images)
    if images.is_dir():
        images = _idx_images(images)
    found = Path(labels) if labels is not None else _idx_labels(images)
    x = read_idx_array(images)
    if x.ndim < 2 or x.dtype != np.uint8:
        raise DataError(
            f"{images} must hold images: uint8, rank 3; it holds {x.dtype} of shape {x.shape}"
        )
    y = None
    if found is not None:
        y = read_idx_array(found).astype(np.int64)
        if y.ndim != 1 or len(y) != len(x):
            raise ShapeError(
                f"{found} must hold one label for each of the {len(x)} images; it holds {y.shape}"
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
        raise DataError(f"{path} is not a NumPy archive that can be read: {error}") from error
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
        raise ShapeError(f"{path}: x has {len(x)} rows and y {len(y)}; they must be as many")
    labels, names = as_targets(y, task, str(path))
    return Dataset(rows, labels, class_names=names, image_shape=image_shape, kind="npz")


# -- CSV --------------------------------------------------------------------------------------


def read_csv(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
) -> Dataset:
    """Numeric columns and a target column, with or without a header line.

    The separator is the one of ``,`` ``;`` and tab that the first line has most of.

    Args:
        target: name of the target column, or its number from 0; None takes the last column.
        task: "classification" makes classes of the target's distinct values, "regression"
            numbers; "auto" takes text, and whole numbers with at most 20 distinct values, as
            classes.
        features: names of the columns to read, in this order, and no target: for predictions
            with a model that was trained on those columns.

    Raises:
        DataError: ragged rows, text or nothing where a number belongs, an unknown column; line
            (from 1) and column are named.
    """
    path = existing(path)
    check_task(task)
    header, lines = _csv_lines(path)
    if features is not None:
        columns = _feature_columns(path, header, features)
        x = _numbers(path, lines, columns, header)
        return Dataset(x, None, feature_names=tuple(features), kind="csv")
    index = _target_column(path, header, target)
    columns = [k for k in range(len(header)) if k != index]
    if not columns:
        raise DataError(f"{path} has one column only; a target needs columns to learn from")
    x = _numbers(path, lines, columns, header)
    texts = [fields[index].strip() for _, fields in lines]
    y, names = _csv_target(path, lines, texts, index, header, task)
    return Dataset(
        x,
        y,
        class_names=names,
        feature_names=tuple(header[k] for k in columns),
        target_name=header[index],
        kind="csv",
    )


CsvLines = list[tuple[int, list[str]]]


def _csv_lines(path: Path) -> tuple[list[str], CsvLines]:
    """Column names, and the rows with their line numbers; every row is as long as the first."""
    import csv

    lines: CsvLines = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            for fields in reader:
                if any(field.strip() for field in fields):
                    lines.append((reader.line_num, fields))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not text in UTF-8: {error}") from error
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if not lines:
        raise DataError(f"{path} is empty; it must hold at least one row")
    header = [field.strip() for field in lines[0][1]]
    if all(_is_number(field) for field in header):
        header = [str(k) for k in range(len(header))]
    else:
        lines = lines[1:]
    if not lines:
        raise DataError(f"{path} has a header and no rows")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path} has two columns named {twice!r}; names must differ")
    for number, fields in lines:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields; every row must have "
                f"{len(header)}, as the first line has"
            )
    return header, lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _target_column(path: Path, header: list[str], target: str | int | None) -> int:
    if target is None:
        return len(header) - 1
    if isinstance(target, str):
        if target in header:
            return header.index(target)
        raise DataError(f"{path}: {unknown_name('target column', target, header)}")
    if not 0 <= target < len(header):
        raise DataError(
            f"{path}: the target column must be in 0 ... {len(header) - 1}; received {target}"
        )
    return target


def _feature_columns(path: Path, header: list[str], features: Sequence[str]) -> list[int]:
    for name in features:
        if name not in header:
            raise DataError(
                f"{path} has no column {name!r}, which the model was trained on; its columns "
                f"are {', '.join(header)}"
            )
    return [header.index(name) for name in features]


def _numbers(path: Path, lines: CsvLines, columns: list[int], header: list[str]) -> HostArray:
    """The columns as (N, len(columns)) float32."""
    rows = np.empty((len(lines), len(columns)), np.float32)
    for k, (number, fields) in enumerate(lines):
        try:
            rows[k] = [float(fields[c]) for c in columns]
        except ValueError:
            bad = next(c for c in columns if not _is_number(fields[c]))
            raise DataError(
                f"{path}, line {number}, column {header[bad]!r}: a number belongs here; found "
                f"{fields[bad]!r}. Text columns must be turned into numbers or left out"
            ) from None
    wrong = np.argwhere(~np.isfinite(rows))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}, line {lines[row][0]}, column {header[columns[column]]!r}: numbers must be "
            f"finite; found {lines[row][1][columns[column]]!r}"
        )
    return rows


def _csv_target(
    path: Path, lines: CsvLines, texts: list[str], index: int, header: list[str], task: Task
) -> tuple[HostArray, tuple[str, ...] | None]:
    for (number, _), text in zip(lines, texts, strict=True):
        if not text:
            raise DataError(f"{path}, line {number}: the target {header[index]!r} is empty")
    if all(_is_number(text) for text in texts):
        return as_targets(np.array([float(text) for text in texts]), task, str(path))
    if task == "regression":
        number, text = next(
            (n, t) for (n, _), t in zip(lines, texts, strict=True) if not _is_number(t)
        )
        raise DataError(
            f"{path}, line {number}, column {header[index]!r}: regression needs numbers; found "
            f"{text!r}"
        )
    return as_targets(np.array(texts), task, str(path))


def as_targets(y: HostArray, task: Task, where: str) -> tuple[HostArray, tuple[str, ...] | None]:
    """Class numbers with names, or quantities (N, O) float32."""
    check_task(task)
    text = y.dtype.kind in "US"
    if not text and y.dtype.kind not in "fiub":
        raise DataError(f"{where}: targets must be numbers or text; found {y.dtype}")
    if not text and not np.isfinite(y).all():
        raise DataError(f"{where}: targets must be finite; found NaN or infinity")
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    whole = flat.ndim == 1 and (text or bool((flat == np.floor(flat)).all()))
    classes = task == "classification" or text
    if task == "auto" and whole and not text:
        classes = len(np.unique(flat)) <= MOST_CLASSES
    if not classes:
        return y.reshape(len(y), -1).astype(np.float32), None
    if flat.ndim != 1:
        raise DataError(f"{where}: classes must be one column; found shape {y.shape}")
    values, numbers = np.unique(flat, return_inverse=True)
    if len(values) < 2:
        raise DataError(f"{where}: classification needs at least 2 classes; found {values[0]}")
    names = tuple(str(v) if text else f"{v:g}" for v in values)
    return numbers.reshape(-1).astype(np.int64), names


def check_task(task: str) -> None:
    """Refuse an unknown task."""
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)


# -- images -----------------------------------------------------------------------------------


def read_images(folder: PathLike) -> Dataset:
    """PNG images, in grey, in one folder for each class: ``folder/cat/1.png``.

    A folder of images alone, without folders in it, gives x and no y. All images must have
    one size. Needs Pillow: ``pip install "nnbackend[images]"``.

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
        raise DataError(f"the folder {folder} holds no .png images, nor folders of them")
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
                f"first image, is {shape[1]} x {shape[0]}, and all must be alike"
            )
        rows.append(pixels.reshape(-1))
    x = np.stack(rows).astype(np.float32) / 255.0
    y = None
    if classes:
        y = np.repeat(np.arange(len(classes)), [len(g) for g in groups]).astype(np.int64)
    names = tuple(f.name for f in classes) or None
    height, width = shape or (0, 0)
    return Dataset(x, y, class_names=names, image_shape=(height, width), kind="images")


# -- any --------------------------------------------------------------------------------------


def read(
    path: PathLike,
    target: str | int | None = None,
    task: Task = "auto",
    features: Sequence[str] | None = None,
) -> Dataset:
    """Read a file or folder by what it is: .csv (or .tsv), .npz, IDX, or PNG images."""
    path = existing(path)
    if path.is_dir():
        if any(path.glob("train-images-idx3-ubyte*")):
            return read_idx(path)
        return read_images(path)
    if path.suffix == ".npz":
        return read_npz(path, task)
    if "idx" in path.name or path.suffix == ".gz":
        return read_idx(path)
    if path.suffix in (".csv", ".tsv", ".txt", ".data"):
        return read_csv(path, target, task, features)
    raise DataError(
        f"{path} is of no known kind: .csv, .tsv, .npz, IDX (idx in its name), or a folder of "
        f"IDX files or PNG images"
    )


def existing(path: PathLike) -> Path:
    """``path``, or a FileNotFoundError that names it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    return path
