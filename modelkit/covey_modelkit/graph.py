"""Writing ONNX nodes: fresh names, shared constants, known shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from covey_protocol.errors import ConfigError

OPSET = 18
IR_VERSION = 10
DEFAULT_DOMAIN = ("", "ai.onnx")

# A dimension is a number, or a name where it is only known at run time; the same name is the same number.
Shape = tuple[int | str, ...]
Array = npt.NDArray[Any]


class GraphWriter:
    """Appends nodes to a graph and answers for the shapes of the tensors that were there before.

    Args:
        shapes: Of every tensor of the forward graph, by name; these names are taken.
        values: Of those tensors that are constant.
    """

    def __init__(self, shapes: Mapping[str, Shape], values: Mapping[str, Array] | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        # What the training form of a node computes on its way, by the node's output and in words, for its gradient.
        self.saved: dict[tuple[str, str], str] = {}
        self._values = dict(values or {})
        self.constants: list[onnx.TensorProto] = []
        self._shapes = dict(shapes)
        self._taken = set(shapes)
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def fresh(self, hint: str) -> str:
        """Return a tensor name that nothing has yet, like ``hint``."""
        name, count = hint, 1
        while name in self._taken:
            count += 1
            name = f"{hint}.{count}"
        self._taken.add(name)
        return name

    def emit(self, operator: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        output = self.fresh(hint)
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def copy(self, node: onnx.NodeProto, outputs: Sequence[str]) -> None:
        """Append a node that does the same as another, with outputs of its own."""
        again = onnx.NodeProto()
        again.CopyFrom(node)
        again.name = outputs[0]
        again.output[:] = outputs
        self.nodes.append(again)

    def value(self, tensor: str) -> Array | None:
        """Return the value of a tensor of the forward graph if it is constant."""
        return self._values.get(tensor)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Return the name of a constant tensor; equal constants are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.fresh("constant")
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def shape(self, tensor: str) -> Shape:
        """Return the shape of a tensor of the forward graph.

        Raises:
            ConfigError: Shape inference could not tell.
        """
        if tensor not in self._shapes:
            raise ConfigError(
                f"the shape of tensor {tensor!r} cannot be inferred; export the model with static shapes "
                "in all but the batch dimension"
            )
        return self._shapes[tensor]


def infer_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Run ONNX shape inference over a graph and return what is known, constants included.

    Raises:
        ConfigError: The graph contradicts itself.
    """
    model = make_model(graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ConfigError(f"the graph's shapes do not fit together: {error}") from error
    shapes: dict[str, Shape] = {
        constant.name: tuple(int(size) for size in constant.dims) for constant in inferred.graph.initializer
    }
    for info in _infos(inferred.graph):
        if info.type.tensor_type.HasField("shape"):
            shapes[info.name] = tuple(
                _dimension(dimension, f"?{info.name}.{axis}")
                for axis, dimension in enumerate(info.type.tensor_type.shape.dim)
            )
    return shapes


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Wrap a graph for the operator set and file version that all supported runtimes read."""
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="covey"
    )


def _infos(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _dimension(dimension: onnx.TensorShapeProto.Dimension, unknown: str) -> int | str:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    # A dimension without a name equals no other, so give it one of its own.
    return str(dimension.dim_param) or unknown
