"""Operators that are written out in simpler ones before a model is brought to our operator set, or that come from
elsewhere and have an equal there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from covey_modelkit.gradients.registry import attribute_of

Expansion = Callable[["_Scribe"], None]


class _Scribe:
    """Writes the nodes that stand for one node."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        self.graph, self.node = graph, node
        self.nodes: list[onnx.NodeProto] = []

    def emit(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{self.node.output[0]}/{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def number(self, value: float) -> str:
        return self.store(np.array(value, np.float32))

    def store(self, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
        name = f"{self.node.output[0]}/constant.{len(self.nodes)}.{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _gelu(to: _Scribe) -> None:
    """x·Φ(x), or its approximation by tanh (Hendrycks and Gimpel 2016, section 2)."""
    x, (output,) = to.node.input[0], to.node.output
    if attribute_of(to.node, "approximate", "none") == "tanh":
        cube = to.emit("Mul", to.emit("Mul", to.emit("Mul", x, x), x), to.number(0.044715))
        bent = to.emit("Tanh", to.emit("Mul", to.emit("Add", x, cube), to.number(math.sqrt(2 / math.pi))))
    else:
        bent = to.emit("Erf", to.emit("Mul", x, to.number(math.sqrt(0.5))))
    half = to.emit("Mul", x, to.number(0.5))
    to.emit("Mul", half, to.emit("Add", bent, to.number(1)), output=output)


def _hard_swish(to: _Scribe) -> None:
    x, (output,) = to.node.input[0], to.node.output
    to.emit("Mul", x, to.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5), output=output)


def _swish(to: _Scribe) -> None:
    x, (output,) = to.node.input[0], to.node.output
    scaled = x if attribute_of(to.node, "alpha", 1.0) == 1 else to.emit("Mul", x, to.number(to.node.attribute[0].f))
    to.emit("Mul", x, to.emit("Sigmoid", scaled), output=output)


def _mish(to: _Scribe) -> None:
    x, (output,) = to.node.input[0], to.node.output
    to.emit("Mul", x, to.emit("Tanh", to.emit("Softplus", x)), output=output)


def _cast_like(to: _Scribe) -> None:
    """PyTorch's functions bring constants to the type of what they go with: float32 in a model that is trained."""
    to.emit("Cast", to.node.input[0], to=onnx.TensorProto.FLOAT, output=to.node.output[0])


COMPOSITES: dict[tuple[str, str], Expansion] = {
    ("", "CastLike"): _cast_like,
    ("", "Gelu"): _gelu,
    ("", "HardSwish"): _hard_swish,
    ("", "Swish"): _swish,
    ("", "Mish"): _mish,
}


def written_out(graph: onnx.GraphProto, composites: Sequence[tuple[str, str]] = tuple(COMPOSITES)) -> None:
    """Replace composites in a graph, in place."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key in composites:
            scribe = _Scribe(graph, node)
            COMPOSITES[key](scribe)
            nodes += scribe.nodes
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
