"""Reading an ONNX graph without onnx or onnxruntime, and refusing whatever a trainable graph has no need of.

Devices have no onnx package, and onnxruntime is a large parser in C++ that should only see what has been looked at.
This reader takes protobuf's wire format apart (field numbers are those of ``onnx.proto``) and raises for: other domains
than ONNX's own, local functions, attributes that hold graphs (If, Loop, Scan), tensors outside the file, sparse
tensors, strings, lists without end, and tensors whose data is not what their shape says.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from covey_protocol.errors import MalformedError

MAX_NODES = 20_000
MAX_RANK = 8
MAX_NAME = 1_024
MAX_LINKS = 4_096
MAX_IR_VERSION = 10
_SMALL = 4_096  # elements: what can be a shape or a list of axes is read, weights are not

FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9
_WIDTHS = {FLOAT: 4, INT32: 4, INT64: 8, BOOL: 1}
_TYPES = {FLOAT: "<f4", INT32: "<i4", INT64: "<i8", BOOL: "?"}
_TYPED_DATA = {4: FLOAT, 5: INT32, 7: INT64}

Value = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """A stored tensor: its shape, and its value if it is small."""

    shape: tuple[int, ...]
    kind: int
    value: Value | None


@dataclass(frozen=True)
class Node:
    """An operator; attributes are integers, floats, text, lists of them, or a tensor."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass
class Graph:
    """What is in a graph; ``None`` in a shape stands for the batch."""

    nodes: list[Node] = field(default_factory=list)
    stored: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)


