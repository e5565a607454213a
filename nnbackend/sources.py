"""Where batches come from: arrays on the device, arrays read in blocks, iterables of batches.

Everything is checked here, before a model is touched; what leaves is ready for an executor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nnbackend._checks import check_number
from nnbackend.backends.base import Array, Backend, DType, Uploads, is_on_gpu
from nnbackend.errors import DataError, DTypeError, ShapeError
from nnbackend.executor import Data
from nnbackend.losses import Loss, LossFunction, function_target
from nnbackend.prefetch import BlocksAhead

if TYPE_CHECKING:
    from nnbackend.model import Sequential

HostArray = np.ndarray[Any, Any]
ClassWeight = Mapping[int, float] | Literal["balanced"]

#: Host data that must be converted are converted whole up to this size, in bytes; above it, and
#: always for memory-mapped files, block by block. A GPU gets data whole if they fit there.
RESIDENT_BYTES = 1 << 28
#: Size of such a block, in bytes.
BLOCK_BYTES = 1 << 25
_SCAN_ELEMENTS = 1 << 20
#: Scattered rows read from a file before its pages are given back: the system may map 2 MiB
#: around each.
_MAPPED_ROWS = 64


class ArraySource:
    """Rows of arrays in host memory, in a file, or on the device.

    Attributes:
        n_rows: number of rows.
        data: all rows on the device, or None where they are read in blocks.
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
        if isinstance(x, np.memmap | _RowSubset):
            return True
        if not isinstance(x, np.ndarray) or (self.backend.owns(x) and x.dtype == self.dtype):
            return False
        size, spare = x.size * self.dtype.itemsize, self.backend.spare_bytes()
        if spare is not None:
            return size > spare
        return x.dtype != self.dtype and size > RESIDENT_BYTES

    def _to_device(self, x: Any, target: HostArray, weight: HostArray | None) -> Data:
        arrays = self._with_dtypes(x, target, weight)
        return Data(*(self.backend.asarray(*pair) for pair in arrays))

    def _with_dtypes(
        self, x: Any, target: HostArray, weight: HostArray | None
    ) -> list[tuple[Any, DType]]:
        """The arrays of some rows, no weights if there are none, each with the dtype that it has
        on the device."""
        target_dtype = self.dtype if target.dtype.kind == "f" else np.dtype(np.int32)
        arrays = [(x, self.dtype), (target, target_dtype)]
        return arrays if weight is None else [*arrays, (weight, self.dtype)]

    @property
    def block_rows(self) -> int:
        """Rows to read at a time: all of them where they are on the device."""
        if self.data is not None:
            return self.n_rows
        return max(1, BLOCK_BYTES // (int(self.x.shape[1]) * self.dtype.itemsize))

    def block(self, rows: slice | HostArray) -> Data:
        """Some rows on the device, in the order asked for."""
        if self.data is not None and isinstance(rows, slice):
            return self.data.rows(rows.start, rows.stop)
        return self._to_device(*self._on_host(rows))

    def host_block(self, rows: slice | HostArray) -> list[tuple[HostArray, DType]]:
        """Some rows as they are on the host, each array with the dtype that it has on the
        device."""
        return self._with_dtypes(*self._on_host(rows))

    def _on_host(self, rows: slice | HostArray) -> tuple[HostArray, HostArray, HostArray | None]:
        weight = None if self.weight is None else self.weight[rows]
        return read_rows(self.x, rows), self.target[rows], weight

    def uploads(self) -> Uploads | None:
        """What brings blocks to the device while it works, if that is worth while here."""
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
                x: Any = _RowSubset(self.x, index)
            else:
                x = self.backend.zeros((len(index), self.x.shape[1]), self.dtype)
                numbers = self.backend.asarray(index, np.dtype(np.int64))
                self.backend.take_rows(self.data.x, numbers, x)
            parts.append(ArraySource(self.backend, self.dtype, x, self.target[index], weight))
        return parts[0], parts[1]


class _RowSubset:
    """Some rows of a memory-mapped array, read when they are asked for."""

    def __init__(self, x: HostArray, index: HostArray) -> None:
        self.base, self.index = x, index
        self.dtype, self.shape, self.ndim = x.dtype, (len(index), x.shape[1]), 2

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | HostArray) -> HostArray:
        return np.asarray(self.base[self.index[rows]])


