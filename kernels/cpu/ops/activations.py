"""Activation functions and their derivatives, in place, for compiled programs.

The formulas and their names are those of ``nnbackend.backends.numpy.activations``; stable forms,
NaN stays NaN. In place, because a loop over one array needs no check for overlaps.

A formula takes and gives single numbers: z or dy, what is saved, and the activation's parameter.
"""

from __future__ import annotations

import math
from typing import Any

from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.kernels.cpu.codegen.compile import compiled, formula, loop
from nnbackend.kernels.cpu.codegen.math import cast, erfc, exp, expm1, log1p, tanh
from nnbackend.kernels.cpu.ops.vectors import scale

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
GELU_TANH_SCALE = math.sqrt(2.0 / math.pi)
GELU_TANH_CUBIC = 0.044715
MISH_IS_Z = 20.0


@formula
def at_least(z: Any, low: float) -> Any:
    """max(z, low), NaN staying NaN."""
    bound = cast(low, z)
    return bound if z < bound else z


@formula
def at_most(z: Any, high: float) -> Any:
    """min(z, high), NaN staying NaN."""
    bound = cast(high, z)
    return bound if z > bound else z


@formula
def relu_forward(z: Any, _: Any) -> Any:
    return at_least(z, 0.0)


@formula
def relu_backward(dy: Any, y: Any, _: Any) -> Any:
    return dy * (cast(1.0, y) if y > 0 else cast(0.0, y))


@formula
def leaky_relu_forward(z: Any, slope: Any) -> Any:
    return z if z > 0 else slope * z


@formula
def leaky_relu_backward(dy: Any, y: Any, slope: Any) -> Any:
    return dy if y > 0 else slope * dy


@formula
def elu_forward(z: Any, alpha: Any) -> Any:
    return z if z > 0 else alpha * expm1(z)


@formula
def elu_backward(dy: Any, y: Any, alpha: Any) -> Any:
    return dy * (cast(1.0, y) if y > 0 else y + alpha)


@formula
def _normal_cdf(z: Any) -> Any:
    return cast(0.5, z) * erfc(-cast(SQRT_HALF, z) * z)


@formula
def gelu_forward(z: Any, _: Any) -> Any:
    bounded = at_least(z, -1e4)
    return bounded * _normal_cdf(bounded)


@formula
def gelu_backward(dy: Any, z: Any, _: Any) -> Any:
    b = at_most(at_least(z, -1e4), 1e4)
    density = cast(INV_SQRT_2PI, z) * exp(-cast(0.5, z) * b * b)
    return dy * (_normal_cdf(b) + b * density)


@formula
def gelu_tanh_forward(z: Any, _: Any) -> Any:
    b = at_least(z, -1e4)
    inner = cast(GELU_TANH_SCALE, z) * (b + cast(GELU_TANH_CUBIC, z) * b * b * b)
    return cast(0.5, z) * b * (cast(1.0, z) + tanh(inner))


@formula
def gelu_tanh_backward(dy: Any, z: Any, _: Any) -> Any:
    one = cast(1.0, z)
    b = at_most(at_least(z, -1e4), 1e4)
    square = b * b
    t = tanh(cast(GELU_TANH_SCALE, z) * b * (one + cast(GELU_TANH_CUBIC, z) * square))
    slope = cast(GELU_TANH_SCALE, z) * (one + cast(3.0 * GELU_TANH_CUBIC, z) * square)
    return dy * cast(0.5, z) * (one + t + b * (one - t * t) * slope)


@formula
def silu_forward(z: Any, _: Any) -> Any:
    b = at_least(z, -1e4)
    return b / (cast(1.0, z) + exp(-b))


@formula
def silu_backward(dy: Any, z: Any, _: Any) -> Any:
    one = cast(1.0, z)
    b = at_most(at_least(z, -1e4), 1e4)
    s = one / (one + exp(-b))
    return dy * (s * (one + b * (one - s)))


@formula
def mish_forward(z: Any, _: Any) -> Any:
    two, b = cast(2.0, z), at_least(z, -1e4)
    e = exp(at_most(b, MISH_IS_Z))
    w = e * (e + two)
    near = b * (w / (w + two))  # where b w does not overflow, which may come first
    return z if z > cast(MISH_IS_Z, z) else near


@formula
def mish_backward(dy: Any, z: Any, _: Any) -> Any:
    one, two = cast(1.0, z), cast(2.0, z)
    b = at_most(at_least(z, -1e4), MISH_IS_Z)
    e = exp(b)
    w = e * (e + two)
    rest = two / (w + two)
    return dy * (w / (w + two) + b * e * (one + e) * rest * rest)


@formula
def sigmoid_forward(z: Any, _: Any) -> Any:
    one = cast(1.0, z)
    return one / (one + exp(-z))


@formula
def sigmoid_backward(dy: Any, y: Any, _: Any) -> Any:
    return dy * (y * (cast(1.0, y) - y))


@formula
def tanh_forward(z: Any, _: Any) -> Any:
    return tanh(z)


@formula
def tanh_backward(dy: Any, y: Any, _: Any) -> Any:
    return dy * (cast(1.0, y) - y * y)


@formula
def softplus_forward(z: Any, _: Any) -> Any:
    return at_least(z, 0.0) + log1p(exp(-abs(z)))


@formula
def softplus_backward(dy: Any, y: Any, _: Any) -> Any:
    return dy * -expm1(-y)


@formula
def exponential_forward(z: Any, _: Any) -> Any:
    return exp(z)