def read_graph(data: bytes, where: str) -> Graph:
    """Read an ONNX model.

    Args:
        data: The file.
        where: Its name, for errors.

    Raises:
        MalformedError: It is no ONNX model, or holds what a trainable graph must not hold; the message says what.
    """
    try:
        return _model(memoryview(data), where)
    except (IndexError, struct.error, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise MalformedError(f"bundle: {where} is no ONNX model: {error}") from error


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: integers, or the bytes of what has a length or a fixed width."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > len(data) - at:
            raise ValueError("it is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    raise ValueError("a number is too long")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: Any) -> str:
    if len(value) > MAX_NAME:
        raise ValueError("a name is too long")
    return bytes(value).decode()


def _model(data: memoryview, where: str) -> Graph:
    graphs, opsets = [], []
    for number, value in _fields(data):
        if number == 1 and not 1 <= value <= MAX_IR_VERSION:
            raise MalformedError(f"bundle: {where} has IR version {value}, at most {MAX_IR_VERSION} is read")
        if number == 7:
            graphs.append(value)
        elif number == 8:
            opsets.append(dict(_fields(value)))
        elif number in (20, 25):
            raise MalformedError(f"bundle: {where} holds local functions or training information")
    domains = [bytes(opset.get(1, b"")).decode() for opset in opsets]
    if domains not in ([""], ["ai.onnx"]):
        raise MalformedError(
            f"bundle: {where} uses operators of {', '.join(map(repr, domains))[:80]}, not ONNX's alone"
        )
    if len(graphs) != 1:
        raise MalformedError(f"bundle: {where} holds {len(graphs)} graphs, must be one")
    return _graph(graphs[0], where)


def _graph(data: memoryview, where: str) -> Graph:
    graph = Graph()
    for number, value in _fields(data):
        if number == 1:
            if len(graph.nodes) >= MAX_NODES:
                raise MalformedError(f"bundle: {where} has more than {MAX_NODES} nodes")
            graph.nodes.append(_node(value, where))
        elif number == 5:
            name, tensor = _tensor(value, where)
            if name in graph.stored or len(graph.stored) >= MAX_NODES:
                raise MalformedError(f"bundle: {where} stores {name[:40]!r} twice, or more than {MAX_NODES} tensors")
            graph.stored[name] = tensor
        elif number == 11:
            name, shape = _value_info(value)
            graph.inputs[name] = shape
        elif number == 12:
            graph.outputs.append(_value_info(value)[0])
        elif number in (14, 15):
            raise MalformedError(f"bundle: {where} holds sparse or quantised tensors")
    return graph


def _node(data: memoryview, where: str) -> Node:
    inputs, outputs, operator, attributes = [], [], "", {}
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 5:
            name, content = _attribute(value, where)
            attributes[name] = content
        elif number == 7 and _text(value) not in ("", "ai.onnx"):
            raise MalformedError(f"bundle: {where} uses an operator of domain {_text(value)[:40]!r}")
        elif number == 8 and len(value):
            raise MalformedError(f"bundle: {where} uses an overloaded function")
        if max(len(inputs), len(outputs), len(attributes)) > MAX_LINKS:
            raise MalformedError(f"bundle: {where} has a node of more than {MAX_LINKS} inputs, outputs or attributes")
    return Node(operator, inputs, outputs, attributes)


def _attribute(data: memoryview, where: str) -> tuple[str, Any]:
    name, content, many = "", None, []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            content = struct.unpack("<f", value)[0]
        elif number == 3:
            content = _signed(value)
        elif number == 4:
            content = _text(value)
        elif number == 5:
            content = _tensor(value, where)[1]
        elif number in (7, 8):
            many += _numbers(value, FLOAT if number == 7 else INT64)
            if len(many) > _SMALL:
                raise ValueError("a list is too long")
        elif number not in (13, 20):
            raise MalformedError(f"bundle: {where} has an attribute {name!r} that holds a graph, text or references")
    return name, many if content is None else content


def _numbers(value: Any, kind: int) -> list[Any]:
    """Read one element of a repeated field, or all of a packed one."""
    if isinstance(value, int):
        return [_signed(value)]
    if len(value) > 10 * _SMALL:  # a list takes far more memory than the bytes that it is read from
        raise ValueError("a list is too long; large tensors have raw data")
    if kind == FLOAT:
        return list(struct.unpack(f"<{len(value) // 4}f", value))
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def _tensor(data: memoryview, where: str) -> tuple[str, Tensor]:  # noqa: PLR0912 - a field each
    dims: list[int] = []
    kind, name, raw = 0, "", None
    typed: list[Any] | None = None
    for number, value in _fields(data):
        if len(dims) > MAX_RANK or len(typed or ()) > 10 * _SMALL:
            raise ValueError("a list is too long; large tensors have raw data")
        if number == 1:
            dims += _numbers(value, INT64)
        elif number == 2:
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number in _TYPED_DATA:
            typed = typed or []
            typed += _numbers(value, _TYPED_DATA[number])
        elif number == 13 or (number == 14 and value != 0):
            raise MalformedError(f"bundle: {where} has tensor {name[:40]!r} outside the file")
        elif number not in (12, 14, 16):
            raise MalformedError(f"bundle: {where} has tensor {name[:40]!r} in segments or of a kind that is not read")
    if kind not in _WIDTHS:
        raise MalformedError(
            f"bundle: {where} has tensor {name[:40]!r} of type {kind}; float32, int32, int64 and bool are read"
        )
    count = math.prod(dims)
    if len(dims) > MAX_RANK or any(size < 0 for size in dims):
        raise MalformedError(f"bundle: {where} has tensor {name[:40]!r} of shape {dims[:MAX_RANK]}")
    held = len(typed) * _WIDTHS[kind] if typed is not None else len(raw or b"")
    if held != count * _WIDTHS[kind] or (raw is not None and typed is not None):
        raise MalformedError(f"bundle: {where} has tensor {name[:40]!r} of shape {dims} with {held} bytes of data")
    content = None
    if count <= _SMALL:
        flat = np.array(typed, _TYPES[kind]) if typed is not None else np.frombuffer(raw or b"", _TYPES[kind])
        content = flat.reshape(dims)
    return name, Tensor(tuple(dims), kind, content)


def _value_info(data: memoryview) -> tuple[str, tuple[int | None, ...]]:
    """Return name and shape; a type that is no tensor is left for the shapes to fail on."""
    top = dict(_fields(data))
    shape: list[int | None] = []
    for number, tensor in _fields(top.get(2, memoryview(b""))):
        if number != 1:
            raise ValueError("an input is no tensor")
        for inner, dims in _fields(tensor):
            if inner == 2:
                shape = [_signed(dict(_fields(dim)).get(1, 0)) or None for _, dim in _fields(dims)]
    return _text(top.get(1, b"")), tuple(shape)
