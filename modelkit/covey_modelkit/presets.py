"""Ready-made models, as forward ONNX graphs that ``build_bundle`` takes like any author's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from covey_modelkit.forward import BATCH
from covey_modelkit.graph import make_model
from covey_protocol.errors import ConfigError


def softmax(input_shape: Sequence[int], classes: int, seed: int = 0) -> onnx.ModelProto:
    """Return softmax regression: one linear layer.

    Args:
        input_shape: Of one sample; more than one dimension is flattened.
        classes: Number of labels.
        seed: Of the initial weights.
    """
    return mlp(input_shape, classes, (), seed)


def mlp(input_shape: Sequence[int], classes: int, hidden: Sequence[int] = (32,), seed: int = 0) -> onnx.ModelProto:
    """Return a multi-layer perceptron with Relu between its layers.

    Args:
        input_shape: Of one sample; more than one dimension is flattened.
        classes: Number of labels.
        hidden: Width of each hidden layer.
        seed: Of the initial weights (He's normal distribution).

    Raises:
        ConfigError: A size is not positive, or there are fewer than two classes.
    """
    if not input_shape or min([*input_shape, *hidden]) < 1 or classes < 2:
        raise ConfigError(
            f"a model of input {list(input_shape)}, hidden layers {list(hidden)} and {classes} classes cannot "
            "be built: sizes must be positive, and classes at least 2"
        )
    rng = np.random.default_rng(seed)
    nodes, weights, tensor = [], [], "x"
    if len(input_shape) > 1:
        nodes.append(helper.make_node("Flatten", [tensor], ["flat"], name="flatten", axis=1))
        tensor = "flat"
    sizes = [math.prod(input_shape), *hidden, classes]
    layers = [*(f"hidden{number}" for number in range(1, len(hidden) + 1)), "output"]
    for layer, inputs, outputs in zip(layers, sizes[:-1], sizes[1:], strict=True):
        weights += _linear(layer, inputs, outputs, rng)
        result = "logits" if layer == "output" else f"{layer}.sum"
        operands = [tensor, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node("Gemm", operands, [result], name=layer))
        if layer != "output":
            nodes.append(helper.make_node("Relu", [result], [layer], name=f"{layer}.relu"))
        tensor = layer
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, *input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, classes])],
        weights,
    )
    return make_model(graph)


def _linear(layer: str, inputs: int, outputs: int, rng: np.random.Generator) -> list[onnx.TensorProto]:
    weight: npt.NDArray[np.float64] = rng.standard_normal((inputs, outputs)) * math.sqrt(2.0 / inputs)
    bias = np.zeros(outputs, np.float32)
    return [
        numpy_helper.from_array(weight.astype(np.float32), f"{layer}.weight"),
        numpy_helper.from_array(bias, f"{layer}.bias"),
    ]
