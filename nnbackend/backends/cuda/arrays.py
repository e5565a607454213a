"""Arrays, launches and products on one GPU: what the CUDA backend's operations are made of.

What is asked of the GPU itself is the small class ``device.Device``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from nnbackend._output import warn
from nnbackend.backends.contract import Backend
from nnbackend.backends.cuda.device import Device
from nnbackend.backends.cuda.gemm import ALIGNMENT, Product, ProductError
from nnbackend.backends.cuda.kernels import (
    COLUMNS,
    THREADS,
    WARPS,
    bind,
    phase_definitions,
    tile_bytes,
)
from nnbackend.backends.orders import bits_of, blocks_of
from nnbackend.backends.types import Array, Availability, DType, check_precision
from nnbackend.backends.uploads import Uploads
from nnbackend.errors import DeviceError

FLOAT64, INT32 = np.dtype(np.float64), np.dtype(np.int32)
#: Bits of bfloat16 numbers.
BF16 = np.dtype(np.uint16)
_WORD, _WIDE = np.dtype(np.uint32), np.dtype(np.uint64)
#: Rows from which on it is quicker to draw their orders on the GPU than on the host.
SORTED_HERE = 1 << 14
#: Random numbers that are made to try ways on.
_FILLED = 1 << 20
#: Mean difference of two ways to do the same, as a share of the mean size, that rounding explains.
_ALIKE = {"fp64": 1e-10, "fp32": 1e-4, "tf32": 1e-2, "bf16": 3e-2}


class CudaArrays(Backend):
    """The part of the backend that knows of no formula."""

    alignment: ClassVar[int] = ALIGNMENT

    def __init__(
        self, index: int | None = None, device: Device | None = None, precision: str = "fp32"
    ) -> None:
        super().__init__(index)
        self.index, self.precision = index, precision
        if device is None:
            from nnbackend.backends.cuda.cupy_device import device_of

            device = device_of(index or 0)
        self.gpu = device
        #: held where several launches belong together, as a sum over blocks and what uses it
        self.lock = device.lock
        self._partial = device.zeros(device.most_blocks, FLOAT64)
        self._hits = device.zeros(device.most_blocks, FLOAT64)
        self._weight_sum, self._batch_weight = (device.zeros(1, FLOAT64) for _ in range(2))
        self._flag = device.zeros(1, INT32)
        self._scratch: dict[str, list[Array]] = {}
        self._local = threading.local()
        self._by_precision: dict[str, CudaArrays] = {precision: self}

    def at_precision(self, precision: str) -> Backend:
        check_precision(precision)
        with self.lock:
            if precision not in self._by_precision:
                other = type(self)(self.index, self.gpu, precision)
                other._by_precision = self._by_precision
                self._by_precision[precision] = other
            return self._by_precision[precision]

    @classmethod
    def is_available(cls) -> Availability:
        from nnbackend.backends.cuda.diagnosis import Machine, diagnose

        return diagnose(Machine())

    def compile_ahead(self, dtypes: tuple[str, ...]) -> None:
        shared = self.gpu.shared_bytes
        for dtype in dtypes:
            self.gpu.compile(np.dtype(dtype))
            if tile_bytes(shared):
                self.gpu.compile(np.dtype(dtype), phase_definitions(shared))

    def kept_in(self) -> str:
        path = self.gpu.tuning.path
        return "" if path is None else str(path.parent)

    def _scratch_of(self, name: str, size: int, dtype: DType) -> Array:
        """Memory that lasts from one launch to the next. What was given out once is kept: captured
        steps go on using it."""
        given = self._scratch.setdefault(name, [])
        before = given[-1].size if given else 0
        if before < size:
            given.append(self.gpu.zeros(max(size, 2 * before), dtype))
        return given[-1][:size]

    # -- launches -------------------------------------------------------------------------

    @contextmanager
    def from_state(
        self, state: Array, parameters: Array, rounded: Array | None = None
    ) -> Iterator[None]:
        """Inside, on this thread, optimizer steps and dropout take what changes from step to step,
        the rate and the step's number, from a StepState on the device, not from their arguments.
        What is updated, a part of ``parameters``, goes to the same part of ``rounded`` in bfloat16.
        """
        self._local.state, self._local.parameters = state, parameters
        self._local.rounded = rounded
        try:
            yield
        finally:
            self._local.state = self._local.rounded = None

    def _state(self) -> Array | None:
        return getattr(self._local, "state", None)

    def _rounded_part(self, param: Array) -> Array | None:
        rounded = getattr(self._local, "rounded", None)
        if rounded is None:
            return None
        start = self.gpu.address(param) - self.gpu.address(self._local.parameters)
        return rounded[start // param.itemsize :][: param.size]

    def run(self, kernel: str, dtype: DType | None, blocks: int, *arguments: Any) -> None:
        """Launch a kernel; no dtype where it is the same for all."""
        self.gpu.launch(bind(kernel, dtype, blocks, arguments))

    def blocks(self, items: int, each: int = THREADS) -> int:
        """Blocks for so many items, of which a block takes ``each`` at a time."""
        return max(1, min(-(-items // each), self.gpu.most_blocks))

    def fastest(
        self,
        key: str,
        ways: Mapping[str, Callable[[], None]],
        inputs: Sequence[Array],
        results: Sequence[Array],
    ) -> str:
        """The name of the quickest of several ways to do the same.

        Each is tried on random numbers. One that is refused, or whose results are not those of the
        first, is left out; the latter is a mistake of a library and said in a warning.

        Args:
            key: says all that the choice depends on: it is found once for a kind of device.
            inputs, results: what the ways read and write; all of it is overwritten.
        """
        if len(ways) == 1:
            return next(iter(ways))
        choice = self.gpu.tuning.get(key)
        if choice is None or choice not in ways:
            with self.lock:
                for seed, x in enumerate(inputs):
                    self._fill(x, seed)
                choice = self._fastest(key, ways, results)
            self.gpu.tuning.keep(key, choice)
        return choice

    def _fastest(
        self, key: str, ways: Mapping[str, Callable[[], None]], results: Sequence[Array]
    ) -> str:
        (first, reference), *others = ways.items()
        seconds = {first: self.gpu.time(reference)}
        expected = [self._numbers(x) for x in results]
        for name, work in others:
            try:
                taken = self.gpu.time(work)
            except ProductError:
                continue
            found = [self._numbers(x) for x in results]
            if all(self._alike(*pair) for pair in zip(found, expected, strict=True)):
                seconds[name] = taken
            else:
                warn(
                    f"on {self.gpu.tuning.kind} products with an epilogue give other results than "
                    f"kernels of their own ({name!r}, {key}); they are not used there",
                )
        for name in reversed(seconds):  # a GPU that was idle is slow at first
            seconds[name] = min(seconds[name], self.gpu.time(ways[name]))
        return min(seconds, key=lambda name: seconds[name])

    def _fill(self, x: Array, seed: int) -> None:
        """Normal numbers, of which large arrays repeat some."""
        flat = x.reshape(-1)
        numbers = np.random.default_rng(seed).standard_normal(min(x.size, _FILLED))
        if x.dtype == BF16:
            chunk = self.zeros(len(numbers), BF16)
            self.round_to_bf16(self.asarray(numbers, np.dtype(np.float32)), chunk)
        else:
            chunk = self.asarray(numbers, x.dtype)
        for start in range(0, x.size, len(numbers)):
            part = flat[start : start + len(numbers)]
            part[...] = chunk[: part.size]

    def _numbers(self, x: Array) -> np.ndarray[Any, Any]:
        host = self.to_numpy(x)
        return (host.astype(np.uint32) << 16).view(np.float32) if host.dtype == BF16 else host

    def _alike(self, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
        """Equal to rounding on average: a ReLU may let a number near 0 through or not."""
        kind = "fp64" if other.dtype == np.float64 else self.precision
        return float(np.abs(one - other).mean()) <= _ALIKE[kind] * float(np.abs(other).mean())

    def multiply(
        self, a: Array, b: Array, out: Array, a_t: bool = False, b_t: bool = False
    ) -> None:
        """out = a b in the backend's precision."""
        with self.lock:
            if self.precision == "bf16":
                a, b = self._in_bf16("a", a), self._in_bf16("b", b)
            self.gpu.product(Product(a, b, out, a_t, b_t, self.precision == "tf32"))

    def _in_bf16(self, name: str, x: Array) -> Array:
        out = self._scratch_of(f"bf16 {name}", x.size, BF16).reshape(x.shape)
        self.round_to_bf16(x, out)
        return out

    def round_to_bf16(self, x: Array, out: Array) -> None:
        """The bits of the nearest bfloat16 numbers, into an ``out`` of BF16."""
        self.run("round_to_bf16", x.dtype, self.blocks(x.size), x, x.size, out)

    def by_element(self, kernel: str, out: Array, *arguments: Any) -> None:
        self.run(kernel, out.dtype, self.blocks(out.size), *arguments)

    def by_row(self, kernel: str, x: Array, *arguments: Any) -> None:
        self.run(kernel, x.dtype, self.blocks(len(x), WARPS), *arguments)

    def by_column(self, kernel: str, like: Array, width: int, *arguments: Any) -> None:
        self.run(kernel, like.dtype, -(-width // COLUMNS), *arguments)

    # -- arrays ---------------------------------------------------------------------------

    def owns(self, x: object) -> bool:
        return self.gpu.owns(x)

    def adopt(self, x: Any) -> Array | None:
        return x if self.gpu.owns(x) else self.gpu.adopt(x)

    def asarray(self, data: Any, dtype: DType) -> Array:
        array = self.adopt(data)
        if array is None:
            with np.errstate(over="ignore", invalid="ignore"):  # checked where it matters
                return self.gpu.from_host(np.asarray(data, dtype=dtype, order="C"))
        if array.dtype != dtype:
            array = array.astype(dtype)
        return array if array.flags.c_contiguous else array.copy()

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        if isinstance(x, np.ndarray) and not self.gpu.owns(x):
            return x
        if not self.gpu.owns(x):
            raise DeviceError(f"{self.device} has no array of type {type(x).__name__}")
        return self.gpu.to_host(x)

    def zeros(self, shape: int | Sequence[int], dtype: DType) -> Array:
        return self.gpu.zeros(shape, np.dtype(dtype))

    def make_uploads(self) -> Uploads:
        return self.gpu.make_uploads()

    def spare_bytes(self) -> int | None:
        return self.gpu.free_bytes() // 2  # the rest is for layers, graphs and other programs

    def synchronize(self) -> None:
        self.gpu.synchronize()

    def take_rows(self, x: Array, idx: Array, out: Array) -> None:
        row = out[:1].size * out.itemsize // _WORD.itemsize
        words, source = out.reshape(-1).view(_WORD), x.reshape(-1).view(_WORD)
        blocks = self.blocks(words.size)
        self.run("take_rows", None, blocks, source, idx, len(idx), row, words)

    def all_finite(self, x: Array) -> bool:
        with self.lock:
            self._flag[...] = 0
            self.by_element("find_not_finite", x, x, x.size, self._flag)
            return not self.gpu.to_host(self._flag)[0]

    def random_bits(self, out: Array, seed: int, stream: int, offset: int) -> None:
        blocks = self.blocks(out.size, 4 * THREADS)
        words = (*words_of(seed, 2), *words_of(stream, 3))
        self.run("random_bits", None, blocks, *words, offset // 4, out.size, out)

    def random_orders(self, out: Array, key: int, block: int) -> None:
        if out.size < SORTED_HERE:
            super().random_orders(out, key, block)
            return
        (count, rows), (low, spare) = out.shape, bits_of(out.shape[1])
        halves = key & (1 << 64) - 1, key >> 64
        most = 1 << spare
        for first in range(0, count, most):
            part = out[first : first + most].reshape(-1)
            keys, start = part.view(_WIDE), block + first * blocks_of(rows)
            blocks = self.blocks(part.size, 4 * THREADS)
            self.run("order_keys", None, blocks, *halves, start, rows, part.size // rows, low,
                     spare, keys)  # fmt: skip
            self.gpu.sort(keys)
            blocks = self.blocks(part.size)
            self.run("orders_of_keys", None, blocks, (1 << low) - 1, part.size, keys)


def words_of(number: int, count: int) -> list[int]:
    """The lowest words of a number, 32 bits each."""
    return [number >> 32 * k & 0xFFFFFFFF for k in range(count)]
