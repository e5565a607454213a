"""Functions over vectors, written as LLVM code, and the shape that tiles have on a processor."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target


def _shape() -> tuple[int, int, int, str]:
    """Bytes of a vector, rows and vectors of a tile, and LLVM's name for vector registers, for the
    processor compiled for."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 64, 9, 3, "v"  # 32 registers: 27 sums, 3 of b, 1 of a
    if "+avx" in features:
        return 32, 6, 2, "x"  # 16 registers: 12 sums, 2 of b, 1 of a
    if triple.startswith(("aarch64", "arm64")):
        return 16, 8, 3, "w"  # 32 registers: 24 sums, 3 of b, 1 of a
    return 16, 6, 2, "x"


VECTOR_BYTES, TILE_ROWS, TILE_VECTORS, _REGISTER = _shape()
I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
SIZES = {types.float32: 4, types.float64: 8}


class Code:
    """Writes functions over vectors of one element type into a module."""

    def __init__(self, module: ir.Module, number: ir.Type, size: int) -> None:
        self.module, self.number = module, number
        self.lanes = VECTOR_BYTES // size
        self.vector = ir.VectorType(number, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.kind = f"v{self.lanes}f{8 * size}"
        self.builder = ir.IRBuilder()

    @classmethod
    def inside(
        cls, context: Any, builder: Any, like: Any, addresses: Any
    ) -> tuple[Code, list[Any]]:
        """For a call from a function that is being compiled: code over elements of ``like``'s type,
        and its addresses as pointers."""
        code = cls(builder.module, context.get_data_type(like), SIZES[like])
        return code, [builder.inttoptr(x, code.number.as_pointer()) for x in addresses]

    def begin(self, name: str, n_pointers: int, n_sizes: int) -> ir.Function:
        """A function of some pointers, which do not overlap, and then some int64."""
        pointers, sizes = [self.number.as_pointer()] * n_pointers, [I64] * n_sizes
        kind = ir.FunctionType(ir.VoidType(), pointers + sizes)
        function = ir.Function(self.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        # without these LLVM halves the widest vectors, for fear of lower clock rates
        for attribute in ("min-legal-vector-width", "prefer-vector-width"):
            set.add(function.attributes, f'"{attribute}"="{8 * VECTOR_BYTES}"')
        for pointer in function.args[:n_pointers]:
            pointer.add_attribute("noalias")
        self.builder = ir.IRBuilder(function.append_basic_block())
        return function

    def _call(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.module, kind, name)
        return self.builder.call(function, arguments)

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """The pointer so many elements on."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def load(self, pointer: Any, mask: Any = None) -> Any:
        place = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(place, align=4)
        name = f"llvm.masked.load.{self.kind}.p0"
        return self._call(name, self.vector, place, I32(4), mask, self.zero)

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        place = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, place, align=4)
        else:
            name = f"llvm.masked.store.{self.kind}.p0"
            self._call(name, ir.VoidType(), value, place, I32(4), mask)

    def prefetch(self, pointer: Any, level: int = 1) -> None:
        """Bring the line of memory at a place into the cache of a level."""
        place = self.builder.bitcast(pointer, I8.as_pointer())
        self._call("llvm.prefetch.p0", ir.VoidType(), place, I32(0), I32(4 - level), I32(1))

    def row(self, factor: Any, vectors: list[Any], sums: list[Any]) -> list[Any]:
        """A step of a row of the tile."""
        factor = self.broadcast(self.builder.load(factor), self.lanes)
        return self.keep(
            [self.multiply_add(factor, x, s) for x, s in zip(vectors, sums, strict=True)]
        )

    def keep(self, values: list[Any]) -> list[Any]:
        """The same values, computed before what is written next: LLVM would load factors of many
        rows first, and has no registers for them."""
        n, kinds = len(values), [self.vector] * len(values)
        outputs, inputs = [f"={_REGISTER}"] * n, [str(i) for i in range(n)]
        result = kinds[0] if n == 1 else ir.LiteralStructType(kinds)
        constraints = ",".join([*outputs, *inputs, "~{memory}"])
        kept = self.builder.asm(ir.FunctionType(result, kinds), "", constraints, values, True)
        return [kept] if n == 1 else [self.builder.extract_value(kept, i) for i in range(n)]

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self._call(f"llvm.fmuladd.{self.kind}", self.vector, a, b, c)

    def broadcast(self, value: Any, lanes: int) -> Any:
        vector = ir.VectorType(value.type, lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def mask(self, n: Any) -> Any:
        """True in the first n lanes."""
        lanes = ir.VectorType(I32, self.lanes)
        numbers = ir.Constant(lanes, list(range(self.lanes)))
        bound = self.broadcast(self.builder.trunc(n, I32), self.lanes)
        return self.builder.icmp_signed("<", numbers, bound)
