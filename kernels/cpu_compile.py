"""How kernels are compiled: the options of every function that is only called by other kernels.

No wrappers for calls from Python and no reference counts, which no kernel needs: that halves the
time to compile, and small layers run faster. Floating-point options have names, because they
decide what a formula means.
"""

from __future__ import annotations

from typing import Any

from numba import njit

#: Sums may be reordered and products fused; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
#: Where the order of operations is the algorithm.
EXACT = {"contract", "nsz"}


_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
}

#: A function that decides, and calls others.
compiled = njit(**_OPTIONS)
#: A part of another function, taken out for the reader: it has one caller, and Numba would
#: compile all that it calls once more for every function between.
part_of_caller = njit(**_OPTIONS)
#: A function that returns an array, which Numba only lets pass with reference counts.
view = njit(**{**_OPTIONS, "_nrt": True})
#: A loop over arrays, to become vector code: small, so that LLVM sees what overlaps.
loop = njit(fastmath=FAST, **_OPTIONS)
#: A formula for one element, inlined into loops.
formula = njit(fastmath=FAST, forceinline=True, **_OPTIONS)
#: The same, operations in the order in which they stand.
exact_formula = njit(fastmath=EXACT, forceinline=True, **_OPTIONS)