def read_rows(x: Any, rows: slice | HostArray) -> HostArray:
    """``x[rows]``; of a memory-mapped file with little of it mapped at any time."""
    if isinstance(rows, slice) and isinstance(x, _RowSubset):
        rows = np.arange(rows.start, min(rows.stop, len(x)))
    if isinstance(rows, slice) or not isinstance(x, np.memmap | _RowSubset):
        values = np.asarray(x[rows])
        release_pages(x)
        return values
    values = np.empty((len(rows), x.shape[1]), x.dtype)
    for start in range(0, len(rows), _MAPPED_ROWS):
        part = slice(start, start + _MAPPED_ROWS)
        values[part] = x[rows[part]]
        release_pages(x)
    return values


def release_pages(x: Any) -> None:
    """Give back the memory of the pages of a memory-mapped file that were read; they stay in
    the system's file cache."""
    file: Any = x.base if isinstance(x, _RowSubset) else x
    mapped = getattr(file, "_mmap", None)
    # a copy-on-write mapping would lose what was written to it
    if mapped is not None and hasattr(mapped, "madvise") and file.mode != "c":
        import mmap

        mapped.madvise(mmap.MADV_DONTNEED)


class BatchSource:
    """An iterable of ``(x, y)`` or ``(x, y, weight)`` batches, or a function that makes one."""

    n_rows = None

    def __init__(self, model: Sequential, batches: Any, class_weight: ClassWeight | None) -> None:
        if class_weight == "balanced":
            raise DataError(
                "class_weight='balanced' counts all rows, which an iterable does not show at "
                "once; pass a dict of class: weight"
            )
        self.model, self.batches, self.class_weight = model, batches, class_weight

    def check_passes(self, passes: int) -> None:
        """Refuse something that can be read once only where more passes are needed."""
        once = not callable(self.batches) and iter(self.batches) is self.batches
        if once and passes > 1:
            raise DataError(
                f"a generator can be read only once, and this training reads its data {passes} "
                f"times. Pass a list, an object whose __iter__ starts anew, or a function that "
                f"returns a generator"
            )

    def blocks(self) -> Iterator[Data]:
        """Every batch in order, checked and on the device."""
        iterable = self.batches() if callable(self.batches) else self.batches
        count = 0
        for batch in iterable:
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise DataError(
                    f"an iterable of batches must give (x, y) or (x, y, weight); received "
                    f"{_describe(batch)}"
                )
            x, y, *weight = batch
            count += 1
            yield one_batch(self.model, x, y, weight[0] if weight else None, self.class_weight)
        if count == 0:
            raise DataError("the iterable gave no batches; it must give at least one (x, y)")


Source = ArraySource | BatchSource


def make_source(
    model: Sequential,
    x: Any,
    y: Any,
    sample_weight: Any = None,
    class_weight: ClassWeight | None = None,
) -> Source:
    """Check data for a model and make them ready; arrays are scanned once for NaN.

    ``class_weight`` is for batches; for arrays see ``class_factors``.
    """
    if y is None:
        if not isinstance(x, Iterable) and not callable(x):
            raise DataError("y is missing: pass fit(x, y), or an iterable of (x, y) batches as x")
        if hasattr(x, "shape"):
            raise DataError("y is missing: an array x needs its targets, fit(x, y)")
        if sample_weight is not None:
            raise DataError(
                "sample_weight goes with arrays; an iterable gives (x, y, weight) batches"
            )
        return BatchSource(model, x, class_weight)
    x, target, weight = _checked(model, x, y, sample_weight)
    if weight is not None and not weight.any():
        raise DataError("weights must not all be 0")
    return ArraySource(model.backend, model.dtype, x, target, weight)


