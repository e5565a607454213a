"""Where batches come from: arrays on the device, arrays read in blocks, iterables of batches.

Everything is checked before a model is touched; the batches are ready for an executor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from nnbackend._files import RowSubset, read_rows
from nnbackend._memory import available_bytes, resident_bytes
from nnbackend._types import HostArray
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import DType
from nnbackend.backends.uploads import Uploads
from nnbackend.data.prefetch import BlocksAhead
from nnbackend.data.split import labels_for_split
from nnbackend.data.validation import ClassWeight, checked, class_factors
from nnbackend.errors import DataError, DTypeError, NNBackendError, shown
from nnbackend.executor.base import Data
from nnbackend.losses import Loss
from nnbackend.program.table import Program

#: Size of a block that is read at a time where data are larger than memory, in bytes: this on its
#: way to a GPU, and up to so many times as much where there is memory for it.
BLOCK_BYTES, MOST_BLOCKS = 1 << 25, 8
#: Arrays that are hashed whole, in bytes, and the number of rows of larger ones.
HASHED_BYTES, HASHED_ROWS = 1 << 24, 1000


def fingerprint(backend: Backend, *arrays: Any) -> str:
    """A hash of arrays: of all rows where they are few, else of some here and there."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            continue
        rows: Any = slice(0, len(array))
        if len(array) * math.prod(array.shape[1:]) * 8 > HASHED_BYTES:
            rows = np.linspace(0, len(array) - 1, HASHED_ROWS).astype(np.int64)
        part = backend.to_numpy(array) if backend.owns(array) else array
        digest.update(np.ascontiguousarray(read_rows(part, rows)).tobytes())
    return digest.hexdigest()[:16]


