"""covey_modelkit.differentiate: which nodes are visited, and what is said of those that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tests.modelkit.helpers import classifier, node, normal, run

from covey_modelkit.build import build_graphs
from covey_modelkit.differentiate import differentiate
from covey_modelkit.forward import BATCH, Forward, read_forward
from covey_modelkit.gradients import LOSSES
from covey_modelkit.graph import GraphWriter, make_model
from covey_modelkit.presets import softmax
from covey_protocol.errors import ConfigError

RNG = np.random.default_rng(2)


def gradient_of_input(forward: Forward) -> tuple[GraphWriter, str]:
    writer = GraphWriter(forward.shapes)
    seed = LOSSES["cross-entropy"](writer, forward.output, "labels").gradient
    return writer, differentiate(writer, forward.nodes, {forward.output: seed}, [forward.input])[forward.input]


def test_the_input_can_be_differentiated_too() -> None:
    forward = read_forward(softmax((3,), 2))
    writer, gradient = gradient_of_input(forward)
    graph = helper.make_graph(
        [*forward.nodes, *writer.nodes],
        "gradient",
        [
            helper.make_tensor_value_info("x", 1, [BATCH, 3]),
            helper.make_tensor_value_info("labels", 7, [BATCH]),
        ],
        [helper.make_tensor_value_info(gradient, 1, [BATCH, 3])],
        [*forward.constants.values(), *writer.constants],
    )
    x, y = normal(RNG, 4, 3), np.array([0, 1, 1, 0])
    weight = np.frombuffer(forward.constants["output.weight"].raw_data, "<f4").reshape(3, 2)
    logits = x @ weight
    error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(2)[y]
    np.testing.assert_allclose(run(make_model(graph), [x, y])[0], error @ weight.T / 4, rtol=1e-5, atol=1e-6)


def test_no_work_is_done_for_what_is_not_wanted() -> None:
    forward = read_forward(softmax((3,), 2))
    writer, _ = gradient_of_input(forward)
    assert [part.op_type for part in writer.nodes if part.name.startswith("gradient.")] == ["Div", "Gemm"]


def test_weights_without_influence_are_left_out() -> None:
    nodes = [
        node("Mul", ["x", "idle"], "unused"),
        node("Shape", ["sized"], "size"),
        node("Cast", ["size"], "number", to=1),
        node("MatMul", ["x", "w"], "h"),
        node("Mul", ["h", "number"], "logits"),
    ]
    weights = {"idle": normal(RNG, 3), "sized": normal(RNG, 2), "w": normal(RNG, 3, 2)}
    forward = read_forward(classifier(nodes, weights))
    assert build_graphs(forward).parameters == ["w"]


def test_an_operator_without_a_rule_is_named() -> None:
    nodes = [node("Gemm", ["x", "w"], "h"), node("Selu", ["h"], "logits")]
    forward = read_forward(classifier(nodes, {"w": normal(RNG, 3, 2)}))
    with pytest.raises(ConfigError, match=r"node 'the-logits' uses operator Selu.*replace it by .*Gemm.*Relu"):
        build_graphs(forward)


def test_an_operator_without_a_rule_is_fine_before_the_first_weight() -> None:
    nodes = [node("Selu", ["x"], "h"), node("Gemm", ["h", "w"], "logits")]
    assert build_graphs(read_forward(classifier(nodes, {"w": normal(RNG, 3, 2)}))).parameters == ["w"]