def one_batch(
    model: Sequential,
    x: Any,
    y: Any,
    weight: Any = None,
    class_weight: ClassWeight | None = None,
) -> Data:
    """A single batch, checked and on the device."""
    x, target, checked_weight = _checked(model, x, y, weight)
    if class_weight is not None:
        factors = class_factors(model, class_weight, target).astype(model.dtype)
        checked_weight = factors if checked_weight is None else checked_weight * factors
    asarray = model.backend.asarray
    device_weight = None if checked_weight is None else asarray(checked_weight, model.dtype)
    return Data(asarray(x, model.dtype), asarray(target, target.dtype), device_weight)


def _on_host(backend: Backend, values: Any) -> Any:
    """Targets and weights are checked on the host: a copy of what lies on a GPU."""
    return backend.to_numpy(backend.adopt(values)) if is_on_gpu(values) else values


def _checked(
    model: Sequential, x: Any, y: Any, weight: Any
) -> tuple[Any, HostArray, HostArray | None]:
    x = check_matrix(model.backend, x, model.n_inputs)
    y, weight = (_on_host(model.backend, values) for values in (y, weight))
    target = check_target(model.loss, y, model.n_outputs, model.dtype)
    if len(target) != len(x):
        raise ShapeError(
            f"x and y must have as many rows; received {len(x)} rows of x and {len(target)} of y"
        )
    regression = any(s.kind == "regression" for s in model.program.statistics)
    if regression and target.shape != (len(x), model.n_outputs):
        raise ShapeError(
            f"the metrics mae, mse and r2 compare outputs of shape (rows, {model.n_outputs}) with "
            f"targets of the same shape; received {target.shape}"
        )
    check_finite(model.backend, x, model.dtype)
    return x, target, check_weight(model, weight, len(target))


def check_matrix(backend: Backend, x: Any, n_inputs: int) -> Any:
    """``x`` as a (N, n_inputs) array of numbers with at least one row; not copied if it is one."""
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError("x must not be a masked array; fill it with x.filled(value)")
    if hasattr(x, "toarray"):
        raise DTypeError("x must be a dense array; received a sparse matrix: pass x.toarray()")
    if not isinstance(x, np.ndarray):
        adopted = backend.adopt(x)
        x = np.asarray(x) if adopted is None else adopted
    if x.dtype.kind not in "fiub":
        raise DTypeError(
            f"x must hold real numbers; received dtype {x.dtype}. Convert it first, for example "
            f"with x.astype('float32')"
        )
    if x.ndim != 2 or x.shape[1] != n_inputs:
        remedy = ""
        if x.ndim == 1:
            remedy = ". For one row use x[None, :], for one column x[:, None]"
        elif x.ndim > 2 and int(np.prod(x.shape[1:])) == n_inputs:
            remedy = ". Flatten it with x.reshape(len(x), -1)"
        raise ShapeError(
            f"the model takes x of shape (rows, {n_inputs}); received {tuple(x.shape)}{remedy}"
        )
    if len(x) == 0:
        raise DataError("x must have at least one row; received none")
    return x


def check_target(
    loss: Loss | LossFunction | None, y: Any, n_outputs: int, dtype: DType
) -> HostArray:
    """Targets in the form that backends take; see ``Loss.target``."""
    if loss is None:
        raise DataError("the model has no loss yet; call model.compile(loss=..., optimizer=...)")
    if isinstance(loss, Loss):
        return loss.target(y, n_outputs, dtype)
    return function_target(y, n_outputs, dtype)


