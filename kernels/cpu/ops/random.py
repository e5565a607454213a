"""Philox4x32-10 and dropout for compiled programs; see ``philox.py`` for the source."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnbackend.kernels.cpu.codegen.compile import compiled, formula, loop
from nnbackend.kernels.cpu.codegen.intrinsics import high_word
from nnbackend.kernels.cpu.codegen.math import cast
from nnbackend.kernels.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1

_M0, _M1 = np.uint32(MULTIPLIER_0), np.uint32(MULTIPLIER_1)
_W0, _W1 = np.uint32(WEYL_0), np.uint32(WEYL_1)


@formula
def _words(x0: Any, x1: Any, x2: Any, x3: Any, key0: Any, key1: Any) -> Any:
    """The four words of a counter x0 ... x3, uint32, with the key."""
    for _ in range(ROUNDS):
        high0, high1 = high_word(_M0, x0), high_word(_M1, x2)
        x2_low, x0_low = np.uint32(_M1 * x2), np.uint32(_M0 * x0)
        x0, x2 = np.uint32(high1 ^ x1 ^ key0), np.uint32(high0 ^ x3 ^ key1)
        x1, x3 = x2_low, x0_low
        key0, key1 = np.uint32(key0 + _W0), np.uint32(key1 + _W1)
    return x0, x1, x2, x3


@compiled
def words_of(bits: int) -> Any:
    """The two words of 64 bits, lowest first."""
    return np.uint32(bits), np.uint32(bits >> 32)


@loop
def random_bits(out: Any, key: Any, stream: Any, offset: int) -> None:
    """Fill out (n,) uint32 with the words from element ``offset``, a multiple of 4.

    key (2,) and stream (3,) are uint32, lowest word first.
    """
    k0, k1, s0, s1, s2 = key[0], key[1], stream[0], stream[1], stream[2]
    whole, first = out.size // 4, offset // 4
    for g in range(whole):
        w0, w1, w2, w3 = _words(np.uint32(first + g), s0, s1, s2, k0, k1)
        out[4 * g] = w0
        out[4 * g + 1] = w1
        out[4 * g + 2] = w2
        out[4 * g + 3] = w3
    if 4 * whole < out.size:
        last = _words(np.uint32(first + whole), s0, s1, s2, k0, k1)
        for lane in range(out.size - 4 * whole):
            out[4 * whole + lane] = last[lane]


@loop
def dropout_mask(
    saved: Any, key: Any, stream: Any, offset: int, threshold: Any, scale: Any
) -> None:
    """saved (n,) = scale where the element's word is at least the threshold, else 0.

    The elements begin at ``offset``, a multiple of 4.
    """
    k0, k1, s0, s1, s2 = key[0], key[1], stream[0], stream[1], stream[2]
    zero = cast(0.0, scale)
    whole, first = saved.size // 4, offset // 4
    for g in range(whole):
        w0, w1, w2, w3 = _words(np.uint32(first + g), s0, s1, s2, k0, k1)
        saved[4 * g] = scale if w0 >= threshold else zero
        saved[4 * g + 1] = scale if w1 >= threshold else zero
        saved[4 * g + 2] = scale if w2 >= threshold else zero
        saved[4 * g + 3] = scale if w3 >= threshold else zero
    if 4 * whole < saved.size:
        last = _words(np.uint32(first + whole), s0, s1, s2, k0, k1)
        for lane in range(saved.size - 4 * whole):
            saved[4 * whole + lane] = scale if last[lane] >= threshold else zero


@compiled
def dropout(
    x: Any, rate: float, key: int, stream: int, stream_top: int, offset: int, out: Any, saved: Any
) -> None:
    """out = x saved, saved (n,) = 1 / (1 - rate) or 0 by the elements' words; all flat.

    key is 64 bits, stream the lowest 64 of 96 and stream_top the rest, as int64; the elements
    begin at ``offset``, a multiple of 4.
    """
    keys, words = words_of(key), words_of(stream)
    threshold = np.uint32(np.int64(rate * 4294967296.0))
    scale = cast(1.0 / (1.0 - rate), saved[0])
    dropout_mask(saved, keys, (words[0], words[1], np.uint32(stream_top)), offset, threshold, scale)
    multiply(x, saved, out)


@loop
def multiply(x: Any, factor: Any, out: Any) -> None:
    """out = x factor, flat."""
    for i in range(out.size):
        out[i] = x[i] * factor[i]
