"""covey_agent.trainer: what a trainer refuses to work with, before and in its self-test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_modelkit import build_bundle, mlp, softmax
from covey_protocol.bundle import Bundle
from covey_protocol.errors import ConfigError, MalformedError
from covey_protocol.plan import Plan

BUNDLE = build_bundle(mlp((4,), 3, hidden=(8,), seed=1), name="points")


def rebuilt(bundle: Bundle, **changes: Any) -> Bundle:
    """The same bundle with some parts replaced and all digests right."""
    manifest = bundle.manifest
    left_out = ("files", "classes")
    parts: dict[str, Any] = {
        name: getattr(manifest, name) for name in manifest.__struct_fields__ if name not in left_out
    }
    parts |= {"grad": bundle.grad, "infer": bundle.infer, "weights": bundle.weights}
    return Bundle.create(**(parts | changes))


@pytest.mark.parametrize("model", [softmax((4,), 3), mlp((2, 3), 4, (7, 5)), mlp((5,), 2)])
def test_self_test_passes(model: onnx.ModelProto) -> None:
    Trainer(build_bundle(model, name="sound")).self_test()


def test_self_test_passes_after_training_and_twice() -> None:
    trainer = Trainer(BUNDLE)
    trainer.train(BUNDLE.weights, Dataset(*BUNDLE.manifest.trace_batch()), Plan(epochs=3), seed=bytes(32))
    trainer.self_test()
    trainer.self_test()


def changed_trace(**values: Any) -> Bundle:
    return rebuilt(BUNDLE, trace=msgspec.structs.replace(BUNDLE.manifest.trace, **values))


def changed_grad(change: Callable[[onnx.ModelProto], None]) -> Bundle:
    model = onnx.load_from_string(BUNDLE.grad)
    change(model)
    return rebuilt(BUNDLE, grad=model.SerializeToString())


def forget_a_factor(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.output[0] == "gradient.output":
            node.op_type = "Mul"


def misplace_a_gradient(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Sign":
            node.op_type = "Abs"


TRACE = BUNDLE.manifest.trace


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (changed_trace(losses=[loss * 1.01 for loss in TRACE.losses]), "loss of step 1"),
        (changed_trace(losses=[*TRACE.losses[:4], TRACE.losses[4] + 0.01]), "loss of step 5"),
        (changed_trace(change=TRACE.change * 1.01), "change after 5 steps"),
        (changed_trace(output=(BUNDLE.manifest.trace_output() + np.float32(0.1)).tobytes()), "output"),
        (changed_trace(learning_rate=TRACE.learning_rate * 1.1), "loss of step"),
        (changed_trace(momentum=0.8), "loss of step"),
        (changed_grad(forget_a_factor), "loss of step"),
        (changed_grad(misplace_a_gradient), "loss of step"),
        (rebuilt(BUNDLE, weights=BUNDLE.weights * np.float32(1.01)), "loss of step 1"),
    ],
)
def test_self_test_notices_deviation(bundle: Bundle, message: str) -> None:
    trainer = Trainer(bundle)
    with pytest.raises(ConfigError, match=message):
        trainer.self_test()


def test_self_test_tolerates_rounding() -> None:
    Trainer(
        changed_trace(losses=[loss * (1 + 2e-5) for loss in TRACE.losses], change=TRACE.change * (1 - 2e-5))
    ).self_test()


OTHER = build_bundle(mlp((4,), 3, hidden=(9,)), name="other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": BUNDLE.infer}, r"grad\.onnx has inputs"),
        ({"infer": BUNDLE.grad}, r"infer\.onnx has inputs"),
        ({"grad": OTHER.grad}, r"grad\.onnx has inputs"),
        ({"infer": OTHER.infer}, r"infer\.onnx has inputs"),
    ],
)
def test_graphs_that_are_not_what_the_manifest_says_are_refused(changes: dict[str, bytes], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(rebuilt(BUNDLE, **changes))


def test_a_graph_that_onnxruntime_cannot_load_is_a_configuration_error() -> None:
    def forget_a_type(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Not"

    with pytest.raises(ConfigError, match=r"grad\.onnx cannot be loaded"):
        Trainer(changed_grad(forget_a_type))


def swap_outputs(model: onnx.ModelProto) -> None:
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs[::-1])


def test_outputs_in_another_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"grad\.onnx has outputs"):
        Trainer(changed_grad(swap_outputs))


def test_a_graph_cannot_read_the_devices_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private.bin").write_bytes(np.ones(3, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(BUNDLE.infer)
    thief = onnx.TensorProto(name="private", data_type=onnx.TensorProto.FLOAT, dims=[3])
    thief.data_location = onnx.TensorProto.EXTERNAL
    thief.external_data.add(key="location", value="private.bin")
    model.graph.initializer.append(thief)
    model.graph.node.append(helper.make_node("Add", ["logits", "private"], ["leak"]))
    model.graph.output[0].name = "leak"
    with pytest.raises(MalformedError, match="'private' outside the file"):
        rebuilt(BUNDLE, infer=model.SerializeToString())


def test_a_graph_that_fails_at_run_time_is_a_configuration_error() -> None:
    def break_reshape(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4]), "bad"))
        model.graph.node.insert(0, helper.make_node("Reshape", ["x", "bad"], ["broken"]))
        model.graph.node.insert(1, helper.make_node("ReduceMax", ["broken"], ["number"], keepdims=0))
        for node in model.graph.node:
            if node.output[0] == "loss":
                node.output[0] = "true.loss"
        model.graph.node.append(helper.make_node("Add", ["true.loss", "number"], ["loss"]))

    with pytest.raises(ConfigError, match=r"grad\.onnx cannot be run"):
        Trainer(changed_grad(break_reshape)).self_test()
