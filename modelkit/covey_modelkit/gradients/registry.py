"""What a rule works with: the node, the gradients that come in, and ways to write nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from covey_modelkit.graph import GraphWriter, Shape
from covey_protocol.errors import ConfigError

Gradients = dict[int, str]


@dataclass(frozen=True)
class Call:
    """One node to be differentiated.

    Args:
        node: The node.
        writer: Where the gradient's nodes go.
        gradients: Gradient of the loss with respect to each output; None where the loss does not use it.
        wanted: Positions of the inputs whose gradient is of use.
    """

    node: onnx.NodeProto
    writer: GraphWriter
    gradients: tuple[str | None, ...]
    wanted: frozenset[int]

    @property
    def gradient(self) -> str:
        """Gradient with respect to the first output."""
        first = self.gradients[0]
        if first is None:
            raise self.refuse("is used for another than its first output")
        return first

    @property
    def output(self) -> str:
        """Name of the first output."""
        return str(self.node.output[0])

    def input(self, position: int) -> str:
        """Name of an input; empty where an optional one is left out."""
        return str(self.node.input[position]) if position < len(self.node.input) else ""

    def attribute(self, name: str, default: Any) -> Any:
        """Value of an attribute, or what ONNX gives it when it is absent."""
        return attribute_of(self.node, name, default)

    def shape(self, position: int) -> Shape:
        """Shape of an input."""
        return self.writer.shape(self.input(position))

    @property
    def output_shape(self) -> Shape:
        """Shape of the first output."""
        return self.writer.shape(self.output)

    def sizes(self, shape: Shape, start: int = 0) -> list[int]:
        """Return the dimensions of a shape from ``start`` on, all of which have to be known by now.

        Raises:
            ConfigError: One is only known at run time.
        """
        found = [size for size in shape[start:] if isinstance(size, int)]
        if len(found) != len(shape) - start:
            raise self.refuse(f"works on a tensor of shape {list(shape)}, of which only the first may be open")
        return found

    def value(self, position: int, what: str) -> npt.NDArray[Any]:
        """Return an input that has to be a constant.

        Raises:
            ConfigError: It is computed.
        """
        value = self.writer.value(self.input(position))
        if value is None:
            raise self.refuse(f"computes its {what} instead of having them as a constant")
        return value

    def saved(self, what: str) -> str | None:
        """Name of something that the training form of the node has computed on its way; None in other forms."""
        return self.writer.saved.get((self.output, what))

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of the gradient; its name tells of which node."""
        return self.writer.emit(operator, inputs, f"gradient.{self.output}", **attributes)

    def number(self, value: float) -> str:
        """Return the name of a float32 scalar."""
        return self.writer.constant(value, np.float32)

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a list of whole numbers, such as axes or a shape."""
        return self.writer.constant(list(values), np.int64)

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """Reshape to a shape in which -1 may stand for one dimension, and 0 for a dimension that stays."""
        return self.emit("Reshape", tensor, self.integers(shape))

    def sum(self, tensor: str, axes: Sequence[int], *, keep: bool) -> str:
        """Sum along axes."""
        return self.emit("ReduceSum", tensor, self.integers(axes), keepdims=int(keep))

    def mean(self, tensor: str, axes: Sequence[int]) -> str:
        """Take the mean along axes, which stay as ones."""
        return self.emit("ReduceMean", tensor, self.integers(axes), keepdims=1)

    def unbroadcast(self, gradient: str, position: int, given: Shape | None = None) -> str:
        """Sum a gradient over the axes along which an input was repeated.

        Args:
            gradient: The gradient before the sum.
            position: Of the input.
            given: The gradient's shape, by default that of the node's output.
        """
        wanted = self.shape(position)
        given = self.output_shape if given is None else given
        lead = len(given) - len(wanted)
        inner = []
        for axis, (small, large) in enumerate(zip(wanted, given[lead:], strict=True), start=lead):
            if small == large:
                continue
            if small != 1:
                raise self.refuse(f"repeats {self.input(position)!r} along a dimension that is only known later")
            inner.append(axis)
        if inner:
            gradient = self.sum(gradient, inner, keep=True)
        if lead:
            gradient = self.sum(gradient, range(lead), keep=False)
        return gradient

    def like_input(self, gradient: str, position: int = 0) -> str:
        """Give a gradient the shape of an input with as many elements."""
        shape = self.shape(position)
        open_ends = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if len(open_ends) > 1 or 0 in shape:
            return self.emit("Reshape", gradient, self.emit("Shape", self.input(position)))
        return self.reshape(gradient, [size if isinstance(size, int) else -1 for size in shape])

    def refuse(self, what: str) -> ConfigError:
        """Make the error for a use of an operator that its rule does not cover."""
        return ConfigError(f"node {self.node.name!r} ({self.node.op_type}) {what}, which cannot be trained")


Rule = Callable[[Call], Gradients]
RULES: dict[str, Rule] = {}
STOPS = frozenset(
    [
        "And",
        "ArgMax",
        "ArgMin",
        "Ceil",
        "ConstantOfShape",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "Range",
        "Round",
        "Shape",
        "Sign",
        "Size",
        "Xor",
    ]
)


def gradient(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default domain."""

    def register(rule: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = rule
        return rule

    return register


def attribute_of(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return a node's attribute, text as str, or what ONNX gives it when it is absent."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default
