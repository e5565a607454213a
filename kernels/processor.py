"""What the processor's kind decides, known without compiling anything."""

from __future__ import annotations

import platform

X86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
#: Elsewhere the largest products go to SciPy's BLAS: it may have units of the processor that no
#: compiler writes code for, as on Apple's. On x86 our own are as fast or faster (docs/products.md).
USES_BLAS = not X86
