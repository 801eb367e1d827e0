"""Reading an author's ONNX model: what it computes, brought into the form that the rest of modelkit works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter
from onnx.external_data_helper import uses_external_data

from covey_modelkit.classical import maps, written_as_layers
from covey_modelkit.composites import written_out
from covey_modelkit.graph import DEFAULT_DOMAIN, OPSET, Array, Shape, infer_shapes
from covey_modelkit.shapes import BATCH, fold, measure
from covey_protocol.errors import ConfigError

__all__ = ["BATCH", "Forward", "read_forward"]

# What a loss takes in itself, so that a model that ends with it is cut back to what comes before.
_LAST_STEPS = {"cross-entropy": ("Softmax", "LogSoftmax"), "binary-cross-entropy": ("Sigmoid",)}
_STATISTICS = (3, 4)  # inputs of a BatchNormalization


@dataclass(frozen=True)
class Forward:
    """A model from one batch of samples to one output.

    Args:
        nodes: In topological order, none of them idle, each with a name.
        constants: Every stored tensor by name, the candidates for training among them.
        candidates: The float32 tensors of rank 1 and more, in the order in which the author stored them.
        input: Name of the batch.
        input_shape: Of one sample.
        output: Name of the output, of shape (N, ...).
        output_shape: Of one sample's output.
        shapes: Of all tensors.
        values: Of the tensors that are constant, but for the candidates.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    candidates: list[str]
    input: str
    input_shape: list[int]
    output: str
    output_shape: list[int]
    shapes: Mapping[str, Shape]
    values: Mapping[str, Array] = field(default_factory=dict)


def read_forward(model: onnx.ModelProto, *, loss: str = "cross-entropy", output: str | None = None) -> Forward:
    """Bring a model into the form that can be differentiated.

    Local functions and composite operators are written out, the operator set is converted, a last step that the loss
    contains is dropped (a softmax, a sigmoid), the batch dimension is freed, what is constant is computed, and nodes
    that the output does not need are left out.

    Args:
        model: The author's model.
        loss: What it will be trained with.
        output: Which of several outputs, or of the tensors on the way, to train; by default the only output of floating
            point.

    Raises:
        ConfigError: The model does not have one float32 input and the output; the message says what to change.
    """
    wanted = _single_output(model.graph, output)
    graph = _converted(model, wanted).graph
    constants = _constants(graph)
    data = _single_input(graph, constants)
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    nodes, result = _without_last_step(nodes, wanted, _LAST_STEPS.get(loss, ()))
    nodes = [_inferring(node) for node in _needed(nodes, result)]
    before = set(constants)
    nodes, constants = _untied(nodes, constants)
    untied = set(constants) - before
    input_shape = _sample_shape(data)
    _free_batch(nodes, constants, data)
    used = {name for node in nodes for name in node.input}
    constants = {name: tensor for name, tensor in constants.items() if name in used}
    statistics = {node.input[at] for node in nodes if node.op_type == "BatchNormalization" for at in _STATISTICS}
    stored = {tensor.name for tensor in graph.initializer} | untied
    candidates = [name for name in constants if name in stored - statistics and _trainable(constants[name])]
    _check_shapes(nodes, constants, data.name, input_shape, result)
    measured = measure(nodes, constants, candidates, data.name, input_shape)
    nodes, added = fold(nodes, measured)
    nodes = _needed(nodes, result)
    constants |= {name: numpy_helper.from_array(value, name) for name, value in added.items()}
    used = {name for node in nodes for name in node.input}
    shapes = measured.shapes | {name: tuple(value.shape) for name, value in added.items()}
    return Forward(
        nodes=nodes,
        constants={name: tensor for name, tensor in constants.items() if name in used},
        candidates=[name for name in candidates if name in used],
        input=data.name,
        input_shape=input_shape,
        output=result,
        output_shape=_output_shape(result, shapes),
        shapes=shapes,
        values=measured.values | added,
    )


