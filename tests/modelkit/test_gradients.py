"""covey_modelkit.gradients: every rule against finite differences of an independent evaluation in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.modelkit.helpers import Array, classifier, node, normal, run

from covey_modelkit.build import build_graphs
from covey_modelkit.forward import Forward, read_forward
from covey_modelkit.gradients import RULES
from covey_protocol.errors import ConfigError

BATCH = 5
STEP = 1e-5


@dataclass(frozen=True)
class Case:
    """A model that uses an operator between its input, its parameters and the logits."""

    nodes: Sequence[onnx.NodeProto]
    shapes: dict[str, tuple[int, ...]]
    input_shape: tuple[int, ...] = (3,)

    def model(self) -> onnx.ModelProto:
        rng = np.random.default_rng(3)
        weights = {name: normal(rng, *shape) for name, shape in self.shapes.items()}
        return classifier(self.nodes, weights, input_shape=["N", *self.input_shape])


def gemm(flip_a: int, flip_b: int, alpha: float, beta: float, bias: tuple[int, ...]) -> Case:
    attributes = {"transA": flip_a, "transB": flip_b, "alpha": alpha, "beta": beta}
    return Case(
        [
            node("Gemm", ["p", "q", "c"], "w", **attributes),
            node("Tanh", ["w"], "t"),
            node("Gemm", ["x", "t"], "logits"),
        ],
        {"p": (4, 3) if flip_a else (3, 4), "q": (2, 4) if flip_b else (4, 2), "c": bias},
    )


def after_linear(*nodes: onnx.NodeProto, **shapes: tuple[int, ...]) -> Case:
    """A layer of two outputs called h, then the nodes."""
    return Case([node("Gemm", ["x", "w", "b"], "h"), *nodes], {"w": (3, 2), "b": (2,), **shapes})


CASES = {
    "Identity": after_linear(node("Identity", ["h"], "logits")),
    "Relu": after_linear(node("Relu", ["h"], "logits")),
    "Sigmoid": after_linear(node("Sigmoid", ["h"], "logits")),
    "Tanh": after_linear(node("Tanh", ["h"], "logits")),
    "Add a row": after_linear(node("Add", ["h", "a"], "logits"), a=(2,)),
    "Add a matrix of one row": after_linear(node("Add", ["a", "h"], "logits"), a=(1, 2)),
    "Add a single number": after_linear(node("Add", ["h", "a"], "g"), node("Tanh", ["g"], "logits"), a=(1,)),
    "Add to itself": after_linear(node("Add", ["h", "h"], "logits")),
    "Add a column and a row": Case(
        [node("Add", ["p", "q"], "w"), node("Tanh", ["w"], "t"), node("MatMul", ["x", "t"], "logits")],
        {"p": (3, 1), "q": (2,)},
    ),
    "Sub a row": after_linear(node("Sub", ["h", "a"], "logits"), a=(2,)),
    "Sub from a row": after_linear(node("Sub", ["a", "h"], "logits"), a=(2,)),
    "Mul by a row": after_linear(node("Mul", ["h", "a"], "logits"), a=(2,)),
    "Mul by a row, turned round": after_linear(node("Mul", ["a", "h"], "logits"), a=(2,)),
    "Mul by itself": after_linear(node("Mul", ["h", "h"], "logits")),
    "several readers": after_linear(
        node("Mul", ["h", "h"], "square"), node("Tanh", ["h"], "bent"), node("Add", ["square", "bent"], "logits")
    ),
    "MatMul": Case([node("MatMul", ["x", "p"], "h"), node("MatMul", ["h", "q"], "logits")], {"p": (3, 4), "q": (4, 2)}),
    "MatMul of a batch of matrices": Case(
        [node("MatMul", ["x", "p"], "h"), node("Flatten", ["h"], "f"), node("MatMul", ["f", "q"], "logits")],
        {"p": (3, 2), "q": (4, 2)},
        input_shape=(2, 3),
    ),
    "MatMul by matrices that repeat": Case(
        [
            node("MatMul", ["x", "p"], "h"),
            node("MatMul", ["r", "h"], "g"),
            node("Flatten", ["g"], "f"),
            node("MatMul", ["f", "q"], "logits"),
        ],
        {"p": (1, 3, 2), "r": (2, 2), "q": (4, 2)},
        input_shape=(2, 3),
    ),
    "Flatten": Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("Flatten", ["h"], "f", axis=1),
            node("Gemm", ["f", "w"], "logits"),
        ],
        {"a": (2, 3), "w": (6, 2)},
        input_shape=(2, 3),
    ),
    "Reshape": Case(
        [
            node("Mul", ["x", "a"], "h"),
            helper.make_node("Constant", [], ["shape"], value_ints=[0, -1]),
            node("Reshape", ["h", "shape"], "f"),
            node("Gemm", ["f", "w"], "logits"),
        ],
        {"a": (2, 3), "w": (6, 2)},
        input_shape=(2, 3),
    ),
    "Reshape to a computed shape": Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("Shape", ["h"], "shape"),
            node("Reshape", ["h", "shape"], "same"),
            node("Gemm", ["same", "w"], "logits"),
        ],
        {"a": (3,), "w": (3, 2)},
    ),
    "Transpose": Case(
        [node("Transpose", ["p"], "w"), node("MatMul", ["x", "w"], "logits")],
        {"p": (2, 3)},
    ),
    "Transpose of three axes": Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("Transpose", ["h"], "t", perm=[2, 0, 1]),
            node("Transpose", ["t"], "u", perm=[1, 0, 2]),
            node("Flatten", ["u"], "f"),
            node("MatMul", ["f", "w"], "logits"),
        ],
        {"a": (2, 3), "w": (6, 2)},
        input_shape=(2, 3),
    ),
    "Gemm without bias": Case([node("Gemm", ["x", "w"], "logits")], {"w": (3, 2)}),
} | {
    f"Gemm {flips} {scales} {bias}": gemm(*flips, *scales, bias)
    for flips, (scales, bias) in itertools.product(
        itertools.product((0, 1), (0, 1)), [((1.0, 1.0), (2,)), ((0.5, 2.0), (3, 1))]
    )
}


def reference_loss(forward: Forward, inputs: dict[str, Array], labels: Array) -> float:
    """Evaluate the author's graph by the ONNX reference implementation, in float64, and the loss by numpy."""
    graph = helper.make_graph(
        forward.nodes,
        "reference",
        [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in inputs],
        [helper.make_tensor_value_info(forward.logits, onnx.TensorProto.DOUBLE, None)],
        [tensor for name, tensor in forward.constants.items() if name not in inputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    result: Any = ReferenceEvaluator(model).run(None, inputs)
    logits = np.asarray(result[0])
    partition = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(partition - logits[np.arange(len(labels)), labels]))


def finite_difference(forward: Forward, inputs: dict[str, Array], labels: Array, name: str) -> Array:
    gradient = np.zeros_like(inputs[name])
    for index in np.ndindex(gradient.shape):
        sides = []
        for sign in (1, -1):
            moved = inputs[name].copy()
            moved[index] += sign * STEP
            sides.append(reference_loss(forward, inputs | {name: moved}, labels))
        gradient[index] = (sides[0] - sides[1]) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_finite_differences(name: str) -> None:
    case = CASES[name]
    model = case.model()
    forward = read_forward(model)
    graphs = build_graphs(forward)
    assert set(graphs.parameters) == set(case.shapes)
    rng = np.random.default_rng(7)
    x, y = normal(rng, BATCH, *case.input_shape), rng.integers(0, forward.classes, BATCH)
    stored = [onnx.numpy_helper.to_array(forward.constants[parameter]) for parameter in graphs.parameters]
    # At rest, the new momentum buffer is the gradient itself.
    rest = [np.zeros_like(weight) for weight in stored]
    scalars = [np.array(0.0, np.float32), np.array(0.9, np.float32)]
    outputs = run(graphs.step, [*stored, *rest, x, y, *scalars])
    gradients, loss = outputs[len(stored) : -1], outputs[-1]
    inputs = {parameter: weight.astype(np.float64) for parameter, weight in zip(graphs.parameters, stored, strict=True)}
    inputs[forward.input] = x.astype(np.float64)
    assert loss == pytest.approx(reference_loss(forward, inputs, y), rel=1e-5)
    for parameter, gradient in zip(graphs.parameters, gradients, strict=True):
        expected = finite_difference(forward, inputs, y, parameter)
        # A softmax ignores what all logits share; a case whose gradient vanishes would test nothing.
        assert np.abs(expected).max() > 1e-3, parameter
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5, err_msg=parameter)


def test_every_rule_has_a_case() -> None:
    used = {part.op_type for case in CASES.values() for part in case.nodes}
    assert set(RULES) <= used


def test_a_product_with_a_vector_is_refused_by_name() -> None:
    nodes = [node("MatMul", ["x", "v"], "h"), node("Gemm", ["w", "c"], "k"), node("Add", ["h", "k"], "logits")]
    weights = {"v": np.ones(3, np.float32), "w": np.ones((1, 1), np.float32), "c": np.ones((1, 2), np.float32)}
    with pytest.raises(ConfigError, match=r"'the-h' \(MatMul\) multiplies by a vector"):
        build_graphs(read_forward(classifier(nodes, weights, input_shape=["N", 2, 3])))
