"""covey_protocol.graph_wire and graph_shapes: hostile graphs are refused before onnxruntime sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from covey_modelkit import build_bundle, mlp
from covey_modelkit.gradients import RULES
from covey_protocol.bundle import Bundle
from covey_protocol.errors import MalformedError
from covey_protocol.graph_shapes import MAX_ELEMENTS, OPERATORS, peak_elements
from covey_protocol.graph_wire import read_graph

WHERE = "grad.onnx"
VECTORS = Path(__file__).parents[1] / "modelkit" / "vectors"


def sound() -> onnx.ModelProto:
    """x · w, and its flattened shape by way of a computed one."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "to"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sound",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.ones((3, 2), np.float32), "w"),
            numpy_helper.from_array(np.array([-1, 2]), "to"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def peak(model: onnx.ModelProto | bytes, batch: int = 1) -> int:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return peak_elements(read_graph(data, WHERE), batch, WHERE)


def test_a_sound_graph_is_read() -> None:
    graph = read_graph(sound().SerializeToString(), WHERE)
    assert [node.operator for node in graph.nodes] == ["MatMul", "Reshape"]
    assert graph.inputs == {"x": (None, 3)}
    assert graph.outputs == ["y"]
    assert graph.stored["w"].shape == (3, 2)
    assert peak(sound()) == 4
    assert peak(sound(), 10) == 40


Change = Callable[[onnx.ModelProto], Any]


def add(operator: str, inputs: Sequence[str], **attributes: Any) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(operator, inputs, ["z"], **attributes))


def store(name: str, value: Any) -> Change:
    return lambda model: model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def both(*changes: Change) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        for change in changes:
            change(model)

    return apply


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def branch(operator: str) -> Change:
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "body", [], [])
    return add(operator, ["x"], body=body)


def resize(*dims: int) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return apply


def function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))


def text(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"]))


def sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [1 << 40]))


def long_list(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("l", TensorProto.INT64, [50_000], [1] * 50_000))


def many_inputs(model: onnx.ModelProto) -> None:
    add("Sum", ["x"] * 5000)(model)


def graphs(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["z"])
    attribute = node.attribute.add(name="bodies", type=AttributeProto.GRAPHS)
    attribute.graphs.add()
    model.graph.node.append(node)


def reference(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["z"])
    node.attribute.add(name="a", ref_attr_name="b", type=AttributeProto.INT)
    model.graph.node.append(node)


