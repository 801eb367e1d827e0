"""Reading an author's ONNX model: what it computes, brought into the form that the rest of modelkit works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, inliner, version_converter
from onnx.external_data_helper import uses_external_data

from covey_modelkit.graph import DEFAULT_DOMAIN, OPSET, Shape, infer_shapes
from covey_protocol.errors import ConfigError

BATCH = "N"


@dataclass(frozen=True)
class Forward:
    """A classifier from one batch of samples to logits.

    Args:
        nodes: In topological order, none of them idle, each with a name.
        constants: Every stored tensor by name, the candidates for training among them.
        candidates: The float32 tensors of rank 1 and more, in the order in which the author stored them.
        input: Name of the batch.
        input_shape: Of one sample.
        logits: Name of the output, of shape (N, classes).
        classes: Number of labels.
        shapes: Of all tensors.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    candidates: list[str]
    input: str
    input_shape: list[int]
    logits: str
    classes: int
    shapes: Mapping[str, Shape]


def read_forward(model: onnx.ModelProto) -> Forward:
    """Bring a model into the form that can be differentiated.

    Local functions are written out, the operator set is converted, a final softmax is dropped (the loss contains
    it), the batch dimension is freed, and nodes that the output does not need are left out.

    Raises:
        ConfigError: The model is not a classifier with one float32 input and one output; the message says what to
            change.
    """
    graph = _converted(model).graph
    constants = _constants(graph)
    data = _single_input(graph, constants)
    if len(graph.output) != 1:
        names = ", ".join(output.name for output in graph.output)
        raise ConfigError(f"the model has {len(graph.output)} outputs ({names}); export it with the logits alone")
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    nodes, logits = _without_softmax(nodes, graph.output[0].name)
    nodes = _needed(nodes, logits)
    used = {name for node in nodes for name in node.input}
    constants = {name: tensor for name, tensor in constants.items() if name in used}
    input_shape = _sample_shape(data)
    shapes = infer_shapes(
        helper.make_graph(
            nodes,
            "forward",
            [helper.make_tensor_value_info(data.name, TensorProto.FLOAT, [BATCH, *input_shape])],
            [helper.make_tensor_value_info(logits, TensorProto.FLOAT, None)],
            list(constants.values()),
        )
    )
    return Forward(
        nodes=nodes,
        constants=constants,
        candidates=[name for name in constants if _trainable(graph, constants[name])],
        input=data.name,
        input_shape=input_shape,
        logits=logits,
        classes=_classes(logits, shapes),
        shapes=shapes,
    )


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a checked copy in our operator set, without local functions and unnamed nodes."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            raise ConfigError(f"tensor {tensor.name!r} is stored outside the model; load the model with its data first")
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = inliner.inline_local_functions(model)
        if any(entry.domain in DEFAULT_DOMAIN and entry.version != OPSET for entry in model.opset_import):
            model = version_converter.convert_version(model, OPSET)
    except (onnx.checker.ValidationError, version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ConfigError(f"not a valid ONNX model that can be brought to opset {OPSET}: {error}") from error
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}.{number}"
        # Exporters leave source locations here, which may name an author's folders.
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    return copy


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Collect stored tensors, and the values of Constant nodes as if they had been stored."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Constant":
            continue
        attribute = node.attribute[0]
        value = helper.get_attribute_value(attribute)
        if attribute.name in ("value_float", "value_floats"):
            kind = TensorProto.FLOAT
        elif attribute.name in ("value_int", "value_ints"):
            kind = TensorProto.INT64
        elif attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            found[tensor.name] = tensor
            continue
        else:
            raise ConfigError(f"node {node.name!r} is a Constant of kind {attribute.name}, which covey cannot read")
        values = value if isinstance(value, list) else [value]
        dims = [len(values)] if isinstance(value, list) else []
        found[node.output[0]] = helper.make_tensor(node.output[0], kind, dims, values)
    return found


def _trainable(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> bool:
    """Tell weights from settings: stored by the author as an initializer, float32, not a bare scalar."""
    stored = any(tensor.name == initializer.name for initializer in graph.initializer)
    return stored and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 0


def _single_input(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.ValueInfoProto:
    # Old exporters list the weights among the inputs.
    inputs = [info for info in graph.input if info.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs) or "none"
        raise ConfigError(f"the model must have one input, it has {len(inputs)} ({names})")
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ConfigError(f"input {inputs[0].name!r} must be a float32 tensor")
    data: onnx.ValueInfoProto = inputs[0]
    return data


def _sample_shape(data: onnx.ValueInfoProto) -> list[int]:
    dims = list(data.type.tensor_type.shape.dim)
    sizes = [int(dim.dim_value) for dim in dims[1:]]
    if not sizes or min(sizes) < 1:
        raise ConfigError(
            f"input {data.name!r} must have a batch dimension followed by dimensions of fixed size; "
            "export the model with a sample of the true shape"
        )
    return sizes


def _without_softmax(nodes: list[onnx.NodeProto], output: str) -> tuple[list[onnx.NodeProto], str]:
    """Step back from probabilities to logits where the last node is a softmax over the classes."""
    for node in nodes:
        if output in node.output and node.op_type in ("Softmax", "LogSoftmax"):
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            if axis in (-1, 1):
                return [other for other in nodes if other is not node], str(node.input[0])
    return nodes, output


def _needed(nodes: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes that the output depends on, in order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.isdisjoint(node.output):
            continue
        if node.domain not in DEFAULT_DOMAIN:
            raise ConfigError(
                f"node {node.name!r} uses operator {node.op_type} of {node.domain}; "
                "export the model with standard ONNX operators only"
            )
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise ConfigError(f"node {node.name!r} ({node.op_type}) holds a graph of its own; export without branches")
        needed.update(node.input)
        kept.append(node)
    return kept[::-1]


def _classes(logits: str, shapes: Mapping[str, Shape]) -> int:
    shape = shapes.get(logits, ())
    if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 2:
        raise ConfigError(f"output {logits!r} has shape {list(shape)}; a classifier's is batch by classes, 2 at least")
    if shape[0] != BATCH:
        raise ConfigError(
            f"the graph fixes the batch size to {shape[0]} (often a Reshape); export it with a dynamic batch"
        )
    return shape[1]
