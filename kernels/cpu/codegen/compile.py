"""How kernels are compiled: the options of every function that is only called by other kernels.

No wrappers for calls from Python and no reference counts, which no kernel needs: that halves the
time to compile, and small layers run faster. Floating-point options have names, because they
decide what a formula means.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from llvmlite import binding
from numba import cfunc, njit
from numba.core.cgutils import normalize_ir_text
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

#: Sums may be reordered and products fused; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
#: Where the order of operations is the algorithm.
EXACT = {"contract", "nsz"}


class PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of one function that is only a part of others: not optimised, loaded or joined
    with what it calls, until all that belongs to an object file is there.

    Numba would do all that for every function with all that it calls, over and over. LLVM reads
    the code on a thread of its own, while Numba goes on in Python.
    """

    reader: ThreadPoolExecutor
    _read: tuple[Future[None], ...] = ()

    def add_ir_module(self, module: Any) -> None:
        for function in module.functions:
            if not function.is_declaration:
                # LLVM halves the widest vectors, for fear of lower clock rates
                set.add(function.attributes, '"prefer-vector-width"="512"')
        text = normalize_ir_text(str(module))
        self._read = (*self._read, self.reader.submit(self._add_text, text))

    def _add_text(self, text: str) -> None:
        self.add_llvm_module(binding.parse_assembly(text))

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)

    def finalize(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Nothing can be called yet."""
        return 0

    def own_module(self) -> Any:
        """The code without that of what it calls."""
        for read in self._read:
            read.result()
        return super()._get_module_for_linking()

    def offer(self, name: str, public: str) -> None:
        """Keep one of its functions, under another name, though nothing here may call it."""
        function = self.own_module().get_function(name)
        function.name, function.linkage = public, "external"

    def _get_module_for_linking(self) -> Any:
        whole = self.own_module().clone()
        join(self._linking_libraries, whole)
        return whole


def join(libraries: list[Any], whole: Any) -> None:
    """Add to ``whole`` the code of libraries and of all that they call."""
    called_first: dict[Any, None] = {}

    def visit(library: Any) -> None:
        if library not in called_first:
            if isinstance(library, PartLibrary):
                for called in library._linking_libraries:
                    visit(called)
            called_first[library] = None

    for library in libraries:
        visit(library)
    # LLVM takes a function only if something that is there already calls it
    for library in reversed(called_first):
        part = isinstance(library, PartLibrary)
        own = library.own_module() if part else library._get_module_for_linking()
        whole.link_in(own, preserve=True)


class ObjectLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of an object file: functions that C could call, with all that they call."""

    def finalize(self) -> None:
        join(self._linking_libraries, self._final_module)
        self._verify_declare_only_symbols()
        self._optimize_final_module()
        self._final_module.verify()
        self._finalized = True

    def machine_code(self) -> bytes:
        """The object file."""
        self._ensure_finalized()
        return bytes(self._codegen._tm.emit_object(self._final_module))


@contextmanager
def _only_parts(codegen: Any, target: Any) -> Iterator[None]:
    """Inside, functions are compiled to be parts of an object file."""
    collects, interval = gc.isenabled(), sys.getswitchinterval()
    codegen._library_class = PartLibrary
    # Numba knows a function by its entry point: some builtin that no other function has
    target.get_executable = lambda library, fndesc, env: [].append
    gc.disable()  # a tenth of the time: it would look through all that has been compiled
    sys.setswitchinterval(1e-4)  # LLVM's thread asks for little of Python, but often
    try:
        with ThreadPoolExecutor(1) as PartLibrary.reader:
            yield
    finally:
        del codegen._library_class, target.get_executable
        sys.setswitchinterval(interval)
        if collects:
            gc.enable()


def compile_object(functions: dict[str, tuple[Any, Any]]) -> bytes:
    """An object file of Python functions with Numba signatures, by the names it offers them under.

    What they call of other files is declared by ``codegen.intrinsics.linked``.
    """
    target = cpu_target.target_context
    codegen = target.codegen()
    with global_compiler_lock:
        library = ObjectLibrary(codegen, "nnbackend")
        with _only_parts(codegen, target):
            for name, (function, signature) in functions.items():
                made = cfunc(signature)(function)
                made._library.offer(made.native_name, name)
                library.add_linking_library(made._library)
        return library.machine_code()


#: Constants that are no literals: Numba compiles a function for each literal, and for each type.
FIRST, ONE, NO, YES = np.int64(0), np.int64(1), np.bool_(False), np.bool_(True)
#: Rows of at most this many elements are handled in one loop over all of them: calling a function
#: for each row would cost more than the row.
NARROW = 16

_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
}

F = TypeVar("F", bound=Callable[..., Any])


def _decorator(**options: Any) -> Callable[[F], F]:
    decorator: Callable[[F], F] = njit(**options)
    return decorator


#: A function that decides, and calls others.
compiled = _decorator(**_OPTIONS)
#: The same, a part of its caller where that is small and called for each layer or step.
inlined = _decorator(forceinline=True, **_OPTIONS)
#: A function that returns an array, which Numba only lets pass with reference counts.
view = _decorator(**{**_OPTIONS, "_nrt": True})
#: A loop over arrays, to become vector code: small, so that LLVM sees what overlaps.
loop = _decorator(fastmath=FAST, **_OPTIONS)
#: A formula for one element, inlined into loops.
formula = _decorator(fastmath=FAST, forceinline=True, **_OPTIONS)
#: The same, operations in the order in which they stand.
exact_formula = _decorator(fastmath=EXACT, forceinline=True, **_OPTIONS)


@exact_formula
def horner(coefficients: Any, x: Any) -> Any:
    """A polynomial, the coefficient of its highest power first."""
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value
