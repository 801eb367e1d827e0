"""Small ONNX models for the tests, and a way to run graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], name=f"the-{output}", **attributes)


def classifier(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    *,
    input_shape: Sequence[int | str] = ("N", 3),
    output: str = "logits",
    opset: int = 18,
    input_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Wrap nodes from ``x`` to an output into a model with the weights inside."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", input_type, list(input_shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", "C"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def linear(**changes: Any) -> onnx.ModelProto:
    """Softmax regression of three inputs and two classes."""
    rng = np.random.default_rng(1)
    weights = {"w": normal(rng, 3, 2), "b": normal(rng, 2)}
    return classifier([node("Gemm", ["x", "w", "b"], "logits")], weights, **changes)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def run(model: onnx.ModelProto | bytes, inputs: Sequence[Array]) -> list[Array]:
    """Run a graph with its inputs in order."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs
