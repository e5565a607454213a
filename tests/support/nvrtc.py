"""NVIDIA's compiler from its wheel, which needs no GPU: it says what is wrong with the kernels."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: Turing, Ampere, Hopper and two generations of Blackwell.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")


@cache
def library() -> ctypes.CDLL | None:
    """The compiler; None where no wheel brings it."""
    found = find_spec("nvidia")
    for place in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(place).glob("**/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return None


def compile_program(source: str, *options: str) -> str:
    """What the compiler has to say; warnings are errors.

    Raises:
        AssertionError: the program does not compile.
    """
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
    )
    assert created == 0, created
    flags = ("-std=c++17", "-ftz=true", "-Werror=all-warnings", *options)  # CuPy flushes, too
    values = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    result = nvrtc.nvrtcCompileProgram(program, len(flags), values)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if result == 0:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        assert size.value > 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert result == 0, log.value.decode()
    return log.value.decode()
