"""Folders of pictures, one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnbackend._files import existing_file
from nnbackend._types import HostArray, PathLike
from nnbackend.data.dataset import Dataset
from nnbackend.errors import DataError, OutOfMemoryError, ShapeError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
#: Of a picture; one of 4096 x 4096 has as many.
MOST_PIXELS = 1 << 24
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def read_images(folder: PathLike, *, with_targets: bool = True) -> Dataset:
    """Pictures, in grey, in one folder for each class: ``folder/cat/1.png``.

    PNG, JPEG, BMP, GIF, TIFF and WebP, in any case; hidden files and folders are passed over.
    A folder of images without subfolders gives x and no y. All images must have the same size.
    What is transparent shows white; photos are turned upright; 16 bits a pixel keep their
    precision. Needs Pillow: ``pip install "nnbackend[images]"``.

    Args:
        with_targets: False gives no y; the pictures are the same.

    Returns:
        x in [0, 1], a row for each image, in the order of the sorted names.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'reading images needs Pillow, which is not installed: pip install "nnbackend[images]"'
        ) from error
    folder = existing_file(folder, folders=True)
    classes = [f for f in sorted(folder.iterdir()) if _is_shown(f) and f.is_dir() and _pictures(f)]
    groups = [_pictures(f) for f in classes] or [_pictures(folder)]
    files = [file for group in groups for file in group]
    if not files:
        raise DataError(
            f"the folder {folder} holds no images ({', '.join(SUFFIXES)}) or folders of them"
        )
    rows: list[HostArray] = []
    shape: tuple[int, ...] | None = None
    for file in files:
        pixels = _read_picture(file)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise ShapeError(
                f"{file} is {pixels.shape[1]} x {pixels.shape[0]} pixels; {files[0].name}, the "
                f"first image, is {shape[1]} x {shape[0]}, and all must be the same size"
            )
        rows.append(pixels.reshape(-1))
    y, names = None, None
    if classes and with_targets:
        y = np.repeat(np.arange(len(classes)), [len(g) for g in groups]).astype(np.int64)
        names = tuple(f.name for f in classes)
    height, width = shape or (0, 0)
    files_read = tuple(str(file.relative_to(folder)) for file in files)
    return Dataset(
        np.stack(rows), y, class_names=names, image_shape=(height, width), kind="images",
        row_names=files_read,
    )  # fmt: skip


def _is_shown(path: Path) -> bool:
    """Not hidden, as a checkpoint folder or a ``._1.png`` beside ``1.png`` is."""
    return not path.name.startswith(".")


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and _is_shown(file) and file.is_file()
    )


def _read_picture(path: Path) -> HostArray:
    """One picture in grey, (height, width) float32 in [0, 1]."""
    from PIL import Image, ImageOps

    try:
        # of other formats a file may be a program, such as one in PostScript
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise DataError(
                    f"{path} is {file.width} x {file.height} pixels, each of which would be an "
                    f"input; make it smaller first"
                )
            return _grey(ImageOps.exif_transpose(file), file.format, path)
    except DataError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"there is not the memory for the picture {path}") from error
    except Exception as error:  # of damaged files Pillow raises nearly anything
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {reason}") from error


def _grey(image: Any, kind: str | None, path: Path) -> HostArray:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        return np.asarray(image, np.float32) / 65535.0
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} cannot be read as an image: it has 32 bits a pixel; save it with 8 or 16"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), np.float32) / 255.0
