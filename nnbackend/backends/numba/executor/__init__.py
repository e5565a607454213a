"""The executors of the Numba backend: programs in compiled code, whole or in parts."""

from nnbackend.backends.numba.executor.compiled import CompiledExecutor as CompiledExecutor
from nnbackend.backends.numba.executor.mixed import MixedExecutor as MixedExecutor
