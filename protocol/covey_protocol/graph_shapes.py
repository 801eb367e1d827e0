"""How large the tensors of a graph are, by the shape rule of every operator that a trainable graph may use.

``OPERATORS`` is the list of what is allowed: an operator without a rule is refused, so nothing of unknown size ever
runs.
Shapes that a graph computes for itself (Shape, Gather, Concat, ...) are computed here, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from covey_protocol.errors import MalformedError
from covey_protocol.graph_wire import BOOL, INT32, INT64, Graph, Node, Tensor, Value

Shape = tuple[int, ...]
MAX_ELEMENTS = 1 << 28
_SMALL = 4_096


class _Look:
    """One node while its shapes are found."""

    def __init__(self, node: Node, shapes: dict[str, Shape], values: dict[str, Value]) -> None:
        self.node, self._shapes, self._values = node, shapes, values

    def shape(self, position: int) -> Shape:
        return self._shapes[self.node.inputs[position]]

    def given(self, position: int) -> bool:
        return position < len(self.node.inputs) and self.node.inputs[position] != ""

    def value(self, position: int) -> Value | None:
        return self._values.get(self.node.inputs[position]) if self.given(position) else None

    def numbers(self, position: int, attribute: str = "") -> list[int]:
        """Return whole numbers from an input, or from an attribute where the input is left out."""
        if self.given(position):
            value = self.value(position)
            if value is None:
                raise ValueError("takes a shape that follows the data")
            return [int(number) for number in value.reshape(-1)]
        return [int(number) for number in self.attribute(attribute, [])]

    def attribute(self, name: str, default: Any) -> Any:
        return self.node.attributes.get(name, default)

    def axis(self, name: str, default: int, rank: int) -> int:
        axis = int(self.attribute(name, default))
        if not -rank <= axis < max(rank, 1):
            raise ValueError(f"has no axis {axis}")
        return axis % max(rank, 1)


Rule = Callable[[_Look], list[Shape]]
_RULES: dict[str, Rule] = {}


def _rule(*operators: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


_UNARY = """
Abs Cast Ceil Celu Clip Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log LogSoftmax Neg
Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu
"""
_SEVERAL = """
Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor
"""


@_rule(*_UNARY.split(), "BatchNormalization", "ScatterElements", "ScatterND")
def _same(look: _Look) -> list[Shape]:
    return [look.shape(0)]


@_rule(*_SEVERAL.split())
def _broadcast(look: _Look) -> list[Shape]:
    return [np.broadcast_shapes(*(look.shape(position) for position in range(len(look.node.inputs))))]


@_rule("Gemm")
def _gemm(look: _Look) -> list[Shape]:
    a, b = (look.shape(at)[:: -1 if look.attribute(flip, 0) else 1] for at, flip in ((0, "transA"), (1, "transB")))
    if a[1] != b[0]:
        raise ValueError(f"multiplies {list(a)} by {list(b)}")
    return [(a[0], b[1])]


@_rule("MatMul")
def _matmul(look: _Look) -> list[Shape]:
    a, b = look.shape(0), look.shape(1)
    if a[-1] != b[-2 if len(b) > 1 else 0]:
        raise ValueError(f"multiplies {list(a)} by {list(b)}")
    if len(a) == 1 or len(b) == 1:
        return [(*a[:-1], *b[1:])] if len(b) == 1 else [(*b[:-2], b[-1])]
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]


def _windows(look: _Look, sizes: Sequence[int], kernel: Sequence[int], back: bool = False) -> Shape:
    """Return spatial sizes after a convolution or pool, or after a transposed convolution."""
    ones = [1] * len(sizes)
    strides, dilations = look.attribute("strides", ones), look.attribute("dilations", ones)
    pads, extra = look.attribute("pads", [0] * 2 * len(sizes)), look.attribute("output_padding", [0] * len(sizes))
    auto = look.attribute("auto_pad", "NOTSET")
    if min([*strides, *dilations, *kernel]) < 1 or min([*pads, *extra]) < 0:
        raise ValueError("has windows that are none")
    found = []
    for axis, size in enumerate(sizes):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        padded = pads[axis] + pads[axis + len(sizes)]
        if back:
            found.append((size - 1) * strides[axis] + reach + extra[axis] - padded)
        elif auto.startswith("SAME"):
            found.append(-(-size // strides[axis]))
        else:
            room = size + (0 if auto == "VALID" else padded) - reach
            # One more for ceil_mode at the most, which is what has to be known here.
            more = 1 if look.attribute("ceil_mode", 0) and room % strides[axis] else 0
            found.append(room // strides[axis] + 1 + more)
    return tuple(max(0, size) for size in found)


@_rule("Conv")
def _conv(look: _Look) -> list[Shape]:
    x, w = look.shape(0), look.shape(1)
    return [(x[0], w[0], *_windows(look, x[2:], w[2:]))]


@_rule("ConvTranspose")
def _conv_transpose(look: _Look) -> list[Shape]:
    if look.attribute("output_shape", None) is not None:
        raise ValueError("sets its output_shape")
    x, w = look.shape(0), look.shape(1)
    return [(x[0], w[1] * int(look.attribute("group", 1)), *_windows(look, x[2:], w[2:], back=True))]


@_rule("MaxPool", "AveragePool")
def _pool(look: _Look) -> list[Shape]:
    x = look.shape(0)
    return [(*x[:2], *_windows(look, x[2:], look.attribute("kernel_shape", [])))] * len(look.node.outputs)


@_rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(look: _Look) -> list[Shape]:
    x = look.shape(0)
    return [(*x[:2], *[1] * (len(x) - 2))]


@_rule("LayerNormalization")
def _layer_normalization(look: _Look) -> list[Shape]:
    x = look.shape(0)
    axis = look.axis("axis", -1, len(x))
    return [x, *[(*x[:axis], *[1] * (len(x) - axis))] * (len(look.node.outputs) - 1)]


@_rule("Reshape")
def _reshape(look: _Look) -> list[Shape]:
    x, wanted = look.shape(0), look.numbers(1)
    if not look.attribute("allowzero", 0):
        wanted = [x[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    known = math.prod(size for size in wanted if size != -1)
    sizes = tuple(math.prod(x) // max(known, 1) if size == -1 else size for size in wanted)
    if math.prod(sizes) != math.prod(x):
        raise ValueError(f"cannot make {list(wanted)} of {list(x)}")
    return [sizes]


@_rule("Flatten")
def _flatten(look: _Look) -> list[Shape]:
    x = look.shape(0)
    axis = int(look.attribute("axis", 1))
    return [(math.prod(x[:axis]), math.prod(x[axis:]))]


@_rule("Transpose")
def _transpose(look: _Look) -> list[Shape]:
    x = look.shape(0)
    return [tuple(x[axis] for axis in look.attribute("perm", None) or range(len(x))[::-1])]


@_rule("Squeeze")
def _squeeze(look: _Look) -> list[Shape]:
    x = look.shape(0)
    axes = [axis % len(x) for axis in look.numbers(1, "axes")] or [axis for axis, size in enumerate(x) if size == 1]
    return [tuple(size for axis, size in enumerate(x) if axis not in axes)]


@_rule("Unsqueeze")
def _unsqueeze(look: _Look) -> list[Shape]:
    axes = look.numbers(1, "axes")
    rank, rest = len(look.shape(0)) + len(axes), iter(look.shape(0))
    places = {axis % rank for axis in axes}
    return [tuple(1 if axis in places else next(rest) for axis in range(rank))]


@_rule("Expand")
def _expand(look: _Look) -> list[Shape]:
    return [np.broadcast_shapes(look.shape(0), tuple(look.numbers(1)))]


@_rule("Concat")
def _concat(look: _Look) -> list[Shape]:
    parts = [look.shape(position) for position in range(len(look.node.inputs))]
    axis = look.axis("axis", 0, len(parts[0]))
    return [(*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])]


@_rule("Split")
def _split(look: _Look) -> list[Shape]:
    x, count = look.shape(0), len(look.node.outputs)
    axis = look.axis("axis", 0, len(x))
    each = -(-x[axis] // count)
    sizes = look.numbers(1, "split") or [min(each, x[axis] - each * part) for part in range(count)]
    return [(*x[:axis], size, *x[axis + 1 :]) for size in sizes]


@_rule("Slice")
def _slice(look: _Look) -> list[Shape]:
    x = list(look.shape(0))
    starts, ends = look.numbers(1, "starts"), look.numbers(2, "ends")
    axes = look.numbers(3, "axes") or list(range(len(starts)))
    steps = look.numbers(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x[axis]
        x[axis] = len(range(size)[slice(start, None if step < 0 and end < -size else end, step)])
    return [tuple(x)]


@_rule("Gather")
def _gather(look: _Look) -> list[Shape]:
    x = look.shape(0)
    axis = look.axis("axis", 0, len(x))
    return [(*x[:axis], *look.shape(1), *x[axis + 1 :])]


@_rule("GatherElements")
def _gather_elements(look: _Look) -> list[Shape]:
    return [look.shape(1)]


@_rule("OneHot")
def _one_hot(look: _Look) -> list[Shape]:
    x = list(look.shape(0))
    axis = look.axis("axis", -1, len(x) + 1)
    x.insert(axis, look.numbers(1)[0])
    return [tuple(x)]


@_rule("Pad")
def _pad(look: _Look) -> list[Shape]:
    x, pads = list(look.shape(0)), look.numbers(1, "pads")
    axes = look.numbers(3) or list(range(len(x)))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        x[axis] += before + after
    return [tuple(x)]


@_rule("ArgMax", "ArgMin", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
def _reduce(look: _Look) -> list[Shape]:
    x = look.shape(0)
    if look.node.operator.startswith("Arg"):
        axes = {look.axis("axis", 0, len(x))}
    else:
        named = look.numbers(1, "axes")
        if not named and look.attribute("noop_with_empty_axes", 0):
            return [x]
        axes = {axis % max(len(x), 1) for axis in named} or set(range(len(x)))
    if look.attribute("keepdims", 1):
        return [tuple(1 if axis in axes else size for axis, size in enumerate(x))]
    return [tuple(size for axis, size in enumerate(x) if axis not in axes)]


@_rule("ConstantOfShape")
def _constant_of_shape(look: _Look) -> list[Shape]:
    return [tuple(look.numbers(0))]


@_rule("Shape")
def _shape(look: _Look) -> list[Shape]:
    return [(len(look.shape(0)[slice(look.attribute("start", 0), look.attribute("end", None))]),)]


@_rule("Size")
def _size(look: _Look) -> list[Shape]:
    return [()]


OPERATORS = frozenset(_RULES)


def _compute(look: _Look) -> Value | None:  # noqa: PLR0911 - one for each operator
    """Compute what may become a shape, where all that it follows from is known; whole numbers alone."""
    operator, node = look.node.operator, look.node
    if operator == "Shape":
        sizes = look.shape(0)[slice(look.attribute("start", 0), look.attribute("end", None))]
        return np.array(sizes, np.int64)
    if operator == "Size":
        return np.array(math.prod(look.shape(0)), np.int64)
    if operator == "ConstantOfShape":
        filled = look.attribute("value", None)
        if not isinstance(filled, Tensor) or filled.kind != INT64 or filled.value is None:
            return None
        return np.full(look.numbers(0), filled.value.item(), np.int64)
    values = [look.value(position) for position in range(len(node.inputs))]
    if any(value is None or value.dtype.kind == "f" for value in values) or not values:
        return None
    x: Any = values
    if operator in ("Identity", "Cast"):
        return np.asarray(x[0], np.int64) if look.attribute("to", INT64) in (INT64, BOOL, INT32) else None
    if operator in ("Squeeze", "Unsqueeze", "Reshape"):
        return np.asarray(x[0].reshape(_RULES[operator](look)[0]))
    if operator == "Concat":
        return np.concatenate(x)
    if operator == "Gather":
        return np.asarray(np.take(x[0], x[1], axis=int(look.attribute("axis", 0))))
    if operator == "Slice" and x[0].ndim == 1:
        step = int(x[4][0]) if len(x) > 4 else 1
        return np.asarray(x[0][slice(int(x[1][0]), int(x[2][0]), step)])
    if operator == "Where":
        return np.asarray(np.where(x[0], x[1], x[2]))
    if operator == "Div":
        return np.asarray(x[0] // np.where(x[1] == 0, 1, x[1]))
    plain = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Equal": np.equal, "Neg": np.negative}
    return np.asarray(plain[operator](*x)) if operator in plain else None


def peak_elements(graph: Graph, batch: int, where: str) -> int:
    """Return how many elements are alive at once, at most, while a graph runs on a batch; its inputs are not counted.

    Args:
        graph: The graph.
        batch: Samples.
        where: The graph's name, for errors.

    Raises:
        MalformedError: An operator is not allowed, shapes do not fit together, or a tensor has more than
            ``MAX_ELEMENTS`` elements.
    """
    shapes = {name: tensor.shape for name, tensor in graph.stored.items()}
    values = {name: tensor.value for name, tensor in graph.stored.items() if tensor.value is not None}
    shapes |= {name: tuple(batch if size is None else size for size in dims) for name, dims in graph.inputs.items()}
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    alive, peak, held = 0, 0, {}
    for at, node in enumerate(graph.nodes):
        rule = _RULES.get(node.operator)
        if rule is None:
            raise MalformedError(f"bundle: {where} uses operator {node.operator[:40]!r}, which is not allowed")
        look = _Look(node, shapes, values)
        try:
            found = rule(look)
            outputs = [name for name in node.outputs if name]
            for name, shape in zip(outputs, found, strict=False):
                if name in shapes:
                    raise ValueError(f"writes {name[:40]!r} again")
                if math.prod(shape) > MAX_ELEMENTS or min(shape, default=0) < 0:
                    raise ValueError(f"makes a tensor of shape {list(shape)}")
                shapes[name] = shape
                held[name] = math.prod(shape)
                alive += held[name]
            if len(found) < len(outputs):
                raise ValueError(f"has {len(outputs)} outputs")
            if math.prod(found[0]) <= _SMALL:
                computed = _compute(look)
                if computed is not None:
                    values[node.outputs[0]] = computed
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
            raise MalformedError(f"bundle: {where}: {node.operator[:40]} {node.outputs[:1]}: {error}") from error
        peak = max(peak, alive)
        for name in {*node.inputs, *node.outputs}:
            if name in held and last.get(name, at) <= at:
                alive -= held.pop(name)
    return peak
