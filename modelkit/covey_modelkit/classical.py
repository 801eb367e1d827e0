"""Models of scikit-learn, as skl2onnx writes them: operators of ``ai.onnx.ml`` that have a standard equal.

All of them end in probabilities; here they end in a softmax of logits, which a loss can take in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from covey_modelkit.gradients.registry import attribute_of
from covey_modelkit.graph import Array
from covey_protocol.errors import ConfigError

DOMAIN = "ai.onnx.ml"


def written_as_layers(graph: onnx.GraphProto) -> None:
    """Replace linear models, normalisers of probabilities and maps of them in a graph, in place.

    Raises:
        ConfigError: A linear model gives scores in a way that is not known.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type in ("LinearClassifier", "LinearRegressor"):
            nodes += _linear(graph, node)
        elif node.domain == DOMAIN and node.op_type in ("Normalizer", "ZipMap"):
            # Probabilities have the sum that a normaliser gives them; a map has the same numbers under names.
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
        elif node.op_type == "Concat":
            nodes += _two_classes(nodes, node)
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def maps(graph: onnx.GraphProto) -> set[str]:
    """Return the outputs that are maps of probabilities."""
    return {str(node.output[0]) for node in graph.node if node.domain == DOMAIN and node.op_type == "ZipMap"}


def _linear(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A linear model is one layer, its coefficients are the weights."""
    scores = node.output[-1]
    bias: Array = np.array(attribute_of(node, "intercepts", [0.0]), np.float32)
    weight: Array = np.array(attribute_of(node, "coefficients", []), np.float32).reshape(len(bias), -1)
    after = attribute_of(node, "post_transform", "NONE")
    if after not in ("NONE", "SOFTMAX", "LOGISTIC") or (after == "LOGISTIC" and len(bias) != 2):
        raise ConfigError(
            f"node {node.name or scores!r} ({node.op_type}) gives {after} scores of {len(bias)} classes, which covey "
            "cannot train; fit it as a multinomial model, or with two classes"
        )
    if after == "LOGISTIC":
        # Two scores, one the negative of the other: softmax of their halves is the logistic function of one.
        weight, bias = weight * np.float32(0.5), bias * np.float32(0.5)
    names = [f"{scores}/coefficients", f"{scores}/intercepts"]
    graph.initializer.extend([numpy_helper.from_array(weight, names[0]), numpy_helper.from_array(bias, names[1])])
    logits = scores if after == "NONE" else f"{scores}/logits"
    made = [helper.make_node("Gemm", [node.input[0], *names], [logits], name=logits, transB=1)]
    if after != "NONE":
        made.append(helper.make_node("Softmax", [logits], [scores], name=scores, axis=1))
    return made


def _two_classes(before: Sequence[onnx.NodeProto], node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Write (1 − σ(z), σ(z)) as the softmax of (−z/2, z/2), which is the same."""
    made_by = {name: other for other in before for name in other.output}
    if len(node.input) != 2:
        return [node]
    rest, sure = made_by.get(node.input[0]), made_by.get(node.input[1])
    if rest is None or sure is None or rest.op_type != "Sub" or sure.op_type != "Sigmoid":
        return [node]
    if rest.input[1] != sure.output[0]:
        return [node]
    (output,) = node.output
    up, down, logits = (f"{output}/{part}" for part in ("up", "down", "logits"))
    half = helper.make_node("Constant", [], [f"{output}/half"], name=f"{output}/half", value_float=0.5)
    return [
        half,
        helper.make_node("Mul", [sure.input[0], half.output[0]], [up], name=up),
        helper.make_node("Neg", [up], [down], name=down),
        helper.make_node("Concat", [down, up], [logits], name=logits, axis=1),
        helper.make_node("Softmax", [logits], [output], name=node.name or output, axis=1),
    ]
