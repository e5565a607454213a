"""Files that are nearly right, at random, for everything that reads a file.

    python tests/support/fuzzing.py --seconds 60          # each reader for a minute, and a table
    python tests/support/fuzzing.py tables --guided       # by what it reaches, with atheris

What comes out of a reader is data, an error of nnbackend's, or FileNotFoundError; anything else is
a fault, and so is more than ``SLOW`` seconds or ``MEMORY`` bytes for one of these small files.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from book_models import classifier

import nnbackend as nn
from nnbackend.cli.settings import read_config
from nnbackend.nnfs import Layer_Dense, Model

if os.name == "posix":
    import resource

SLOW, MEMORY = 5.0, 1 << 30
#: Bytes at which formats break: ends of numbers, and lengths that are not true.
EDGES = [
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8,
    b"\xff" * 7 + b"\x7f", bytes(4), struct.pack("<Q", 10**12), struct.pack(">I", 1 << 31),
]  # fmt: skip
TABLES = [
    b"a,b,y\n1,2,x\n3,4,z\n5,6,x\n7,8,z\n",
    b"a;b;y\n1,5;2.000,5;0\n3,5;4.100,1;1\n",
    b'n,"q ""x""",d,y\n1,"a\nb",2020-01-01,1.5\n2,"c",2021-02-03 04:05,2.5\n3,"",,3.5\n',
    b"# c\n#note\na\tb\ty\n1\t?\tno\n2\tNA\tyes\n3\t4\tno\n",
    b"sep=;\na;b\n1;2\n2;1\n",
    b"1 2 0\n3  4 1\n5 6 0\n7 8 1\n",
    "a,b\n1,é\n2,ü\n".encode("latin-1"),
    "a,b\n1,2\n3,4\n".encode("utf-16"),
]  # fmt: skip
SETTINGS = [
    b'hidden = [64, 32]\nactivation = "tanh"\nepochs = 5\nlr = 0.01\nmetrics = ["accuracy"]\n',
    b'target = "y"\nclass_weight = {a = 1.0, b = 2}\nsep = ";"\nencoding = "latin-1"\n',
    b'validation = 0.5\npatience = 3\nhidden = "128,64"\nfeatures = "a,b"\nheader = true\n',
]  # fmt: skip
#: What means something in a format, put anywhere.
WORDS = {
    "tables": [b'"', b",", b";", b"\n", b"\r", b"\t", b"#", b"nan", b"inf", b"1e400", b"1_0", b"'",
               b'""', b"\xef\xbb\xbf", b" ", b"|", b"9999-12-31 23:59", b"sep=,\n", b"9" * 5000,
               b"true", b"007", b"1,000", b"1.000,5", b"\\", b"NULL", b"?"],
    "settings": [b"=", b"[", b"]", b"{", b"}", b'"', b"'''", b"\\u0000", b"nan", b"1979-05-27",
                 b"0x", b"1e999", b"\n", b".", b"true", b"[[", b"9" * 5000, b"sep", b"encoding"],
    "book models": [bytes([c]) for c in b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}]){\x80\x81\x85\x86"
                    b"\x87\x8a\x8b\x8c\x8d\x8e\x90\x93\x94\x95\x96"]
                   + [b"cnumpy\ndtype\n", b"cx\nModel\n", b"h\0", b"c_codecs\nencode\n"],
}  # fmt: skip


class Reader(NamedTuple):
    """A way to read files, and files that it can read."""

    name: str
    read: Callable[[Path], object]
    seeds: list[bytes]