def _converted(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return a checked copy in our operator set, without local functions and unnamed nodes, of what an output needs."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            raise ConfigError(f"tensor {tensor.name!r} is stored outside the model; load the model with its data first")
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = inliner.inline_local_functions(model)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        written_out(copy.graph)
        written_as_layers(copy.graph)
        _cut(copy, output)
        if any(entry.domain in DEFAULT_DOMAIN and entry.version != OPSET for entry in copy.opset_import):
            copy = version_converter.convert_version(copy, OPSET)
    except (onnx.checker.ValidationError, version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ConfigError(f"not a valid ONNX model that can be brought to opset {OPSET}: {error}") from error
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}.{number}"
        # Exporters leave source locations here, which may name an author's folders.
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    return copy


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Collect stored tensors, and the values of Constant nodes as if they had been stored."""
    found = {}
    for stored in graph.initializer:
        # Written anew: as raw bytes, and without what an exporter has noted beside them.
        found[stored.name] = numpy_helper.from_array(numpy_helper.to_array(stored), stored.name)
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


def _trainable(tensor: onnx.TensorProto) -> bool:
    """Tell weights from settings among what the author stored as initializers: float32, not a bare scalar."""
    return bool(tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 0)


def _inferring(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node as it infers: what training adds to it is added again where training graphs are written."""
    if node.op_type not in ("BatchNormalization", "Dropout"):
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    del changed.output[1:]
    if node.op_type == "Dropout":
        del changed.input[2:]  # the third says whether it trains
    kept = [attribute for attribute in node.attribute if attribute.name not in ("training_mode", "seed")]
    del changed.attribute[:]
    changed.attribute.extend(kept)
    return changed


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


def _cut(model: onnx.ModelProto, output: str) -> None:
    """Leave one output, the nodes that it needs, and the standard operators alone, in place."""
    graph = model.graph
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in _needed(graph.node, output)]
    del graph.node[:]
    graph.node.extend(nodes)
    shown = [info for info in graph.output if info.name == output and info.type.HasField("tensor_type")]
    kept = onnx.ValueInfoProto.FromString(shown[0].SerializeToString()) if shown else onnx.ValueInfoProto()
    if not shown:
        kept.CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    del graph.output[:]
    graph.output.append(kept)
    standard = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", standard[0] if standard else OPSET)])


def _single_output(graph: onnx.GraphProto, wanted: str | None) -> str:
    names = [str(info.name) for info in graph.output]
    if wanted is not None:
        if wanted not in {name for node in graph.node for name in node.output}:
            raise ConfigError(f"the model has no output {wanted!r}, it has {', '.join(names)}")
        return wanted
    if len(names) > 1:
        # scikit-learn's converter gives labels beside probabilities.
        floats = [str(info.name) for info in graph.output if info.type.tensor_type.elem_type == TensorProto.FLOAT]
        floats += sorted(maps(graph))
        if len(floats) != 1:
            listed = ", ".join(names)
            raise ConfigError(
                f"the model has {len(names)} outputs ({listed}); say which one is to be trained (--output-name)"
            )
        return floats[0]
    return names[0]


def _sample_shape(data: onnx.ValueInfoProto) -> list[int]:
    dims = list(data.type.tensor_type.shape.dim)
    sizes = [int(dim.dim_value) for dim in dims[1:]]
    if not sizes or min(sizes) < 1:
        raise ConfigError(
            f"input {data.name!r} must have a batch dimension followed by dimensions of fixed size; "
            "export the model with a sample of the true shape"
        )
    return sizes


