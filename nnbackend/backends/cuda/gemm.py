"""Matrix products as the CUDA backend asks a device for them, with what may be done on the way."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from nnbackend.backends.types import Array
from nnbackend.errors import NNBackendError

#: Bytes: what vectorised loads and cuBLASLt's fastest algorithms want.
ALIGNMENT = 256


class Epilogue(Enum):
    """What is done to a product's numbers before they are written.

    ``vector`` is the product's. cuBLASLt's epilogues for the gradient of a ReLU are not among them:
    with bfloat16 they let it pass at some outputs that were 0 (13.1 on an H200); ours never do.
    """

    #: nothing
    PLAIN = "plain"
    #: out = a b + vector
    BIAS = "bias"
    #: out = relu(a b + vector)
    RELU = "relu"
    #: out = a b, and vector = the column sums of b, taken as it is multiplied
    COLUMN_SUMS = "column sums"


class ProductError(NNBackendError):
    """A library refuses a product."""


class Product(NamedTuple):
    """out (M, N) = a (M, K) b (K, N) for row-major matrices.

    Attributes:
        a, b: of out's dtype; or uint16, whose bits are bfloat16 numbers, for an ``out`` of float32
            or of uint16.
        a_t, b_t: the matrix is stored transposed.
        tf32: float32 numbers may be rounded to ten bits of mantissa before they are multiplied.
        vector: (N,) of out's dtype; what the epilogue adds to each row, or where it leaves sums.
    """

    a: Array
    b: Array
    out: Array
    a_t: bool = False
    b_t: bool = False
    tf32: bool = False
    epilogue: Epilogue = Epilogue.PLAIN
    vector: Array | None = None
