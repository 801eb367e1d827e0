"""covey_modelkit.forward: which models are understood, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.modelkit.helpers import Array, classifier, linear, node, normal, run

from covey_modelkit.build import build_bundle
from covey_modelkit.forward import read_forward
from covey_protocol.errors import ConfigError

RNG = np.random.default_rng(4)
W, B = normal(RNG, 3, 2), normal(RNG, 2)
X = normal(RNG, 5, 3)
GEMM = node("Gemm", ["x", "w", "b"], "logits")


def logits(model: onnx.ModelProto) -> Array:
    """What the bundle's inference graph says of X with the initial weights."""
    bundle = build_bundle(model, name="test")
    return run(bundle.infer, [*bundle.manifest.views(bundle.weights), X])[0]


def test_an_ordinary_model_is_understood() -> None:
    forward = read_forward(classifier([GEMM], {"w": W, "b": B}))
    assert (forward.input, forward.input_shape, forward.output, forward.output_shape) == ("x", [3], "logits", [2])
    assert forward.candidates == ["w", "b"]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_other_operator_sets_are_converted(opset: int) -> None:
    model = classifier([GEMM], {"w": W, "b": B}, opset=opset)
    np.testing.assert_allclose(logits(model), X @ W + B, rtol=1e-5)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_final_softmax_is_dropped(operator: str, axis: int) -> None:
    model = classifier([GEMM, node(operator, ["logits"], "p", axis=axis)], {"w": W, "b": B}, output="p")
    np.testing.assert_allclose(logits(model), X @ W + B, rtol=1e-5)


def test_a_softmax_over_the_batch_is_not_dropped() -> None:
    model = classifier([GEMM, node("Softmax", ["logits"], "p", axis=0)], {"w": W, "b": B}, output="p")
    z = X @ W + B
    np.testing.assert_allclose(logits(model), np.exp(z) / np.exp(z).sum(axis=0), rtol=1e-5)


def test_a_fixed_batch_size_is_freed() -> None:
    model = classifier([GEMM], {"w": W, "b": B}, input_shape=[1, 3])
    np.testing.assert_allclose(logits(model), X @ W + B, rtol=1e-5)


def test_weights_listed_as_inputs_are_weights() -> None:
    model = classifier([GEMM], {"w": W, "b": B})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]))
    assert read_forward(model).candidates == ["w", "b"]


def test_local_functions_are_written_out() -> None:
    imports = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Gemm", ["a", "m", "v"], ["r"]), helper.make_node("Relu", ["r"], ["o"])]
    function = helper.make_function("author", "Dense", ["a", "m", "v"], ["o"], body, imports)
    model = classifier([node("Dense", ["x", "w", "b"], "logits", domain="author")], {"w": W, "b": B})
    model.opset_import.append(helper.make_opsetid("author", 1))
    model.functions.append(function)
    np.testing.assert_allclose(logits(model), np.maximum(X @ W + B, 0), rtol=1e-5)


@pytest.mark.parametrize(
    "constant",
    [
        {"value": numpy_helper.from_array(np.array(2.0, np.float32))},
        {"value": numpy_helper.from_array(np.array([2.0], np.float32))},
        {"value_float": 2.0},
        {"value_floats": [2.0]},
    ],
)
def test_constants_of_nodes_stay_constant(constant: dict[str, Any]) -> None:
    nodes = [helper.make_node("Constant", [], ["two"], **constant), GEMM, node("Mul", ["logits", "two"], "twice")]
    model = classifier(nodes, {"w": W, "b": B}, output="twice")
    assert read_forward(model).candidates == ["w", "b"]
    np.testing.assert_allclose(logits(model), 2 * (X @ W + B), rtol=1e-5)


def test_a_bare_scalar_stays_constant() -> None:
    nodes = [GEMM, node("Mul", ["logits", "two"], "twice")]
    model = classifier(nodes, {"w": W, "b": B, "two": np.array(2.0, np.float32)}, output="twice")
    assert read_forward(model).candidates == ["w", "b"]


def test_the_authors_model_is_not_changed() -> None:
    model = linear(input_shape=[1, 3], opset=17)
    before = model.SerializeToString(deterministic=True)
    build_bundle(model, name="test")
    assert model.SerializeToString(deterministic=True) == before


def test_no_source_locations_reach_the_bundle() -> None:
    model = linear()
    model.graph.node[0].doc_string = "/home/author/secret.py"
    model.graph.node[0].metadata_props.add(key="stack", value="/home/author/secret.py")
    model.graph.doc_string = model.doc_string = "/home/author/secret.py"
    assert b"author" not in build_bundle(model, name="test").encode()


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 3]))


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]))


def undefined_tensor(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def external_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def branch(model: onnx.ModelProto) -> None:
    ways = [
        helper.make_graph([helper.make_node("Identity", ["logits"], ["way"])], "way", [], [output])
        for output in [helper.make_tensor_value_info("way", TensorProto.FLOAT, ["N", "C"])] * 2
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(node("If", ["yes"], "chosen", then_branch=ways[0], else_branch=ways[1]))
    model.graph.output[0].name = "chosen"


def contradictory_shapes(model: onnx.ModelProto) -> None:
    model.graph.node[0].CopyFrom(node("MatMul", ["b", "w"], "logits"))


def fixed_reshape(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "shape"))
    model.graph.node.append(node("Reshape", ["logits", "shape"], "fixed"))
    model.graph.output[0].name = "fixed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_inputs, r"one input, it has 2 \(x, mask\)"),
        (two_outputs, r"2 outputs \(logits, x\)"),
        (undefined_tensor, "not a valid ONNX model"),
        (external_weights, "'w' is stored outside the model"),
        (foreign_operator, "Gemm of com.example"),
        (branch, r"node 'the-chosen' \(If\) holds a graph"),
        (contradictory_shapes, "shapes do not fit"),
        (fixed_reshape, "fixes the batch size"),
    ],
)
def test_models_that_cannot_be_used_are_refused(change: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = classifier([GEMM], {"w": W, "b": B})
    change(model)
    with pytest.raises(ConfigError, match=message):
        build_bundle(model, name="test")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (linear(input_shape=["N", "F"]), "dimensions of fixed size"),
        (classifier([node("Identity", ["x"], "logits")], {}, input_shape=["N"]), "batch dimension followed"),
        (linear(input_type=TensorProto.DOUBLE), "float32"),
        (classifier([node("Gemm", ["x", "w"], "logits")], {"w": normal(RNG, 3, 1)}), "2 at least"),
        (classifier([node("MatMul", ["x", "w"], "logits")], {"w": W}, input_shape=["N", 4, 3]), "batch by classes"),
    ],
)
def test_models_of_the_wrong_form_are_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_bundle(model, name="test")
