"""Dense neural networks on a small backend interface, the backend chosen at run time.

>>> import nnbackend as nn
>>> x, y = nn.datasets.digits()
>>> model = nn.Sequential([nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10)], seed=0)
>>> model.compile(loss="softmax_cross_entropy", optimizer=nn.Adam(lr=1e-3), metrics=["accuracy"])
>>> history = model.fit(x, y, epochs=5, verbose=0)
"""

from nnbackend import (
    datasets,
    distributed,
    initializers,
    losses,
    metrics,
    optimizers,
    plot,
    schedules,
)
from nnbackend._version import __version__ as __version__
from nnbackend.backends import (
    Availability,
    Backend,
    available_backends,
    get_backend,
    register_backend,
    set_backend,
    use_backend,
)
from nnbackend.backends.numba import get_num_threads, set_num_threads
from nnbackend.errors import (
    BackendUnavailableError,
    CheckpointError,
    DataError,
    DeviceError,
    DTypeError,
    ModelBusyError,
    NNBackendError,
    NonFiniteLossError,
    NotCompiledError,
    OutOfMemoryError,
    RankError,
    ShapeError,
    UnknownArgumentError,
    UnknownNameError,
)
from nnbackend.export import export_onnx
from nnbackend.layers import BatchNorm, Dense, Dropout, Embedding, LayerNorm, Standardize
from nnbackend.layers.activations import (
    ELU,
    GELU,
    Exponential,
    GELUTanh,
    LeakyReLU,
    Linear,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from nnbackend.layers.base import Layer
from nnbackend.layers.parameters import Gradient, Parameter
from nnbackend.live import LiveCurves
from nnbackend.model.loading import load
from nnbackend.model.sequential import Sequential
from nnbackend.optimizers import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSprop
from nnbackend.schedules import CosineDecay, ExponentialDecay, InverseTimeDecay, StepDecay
from nnbackend.training.callback import Callback
from nnbackend.training.callbacks import (
    EarlyStopping,
    LearningRateScheduler,
    ReduceLROnPlateau,
    TimeLimit,
)
from nnbackend.training.history import History
from nnbackend.training.trackers import MLflow, TensorBoard
from nnbackend.training.writers import CSVLogger, ModelCheckpoint

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Availability",
    "Backend",
    "BackendUnavailableError",
    "BatchNorm",
    "CSVLogger",
    "Callback",
    "CheckpointError",
    "CosineDecay",
    "DTypeError",
    "DataError",
    "Dense",
    "DeviceError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "Exponential",
    "ExponentialDecay",
    "GELUTanh",
    "Gradient",
    "History",
    "InverseTimeDecay",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LearningRateScheduler",
    "Linear",
    "LiveCurves",
    "MLflow",
    "Mish",
    "ModelBusyError",
    "ModelCheckpoint",
    "NNBackendError",
    "NonFiniteLossError",
    "NotCompiledError",
    "Optimizer",
    "OutOfMemoryError",
    "Parameter",
    "RMSprop",
    "RankError",
    "ReLU",
    "ReduceLROnPlateau",
    "Sequential",
    "ShapeError",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Standardize",
    "StepDecay",
    "Tanh",
    "TensorBoard",
    "TimeLimit",
    "UnknownArgumentError",
    "UnknownNameError",
    "available_backends",
    "datasets",
    "distributed",
    "export_onnx",
    "get_backend",
    "get_num_threads",
    "initializers",
    "load",
    "losses",
    "metrics",
    "optimizers",
    "plot",
    "register_backend",
    "schedules",
    "set_backend",
    "set_num_threads",
    "use_backend",
]


def __dir__() -> list[str]:
    return [*__all__, "__all__", "__doc__", "__version__"]