@formula
def exponential_backward(dy: Any, y: Any, _: Any) -> Any:
    return dy * y


@loop
def sum_of(row: Any) -> Any:
    """The sum of the elements."""
    total = cast(0.0, row[0])
    for j in range(row.size):
        total += row[j]
    return total


@formula
def _larger(a: Any, b: Any) -> Any:
    return a if a > b else b


@loop
def row_maximum(row: Any) -> Any:
    """The largest element; NaN if there is one."""
    wrong = 0
    for j in range(row.size):
        wrong += row[j] != row[j]
    if wrong:
        return sum_of(row)
    a = b = c = d = row[0]
    # four at a time: LLVM keeps the order of comparisons, which may be with NaN
    for j in range(0, row.size - 3, 4):
        a, b = _larger(row[j], a), _larger(row[j + 1], b)
        c, d = _larger(row[j + 2], c), _larger(row[j + 3], d)
    for j in range(row.size - row.size % 4, row.size):
        a = _larger(row[j], a)
    return _larger(_larger(a, b), _larger(c, d))


@loop
def _shift(row: Any, by: Any) -> None:
    """row (n,) -= by."""
    for j in range(row.size):
        row[j] -= by


@loop
def exponentials(z: Any) -> None:
    """z = exp(z), flat."""
    for i in range(z.size):
        z[i] = exp(z[i])


@loop
def shifted_exponential(z: Any) -> None:
    """z = exp(z - max of its row), for z (B, N); two passes, so that short rows are no obstacle
    to vector code."""
    for i in range(z.shape[0]):
        _shift(z[i], row_maximum(z[i]))
    exponentials(z.reshape(z.size))


@loop
def _softmax(z: Any) -> None:
    shifted_exponential(z)
    for i in range(z.shape[0]):
        total = sum_of(z[i])
        scale(z[i], cast(1.0, total) / total)


@loop
def _softmax_backward(dy: Any, y: Any) -> None:
    """dy (B, N) = y (dy - sum dy y), in place; y (B, N)."""
    for i in range(dy.shape[0]):
        dy_row, y_row = dy[i], y[i]
        inner = cast(0.0, dy_row[0])
        for j in range(dy_row.size):
            inner += dy_row[j] * y_row[j]
        for j in range(dy_row.size):
            dy_row[j] = y_row[j] * (dy_row[j] - inner)


#: The formulas (z, parameter) -> y and (dy, saved, parameter) -> dz of each element, by name.
FORMULAS: dict[str, tuple[Any, Any]] = {
    "relu": (relu_forward, relu_backward),
    "leaky_relu": (leaky_relu_forward, leaky_relu_backward),
    "elu": (elu_forward, elu_backward),
    "gelu": (gelu_forward, gelu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "silu": (silu_forward, silu_backward),
    "mish": (mish_forward, mish_backward),
    "sigmoid": (sigmoid_forward, sigmoid_backward),
    "tanh": (tanh_forward, tanh_backward),
    "softplus": (softplus_forward, softplus_backward),
    "exponential": (exponential_forward, exponential_backward),
}
LINEAR, RELU, SOFTMAX = (ACTIVATIONS[name].code for name in ("linear", "relu", "softmax"))
_KEEP_INPUT = tuple(kind.code for kind in ACTIVATIONS.values() if kind.saves == "input")


def _forward_of(code: int, formula: Any, others: Any) -> Any:
    """Where an activation is ``code``, its loop over the elements; else what ``others`` do."""

    @loop
    def run(z: Any, parameter: Any) -> None:
        for i in range(z.size):
            z[i] = formula(z[i], parameter)

    @compiled
    def choose(asked: int, parameter: Any, z: Any) -> None:
        if asked == code:
            run(z, parameter)
        else:
            others(asked, parameter, z)

    return choose


def _backward_of(code: int, formula: Any, others: Any) -> Any:
    @loop
    def run(dy: Any, saved: Any, parameter: Any) -> None:
        for i in range(dy.size):
            dy[i] = formula(dy[i], saved[i], parameter)

    @compiled
    def choose(asked: int, parameter: Any, dy: Any, saved: Any) -> None:
        if asked == code:
            run(dy, saved, parameter)
        else:
            others(asked, parameter, dy, saved)

    return choose


@compiled
def _linear(asked: int, parameter: Any, z: Any) -> None:
    pass


@compiled
def _linear_backward(asked: int, parameter: Any, dy: Any, saved: Any) -> None:
    pass


_by_element, _backward_by_element = _linear, _linear_backward
for _name, (_forward, _backward) in reversed(FORMULAS.items()):
    _code = ACTIVATIONS[_name].code
    _by_element = _forward_of(_code, _forward, _by_element)
    _backward_by_element = _backward_of(_code, _backward, _backward_by_element)


@compiled
def activation_forward(code: int, parameter: Any, z: Any) -> None:
    """z = act(z) in place, z (B, N)."""
    if code == SOFTMAX:
        _softmax(z)
    else:
        _by_element(code, parameter, z.reshape(z.size))


@compiled
def activation_backward(code: int, parameter: Any, dy: Any, saved: Any) -> None:
    """dy = dy act'(z) in place, (B, N); ``saved`` is y, or z where ``keeps_input``."""
    if code == SOFTMAX:
        _softmax_backward(dy, saved)
    else:
        _backward_by_element(code, parameter, dy.reshape(dy.size), saved.reshape(saved.size))


@compiled
def keeps_input(code: int) -> bool:
    """Whether the backward pass wants z instead of the output."""
    return code in _KEEP_INPUT
