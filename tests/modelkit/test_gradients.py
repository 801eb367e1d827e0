"""covey_modelkit.gradients: every rule against finite differences of an independent evaluation in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.modelkit.helpers import classifier, node
from tests.modelkit.slopes import Case, check, compare

from covey_modelkit.build import build_graphs
from covey_modelkit.forward import read_forward
from covey_modelkit.gradients import RULES
from covey_protocol.errors import ConfigError


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
    zero = {"zero": np.zeros((), np.float32)}
    return Case([node("Gemm", ["x", "w", "b"], "h"), *nodes], {"w": (3, 2), "b": (2,), **shapes}, constants=zero)


def applied(operator: str, **attributes: Any) -> Case:
    """An operator of one tensor, between two layers."""
    return after_linear(node(operator, ["h"], "logits", **attributes))


def image(
    *nodes: onnx.NodeProto,
    constants: dict[str, Any] | None = None,
    width: int = 12,
    more: dict[str, tuple[int, ...]] | None = None,
) -> Case:
    """A sample of 2 by 6 scaled to h, the nodes from h to g, and a last layer of ``width`` inputs."""
    return Case(
        [node("Mul", ["x", "a"], "h"), *nodes, node("Flatten", ["g"], "f"), node("MatMul", ["f", "w"], "logits")],
        {"a": (2, 6), "w": (width, 2), **(more or {})},
        input_shape=(2, 6),
        constants={name: np.asarray(value) for name, value in (constants or {}).items()},
    )


def whole(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def real(number: float) -> Any:
    return np.array(number, np.float32)


def sliced(starts: Any, ends: Any, axes: Any, steps: Any, width: int) -> Case:
    return image(
        node("Slice", ["h", "s", "e", "ax", "st"], "g"),
        constants={"s": starts, "e": ends, "ax": axes, "st": steps},
        width=width,
    )


CASES = {
    "Identity": applied("Identity"),
    "Cast": applied("Cast", to=1),
    "Neg": applied("Neg"),
    "Abs": applied("Abs"),
    "Exp": applied("Exp"),
    "Erf": applied("Erf"),
    "Elu": applied("Elu", alpha=0.7),
    "LeakyRelu": applied("LeakyRelu", alpha=0.3),
    "LeakyRelu by default": applied("LeakyRelu"),
    "Softplus": applied("Softplus"),
    "HardSigmoid": applied("HardSigmoid", alpha=0.3, beta=0.4),
    "Softmax": after_linear(node("Softmax", ["h"], "p"), node("Mul", ["p", "a"], "logits"), a=(2,)),
    "Softmax over the first axis": Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("Softmax", ["h"], "p", axis=1),
            node("Flatten", ["p"], "f"),
            node("MatMul", ["f", "w"], "logits"),
        ],
        {"a": (2, 3), "w": (6, 2)},
        input_shape=(2, 3),
    ),
    "LogSoftmax": after_linear(node("LogSoftmax", ["h"], "p"), node("Mul", ["p", "a"], "logits"), a=(2,)),
    "Div by a row": Case(
        [node("Gemm", ["x", "w", "b"], "h"), node("Div", ["h", "a"], "logits")],
        {"w": (3, 2), "b": (2,), "a": (2,)},
        positive=True,
    ),
    "Div of a row": Case(
        [node("Gemm", ["x", "w", "b"], "h"), node("Div", ["a", "h"], "logits")],
        {"w": (3, 2), "b": (2,), "a": (2,)},
        positive=True,
    ),
    "Log": Case(
        [node("Gemm", ["x", "w", "b"], "h"), node("Log", ["h"], "logits")], {"w": (3, 2), "b": (2,)}, positive=True
    ),
    "Sqrt": Case(
        [node("Gemm", ["x", "w", "b"], "h"), node("Sqrt", ["h"], "logits")], {"w": (3, 2), "b": (2,)}, positive=True
    ),
    "Reciprocal": Case(
        [node("Gemm", ["x", "w", "b"], "h"), node("Reciprocal", ["h"], "logits")],
        {"w": (3, 2), "b": (2,)},
        positive=True,
    ),
    "Pow of two": image(node("Pow", ["h", "two"], "g"), constants={"two": real(2)}),
    "Pow of three, a whole number": image(node("Pow", ["h", "three"], "g"), constants={"three": np.array(3)}),
    "Pow of a row": image(node("Pow", ["h", "row"], "g"), constants={"row": np.array([1, 2, 3, 1, 2, 3], np.float32)}),
    "Clip": image(node("Clip", ["h", "low", "high"], "g"), constants={"low": real(-0.4), "high": real(0.5)}),
    "Clip from below": image(node("Clip", ["h", "low"], "g"), constants={"low": real(-0.4)}),
    "Clip from above": image(node("Clip", ["h", "", "high"], "g"), constants={"high": real(0.4)}),
    "Max": image(node("Max", ["h", "c"], "g"), more={"c": (2, 6)}),
    "Min": image(node("Min", ["c", "h"], "g"), more={"c": (1, 6)}),
    "Sum": after_linear(node("Sum", ["h", "a", "h"], "logits"), a=(2,)),
    "Where": after_linear(
        node("Greater", ["h", "zero"], "yes"),
        node("Tanh", ["h"], "t"),
        node("Where", ["yes", "t", "c"], "logits"),
        c=(2,),
    ),
    "Squeeze and Unsqueeze": image(
        node("Unsqueeze", ["h", "one"], "u"),
        node("Tanh", ["u"], "t"),
        node("Squeeze", ["t", "one"], "g"),
        constants={"one": whole(1)},
    ),
    "Expand": Case(
        [
            node("Expand", ["p", "shape"], "m"),
            node("Mul", ["m", "q"], "t"),
            node("MatMul", ["x", "t"], "logits"),
        ],
        {"p": (3, 1), "q": (3, 2)},
        constants={"shape": whole(3, 2)},
    ),
    "Concat": image(
        node("Tanh", ["h"], "t"), node("Exp", ["h"], "e"), node("Concat", ["t", "h", "e"], "g", axis=-1), width=36
    ),
    "Split": image(
        helper.make_node("Split", ["h", "parts"], ["one", "two", "three"], axis=2, name="split"),
        node("Mul", ["one", "three"], "m"),
        node("Tanh", ["m"], "g"),
        constants={"parts": whole(2, 2, 2)},
        width=4,
    ),
    "Slice": sliced(whole(1), whole(5), whole(2), whole(1), 8),
    "Slice of two axes, from the end": sliced(whole(-1, 1), whole(2, -1), whole(1, 2), whole(1, 1), 4),
    "Slice with a step": sliced(whole(0), whole(6), whole(2), whole(2), 6),
    "Slice backwards": sliced(whole(-1), whole(-100), whole(-1), whole(-2), 6),
    "Slice of the whole batch": sliced(whole(0, 2), whole(2**62, 4), whole(0, 2), whole(1, 1), 4),
    "Gather one": image(node("Gather", ["h", "at"], "g", axis=2), constants={"at": np.array(-2)}, width=2),
    "Gather some": image(node("Gather", ["h", "at"], "g", axis=2), constants={"at": whole(4, 0, 3)}, width=6),
    "Gather rows of a table, some twice": Case(
        [node("Gather", ["p", "at"], "m"), node("Tanh", ["m"], "t"), node("MatMul", ["x", "t"], "logits")],
        {"p": (4, 2)},
        constants={"at": whole(3, 0, 3)},
    ),
    "Pad": image(
        node("Pad", ["h", "widths", "two"], "g"),
        constants={"widths": whole(0, 1, 0, 0, 0, 2), "two": real(2)},
        width=24,
    ),
    "Pad of one axis": image(
        node("Pad", ["h", "widths", "", "at"], "g"), constants={"widths": whole(0, 2), "at": whole(-1)}, width=16
    ),
    "ReduceSum": image(node("ReduceSum", ["h", "at"], "g"), constants={"at": whole(-1)}, width=2),
    "ReduceSum of two axes, dropped": Case(
        [
            node("Mul", ["x", "a"], "h"),
            node("ReduceSum", ["h", "at"], "r", keepdims=0),
            node("MatMul", ["r", "w"], "logits"),
        ],
        {"a": (2, 2, 3), "w": (2, 2)},
        input_shape=(2, 2, 3),
        constants={"at": whole(2, 3)},
    ),
    "ReduceMean": image(node("ReduceMean", ["h", "at"], "g"), constants={"at": whole(2)}, width=2),
    "ReduceMean over the batch": image(
        node("ReduceMean", ["h", "at"], "r"), node("Sub", ["h", "r"], "g"), constants={"at": whole(0)}
    ),
    "LayerNormalization": image(
        node("LayerNormalization", ["h", "s", "b"], "g", epsilon=0.01), more={"s": (6,), "b": (6,)}
    ),
    "LayerNormalization of two axes, no bias": image(
        node("LayerNormalization", ["h", "s"], "g", axis=1), more={"s": (2, 6)}
    ),
    "MatMul of rows of a sequence": Case(
        [
            node("MatMul", ["x", "p"], "h"),
            node("Tanh", ["h"], "t"),
            node("Flatten", ["t"], "f"),
            node("MatMul", ["f", "q"], "logits"),
        ],
        {"p": (3, 2), "q": (8, 2)},
        input_shape=(2, 2, 3),
    ),
    "MatMul of batches of both": image(
        node("Transpose", ["h"], "t", perm=[0, 2, 1]), node("MatMul", ["h", "t"], "g"), width=4
    ),
    "Relu": applied("Relu"),
    "Sigmoid": applied("Sigmoid"),
    "Tanh": applied("Tanh"),
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


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_finite_differences(name: str) -> None:
    check(compare(CASES[name]))


def test_every_rule_has_a_case() -> None:
    used = {part.op_type for case in CASES.values() for part in case.nodes}
    elsewhere = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"}  # test_gradients_windows
    elsewhere |= {"BatchNormalization", "Dropout"}  # test_training
    assert set(RULES) <= used | elsewhere


def test_a_product_with_a_vector_is_refused_by_name() -> None:
    nodes = [node("MatMul", ["x", "v"], "h"), node("Gemm", ["w", "c"], "k"), node("Add", ["h", "k"], "logits")]
    weights = {"v": np.ones(3, np.float32), "w": np.ones((1, 1), np.float32), "c": np.ones((1, 2), np.float32)}
    with pytest.raises(ConfigError, match=r"'the-h' \(MatMul\) multiplies by a vector"):
        build_graphs(read_forward(classifier(nodes, weights, input_shape=["N", 2, 3])))