def mutated(rng: random.Random, seeds: list[bytes], words: list[bytes]) -> bytes:
    """A seed with some bits, bytes and pieces changed."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5, 9])):
        place = rng.randrange(len(content) + 1)
        match rng.randrange(6):
            case 0 if place < len(content):
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                del content[place : place + rng.choice([1, 5, 20, len(content)])]
            case 2:
                start = rng.randrange(len(content) + 1)
                content[place:place] = content[start : start + rng.randrange(1, 40)]
            case 3:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                content[place : place + rng.randrange(10)] = other[start : start + 60]
            case _:
                piece = rng.choice(words if words and rng.random() < 0.7 else EDGES)
                content[place : place + rng.choice([0, len(piece)])] = piece
    return bytes(content) or b"x"


def fault_of(reader: Reader, path: Path) -> str | None:
    """What went wrong that should not, if anything did."""
    before, start = peak_bytes(), time.perf_counter()
    try:
        reader.read(path)
    except (nn.NNBackendError, FileNotFoundError):
        pass
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    seconds, more = time.perf_counter() - start, peak_bytes() - before
    if seconds > SLOW or more > MEMORY:
        return f"it took {seconds:.1f} s and {more >> 20} MB"
    return None


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(
    reader: Reader, folder: Path, count: int, seconds: float, seed: int
) -> tuple[int, dict[str, bytes]]:
    """Try so many files, or for so long; how many were tried, and one for each fault."""
    path = folder / f"file{SUFFIX.get(reader.name, '')}"
    faults: dict[str, bytes] = {}
    end = time.perf_counter() + seconds
    for number in range(count):
        rng = random.Random(f"{reader.name} {seed} {number}")
        content = mutated(rng, reader.seeds, WORDS.get(reader.name.split(",")[0], []))
        path.write_bytes(content)
        fault = fault_of(reader, path)
        if fault is not None:
            faults.setdefault(fault, content)
        if time.perf_counter() > end:
            return number + 1, faults
    return count, faults


# -- the readers --------------------------------------------------------------------------------

SUFFIX = {
    "tables": ".csv", "tables, gzip": ".csv.gz", "tables, bzip2": ".csv.bz2",
    "tables, xz": ".csv.xz", "tables, zip": ".csv.zip", "parquet": ".parquet", "npz": ".npz",
    "npz members": ".npz", "idx": "-idx3-ubyte", "idx, gzip": "-idx3-ubyte.gz", "images": ".png",
    "settings": ".toml",
}  # fmt: skip


def readers(folder: Path) -> Iterator[Reader]:
    """Each of them; ``folder`` is for files that are made on the way."""
    zipped = [_zipped("a.csv", content) for content in TABLES]
    packers = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
    if _have("duckdb"):
        yield Reader("tables", nn.datasets.read_csv, TABLES)
        for name, pack in packers.items():
            yield Reader(f"tables, {name}", nn.datasets.read_csv, [pack(c) for c in TABLES])
        yield Reader("tables, zip", nn.datasets.read_csv, zipped)
        yield Reader("parquet", nn.datasets.read_csv, _parquet_files(folder))
    yield Reader("npz", nn.datasets.read_npz, _npz_files())
    yield Reader("npz members", _read_as_member, _members())
    pictures = [_idx(np.zeros((4, 3, 3), "u1")), _idx(np.arange(4, dtype="u1"))]
    yield Reader("idx", nn.datasets.read_idx, pictures)
    yield Reader("idx, gzip", nn.datasets.read_idx, [gzip.compress(c) for c in pictures])
    if _have("PIL"):
        yield Reader("images", _read_picture, _pictures())
    yield Reader("settings", read_config, SETTINGS)
    models = _models(folder)
    yield Reader("models", _load_and_use, models)
    yield Reader("models, metadata", _with_other_metadata(models), models)
    yield Reader("book models", Model.load, _book_models(folder))


def _have(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _parquet_files(folder: Path) -> list[bytes]:
    import duckdb

    found = []
    for number, query in enumerate((
        "select i a, i * 1.5 b, 't' || (i % 3) t, date '2020-01-01' + i::int d, i % 2 y",
        "select i % 2 = 0 f, i::decimal(10, 2) n, [i] l, {'a': i} s, i::varchar y",
    )):  # fmt: skip
        path = folder / f"seed{number}.parquet"
        duckdb.sql(f"copy ({query} from range(30) r(i)) to '{path}' (format parquet)")
        found.append(path.read_bytes())
    return found


def _npz_files() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        for y in (np.arange(4), np.array(list("abab")), np.eye(4)[:, :2]):
            file = io.BytesIO()
            save(file, x=np.ones((4, 3, 2), "f4"), y=y)
            found.append(file.getvalue())
    return found


def _members() -> list[bytes]:
    arrays = (np.arange(4), np.array(list("abab")), np.array([b"a", b"bb", b"a", b"a"]),
              np.eye(4)[:, :2], np.zeros(4, "f2"), np.ones(4, bool))  # fmt: skip
    return [_npy(array) for array in arrays]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _read_as_member(path: Path) -> object:
    """The file as an array of an archive whose checksums are right."""
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _npy(np.ones((4, 3), "f4")))
        archive.writestr("y.npy", content)
    return nn.datasets.read_npz(path)


def _idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _pictures() -> list[bytes]:
    from PIL import Image

    picture = Image.fromarray(np.arange(192).reshape(8, 8, 3).astype("u1"))
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            picture.convert(mode).save(file, kind)
            found.append(file.getvalue())
    return found


def _read_picture(path: Path) -> object:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / "a.png").write_bytes(path.read_bytes())
        return nn.datasets.read_images(folder)


def _models(folder: Path) -> list[bytes]:
    found = []
    for layers in (
        [nn.Standardize(4), nn.Dense(4, 3, "relu"), nn.BatchNorm(3), nn.Dropout(0.1),
         nn.Dense(3, 2)],
        [nn.Embedding(4, 3, 2), nn.Dense(5, 2, nn.ELU(0.5))],
    ):  # fmt: skip
        model = nn.Sequential(layers, seed=0, backend="numpy")
        model.compile("softmax_cross_entropy", nn.Adam(nn.CosineDecay(0.1, 9)), ["accuracy"])
        stops = nn.EarlyStopping("loss")
        model.fit(np.ones((8, 4)), np.arange(8) % 2, epochs=2, verbose=0, callbacks=[stops])
        model.info = {"a": (1, {2: 3}), "b": [None, 1.5]}
        model.save(folder / "seed")
        found.append((folder / "seed").read_bytes())
    return found


def _load_and_use(path: Path) -> object:
    model = nn.load(path, backend="numpy")
    x = np.ones((4, model.n_inputs))
    model.predict(x)
    with contextlib.suppress(nn.NNBackendError):
        model.fit(x, np.arange(4) % 2, verbose=0)
    model.save(path.with_suffix(".again"))
    return model


def _with_other_metadata(models: list[bytes]) -> Callable[[Path], object]:
    """What the file holds decides how the metadata of a model are changed."""

    def load(path: Path) -> object:
        rng = random.Random(path.read_bytes())
        raw = rng.choice(models)
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        metadata = json.loads(header["__metadata__"]["nnbackend"])
        for _ in range(rng.choice([1, 1, 2, 3])):
            metadata = _changed(rng, metadata)
        header["__metadata__"]["nnbackend"] = json.dumps(metadata)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
        return _load_and_use(path)

    return load


_VALUES = [
    None, True, -1, 0, 2, 1 << 64, 10**30, 1.5, 1e308, "", "relu", "nan", [], {}, [[]], {"a": 1},
    {"name": "adam"}, {"function": "f"}, float("nan"), "\ud800", {"type": "Dense"}, 10**9,
]  # fmt: skip


def _changed(rng: random.Random, value: object) -> object:
    """JSON with a part replaced, taken out or doubled."""
    if rng.random() < 0.1 or not isinstance(value, dict | list) or not value:
        return rng.choice(_VALUES)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _changed(rng, value[key])}
    place = rng.randrange(len(value))
    return [*value[:place], _changed(rng, value[place]), *value[place + rng.randrange(2) :]]


def _book_models(folder: Path) -> list[bytes]:
    classifier(Layer_Dense(2, 3), Layer_Dense(3, 2)).save(folder / "seed")
    arrays = [np.float64(3), {"a": (1, 2**70, b"x", 1.5, "t")}, np.ones((2, 3), "f4")]
    return [(folder / "seed").read_bytes(), *(pickle.dumps(arrays, p) for p in range(6))]


# -- the command ----------------------------------------------------------------------------------


def guided(reader: Reader, folder: Path, seconds: float) -> None:
    """By what the code under test does with a file; ends the process."""
    import atheris

    atheris.instrument_all()
    path = folder / f"file{SUFFIX.get(reader.name, '')}"

    def one(content: bytes) -> None:
        path.write_bytes(content)
        fault = fault_of(reader, path)
        if fault is not None:
            raise AssertionError(fault)

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(reader.seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds:.0f}"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz everything that reads a file.")
    parser.add_argument("names", nargs="*", metavar="reader", help="such as tables; default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--guided", action="store_true", help="one reader, by coverage (atheris)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, total, wrong = Path(name), 0, 0
        for reader in readers(folder):
            if options.names and reader.name not in options.names:
                continue
            if options.guided:
                guided(reader, folder, options.seconds)
            count, faults = fuzz(reader, folder, sys.maxsize, options.seconds, options.seed)
            print(f"{reader.name:18} {count:8,} files, {len(faults)} faults", flush=True)
            for fault, content in faults.items():
                print(f"    {fault[:150]}\n      {content[:60]!r}")
            total, wrong = total + count, wrong + len(faults)
        print(f"{'together':18} {total:8,} files, {wrong} faults (seed {options.seed})")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
