"""Models as ONNX files, for what runs networks without Python: ONNX Runtime, browsers, devices.

onnx is an extra (``pip install "nnbackend[onnx]"``), imported when a file is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbackend._checks import check_dtype, check_path
from nnbackend._files import write_atomically
from nnbackend._plot_checks import check_model
from nnbackend._types import PathLike
from nnbackend._version import __version__
from nnbackend.backends.types import LINEAR, Activation, DType
from nnbackend.errors import DataError
from nnbackend.executor.rows import activation_of
from nnbackend.kernels.codes import Op
from nnbackend.losses import Loss
from nnbackend.model.sequential import Sequential
from nnbackend.model.serialization import plain
from nnbackend.program.table import Program, Row

if TYPE_CHECKING:
    import onnx

#: What files ask of their reader: operators of 2021, which every runtime in use has.
OPSET, IR_VERSION = 15, 8
#: A file's messages are shorter than this, by the rules of protobuf.
MOST_BYTES = (1 << 31) - (1 << 16)
#: Notes of a model that go into its file.
NOTES = ("feature_names", "class_names", "target_name", "preparation", "kind", "image_shape")
#: Activations that ONNX Runtime has in float32 only.
ONLY_FLOAT32 = ("leaky_relu", "elu", "gelu", "softplus", "mish")


def export_onnx(model: Sequential, path: PathLike, dtype: str | None = None) -> None:
    """Write what a model's layers compute for predictions to an ONNX file.

    The graph takes ``x`` (rows, n_inputs), any number of rows, and gives ``y`` (rows, n_outputs),
    what ``predict`` returns. If the loss is over classes, it has a second output,
    ``probabilities``, what ``predict_proba`` returns. The names of columns and classes, and what is
    done with a table's columns, are kept as the file's metadata, in JSON, if ``model.info`` has
    them.

    Args:
        path: the file, which is written whole or not at all.
        dtype: of the numbers, "float32" or "float64"; None takes the model's. ONNX Runtime has no
            float64 for leaky_relu, elu, gelu, softplus and mish.

    Raises:
        DataError: a layer is written in Python, ``Standardize`` has not seen data, the dtype
            cannot hold the numbers, or the file would be larger than 2 GB.
        ImportError: onnx is not installed: ``pip install "nnbackend[onnx]"``.
    """
    check_model(model)
    onnx, path = require_onnx(), check_path("path", path)
    with model.exclusive():
        content = _file_of(onnx, model, model.dtype if dtype is None else check_dtype(dtype))
    write_atomically(path, content)


def outputs_of(model: Sequential) -> list[str]:
    """Names of the graph's outputs."""
    return ["y"] if _loss_over_classes(model) is None else ["y", "probabilities"]


def _loss_over_classes(model: Sequential) -> Loss | None:
    loss = model.program.loss
    return loss if isinstance(loss, Loss) and loss.probabilities else None


def lacking(model: Sequential, dtype: DType) -> list[str]:
    """Activations of a model that ONNX Runtime lacks in this dtype."""
    program = model.program
    names = {activation_of(program, row).name for row in program.rows}
    return sorted(names & set(ONLY_FLOAT32)) if dtype == np.float64 else []


