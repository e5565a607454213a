"""ONNX Runtime: inference of the same network, with its own choice of threads or with one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from nnbackend.benchmark.cases import Case
from nnbackend.benchmark.operations import Trial
from peers.system import CHECKED_ROWS, PREDICT_BLOCK, Material, System, trial

OPSET, IR_VERSION = 17, 8
NODES = {"relu": "Relu", "tanh": "Tanh"}
INPUT, OUTPUT = "x", "y"


def onnx_model(case: Case, material: Material) -> bytes:
    """Gemm and activation for each layer, in ONNX's format."""
    nodes, constants, value = [], [], INPUT
    last = len(material.weights) - 1
    for k, (weight, bias) in enumerate(material.weights):
        constants += [
            numpy_helper.from_array(weight, f"w{k}"),
            numpy_helper.from_array(bias, f"b{k}"),
        ]
        result = OUTPUT if k == last else f"z{k}"
        nodes.append(helper.make_node("Gemm", [value, f"w{k}", f"b{k}"], [result]))
        value = result
        if k < last:
            nodes.append(helper.make_node(NODES[case.activation], [value], [f"a{k}"]))
            value = f"a{k}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in ((INPUT, case.widths[0]), (OUTPUT, case.widths[-1]))
    ]
    graph = helper.make_graph(nodes, case.name, ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class OnnxRuntime(System):
    packages = ("onnxruntime", "onnx")

    def sessions(self, case: Case, material: Material) -> dict[str, onnxruntime.InferenceSession]:
        """With the default number of threads, and with one."""
        model = onnx_model(case, material)
        sessions = {}
        for name, threads in (("default threads", 0), ("1 thread", 1)):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            sessions[name] = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        return sessions

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        session = self.sessions(case, material)["1 thread"]
        return session.run(None, {INPUT: material.x[:CHECKED_ROWS]})[0]

    def inference(self, case: Case, material: Material) -> Trial:
        rows = [(None, {INPUT: x}) for x in material.single_rows()]
        sessions = self.sessions(case, material)
        return self.fastest({k: trial(s.run, rows) for k, s in sessions.items()})

    def predict(self, case: Case, material: Material) -> Trial:
        x = material.x
        candidates = {}
        for name, session in self.sessions(case, material).items():

            def in_blocks(session: onnxruntime.InferenceSession = session) -> np.ndarray:
                blocks = [x[k : k + PREDICT_BLOCK] for k in range(0, len(x), PREDICT_BLOCK)]
                return np.concatenate([session.run(None, {INPUT: b})[0] for b in blocks])

            candidates[f"whole, {name}"] = trial(session.run, [(None, {INPUT: x})])
            candidates[f"in blocks, {name}"] = trial(in_blocks, [()])
        return self.fastest(candidates)
