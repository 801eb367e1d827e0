"""covey_protocol.bundle: what is decoded is sound, and nothing unsound is decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from covey_protocol import cbor
from covey_protocol.bundle import Bundle, TensorSpec, Trace
from covey_protocol.digest import content_digest
from covey_protocol.errors import MalformedError

Plain = dict[str, Any]


def graph(operator: str) -> bytes:
    """A graph of one operator."""
    ends = [helper.make_tensor_value_info(name, 1, ["N", 3]) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def make_bundle() -> Bundle:
    """A small bundle of graphs that are sound, if of little use."""
    rng = np.random.default_rng(5)
    return Bundle.create(
        name="tiny",
        loss="cross-entropy",
        input=TensorSpec("x", [3]),
        output=[2],
        parameters=[TensorSpec("w", [3, 2]), TensorSpec("b", [2])],
        opset=18,
        trace=Trace(
            batch=4,
            x=rng.standard_normal((4, 3)).astype("<f4").tobytes(),
            y=np.array([0, 1, 1, 0], "<i8").tobytes(),
            learning_rate=0.1,
            momentum=0.9,
            losses=[0.9, 0.8, 0.7, 0.6, 0.55],
            change=0.3,
            output=rng.standard_normal((4, 2)).astype("<f4").tobytes(),
        ),
        grad=graph("Abs"),
        infer=graph("Neg"),
        weights=rng.standard_normal(8).astype(np.float32),
    )


BUNDLE = make_bundle()
ENCODED = BUNDLE.encode()


def plain() -> Plain:
    value = cbor.decode(ENCODED, max_bytes=len(ENCODED))
    assert isinstance(value, dict)
    return value


def set_weights(bundle: Plain, weights: bytes) -> None:
    """Replace the weights and their digest, so that only the weights are at fault."""
    bundle["files"]["weights.bin"] = weights
    bundle["manifest"]["files"]["weights.bin"] = content_digest(weights)


def test_round_trip() -> None:
    decoded = Bundle.decode(ENCODED)
    assert decoded.encode() == ENCODED
    assert decoded.manifest == BUNDLE.manifest
    assert (decoded.grad, decoded.infer) == (BUNDLE.grad, BUNDLE.infer)
    assert decoded.weights.tobytes() == BUNDLE.weights.tobytes()
    assert decoded.digest == BUNDLE.digest == content_digest(ENCODED)
    assert decoded.dimension == 8


def test_weights_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Bundle.decode(ENCODED).weights[0] = 1.0


def test_views_share_memory_in_manifest_order() -> None:
    flat = np.arange(8, dtype=np.float32)
    weight, bias = BUNDLE.manifest.views(flat)
    assert weight.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert bias.tolist() == [6, 7]
    flat[7] = 9
    assert bias[1] == 9
    with pytest.raises(ValueError, match="tiny"):
        BUNDLE.manifest.views(flat[1:])


def test_every_truncation_is_refused() -> None:
    for size in range(len(ENCODED)):
        with pytest.raises(MalformedError):
            Bundle.decode(ENCODED[:size])


@given(position=st.integers(0, len(ENCODED) - 1), bits=st.integers(1, 255))
def test_a_changed_byte_never_reaches_the_files(position: int, bits: int) -> None:
    changed = bytearray(ENCODED)
    changed[position] ^= bits
    data = bytes(changed)
    with pytest.raises(MalformedError, match="digest"):
        Bundle.decode(data, digest=BUNDLE.digest)
    try:
        decoded = Bundle.decode(data)
    except MalformedError:
        return
    # Only a value of the manifest can have become another sound one, and then the digest tells.
    assert (decoded.grad, decoded.infer) == (BUNDLE.grad, BUNDLE.infer)
    assert decoded.weights.tobytes() == BUNDLE.weights.tobytes()
    assert decoded.encode() == data
    assert decoded.digest != BUNDLE.digest


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Bundle.decode(data)


def test_size_is_limited_before_parsing() -> None:
    assert Bundle.decode(ENCODED, max_bytes=len(ENCODED))
    with pytest.raises(MalformedError, match="at most"):
        Bundle.decode(ENCODED, max_bytes=len(ENCODED) - 1)


def test_an_expected_digest_must_match() -> None:
    assert Bundle.decode(ENCODED, digest=BUNDLE.digest).digest == BUNDLE.digest
    with pytest.raises(MalformedError, match="was expected"):
        Bundle.decode(ENCODED, digest=bytes(32))


def manifest(field: str, value: object) -> Callable[[Plain], None]:
    return lambda bundle: bundle["manifest"].update({field: value})


def trace(field: str, value: object) -> Callable[[Plain], None]:
    return lambda bundle: bundle["manifest"]["trace"].update({field: value})


def shape(value: object) -> Callable[[Plain], None]:
    return lambda bundle: bundle["manifest"]["parameters"][0].update({"shape": value})


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


REFUSALS: dict[str, tuple[Callable[[Plain], Any], str]] = {
    "another format": (lambda b: b.update(format="covey-bundle/1"), "format"),
    "no manifest": (lambda b: b.pop("manifest"), "map of format"),
    "an unknown part": (lambda b: b.update(extra=1), "map of format"),
    "an unknown manifest field": (manifest("extra", 1), "extra"),
    "a missing manifest field": (lambda b: b["manifest"].pop("classes"), "classes"),
    "a path for a name": (manifest("name", "../x"), "name"),
    "a line break in the name": (manifest("name", "tiny\n"), "name"),
    "an unknown loss": (manifest("loss", "hinge"), "hinge"),
    "one class": (manifest("classes", 1), "classes"),
    "too many classes": (manifest("classes", 65_537), "classes"),
    "values for labels": (manifest("target", "values"), "target 'values' does not go with loss 'cross-entropy'"),
    "labels for values": (manifest("loss", "mse"), "target 'labels' does not go with loss 'mse'"),
    "an unknown target": (manifest("target", "guesses"), "target"),
    "classes without labels": (
        lambda b: b["manifest"].update(loss="mse", target="values"),
        "classes are 2, without labels there are none",
    ),
    "fewer outputs than classes": (manifest("output", [1]), "classes are 2"),
    "no output": (manifest("output", []), "output"),
    "a huge output": (manifest("output", [1 << 30]), "output"),
    "an input that is no output": (
        lambda b: b["manifest"].update(loss="mse", target="input", classes=0),
        "must be shaped like the input",
    ),
    "huge noise": (manifest("noise", [[1 << 30]]), "noise"),
    "noise without end": (manifest("noise", [[1]] * 65), "noise"),
    "a buffer called like a parameter": (manifest("buffers", [{"name": "w", "shape": [2]}]), "distinct"),
    "buffers beyond the weights": (manifest("buffers", [{"name": "m", "shape": [2]}]), "weights.bin"),
    "opset 0": (manifest("opset", 0), "opset"),
    "no parameters": (manifest("parameters", []), "parameters"),
    "too many parameters": (manifest("parameters", [{"name": "w", "shape": []}] * 1025), "parameters"),
    "equal parameter names": (lambda b: b["manifest"]["parameters"][1].update(name="w"), "distinct"),
    "a parameter called like the input": (lambda b: b["manifest"]["parameters"][1].update(name="x"), "distinct"),
    "an unprintable name": (lambda b: b["manifest"]["parameters"][0].update(name="w\x1b[2J"), "printable"),
    "an empty name": (lambda b: b["manifest"]["parameters"][0].update(name=""), "name"),
    "a scalar input": (manifest("input", {"name": "x", "shape": []}), "input"),
    "a huge input": (manifest("input", {"name": "x", "shape": [1 << 30, 1 << 30]}), "input"),
    "a negative dimension": (shape([-3, -2]), "shape"),
    "a dimension of 0": (shape([0, 2]), "shape"),
    "a fractional dimension": (shape([3.5, 2]), "shape"),
    "a product that would wrap 64 bits": (shape([1 << 31, 1 << 31, 4, 6]), "weights.bin"),
    "nine dimensions": (shape([1] * 9), "shape"),
    "shapes larger than the weights": (shape([3, 3]), "weights.bin"),
    "shapes smaller than the weights": (shape([3, 1]), "weights.bin"),
    "short weights": (lambda b: set_weights(b, b["files"]["weights.bin"][:-1]), "weights.bin"),
    "long weights": (lambda b: set_weights(b, b["files"]["weights.bin"] + bytes(4)), "weights.bin"),
    "NaN weights": (lambda b: set_weights(b, floats(*[1.0] * 7, np.nan)), "not finite"),
    "infinite weights": (lambda b: set_weights(b, floats(-np.inf, *[1.0] * 7)), "not finite"),
    "another grad": (lambda b: b["files"].update({"grad.onnx": b"another"}), "grad.onnx"),
    "another infer": (lambda b: b["files"].update({"infer.onnx": b"another"}), "infer.onnx"),
    "other weights": (lambda b: b["files"].update({"weights.bin": bytes(32)}), "weights.bin"),
    "another digest": (lambda b: b["manifest"]["files"].update({"grad.onnx": bytes(32)}), "grad.onnx"),
    "a short digest": (lambda b: b["manifest"]["files"].update({"grad.onnx": b""}), "grad.onnx"),
    "a missing file": (lambda b: b["files"].pop("infer.onnx"), "exactly"),
    "a missing digest": (lambda b: b["manifest"]["files"].pop("infer.onnx"), "exactly"),
    "an unknown file": (lambda b: b["files"].update({"more.onnx": b"x"}), "exactly"),
    "text for a file": (lambda b: b["files"].update({"grad.onnx": "text"}), "grad.onnx"),
    "an empty file": (lambda b: b["files"].update({"grad.onnx": b""}), "grad.onnx"),
    "files in an array": (lambda b: b.update(files=[]), "exactly"),
    "an empty trace batch": (trace("batch", 0), "batch"),
    "a huge trace batch": (trace("batch", 257), "batch"),
    "a trace batch of other length": (trace("batch", 3), "trace: x"),
    "short trace labels": (trace("y", bytes(24)), "trace: y"),
    "long trace output": (trace("output", bytes(36)), "trace: output"),
    "NaN in the trace": (trace("x", floats(*[np.nan] * 12)), "not finite"),
    "NaN output in the trace": (trace("output", floats(*[np.nan] * 8)), "not finite"),
    "a trace label too large": (trace("y", np.array([0, 1, 2, 0], "<i8").tobytes()), "labels"),
    "a negative trace label": (trace("y", np.array([0, 1, -1, 0], "<i8").tobytes()), "labels"),
    "four trace losses": (trace("losses", [0.5] * 4), "losses"),
    "a negative trace loss": (trace("losses", [0.5, 0.5, 0.5, 0.5, -0.5]), "losses"),
    "a negative learning rate": (trace("learning_rate", -0.5), "learning_rate"),
    "a momentum of 1": (trace("momentum", 1.0), "momentum"),
    "a float written as an integer": (trace("momentum", 0), "integer"),
    "text for trace bytes": (trace("x", "AAAA"), "x"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str) -> None:
    change, message = REFUSALS[name]
    bundle = plain()
    change(bundle)
    with pytest.raises(MalformedError, match=message):
        Bundle.decode(cbor.encode(bundle))


@pytest.mark.parametrize("value", [[], "text", 7, None])
def test_anything_but_a_map_is_refused(value: object) -> None:
    with pytest.raises(MalformedError, match="map of format"):
        Bundle.decode(cbor.encode(value))


def test_create_applies_the_same_rules() -> None:
    parts = {field.name: getattr(BUNDLE, field.name) for field in dataclasses.fields(BUNDLE)}
    made = parts.pop("manifest")
    del parts["digest"]
    parts["weights"] = parts["weights"][1:]
    with pytest.raises(MalformedError, match=r"weights\.bin"):
        Bundle.create(
            name=made.name,
            loss=made.loss,
            input=made.input,
            output=made.output,
            parameters=made.parameters,
            opset=made.opset,
            trace=made.trace,
            **parts,
        )