REFUSALS: dict[str, tuple[Change, str]] = {
    "tensors outside the file": (external, "outside the file"),
    "a location and no path": (location_alone, "outside the file"),
    "another domain": (add("Relu", ["x"], domain="com.microsoft"), "domain 'com.microsoft'"),
    "another domain's operators": (
        lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
        "com.microsoft",
    ),
    "a function": (function, "local functions"),
    "an If": (branch("If"), "holds a graph"),
    "a Loop": (branch("Loop"), "holds a graph"),
    "a Scan": (branch("Scan"), "holds a graph"),
    "graphs in a list": (graphs, "holds a graph"),
    "a referred attribute": (reference, "references"),
    "a sparse tensor": (sparse, "sparse"),
    "text": (text, "segments|type 8"),
    "an operator that is not on the list": (add("RandomNormal", [], shape=[4]), "'RandomNormal', which is not allowed"),
    "a sequence": (add("SplitToSequence", ["x"]), "not allowed"),
    "a newer file version": (lambda m: setattr(m, "ir_version", 11), "IR version 11"),
    "more elements than data": (resize(1 << 31, 1 << 31, 1 << 31), "with 24 bytes of data"),
    "fewer elements than data": (resize(3, 1), "with 24 bytes of data"),
    "a negative size": (resize(-3, -2), "of shape"),
    "nine dimensions": (resize(*[1] * 9), "too long|of shape"),
    "a long list": (long_list, "too long"),
    "too many inputs": (many_inputs, "more than 4096 inputs"),
    "a tensor twice": (store("w", np.ones(2, np.float32)), "twice"),
    "an output twice": (lambda m: m.graph.node.append(helper.make_node("Relu", ["x"], ["h"])), "again"),
    "an unknown input": (add("Relu", ["nothing"]), "nothing"),
    "shapes that do not fit": (add("MatMul", ["w", "w"]), "multiplies"),
    "an expansion without end": (
        both(store("far", [1 << 40, 1]), add("Expand", ["x", "far"])),
        "makes a tensor of shape",
    ),
    "zeros without end": (both(store("far", [1 << 20, 1 << 20]), add("ConstantOfShape", ["far"])), "makes a tensor"),
    "padding without end": (both(store("far", [0, 0, 0, 1 << 40]), add("Pad", ["x", "far"])), "makes a tensor"),
    "a pad that is negative": (both(store("far", [0, 0, 0, -9]), add("Pad", ["x", "far"])), "makes a tensor"),
    "one hot of very many": (
        both(store("i", [1]), store("d", 1 << 40), store("v", np.zeros(2, np.float32)), add("OneHot", ["i", "d", "v"])),
        "makes a",
    ),
    "an outer product": (
        both(
            store("a", np.zeros((1 << 15, 1), np.float32)),
            store("b", np.zeros((1, 1 << 15), np.float32)),
            add("Mul", ["a", "b"]),
        ),
        "makes a tensor",
    ),
    "a stride of nothing": (
        both(
            store("k", np.ones((1, 1, 1), np.float32)),
            store("i", np.ones((1, 1, 5), np.float32)),
            add("Conv", ["i", "k"], strides=[0]),
        ),
        "windows",
    ),
    "a transposed convolution without end": (
        both(
            store("k", np.ones((1, 1, 1), np.float32)),
            store("i", np.ones((1, 1, 5), np.float32)),
            add("ConvTranspose", ["i", "k"], strides=[1 << 40]),
        ),
        "makes a tensor",
    ),
    "a shape that follows the data": (
        both(
            lambda m: m.graph.node.append(helper.make_node("Cast", ["x"], ["s"], to=TensorProto.INT64)),
            add("ConstantOfShape", ["s"]),
        ),
        "follows the data",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str) -> None:
    change, message = REFUSALS[name]
    model = sound()
    change(model)
    with pytest.raises(MalformedError, match=message):
        peak(model)


def test_the_limit_is_of_elements() -> None:
    model = sound()
    both(store("far", [MAX_ELEMENTS // 3, 3]), add("Expand", ["x", "far"]))(model)
    assert peak(model) > MAX_ELEMENTS - 3


DATA = sound().SerializeToString()


def test_every_truncation_is_refused() -> None:
    for size in range(len(DATA)):
        with pytest.raises(MalformedError):
            peak(DATA[:size])


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        peak(data)


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_changed_byte_does_nothing_worse_than_be_refused(position: int, bits: int) -> None:
    changed = bytearray(DATA)
    changed[position] ^= bits
    try:
        peak(bytes(changed))
    except MalformedError:
        return


def test_everything_that_can_be_trained_is_allowed() -> None:
    assert set(RULES) <= OPERATORS | {"Dropout"}  # which training and inference forms write otherwise


def ran_shapes(data: bytes, inputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes that onnxruntime gives to everything in a graph."""
    model = onnx.load_from_string(data)
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, (value.shape for value in session.run(names, inputs)), strict=True))


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.onnx")), ids=lambda path: str(path.stem))
def test_sizes_are_those_that_onnxruntime_finds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = path.name.split("-")[0]
    labelled = name in ("mlp", "cnn2d", "transformer", "keras", "sklearn") and "regressor" not in path.name
    loss = "cross-entropy" if labelled else "mse"
    bundle = build_bundle(onnx.load(path), name="m", loss=loss, autoencoder=name == "autoencoder")
    manifest, batch = bundle.manifest, 6
    x = np.zeros((batch, *manifest.input.shape), np.float32)
    y = np.zeros((batch, *([] if labelled else manifest.output)), np.int64 if labelled else np.float32)
    targets = [] if manifest.target == "input" else [y]
    for data, more in ((bundle.grad, [x, *targets]), (bundle.infer, [x])):
        graph = read_graph(data, WHERE)
        inputs = dict(zip(graph.inputs, [*manifest.views(bundle.weights), *more], strict=True))
        expected = ran_shapes(data, inputs)
        found: dict[str, tuple[int, ...]] = {}
        for node in graph.nodes:  # one after the other, all kept alive
            found |= dict.fromkeys(node.outputs, ())
        graph.outputs[:] = list(found)
        total = sum(int(np.prod(shape)) for shape in expected.values())
        assert peak_elements(graph, batch, WHERE) == total


def test_memory_grows_with_the_batch() -> None:
    bundle = build_bundle(mlp((64,), 10, (256,)), name="m")
    small, large = bundle.memory(1), bundle.memory(1000)
    assert large - small > 999 * 4 * (256 + 256)
    assert bundle.memory(1, trains=False) < small
    assert small >= 16 * bundle.dimension


@pytest.mark.parametrize("name", ["grad", "infer"])
def test_bundles_are_looked_at(name: str) -> None:
    bundle = build_bundle(mlp((4,), 2), name="m")
    model = onnx.load_from_string(getattr(bundle, name))
    model.graph.node.append(helper.make_node("Relu", ["x"], ["z"], domain="com.microsoft"))
    manifest = bundle.manifest
    parts = {"grad": bundle.grad, "infer": bundle.infer} | {name: model.SerializeToString()}
    with pytest.raises(MalformedError, match=rf"{name}\.onnx uses an operator of domain"):
        Bundle.create(
            name=manifest.name,
            loss=manifest.loss,
            input=manifest.input,
            output=manifest.output,
            parameters=manifest.parameters,
            opset=manifest.opset,
            trace=manifest.trace,
            weights=bundle.weights,
            **parts,
        )