def check_finite(backend: Backend, x: Any, dtype: DType) -> None:
    """Refuse NaN, infinity, and what would be infinite in ``dtype``, naming the first row and
    column; scans block by block."""
    if x.dtype.kind != "f":
        return
    if not isinstance(x, np.ndarray):
        if not backend.all_finite(x):
            check_finite(backend, backend.to_numpy(x), dtype)
        return
    step = max(1, _SCAN_ELEMENTS // x.shape[1])
    limit = np.finfo(dtype).max
    for start in range(0, len(x), step):
        block = x[start : start + step]
        # NaN wins every maximum and compares false
        highest, lowest = np.maximum.reduce(block, axis=None), np.minimum.reduce(block, axis=None)
        if not (highest <= limit and lowest >= -limit):
            row, column = (int(i) for i in np.argwhere(~(np.abs(block) <= limit))[0])
            raise DataError(
                f"x must be finite in {dtype}; received {block[row, column]} in row "
                f"{start + row}, column {column}. Remove or fill such rows first"
            )
        release_pages(x)


def check_weight(model: Sequential, weight: Any, rows: int) -> HostArray | None:
    """Weights of the rows, (N,) of the model's dtype; None where all are one."""
    if weight is None:
        return None
    if not isinstance(model.loss, Loss):
        raise DataError(
            "a loss function of one's own sees no weights; leave sample_weight and class_weight "
            "out, or use a built-in loss"
        )
    values = np.asarray(weight)
    if values.dtype.kind not in "fiub" or values.shape not in ((rows,), (rows, 1)):
        raise ShapeError(
            f"weights must be one number a row, shape ({rows},); received {values.shape} of "
            f"dtype {values.dtype}"
        )
    values = values.reshape(rows)
    wrong = np.argwhere(~(np.abs(values) <= np.finfo(model.dtype).max) | (values < 0))
    if len(wrong):
        row = int(wrong[0, 0])
        raise DataError(
            f"weights must be finite and at least 0; received {values[row]} in row {row}"
        )
    return values.astype(model.dtype)


def class_factors(model: Sequential, class_weight: ClassWeight, target: HostArray) -> HostArray:
    """The weight of each row's class, (N,) float64."""
    labels, classes = _labels(model, target)
    factors = np.ones(len(labels))
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise DataError(
                f"class_weight must be a dict of class: weight, or 'balanced'; received "
                f"{class_weight!r}"
            )
        counts = np.bincount(labels, minlength=classes)
        present = counts > 0
        table = np.ones(classes)
        table[present] = len(labels) / (present.sum() * counts[present])
        return np.asarray(table[labels])
    if not isinstance(class_weight, Mapping):
        raise DTypeError(
            f"class_weight must be a dict of class: weight, or 'balanced'; received "
            f"{type(class_weight).__name__}"
        )
    for label, value in class_weight.items():
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise DTypeError(f"class_weight's classes are whole numbers; received {label!r}")
        if not 0 <= label < classes:
            raise DataError(f"class_weight's classes lie in 0 ... {classes - 1}; received {label}")
        factors[labels == label] = check_number(f"class_weight[{label}]", value, 0.0)
    if not factors.any():
        raise DataError("weights must not all be 0")
    return factors


def _labels(model: Sequential, target: HostArray) -> tuple[HostArray, int]:
    """The class of each row and the number of classes, where there are classes."""
    loss = model.loss
    if isinstance(loss, Loss) and loss.probabilities:
        if loss.threshold is None:
            labels = target if target.ndim == 1 else target.argmax(axis=1)
            return labels, model.n_outputs
        if model.n_outputs == 1 and np.isin(target, (0, 1)).all():
            return target[:, 0].astype(np.int64), 2
    raise DataError(
        "class_weight needs one class a row: a loss over classes, or one output with targets 0 "
        "and 1; use sample_weight instead"
    )


def as_predictions_input(backend: Backend, x: Any, n_inputs: int, dtype: DType) -> Array:
    """Rows for inference, on the device in the model's dtype. NaN is found afterwards, in the
    outputs, which is cheaper than a pass over x."""
    return backend.asarray(check_matrix(backend, x, n_inputs), dtype)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