def _untied(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """Give each node its own copy of a stored vector that is all ones or all zeros, or all of some other number.

    Exporters store equal tensors once, so that all fresh normalisations share a scale and a bias, and would be trained
    as one. What is shared on purpose has been learnt or drawn, so its elements differ, and it stays shared.
    """
    level = {
        name
        for name, tensor in constants.items()
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 1 and _is_level(tensor)
    }
    kept: list[onnx.NodeProto] = []
    found, readers = dict(constants), dict.fromkeys(level, 0)
    for node in nodes:
        if node.op_type == "Identity" and node.input[0] in level:
            # A copy under another name, as PyTorch writes for what it has stored once.
            name = str(node.output[0])
            found[name] = onnx.TensorProto()
            found[name].CopyFrom(constants[node.input[0]])
            found[name].name = name
            continue
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name not in level:
                continue
            readers[name] += 1
            if readers[name] > 1:
                copy = f"{name}.{readers[name]}"
                found[copy] = onnx.TensorProto()
                found[copy].CopyFrom(constants[name])
                found[copy].name = changed.input[position] = copy
        kept.append(changed)
    return kept, found


def _is_level(tensor: onnx.TensorProto) -> bool:
    array = numpy_helper.to_array(tensor)
    return array.size > 1 and bool((array == array[0]).all())


def _free_batch(nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto], data: onnx.ValueInfoProto) -> None:
    """Let reshapes keep the batch size where an exporter has written that of its example in front.

    A 0 in the shape of a Reshape stands for the size that the dimension has.
    """
    example = int(data.type.tensor_type.shape.dim[0].dim_value)
    for position, node in enumerate(nodes):
        if example < 1 or node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        wanted = numpy_helper.to_array(constants[node.input[1]]).copy()
        if wanted.size > 1 and wanted[0] == example and not any(part.name == "allowzero" for part in node.attribute):
            wanted[0] = 0
            name = f"shape.{node.output[0]}"
            constants[name] = numpy_helper.from_array(wanted, name)
            nodes[position] = onnx.NodeProto()
            nodes[position].CopyFrom(node)
            nodes[position].input[1] = name


def _without_last_step(
    nodes: list[onnx.NodeProto], output: str, last: Sequence[str]
) -> tuple[list[onnx.NodeProto], str]:
    """Step back from probabilities to logits where the last node is one that the loss contains."""
    made_by = {name: node for node in nodes for name in node.output}
    end = output
    while end in made_by and made_by[end].op_type == "Identity":
        end = str(made_by[end].input[0])
    node = made_by.get(end)
    if node is not None and node.op_type in last:
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if axis in (-1, 1):
            return [other for other in nodes if other is not node], str(node.input[0])
    return nodes, output


def _needed(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes that the output depends on, in order."""
    needed, kept = {output}, []
    for node in reversed(list(nodes)):
        if needed.isdisjoint(node.output):
            continue
        if node.domain not in DEFAULT_DOMAIN:
            raise ConfigError(
                f"node {node.name!r} uses operator {node.op_type} of {node.domain}; "
                "export the model with standard ONNX operators only"
            )
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise ConfigError(f"node {node.name!r} ({node.op_type}) holds a graph of its own; export without branches")
        needed.update(node.input)
        kept.append(node)
    return kept[::-1]


def _check_shapes(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    data: str,
    sample: Sequence[int],
    output: str,
) -> None:
    """Refuse graphs that contradict themselves, in ONNX's own words."""
    infer_shapes(
        helper.make_graph(
            list(nodes),
            "forward",
            [helper.make_tensor_value_info(data, TensorProto.FLOAT, [BATCH, *sample])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            list(constants.values()),
        )
    )


def _output_shape(output: str, shapes: Mapping[str, Shape]) -> list[int]:
    shape = shapes[output]
    if len(shape) < 2 or shape[0] != BATCH:
        raise ConfigError(
            f"output {output!r} has shape {list(shape)}, it must be the batch by something; if the graph fixes the "
            "batch size (often in a Reshape), export it with a dynamic batch"
        )
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if len(sizes) != len(shape) - 1:
        raise ConfigError(f"output {output!r} has shape {list(shape)}, of which only the first may be open")
    return sizes