class ArraySource:
    """Rows of arrays in host memory, in a file, or on the device.

    Attributes:
        n_rows: number of rows.
        data: all rows on the device, or None if they are read in blocks.
    """

    def __init__(
        self, backend: Backend, dtype: DType, x: Any, target: HostArray, weight: HostArray | None
    ) -> None:
        self.backend, self.dtype = backend, dtype
        self.x, self.target, self.weight = x, target, weight
        self.n_rows = len(x)
        self.data: Data | None = None
        self._uploads: Uploads | None = None
        if not self._is_staged():
            self.data = self._to_device(x, target, weight)

    def _is_staged(self) -> bool:
        x = self.x
        in_file = isinstance(x, np.memmap | RowSubset)
        as_it_is = type(x) is np.ndarray and self.backend.owns(x) and x.dtype == self.dtype
        if as_it_is or not (in_file or isinstance(x, np.ndarray)):
            return False
        size, spare = len(x) * x.shape[1] * self.dtype.itemsize, self.backend.spare_bytes()
        return bool(size > (resident_bytes() if spare is None else spare))

    def _to_device(self, x: Any, target: HostArray, weight: HostArray | None) -> Data:
        arrays = self._with_dtypes(x, target, weight)
        return Data(*(self.backend.asarray(*pair) for pair in arrays))

    def _with_dtypes(
        self, x: Any, target: HostArray, weight: HostArray | None
    ) -> list[tuple[Any, DType]]:
        """The arrays of some rows, without weights if there are none, each with its dtype on the
        device."""
        target_dtype = self.dtype if target.dtype.kind == "f" else np.dtype(np.int32)
        arrays = [(x, self.dtype), (target, target_dtype)]
        return arrays if weight is None else [*arrays, (weight, self.dtype)]

    def rows_per_epoch(self, batch_size: int, drop_last: bool) -> int:
        """All rows; with ``drop_last``, without those of a last batch smaller than the others."""
        rest = self.n_rows % batch_size if drop_last and self.n_rows > batch_size else 0
        return self.n_rows - rest

    @property
    def block_rows(self) -> int:
        """Rows to read at a time: all of them if they are on the device."""
        if self.data is not None:
            return self.n_rows
        size = BLOCK_BYTES
        if self.uploads() is None:
            size = min(max(size, available_bytes() // 16), size * MOST_BLOCKS)
        return max(1, size // (int(self.x.shape[1]) * self.dtype.itemsize))

    def block(self, rows: slice | HostArray) -> Data:
        """Some rows on the device, in the order asked for."""
        if self.data is not None and isinstance(rows, slice):
            return self.data.rows(rows.start, rows.stop)
        return self._to_device(*self._on_host(rows))

    def host_block(self, rows: slice | HostArray) -> list[tuple[HostArray, DType]]:
        """Some rows as they are on the host, each array with its dtype on the device."""
        return self._with_dtypes(*self._on_host(rows))

    def _on_host(self, rows: slice | HostArray) -> tuple[HostArray, HostArray, HostArray | None]:
        weight = None if self.weight is None else self.weight[rows]
        return read_rows(self.x, rows), self.target[rows], weight

    def fingerprint(self) -> str:
        """A hash of the rows, see ``fingerprint``."""
        return fingerprint(self.backend, self.x, self.target, self.weight)

    def uploads(self) -> Uploads | None:
        """What copies blocks to the device while it works, if that is worthwhile here."""
        if self.data is None and self._uploads is None:
            self._uploads = self.backend.make_uploads()
        return self._uploads

    def blocks(self) -> Iterator[Data]:
        """All rows in order; a block is valid until the next one is asked for."""
        starts = range(0, self.n_rows, self.block_rows)
        parts = [slice(start, min(start + self.block_rows, self.n_rows)) for start in starts]
        with BlocksAhead.of(self) as ahead:
            for rows, then in zip_longest(parts, parts[1:]):
                yield ahead.get(rows, then)

    def multiply_weights(self, factors: HostArray) -> None:
        """Multiply the rows' weights by these, (N,)."""
        weight = factors if self.weight is None else self.weight * factors
        self.weight = weight.astype(self.dtype)
        if self.data is not None:
            self.data = self.data._replace(weight=self.backend.asarray(self.weight, self.dtype))

    def split(self, train: HostArray, held_out: HostArray) -> tuple[ArraySource, ArraySource]:
        """Two sources of the rows with these numbers."""
        parts = []
        for index in (train, held_out):
            weight = None if self.weight is None else self.weight[index]
            if self.data is None:
                x: Any = RowSubset(self.x, index)
            else:
                x = self.backend.zeros((len(index), self.x.shape[1]), self.dtype)
                numbers = self.backend.asarray(index, np.dtype(np.int64))
                self.backend.take_rows(self.data.x, numbers, x)
            parts.append(ArraySource(self.backend, self.dtype, x, self.target[index], weight))
        return parts[0], parts[1]


class BatchSource:
    """An iterable of ``(x, y)`` or ``(x, y, weight)`` batches, or a function that returns one."""

    n_rows = None
    #: whether other ranks may have all batches of an epoch
    may_be_empty = False

    def __init__(self, program: Program, batches: Any, class_weight: ClassWeight | None) -> None:
        if class_weight == "balanced":
            raise DataError(
                "class_weight='balanced' counts all rows, which an iterable does not show at "
                "once; pass a dict from class to weight"
            )
        self.program, self.batches, self.class_weight = program, batches, class_weight

    def check_passes(self, passes: int) -> None:
        """Refuse data that can be read only once if more passes are needed."""
        once = not callable(self.batches) and iter(self.batches) is self.batches
        if once and passes > 1:
            raise DataError(
                f"a generator can be read only once, and this training reads its data {passes} "
                f"times. Pass a list, an object whose __iter__ starts again, or a function that "
                f"returns a generator"
            )

    def blocks(self) -> Iterator[Data]:
        """Every batch in order, checked and on the device."""
        count = 0
        for batch in self._iterate():
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise DataError(
                    f"an iterable of batches must give (x, y) or (x, y, weight); received "
                    f"{_describe(batch)}"
                )
            x, y, *weight = batch
            count += 1
            yield one_batch(self.program, x, y, weight[0] if weight else None, self.class_weight)
        if count == 0 and not self.may_be_empty:
            raise DataError("the iterable gave no batches; it must give at least one (x, y)")

    def _iterate(self) -> Iterator[Any]:
        if not callable(self.batches):
            return iter(self.batches)
        iterable = self.batches()
        if not isinstance(iterable, Iterable):
            raise DTypeError(
                f"a function that is passed as data must return an iterable of batches; it "
                f"returned {shown(iterable)}"
            )
        return iter(iterable)


Source = ArraySource | BatchSource


def make_source(
    program: Program,
    x: Any,
    y: Any,
    sample_weight: Any = None,
    class_weight: ClassWeight | None = None,
) -> Source:
    """Check and prepare data for a model; arrays are scanned once for NaN.

    ``class_weight`` is for batches; for arrays see ``class_factors``.
    """
    if y is None:
        if not isinstance(x, Iterable) and not callable(x):
            raise DataError("y is missing: pass fit(x, y), or an iterable of (x, y) batches as x")
        if hasattr(x, "shape"):
            raise DataError("y is missing: an array x needs its targets, fit(x, y)")
        if sample_weight is not None:
            raise DataError(
                "sample_weight works only with arrays; an iterable gives (x, y, weight) batches"
            )
        return BatchSource(program, x, class_weight)
    x, target, weight = checked(program, x, y, sample_weight)
    _check_some(weight)
    return ArraySource(program.backend, program.dtype, x, target, weight)


def _check_some(weight: HostArray | None) -> None:
    if weight is not None and not weight.any():
        raise DataError("weights must not all be 0")


def training_sources(
    program: Program,
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: ClassWeight | None,
    validation_data: Any,
    split: Callable[..., tuple[HostArray, HostArray]] | None,
) -> tuple[Source, Source | None]:
    """Sources of what is trained on and, if there are any, of validation data.

    Args:
        split: numbers of the rows of both, from the number of rows and their classes, if any.
    """
    source = make_source(program, x, y, sample_weight, class_weight)
    validation = None if validation_data is None else validation_source(program, validation_data)
    if isinstance(source, ArraySource):
        if split is not None:
            loss = program.loss
            of_classes = isinstance(loss, Loss) and loss.takes_labels
            labels = labels_for_split(source.target, of_classes)
            source, validation = source.split(*split(source.n_rows, labels=labels))
        if class_weight is not None:
            # for training alone: validation figures are those of evaluate
            source.multiply_weights(class_factors(program, class_weight, source.target))
            _check_some(source.weight)
    elif split is not None:
        raise DataError(
            "validation_split works only with arrays; for an iterable pass validation_data"
        )
    return source, validation


def validation_source(program: Program, data: Any) -> Source:
    """From ``(x, y)``, ``(x, y, weight)`` or an iterable of batches."""
    arrays = isinstance(data, tuple) or (
        isinstance(data, list) and data and not isinstance(data[0], tuple | list)
    )
    try:
        if arrays and len(data) in (2, 3):
            return make_source(program, *data)
        return make_source(program, data, None)
    except NNBackendError as error:
        raise type(error)(f"validation_data: {error}") from error


def one_batch(
    program: Program,
    x: Any,
    y: Any,
    weight: Any = None,
    class_weight: ClassWeight | None = None,
) -> Data:
    """A single batch, checked and on the device."""
    x, target, checked_weight = checked(program, x, y, weight)
    if class_weight is not None:
        factors = class_factors(program, class_weight, target).astype(program.dtype)
        checked_weight = factors if checked_weight is None else checked_weight * factors
    asarray = program.backend.asarray
    device_weight = None if checked_weight is None else asarray(checked_weight, program.dtype)
    return Data(asarray(x, program.dtype), asarray(target, target.dtype), device_weight)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
