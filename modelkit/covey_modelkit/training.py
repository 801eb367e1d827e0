"""The training form of a graph: what BatchNormalization and Dropout do otherwise while they train."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from covey_modelkit.forward import BATCH, Forward
from covey_modelkit.gradients.registry import attribute_of
from covey_modelkit.graph import GraphWriter
from covey_protocol.errors import ConfigError


@dataclass
class TrainingForm:
    """Nodes that train, and what they need and give beside the parameters.

    Args:
        nodes: Instead of the forward graph's.
        buffers: For each running statistic, in order, the name of its new value.
        noise: Uniform random numbers that the nodes take: name, and shape for one sample.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    buffers: dict[str, str] = field(default_factory=dict)
    noise: dict[str, list[int]] = field(default_factory=dict)


def training_form(
    writer: GraphWriter, forward: Forward, learnt: Collection[str], active: Collection[str]
) -> TrainingForm:
    """Write the training form of a forward graph, and note in the writer what gradients can use of it.

    A BatchNormalization of which neither scale nor bias is learnt goes on as it infers, by its stored statistics, as is
    usual for frozen layers.

    Args:
        writer: Its nodes are left alone; names and ``saved`` are used.
        forward: The forward graph.
        learnt: Names of the parameters.
        active: Names of the tensors that change with them.

    Raises:
        ConfigError: Statistics are computed, or noise would not have one number for each sample.
    """
    form, scratch, active_set = TrainingForm(), len(writer.nodes), set(active)
    for node in forward.nodes:
        if node.op_type == "BatchNormalization" and {node.input[1], node.input[2]} & set(learnt):
            _batch_normalization(writer, forward, form, node)
        elif node.op_type == "Dropout":
            _dropout(writer, forward, form, node)
        elif active_set.isdisjoint(node.output):
            writer.nodes.append(node)
        elif node.op_type == "LayerNormalization":
            _with_outputs(writer, node, ("mean", "inverse deviation"))
        elif node.op_type == "MaxPool":
            _with_outputs(writer, node, ("indices",))
        else:
            writer.nodes.append(node)
    form.nodes = writer.nodes[scratch:]
    del writer.nodes[scratch:]
    return form


def inference_form(forward: Forward, buffers: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes that infer: without Dropout, and safe from variances that noise has made negative."""
    nodes: list[onnx.NodeProto] = []
    for node in forward.nodes:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        if node.op_type == "Dropout":
            changed.op_type = "Identity"
            del changed.input[1:]
        elif node.op_type == "BatchNormalization" and node.input[4] in buffers:
            # A sum of masked updates is rounded at random, which can take a small variance below zero.
            safe = f"{node.output[0]}/variance"
            nodes.append(onnx.helper.make_node("Relu", [node.input[4]], [safe], name=safe))
            changed.input[4] = safe
        nodes.append(changed)
    return nodes


def _batch_normalization(writer: GraphWriter, forward: Forward, form: TrainingForm, node: onnx.NodeProto) -> None:
    """Normalise by the batch's own mean and variance, and let the running ones follow them."""
    x, scale, bias, *running = node.input
    for name in running:
        if name not in forward.constants:
            raise ConfigError(f"node {node.name!r} (BatchNormalization) computes its statistics; export them as stored")
        if name in form.buffers:
            raise ConfigError(f"node {node.name!r} (BatchNormalization) shares statistics {name!r} with another")
    (output,) = node.output
    shape = writer.shape(x)
    axes = writer.constant([axis for axis in range(len(shape)) if axis != 1], np.int64)
    wide = writer.constant([1, -1, *[1] * (len(shape) - 2)], np.int64)
    flat = writer.constant([-1], np.int64)

    def emit(operator: str, *inputs: str, **attributes: object) -> str:
        return writer.emit(operator, inputs, f"train.{output}", **attributes)

    mean = emit("ReduceMean", x, axes)
    centred = emit("Sub", x, mean)
    variance = emit("ReduceMean", emit("Mul", centred, centred), axes)
    padded = emit("Add", variance, writer.constant(attribute_of(node, "epsilon", 1e-5), np.float32))
    inverse = emit("Reciprocal", emit("Sqrt", padded))
    factor = emit("Mul", emit("Reshape", scale, wide), inverse)
    scaled = emit("Mul", centred, factor)
    added = onnx.helper.make_node("Add", [scaled, emit("Reshape", bias, wide)], [output], name=node.name)
    writer.nodes.append(added)
    writer.saved[output, "centred"], writer.saved[output, "inverse deviation"] = centred, inverse
    keep = attribute_of(node, "momentum", 0.9)
    for name, seen in zip(running, (mean, variance), strict=True):
        kept = emit("Mul", name, writer.constant(keep, np.float32))
        fresh = emit("Mul", emit("Reshape", seen, flat), writer.constant(1 - keep, np.float32))
        form.buffers[name] = emit("Add", kept, fresh)


def _dropout(writer: GraphWriter, forward: Forward, form: TrainingForm, node: onnx.NodeProto) -> None:
    """Keep an element where its random number says so, and scale up what is kept (Srivastava et al. 2014)."""
    value = writer.value(node.input[1]) if len(node.input) > 1 and node.input[1] else np.array(0.5)
    if value is None or not 0 <= float(value) < 1:
        raise ConfigError(f"node {node.name!r} (Dropout) must have a constant ratio of 0 to below 1")
    ratio, output, shape = float(value), node.output[0], writer.shape(node.input[0])
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if shape[0] != BATCH or len(sizes) != len(shape) - 1:
        raise ConfigError(
            f"node {node.name!r} (Dropout) works on a tensor of shape {list(shape)}; move it to where the first "
            "dimension is the batch and the others are fixed"
        )
    numbers = writer.fresh(f"noise.{output}")
    form.noise[numbers] = sizes
    kept = writer.emit("GreaterOrEqual", [numbers, writer.constant(ratio, np.float32)], f"kept.{output}")
    mask = writer.emit("Cast", [kept], f"mask.{output}", to=1)
    mask = writer.emit("Mul", [mask, writer.constant(1 / (1 - ratio), np.float32)], f"mask.{output}")
    writer.nodes.append(onnx.helper.make_node("Mul", [node.input[0], mask], [output], name=node.name))
    writer.saved[output, "mask"] = mask


def _with_outputs(writer: GraphWriter, node: onnx.NodeProto, more: Sequence[str]) -> None:
    """Append a node with further outputs of its own, for its gradient to use."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    output = node.output[0]
    names = [writer.fresh(f"{what}.{output}") for what in more]
    changed.output[:] = [output, *names]
    writer.nodes.append(changed)
    writer.saved |= {(output, what): name for what, name in zip(more, names, strict=True)}
