"""What onnxruntime makes of a graph at two batch sizes: the shape of every tensor, and which of them are constant.

Exporters write shapes as little programs (Shape, Gather, Concat, Reshape), which symbolic inference gives up on too
often. What comes out the same for two batch sizes does not depend on the batch; what grows in proportion to it is a
multiple of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from covey_modelkit.graph import Array, Shape, make_model
from covey_protocol.errors import ConfigError

BATCH = "N"
_SIZES = (3, 5)
_MOST_FOLDED = 1 << 16


@dataclass(frozen=True)
class Measured:
    """What is known of the tensors of a graph.

    Args:
        shapes: Of all tensors.
        values: Of those that depend neither on the data nor on anything that may be trained.
    """

    shapes: dict[str, Shape]
    values: dict[str, Array]


def measure(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    learnt: Sequence[str],
    data: str,
    sample: Sequence[int],
) -> Measured:
    """Run a graph at two batch sizes.

    Args:
        nodes: In topological order.
        constants: Stored tensors by name.
        learnt: Names of those that may be trained.
        data: Name of the batch.
        sample: Shape of one sample.

    Raises:
        ConfigError: The graph cannot be run; often it has the batch size written into it.
    """
    stored = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}
    names = [name for node in nodes for name in node.output if name]
    graph = helper.make_graph(
        list(nodes),
        "measured",
        [helper.make_tensor_value_info(data, TensorProto.FLOAT, [BATCH, *sample])],
        [onnx.ValueInfoProto(name=name) for name in names],
        list(constants.values()),
    )
    first, second = _runs(make_model(graph), data, sample, names)
    shapes: dict[str, Shape] = {name: tuple(array.shape) for name, array in stored.items()}
    shapes[data] = (BATCH, *sample)
    for name in names:
        if not isinstance(first[name], np.ndarray):
            raise ConfigError(
                f"tensor {name!r} is a sequence of tensors, with which covey cannot work; let the exporter optimise "
                "the model (PyTorch: optimize=True)"
            )
        shapes[name] = _shape(name, first[name].shape, second[name].shape)
    moving = _moving(nodes, {data, *learnt})
    values = {name: array for name, array in stored.items() if name not in learnt}
    for name in names:
        same = name not in moving and shapes[name] == first[name].shape and first[name].size <= _MOST_FOLDED
        if same and np.array_equal(first[name], second[name]):
            values[name] = first[name]
    return Measured(shapes, values)


def _runs(model: onnx.ModelProto, data: str, sample: Sequence[int], names: Sequence[str]) -> list[dict[str, Array]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    rng = np.random.default_rng(0)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        batches = [rng.standard_normal((size, *sample)).astype(np.float32) for size in _SIZES]
        return [dict(zip(names, session.run(names, {data: batch}), strict=True)) for batch in batches]
    except Exception as error:  # onnxruntime's errors share no other base
        raise ConfigError(
            f"the model cannot be run with batches of {_SIZES[0]} and {_SIZES[1]} samples; if it fixes the batch size "
            f"(often in a Reshape), export it with a dynamic batch: {error}"
        ) from error


def _shape(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> Shape:
    if len(first) != len(second):
        raise ConfigError(f"the number of dimensions of tensor {name!r} depends on the batch size")
    dims: list[int | str] = []
    for axis, (one, two) in enumerate(zip(first, second, strict=True)):
        if one == two:
            dims.append(one)
        elif one % _SIZES[0] == 0 and one * _SIZES[1] == two * _SIZES[0]:
            times = one // _SIZES[0]
            dims.append(BATCH if times == 1 else f"{times}{BATCH}")
        else:
            dims.append(f"?{name}.{axis}")
    return tuple(dims)


def _moving(nodes: Sequence[onnx.NodeProto], sources: set[str]) -> set[str]:
    """Return the tensors whose values follow the data or what is trained; shapes do not."""
    moving = set(sources)
    for node in nodes:
        # Whether a float is above zero, say, follows the data too, though no gradient passes.
        if node.op_type not in ("Shape", "Size") and not moving.isdisjoint(node.input):
            moving.update(name for name in node.output if name)
    return moving


def fold(nodes: Sequence[onnx.NodeProto], measured: Measured) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Leave out nodes whose outputs are constant, and reshapes that ask for the batch size.

    Returns:
        The other nodes, and the values that they take from those that were left out.
    """
    kept: list[onnx.NodeProto] = []
    added: dict[str, Array] = {}
    produced = {name for node in nodes for name in node.output if name}
    for node in nodes:
        outputs = [name for name in node.output if name]
        if all(name in measured.values for name in outputs):
            continue
        static = _static_reshape(node, measured.shapes[node.output[0]], added) if node.op_type == "Reshape" else node
        kept.append(static)
        added |= {name: measured.values[name] for name in static.input if name in produced and name in measured.values}
    return kept, added


def _static_reshape(node: onnx.NodeProto, shape: Shape, added: dict[str, Array]) -> onnx.NodeProto:
    """Write the shape of a Reshape as a constant if at most one dimension is open."""
    if sum(isinstance(size, str) for size in shape) > 1 or 0 in shape:
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    name = f"shape.{node.output[0]}"
    changed.input[1] = name
    added[name] = np.array([-1 if isinstance(size, str) else size for size in shape], np.int64)
    return changed
