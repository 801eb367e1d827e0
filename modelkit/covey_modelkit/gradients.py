"""The gradient of each operator, written in operators.

A rule gets one node of the forward graph and the gradient of the loss with respect to the node's outputs; it
appends nodes and returns the gradient with respect to each input that is wanted. To support one more operator, add
one function here::

    @gradient("Neg")
    def _neg(call: Call) -> Gradients:
        return {0: call.emit("Neg", call.gradient)}

``STOPS`` lists operators whose result does not change when their input does by a little: no gradient passes
them. A loss is a rule without an incoming gradient; ``LOSSES`` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
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
        assert first is not None
        return first

    def input(self, position: int) -> str:
        """Name of an input."""
        return str(self.node.input[position])

    def attribute(self, name: str, default: Any) -> Any:
        """Value of an attribute, or what ONNX gives it when it is absent."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def shape(self, position: int) -> Shape:
        """Shape of an input."""
        return self.writer.shape(self.input(position))

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of the gradient; its name tells of which node."""
        return self.writer.emit(operator, inputs, f"gradient.{self.node.output[0]}", **attributes)

    def unbroadcast(self, gradient: str, position: int, given: Shape | None = None) -> str:
        """Sum a gradient over the axes along which an input was repeated.

        Args:
            gradient: The gradient before the sum.
            position: Of the input.
            given: The gradient's shape, by default that of the node's output.
        """
        wanted = self.shape(position)
        given = self.writer.shape(self.node.output[0]) if given is None else given
        lead = len(given) - len(wanted)
        inner = []
        for axis, (small, large) in enumerate(zip(wanted, given[lead:], strict=True), start=lead):
            if small == large:
                continue
            if small != 1:
                raise self.refuse(f"repeats {self.input(position)!r} along a dimension that is only known later")
            inner.append(axis)
        if inner:
            gradient = self.emit("ReduceSum", gradient, self.writer.constant(inner, np.int64), keepdims=1)
        if lead:
            gradient = self.emit("ReduceSum", gradient, self.writer.constant(range(lead), np.int64), keepdims=0)
        return gradient

    def like_input(self, gradient: str, position: int = 0) -> str:
        """Give a gradient the shape of an input with as many elements."""
        return self.emit("Reshape", gradient, self.emit("Shape", self.input(position)))

    def refuse(self, what: str) -> ConfigError:
        """Make the error for a use of an operator that its rule does not cover."""
        return ConfigError(f"node {self.node.name!r} ({self.node.op_type}) {what}, which cannot be trained")


Rule = Callable[[Call], Gradients]
RULES: dict[str, Rule] = {}
STOPS = frozenset({"Shape", "Size"})


def gradient(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default domain."""

    def register(rule: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = rule
        return rule

    return register


@gradient("Identity")
def _identity(call: Call) -> Gradients:
    return {0: call.gradient}


@gradient("Add")
def _add(call: Call) -> Gradients:
    return {position: call.unbroadcast(call.gradient, position) for position in call.wanted}


@gradient("Sub")
def _sub(call: Call) -> Gradients:
    whole = {0: call.gradient}
    if 1 in call.wanted:
        whole[1] = call.emit("Neg", call.gradient)
    return {position: call.unbroadcast(whole[position], position) for position in call.wanted}


@gradient("Mul")
def _mul(call: Call) -> Gradients:
    return {
        position: call.unbroadcast(call.emit("Mul", call.gradient, call.input(1 - position)), position)
        for position in call.wanted
    }


@gradient("Relu")
def _relu(call: Call) -> Gradients:
    # The output is never negative, so its sign is 1 where the gradient passes and 0 where it does not.
    return {0: call.emit("Mul", call.gradient, call.emit("Sign", str(call.node.output[0])))}


@gradient("Sigmoid")
def _sigmoid(call: Call) -> Gradients:
    output = str(call.node.output[0])
    rest = call.emit("Sub", call.writer.constant(1.0, np.float32), output)
    return {0: call.emit("Mul", call.gradient, call.emit("Mul", output, rest))}


@gradient("Tanh")
def _tanh(call: Call) -> Gradients:
    output = str(call.node.output[0])
    slope = call.emit("Sub", call.writer.constant(1.0, np.float32), call.emit("Mul", output, output))
    return {0: call.emit("Mul", call.gradient, slope)}


@gradient("Flatten", "Reshape")
def _reshape(call: Call) -> Gradients:
    return {0: call.like_input(call.gradient)}


@gradient("Transpose")
def _transpose(call: Call) -> Gradients:
    rank = len(call.shape(0))
    axes = call.attribute("perm", list(range(rank))[::-1])
    return {0: call.emit("Transpose", call.gradient, perm=[int(axis) for axis in np.argsort(axes)])}


@gradient("Gemm")
def _gemm(call: Call) -> Gradients:
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    flip_a, flip_b = int(call.attribute("transA", 0)), int(call.attribute("transB", 0))
    dy, wanted = call.gradient, {}
    if 0 in call.wanted:
        pair = (call.input(1), dy) if flip_a else (dy, call.input(1))
        flips = (flip_b, 1) if flip_a else (0, 1 - flip_b)
        wanted[0] = call.emit("Gemm", *pair, alpha=alpha, transA=flips[0], transB=flips[1])
    if 1 in call.wanted:
        pair = (dy, call.input(0)) if flip_b else (call.input(0), dy)
        flips = (1, flip_a) if flip_b else (1 - flip_a, 0)
        wanted[1] = call.emit("Gemm", *pair, alpha=alpha, transA=flips[0], transB=flips[1])
    if 2 in call.wanted:
        scaled = dy if beta == 1.0 else call.emit("Mul", dy, call.writer.constant(beta, np.float32))
        wanted[2] = call.unbroadcast(scaled, 2)
    return wanted


@gradient("MatMul")
def _matmul(call: Call) -> Gradients:
    ranks = len(call.shape(0)), len(call.shape(1))
    if min(ranks) < 2:
        raise call.refuse("multiplies by a vector; reshape it to a matrix")
    dy, wanted = call.gradient, {}
    if ranks == (2, 2):
        if 0 in call.wanted:
            wanted[0] = call.emit("Gemm", dy, call.input(1), transB=1)
        if 1 in call.wanted:
            wanted[1] = call.emit("Gemm", call.input(0), dy, transA=1)
        return wanted
    batch = call.writer.shape(call.node.output[0])[:-2]
    if 0 in call.wanted:
        whole = call.emit("MatMul", dy, _swapped(call, 1))
        wanted[0] = call.unbroadcast(whole, 0, batch + call.shape(0)[-2:])
    if 1 in call.wanted:
        whole = call.emit("MatMul", _swapped(call, 0), dy)
        wanted[1] = call.unbroadcast(whole, 1, batch + call.shape(1)[-2:])
    return wanted


def _swapped(call: Call, position: int) -> str:
    """Transpose the last two axes of an input."""
    axes = list(range(len(call.shape(position))))
    axes[-2:] = [axes[-1], axes[-2]]
    return call.emit("Transpose", call.input(position), perm=axes)


class Loss(NamedTuple):
    """Names of the mean loss (a scalar) and of its gradient with respect to the logits."""

    value: str
    gradient: str


def cross_entropy(writer: GraphWriter, logits: str, labels: str) -> Loss:
    """Append the mean cross-entropy of softmax(logits) against int64 labels."""
    logp = writer.emit("LogSoftmax", [logits], "loss.logp", axis=1)
    axis = writer.constant([1], np.int64)
    column = writer.emit("Unsqueeze", [labels, axis], "loss.column")
    picked = writer.emit("GatherElements", [logp, column], "loss.picked", axis=1)
    value = writer.emit("Neg", [writer.emit("ReduceMean", [picked], "loss.mean", keepdims=0)], "loss")
    # The gradient is (softmax(logits) − one-hot(labels)) / N.
    classes = writer.constant(writer.shape(logits)[1], np.int64)
    hot = writer.emit("OneHot", [labels, classes, writer.constant([0.0, 1.0], np.float32)], "loss.hot", axis=1)
    error = writer.emit("Sub", [writer.emit("Exp", [logp], "loss.p"), hot], "loss.error")
    samples = writer.emit("Cast", [writer.emit("Size", [labels], "loss.size")], "loss.n", to=1)
    return Loss(value, writer.emit("Div", [error, samples], "gradient.logits"))


LOSSES: dict[str, Callable[[GraphWriter, str, str], Loss]] = {"cross-entropy": cross_entropy}
