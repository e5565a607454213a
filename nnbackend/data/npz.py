"""NumPy archives, read so that a damaged or forged one takes no memory."""

from __future__ import annotations

import math
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnbackend._files import existing_file
from nnbackend._types import HostArray, PathLike
from nnbackend.data.dataset import Dataset, Task, as_targets
from nnbackend.data.idx import GZIP_RATIO
from nnbackend.errors import DataError, NNBackendError, OutOfMemoryError, ShapeError

_X, _Y = ("x", "X", "x_train", "data"), ("y", "Y", "y_train", "target")
#: Bytes of the description of an array.
_MOST_HEADER = 1 << 20
#: Ways in which NumPy writes an archive.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(path: PathLike, task: Task = "auto", *, with_targets: bool = True) -> Dataset:
    """A NumPy archive with the arrays x (N, ...) and y, also named x_train and y_train.

    uint8 values are taken as pixels and scaled to [0, 1]; rows of rank above 1 are flattened.
    A y of one-hot rows gives classes.

    Args:
        with_targets: False reads x only.

    Raises:
        DataError: it is damaged, or holds other things than arrays of numbers or text.
    """
    path = existing_file(path)
    arrays = _read_arrays(path, _X, _Y if with_targets else ())
    x = next((arrays[name] for name in _X if name in arrays), None)
    y = next((arrays[name] for name in _Y if name in arrays), None)
    if x is None:
        raise DataError(f"{path} must hold an array x (and y); it holds {', '.join(arrays)}")
    if x.dtype.kind not in "fiub" or x.ndim < 1 or x.size == 0:
        raise DataError(f"{path}: x must be rows of numbers; it is {x.dtype} of shape {x.shape}")
    image_shape = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    with np.errstate(over="ignore"):  # found where the rows are used
        rows = x.reshape(len(x), -1).astype(np.float32)
    if x.dtype == np.uint8:
        rows /= 255.0
    if y is None:
        return Dataset(rows, None, image_shape=image_shape, kind="npz")
    if y.ndim == 0 or len(y) != len(x):
        held = f"y {len(y)}" if y.ndim else "y is a single value"
        raise ShapeError(f"{path}: x has {len(x)} rows and {held}; the numbers must be equal")
    labels, names = as_targets(y, task, str(path))
    return Dataset(rows, labels, class_names=names, image_shape=image_shape, kind="npz")


def _read_arrays(path: Path, *wanted: tuple[str, ...]) -> dict[str, HostArray | None]:
    """The first array of each group of names, and the names of the others."""
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            arrays.update(dict.fromkeys(members))
            for names in wanted:
                name = next((name for name in names if name in members), None)
                if name is not None:
                    arrays[name] = _read_member(path, archive, members[name])
    except NNBackendError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"there is not the memory for the arrays of {path}") from error
    # headers are Python expressions, and parsers of damaged ones raise nearly anything
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is not a NumPy archive, or is damaged: {reason}") from error
    return arrays


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> HostArray:
    """One array; its size is compared with the file's before memory is taken for it."""
    if info.compress_type not in _METHODS:
        raise DataError(f"{path}: {info.filename} is compressed as NumPy does not do it")
    with archive.open(info) as file:
        shape, fortran, dtype = _read_header(file)
        if dtype.hasobject:
            raise DataError(
                f"{path}: {info.filename} cannot be read: it holds Python objects, which a file "
                f"may run code with; save arrays of numbers or text"
            )
        # Python integers: a forged header must not overflow
        claimed = math.prod(int(n) for n in shape) * dtype.itemsize
        most = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else GZIP_RATIO)
        if claimed > most:
            raise DataError(
                f"{path}: {info.filename} must hold {claimed} bytes by its header, which "
                f"{info.compress_size} bytes in the file cannot be"
            )
        content = file.read(claimed + 1)
    if len(content) != claimed:
        raise DataError(
            f"{path}: {info.filename} must hold {claimed} bytes by its header; it holds "
            f"{'more' if len(content) > claimed else len(content)}"
        )
    found: HostArray = np.ndarray(shape, dtype, content, order="F" if fortran else "C")
    if dtype.kind == "U" and (np.frombuffer(content, dtype.byteorder + "u4")
                              > 0x10FFFF).any():  # fmt: skip
        raise DataError(f"{path}: {info.filename} holds text with characters that do not exist")
    return found


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        start = file.read(4)
        if int.from_bytes(start, "little") > _MOST_HEADER:  # which NumPy reads before it looks
            raise DataError("a header is longer than headers are")
        header = start + file.read(int.from_bytes(start, "little"))
        return np.lib.format.read_array_header_2_0(BytesIO(header))
    raise DataError(f"version {version[0]}.{version[1]} of the format is not known")
