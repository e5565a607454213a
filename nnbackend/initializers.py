"""Initial values of weights, drawn on the host so that every backend starts from the same ones.

An initializer is a callable ``(shape, rng) -> float64 array``. For a weight of shape
(n_inputs, n_outputs) the fans are its two sizes; a vector is its own fan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import check_name, check_number, keep, real_array, turned
from nnbackend._names import AnswersNames, check_call
from nnbackend.errors import DTypeError, OutOfMemoryError, ShapeError, shown

if TYPE_CHECKING:
    from numpy.random import Generator  # takes 10 ms to import, and may not be needed

Shape = tuple[int, ...]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Initializer = Callable[[Shape, "Generator"], Any]
#: a name, an array or nested list of numbers, or an Initializer
InitializerLike = Any


#: Of a weight at the start, in size; float32 holds numbers up to 3.4e38.
MOST = 1e30


@dataclass(frozen=True)
class Constant(AnswersNames):
    """Every element is ``value``."""

    value: float = 0.0

    def __post_init__(self) -> None:
        keep(self, value=check_number("Constant.value", self.value, -MOST, MOST))

    def __call__(self, shape: Shape, rng: Generator) -> FloatArray:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Uniform(AnswersNames):
    """Uniform in [-limit, limit)."""

    limit: float = 0.05

    def __post_init__(self) -> None:
        keep(self, limit=check_number("Uniform.limit", self.limit, 0.0, MOST))

    def __call__(self, shape: Shape, rng: Generator) -> FloatArray:
        return rng.uniform(-self.limit, self.limit, shape)


@dataclass(frozen=True)
class Normal(AnswersNames):
    """Normal with mean 0 and standard deviation ``std``, not truncated."""

    std: float = 0.05

    def __post_init__(self) -> None:
        keep(self, std=check_number("Normal.std", self.std, 0.0, MOST))

    def __call__(self, shape: Shape, rng: Generator) -> FloatArray:
        return rng.normal(0.0, self.std, shape)


def _fans(shape: Shape) -> tuple[int, int]:
    return shape[0], shape[-1]


def zeros(shape: Shape, rng: Generator) -> FloatArray:
    """All zero."""
    return np.zeros(shape)


def ones(shape: Shape, rng: Generator) -> FloatArray:
    """All one."""
    return np.ones(shape)


def glorot_uniform(shape: Shape, rng: Generator) -> FloatArray:
    """Variance 2 / (fan_in + fan_out), uniform (Glorot and Bengio, 2010)."""
    limit = np.sqrt(6.0 / sum(_fans(shape)))
    return rng.uniform(-limit, limit, shape)


def glorot_normal(shape: Shape, rng: Generator) -> FloatArray:
    """Variance 2 / (fan_in + fan_out), normal (Glorot and Bengio, 2010)."""
    return rng.normal(0.0, np.sqrt(2.0 / sum(_fans(shape))), shape)


def he_uniform(shape: Shape, rng: Generator) -> FloatArray:
    """Variance 2 / fan_in, uniform (He, Zhang, Ren and Sun, 2015)."""
    limit = np.sqrt(6.0 / _fans(shape)[0])
    return rng.uniform(-limit, limit, shape)


def he_normal(shape: Shape, rng: Generator) -> FloatArray:
    """Variance 2 / fan_in, normal (He, Zhang, Ren and Sun, 2015)."""
    return rng.normal(0.0, np.sqrt(2.0 / _fans(shape)[0]), shape)


def lecun_uniform(shape: Shape, rng: Generator) -> FloatArray:
    """Variance 1 / fan_in, uniform (LeCun, Bottou, Orr and Müller, 1998)."""
    limit = np.sqrt(3.0 / _fans(shape)[0])
    return rng.uniform(-limit, limit, shape)


def lecun_normal(shape: Shape, rng: Generator) -> FloatArray:
    """Variance 1 / fan_in, normal (LeCun, Bottou, Orr and Müller, 1998)."""
    return rng.normal(0.0, np.sqrt(1.0 / _fans(shape)[0]), shape)


def orthogonal(shape: Shape, rng: Generator) -> FloatArray:
    """Orthonormal rows or columns, whichever are fewer (Saxe, McClelland, Ganguli, 2014)."""
    if len(shape) != 2:
        raise ShapeError(f"orthogonal initialises matrices; received the shape {shape}")
    rows, columns = max(shape), min(shape)
    q, r = np.linalg.qr(rng.normal(size=(rows, columns)))
    q *= np.sign(np.diag(r))  # makes the distribution uniform over orthogonal matrices
    return q if shape[0] >= shape[1] else np.ascontiguousarray(q.T)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "ones": ones,
    "constant": Constant(),
    "uniform": Uniform(),
    "normal": Normal(),
    "glorot_uniform": glorot_uniform,
    "glorot_normal": glorot_normal,
    "he_uniform": he_uniform,
    "he_normal": he_normal,
    "lecun_uniform": lecun_uniform,
    "lecun_normal": lecun_normal,
    "orthogonal": orthogonal,
}
_WITH_SETTINGS: dict[str, type[Constant | Uniform | Normal]] = {
    "constant": Constant,
    "uniform": Uniform,
    "normal": Normal,
}


def resolve_initializer(spec: InitializerLike | Mapping[str, Any]) -> Initializer:
    """The callable behind a name, an array, a callable or a saved configuration.

    Raises:
        UnknownNameError: no initializer has that name.
        DTypeError: ``spec`` is none of these.
    """
    if isinstance(spec, str):
        check_name("initializer", spec, INITIALIZERS)
        return INITIALIZERS[spec]
    if isinstance(spec, Mapping):
        settings = dict(spec)
        name = check_name("initializer with settings", settings.pop("name", None), _WITH_SETTINGS)
        made: Initializer = _WITH_SETTINGS[name](**settings)
        return made
    if isinstance(spec, type) and issubclass(spec, tuple(_WITH_SETTINGS.values())):
        spec = spec()
    if isinstance(spec, type):
        raise DTypeError(
            f"an initializer is a name or a function (shape, rng); received {shown(spec)}"
        )
    if callable(spec):
        check_call("an initializer", spec, "shape", "rng")
        function: Initializer = spec
        return function
    values = real_array("an initializer that is no name and no callable (shape, rng)", spec)
    return lambda shape, rng: values


def draw(spec: InitializerLike, what: str, shape: Shape, rng: Generator) -> FloatArray:
    """Initial values for ``what``, shape-checked and finite, as float64."""
    try:
        if math.prod(shape) >= 1 << 60:  # of which NumPy says that its size is no number
            raise MemoryError
        drawn = resolve_initializer(spec)(shape, rng)
        values = real_array(f"{what}'s initial values", drawn).astype(np.float64)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"there is not the memory for {what} of shape {shape}: {8 * math.prod(shape):,} bytes "
            f"while its initial values are drawn; choose narrower layers"
        ) from error
    if values.shape != shape and values.shape != (1, *shape):
        raise ShapeError(
            f"{what} has shape {shape}; its initializer gave {values.shape}"
            f"{turned(values.shape, shape)}"
        )
    if not np.isfinite(values).all():
        raise DTypeError(f"{what} must start from finite numbers; its initializer gave NaN or inf")
    return values.reshape(shape)


def initializer_config(spec: InitializerLike) -> Any:
    """What a model file records. Arrays and callables need not be saved: the weights are."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Constant | Uniform | Normal):
        return {"name": type(spec).__name__.lower(), **asdict(spec)}
    return "zeros"