def require_onnx() -> Any:
    """The module onnx, or an error that says how to install it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            'ONNX files need onnx, which is not installed: pip install "nnbackend[onnx]"'
        ) from error
    return onnx


def _file_of(onnx: Any, model: Sequential, dtype: DType) -> bytes:
    program, helper = model.program, onnx.helper
    for layer in model.layers:
        layer.check_adapted()
    size = (program.storage.parameters.size + program.storage.state.size) * dtype.itemsize
    if size > MOST_BYTES:
        raise DataError(f"an ONNX file holds at most 2 GB; this model has {size / 1e9:.1f} GB")
    graph = _Graph(onnx, program, dtype)
    for row in program.rows:
        if row.op == Op.PYTHON:
            raise DataError(
                f"ONNX has no operator for layer {row.layer}, {model.layers[row.layer]!r}, which "
                f"is written in Python. Export a model of built-in layers"
            )
        _ROWS[Op(row.op)](graph, row)
    graph.rename("y")
    kind, rows = helper.np_dtype_to_tensor_dtype(dtype), "rows"
    if (loss := _loss_over_classes(model)) is not None:
        graph.activate(LINEAR if loss.link is None else Activation(loss.link))
        graph.rename("probabilities")
    x = helper.make_tensor_value_info("x", kind, [rows, program.n_inputs])
    outputs = [
        helper.make_tensor_value_info(name, kind, [rows, program.n_outputs])
        for name in outputs_of(model)
    ]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "nnbackend", [x], outputs, graph.constants),
        producer_name="nnbackend",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    notes = {key: model.info.get(key) for key in NOTES}
    texts = {k: json.dumps(v, default=plain) for k, v in notes.items() if v is not None}
    helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


class _Graph:
    """Nodes one after the other, each of which reads what the one before it wrote.

    Attributes:
        last: name of what the last node wrote.
    """

    def __init__(self, onnx: Any, program: Program, dtype: DType) -> None:
        self.program, self.dtype, self._onnx = program, dtype, onnx
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last, self.int64 = "x", onnx.TensorProto.INT64

    def add(self, op: str, *more: Any, reads: str | None = None, **attributes: Any) -> str:
        """A node of ``reads``, or of what was written last, and of ``more``: names, or arrays,
        which become constants. The name of its output."""
        names = [self.last if reads is None else reads]
        names += [name if isinstance(name, str) else self.constant(name) for name in more]
        self.last = f"{op.lower()}_{len(self.nodes)}"
        node = self._onnx.helper.make_node(op, names, [self.last], self.last, **attributes)
        self.nodes.append(node)
        return self.last

    def rename(self, name: str) -> None:
        """Call what was written last so, under a name of its own."""
        self.add("Identity")
        self.nodes[-1].output[0] = self.last = name

    def number(self, value: float) -> np.ndarray[Any, Any]:
        """A constant of the graph's dtype."""
        return np.array(value, self.dtype)

    def host(self, arrays: Sequence[Any]) -> list[Any]:
        """Parameters or state of a row, as constants will have them; None stays None."""
        to_numpy = self.program.backend.to_numpy
        return [None if array is None else self.cast(to_numpy(array)) for array in arrays]

    def cast(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """In the graph's dtype."""
        with np.errstate(over="ignore"):
            cast = array.astype(self.dtype)
        if (np.isinf(cast) & np.isfinite(array)).any():
            raise DataError(
                f"the model has numbers that {self.dtype} cannot hold, such as "
                f"{array.flat[int(np.abs(array).argmax())]:g}; export it as {array.dtype}"
            )
        return cast

    def activate(self, act: Activation) -> None:
        _ACTIVATIONS[act.name](self, act.parameter)

    def columns(self, x: str, first: int, last: int) -> str:
        """Columns first ... last - 1 of x."""
        return self.add("Slice", *(np.array([i], np.int64) for i in (first, last, 1)), reads=x)

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """The name of an array."""
        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(array)
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name


# -- activations ----------------------------------------------------------------------------------


def _gelu(graph: _Graph, parameter: float) -> None:
    x = graph.last
    graph.add("Mul", graph.number(0.5**0.5))
    graph.add("Erf")
    _half_of_one_plus(graph, x)


def _gelu_tanh(graph: _Graph, parameter: float) -> None:
    x = graph.last
    cube = graph.add("Mul", graph.add("Mul", x), reads=x)
    graph.add("Mul", graph.number(0.044715), reads=cube)
    graph.add("Add", x)
    graph.add("Mul", graph.number((2 / np.pi) ** 0.5))
    graph.add("Tanh")
    _half_of_one_plus(graph, x)


def _half_of_one_plus(graph: _Graph, x: str) -> None:
    """0.5 x (1 + what was written last)."""
    graph.add("Add", graph.number(1.0))
    graph.add("Mul", x)
    graph.add("Mul", graph.number(0.5))


def _silu(graph: _Graph, parameter: float) -> None:
    x = graph.last
    graph.add("Sigmoid")
    graph.add("Mul", x)


def _mish(graph: _Graph, parameter: float) -> None:
    x = graph.last
    graph.add("Softplus")
    graph.add("Tanh")
    graph.add("Mul", x)


def _plain(op: str, **attributes: Any) -> Callable[[_Graph, float], None]:
    """One node, without a number."""
    return lambda graph, parameter: _add(graph, op, **attributes)


def _add(graph: _Graph, op: str, **attributes: Any) -> None:
    graph.add(op, **attributes)


_ACTIVATIONS: dict[str, Callable[[_Graph, float], None]] = {
    "linear": lambda graph, parameter: None,
    "relu": _plain("Relu"),
    "leaky_relu": lambda graph, slope: _add(graph, "LeakyRelu", alpha=slope),
    "elu": lambda graph, alpha: _add(graph, "Elu", alpha=alpha),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "softplus": _plain("Softplus"),
    "exponential": _plain("Exp"),
    "softmax": _plain("Softmax", axis=-1),
    "mish": _mish,
}


# -- layers ---------------------------------------------------------------------------------------


def _dense(graph: _Graph, row: Row) -> None:
    weight, bias = graph.host(graph.program.arrays[row.layer].parameters)
    if bias is None:
        graph.add("MatMul", weight)
    else:
        graph.add("Gemm", weight, bias)
    graph.activate(activation_of(graph.program, row))


def _batch_norm(graph: _Graph, row: Row) -> None:
    """By hand: the operator has its eps in float32."""
    arrays, to_numpy = graph.program.arrays[row.layer], graph.program.backend.to_numpy
    eps = float(graph.program.floats[row.layer][1])
    (gamma, beta), (mean, var) = (
        [np.asarray(to_numpy(a), np.float64) for a in pair]
        for pair in (arrays.parameters, arrays.state)
    )
    graph.add("Sub", graph.cast(mean))
    graph.add("Mul", graph.cast(gamma / np.sqrt(var + eps)))
    graph.add("Add", graph.cast(beta))


def _layer_norm(graph: _Graph, row: Row) -> None:
    gamma, beta = graph.host(graph.program.arrays[row.layer].parameters)
    eps = max(float(graph.program.floats[row.layer][0]), float(np.finfo(np.float32).tiny))
    mean = graph.add("ReduceMean", reads=(x := graph.last), axes=[-1], keepdims=1)
    centred = graph.add("Sub", mean, reads=x)
    graph.add("Mul", centred)
    graph.add("ReduceMean", axes=[-1], keepdims=1)
    graph.add("Add", graph.number(eps))
    graph.add("Div", graph.add("Sqrt"), reads=centred)
    graph.add("Mul", gamma)
    graph.add("Add", beta)


def _standardize(graph: _Graph, row: Row) -> None:
    mean, scale = graph.host(graph.program.arrays[row.layer].state)
    graph.add("Sub", mean)
    graph.add("Mul", scale)


def _embedding(graph: _Graph, row: Row) -> None:
    """The vector of the nearest whole number, one of NaN where that is no category."""
    weight = graph.host(graph.program.arrays[row.layer].parameters)[0]
    x, count = graph.last, graph.number(len(weight))
    graph.columns(x, 0, 1)
    graph.add("Add", graph.number(0.5))
    code = graph.add("Floor")
    above = graph.add("GreaterOrEqual", graph.number(0.0), reads=code)
    graph.add("And", above, reads=graph.add("Less", count, reads=code))
    graph.add("Where", code, count)
    number = graph.add("Cast", to=graph.int64)
    vectors = np.vstack([weight, np.full((1, weight.shape[1]), np.nan, weight.dtype)])
    vector = graph.add("GatherND", number, reads=graph.constant(vectors))
    if row.n_inputs > 1:
        graph.columns(x, 1, row.n_inputs)
        graph.add("Concat", vector, axis=1)


_ROWS: dict[Op, Callable[[_Graph, Row], None]] = {
    Op.DENSE: _dense,
    Op.ACTIVATION: lambda graph, row: graph.activate(activation_of(graph.program, row)),
    Op.DROPOUT: lambda graph, row: None,
    Op.BATCH_NORM: _batch_norm,
    Op.LAYER_NORM: _layer_norm,
    Op.STANDARDIZE: _standardize,
    Op.EMBEDDING: _embedding,
}
