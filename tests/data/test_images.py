"""Pictures as they come: modes, suffixes, what lies beside them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nnbackend as nn

RAMP = np.linspace(0, 1, 12).reshape(3, 4)


def only(folder: Path) -> np.ndarray:
    x, y = nn.datasets.read_images(folder)
    assert (x.shape, x.dtype, y) == ((1, 12), np.float32, None)
    return x[0].reshape(3, 4)


def grey(levels: np.ndarray, dtype=np.uint8) -> Image.Image:
    return Image.fromarray((levels * np.iinfo(dtype).max).round().astype(dtype))


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF"])
def test_sixteen_bits_keep_their_precision(tmp_path, suffix) -> None:
    grey(RAMP, np.uint16).save(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(only(tmp_path), RAMP, atol=1e-5)


@pytest.mark.parametrize(
    "suffix", [".png", ".PNG", ".Png", ".jpg", ".JPEG", ".bmp", ".gif", ".webp"]
)
def test_formats_and_suffixes_in_any_case(tmp_path, suffix) -> None:
    Image.new("L", (4, 3), 102).save(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(only(tmp_path), 0.4, atol=0.01)


@pytest.mark.parametrize(("mode", "suffix"), [("LA", ".png"), ("RGBA", ".png"), ("RGBA", ".tiff")])
def test_what_is_transparent_shows_white(tmp_path, mode, suffix) -> None:
    """Black ink whose alpha is the drawing, as drawing programs save it."""
    picture = Image.new(mode, (4, 3))
    picture.putalpha(grey(1 - RAMP))
    picture.save(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(only(tmp_path), RAMP, atol=0.005)


def test_a_palette_with_a_transparent_colour(tmp_path) -> None:
    picture = Image.new("P", (4, 3), 1)
    picture.putpalette([255, 0, 0, 0, 0, 0] + [0, 0, 0] * 254)  # 0 is red, 1 black
    picture.paste(0, (0, 0, 2, 3))
    picture.save(tmp_path / "a.png", transparency=0)
    expected = np.tile([1.0, 1.0, 0.0, 0.0], (3, 1))
    np.testing.assert_allclose(only(tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_a_transparent_colour_without_a_palette(tmp_path, kind) -> None:
    picture = Image.new(kind, (4, 3), 0 if kind == "L" else (0, 0, 0))
    picture.paste(51 if kind == "L" else (51, 51, 51), (0, 0, 2, 3))
    picture.save(tmp_path / "a.png", transparency=51 if kind == "L" else (51, 51, 51))
    np.testing.assert_allclose(only(tmp_path), np.tile([1.0, 1.0, 0.0, 0.0], (3, 1)), atol=1e-6)


@pytest.mark.parametrize(("ink", "level"), [((0, 0, 0, 0), 1.0), ((0, 0, 0, 255), 0.0)])
def test_cmyk(tmp_path, ink, level) -> None:
    Image.new("CMYK", (4, 3), ink).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(only(tmp_path), level, atol=0.02)


def test_black_and_white(tmp_path) -> None:
    Image.fromarray(RAMP > 0.5).save(tmp_path / "a.png")
    np.testing.assert_array_equal(only(tmp_path), RAMP > 0.5)


def test_photos_are_turned_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    grey(RAMP).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(only(tmp_path), RAMP[::-1, ::-1], atol=0.003)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(tmp_path, mode) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "a.tiff")
    with pytest.raises(nn.DataError, match="a.tiff.*32 bits a pixel"):
        nn.datasets.read_images(tmp_path)


def test_what_is_hidden_is_no_class_and_no_picture(tmp_path) -> None:
    for folder in ("cat", "dog", ".ipynb_checkpoints", ".git", "empty", "__MACOSX"):
        (tmp_path / folder).mkdir()
        if folder not in ("empty", "__MACOSX"):
            Image.new("L", (4, 3)).save(tmp_path / folder / "1.png")
    for name in (
        "cat/._1.png",
        "dog/.hidden.jpg",
        "__MACOSX/._1.png",
        "cat/.DS_Store",
        "cat/a.txt",
    ):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "dog" / "folder.png").mkdir()
    data = nn.datasets.read(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.row_names == (str(Path("cat/1.png")), str(Path("dog/1.png")))


def damaged(kind: str, path: Path) -> Path:
    path = path / f"a.{'jpg' if kind == 'jpg' else 'png'}"
    Image.effect_noise((64, 64), 50).save(path)
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 0x10
    elif kind == "cut":
        del content[len(content) // 2 :]
    elif kind == "bomb":
        content[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    elif kind == "chunk":
        content[8:12] = b"\xff\xff\xff\xff"
    elif kind == "jpg":
        del content[4:]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["flipped", "cut", "bomb", "chunk", "jpg"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_pictures_are_named(tmp_path, kind) -> None:
    path = damaged(kind, tmp_path)
    with pytest.raises(nn.DataError, match=f"{path.name} cannot be read as an image"):
        nn.datasets.read_images(tmp_path)
