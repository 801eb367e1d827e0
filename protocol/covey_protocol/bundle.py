"""The model bundle: one file that holds all a device needs to train, test and use a model.

A bundle is one deterministic CBOR map, uncompressed so that nothing can swell while it is read::

    {"format": "covey-bundle/2", "manifest": {...},
     "files": {"grad.onnx": bytes, "infer.onnx": bytes, "weights.bin": bytes}}

What holds after ``Bundle.decode``, before onnxruntime has seen a byte:

- the bytes are the one canonical encoding of what was read, so a bundle has exactly one digest;
- each file has the digest that the manifest gives it;
- ``weights.bin`` is as long as the parameter shapes say, little-endian float32, all finite;
- shapes, counts and the reference trace lie within the limits below and agree with each other;
- the graphs consist of allowed standard operators, hold all of their tensors themselves and no graphs within, and no
  tensor in them is larger than ``graph_shapes.MAX_ELEMENTS`` for one sample.

The graphs are bound **by position**, so that an author's tensor names never matter. With P parameters, B buffers and U
random inputs, ``grad.onnx`` takes P parameters, B buffers, the batch x (float32, N by the input shape), its targets y
unless the input is the target (labels: int64, N; values: float32, N by the output shape), and U arrays of uniform
numbers (float32, N by their shapes), and returns P gradients, B new buffers and the mean loss (float32 scalar).
``infer.onnx`` takes P parameters, B buffers and x and returns the output (float32, N by the output shape), logits where
the loss is an entropy. What is done with the gradients is in ``covey_protocol.optimiser``.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from covey_protocol import cbor
from covey_protocol.bundle_manifest import (
    INPUT,
    LABELS,
    LOSSES,
    MAX_INPUT_SIZE,
    TRACE_STEPS,
    BundleManifest,
    Float32,
    Int64,
    TensorSpec,
    Trace,
)
from covey_protocol.digest import content_digest, short
from covey_protocol.errors import MalformedError
from covey_protocol.graph_shapes import peak_elements
from covey_protocol.graph_wire import read_graph

__all__ = [
    "FORMAT",
    "GRAD_FILE",
    "INFER_FILE",
    "MAX_BUNDLE_BYTES",
    "TRACE_STEPS",
    "WEIGHTS_FILE",
    "Bundle",
    "BundleManifest",
    "Float32",
    "Int64",
    "TensorSpec",
    "Trace",
]

FORMAT = "covey-bundle/2"
GRAD_FILE = "grad.onnx"
INFER_FILE = "infer.onnx"
WEIGHTS_FILE = "weights.bin"
FILES = (GRAD_FILE, INFER_FILE, WEIGHTS_FILE)

MAX_BUNDLE_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle; make one with ``create`` or ``decode``, never directly.

    Args:
        manifest: What it holds.
        grad: Bytes of ``grad.onnx``.
        infer: Bytes of ``infer.onnx``.
        weights: The initial weights, flat, read-only.
        digest: Content digest of the whole encoded bundle.
    """

    manifest: BundleManifest
    grad: bytes
    infer: bytes
    weights: Float32
    digest: bytes

    @property
    def dimension(self) -> int:
        """Length of the flat weight vector."""
        return self.manifest.dimension

    def memory(self, batch: int, *, trains: bool = True) -> int:
        """Return how many bytes the tensors of a step take at once, weights and their gradients included.

        What onnxruntime itself takes comes on top: some tens of megabytes, and a convolution's scratch space.

        Args:
            batch: Samples.
            trains: Whether gradients are computed, or the output alone.
        """
        name, data = (GRAD_FILE, self.grad) if trains else (INFER_FILE, self.infer)
        # Weights, gradients, and two vectors of an optimiser at most.
        return 4 * (peak_elements(read_graph(data, name), batch, name) + (4 if trains else 1) * self.dimension)

    @classmethod
    def create(
        cls,
        *,
        name: str,
        loss: str,
        input: TensorSpec,
        output: list[int],
        parameters: list[TensorSpec],
        opset: int,
        trace: Trace,
        grad: bytes,
        infer: bytes,
        weights: Float32,
        target: Literal["labels", "values", "input"] = "labels",
        buffers: Sequence[TensorSpec] = (),
        noise: Sequence[list[int]] = (),
    ) -> Bundle:
        """Put a bundle together and check it by the rules that ``decode`` applies.

        Raises:
            MalformedError: A part breaks a rule; the message names the field.
        """
        files = {GRAD_FILE: grad, INFER_FILE: infer, WEIGHTS_FILE: weights.astype("<f4").tobytes()}
        manifest = BundleManifest(
            name=name,
            loss=loss,
            input=input,
            output=output,
            target=target,
            classes=output[0] if target == LABELS else 0,
            parameters=parameters,
            buffers=list(buffers),
            noise=list(noise),
            opset=opset,
            trace=trace,
            files={file: content_digest(data) for file, data in files.items()},
        )
        return cls.decode(_encode(manifest, files))

    def encode(self) -> bytes:
        """Return the canonical bytes; ``decode`` of them gives an equal bundle with the same digest."""
        weights = self.weights.astype("<f4", copy=False).tobytes()
        return _encode(self.manifest, {GRAD_FILE: self.grad, INFER_FILE: self.infer, WEIGHTS_FILE: weights})

    @staticmethod
    def decode(data: bytes, *, max_bytes: int = MAX_BUNDLE_BYTES, digest: bytes | None = None) -> Bundle:
        """Read a bundle and check everything that can be checked without running it.

        Args:
            data: The encoded bundle.
            max_bytes: Refuse anything longer.
            digest: The content digest that the bundle must have, checked before it is parsed.

        Raises:
            MalformedError: The bytes are not a sound bundle; the message names the field.
        """
        if len(data) > max_bytes:
            raise MalformedError(f"bundle: {len(data)} bytes, at most {max_bytes} are allowed")
        found = content_digest(data)
        if digest is not None and not hmac.compare_digest(found, digest):
            raise MalformedError(f"bundle: has digest {short(found)}, {short(digest)} was expected")
        outer = cbor.decode(data, max_bytes=max_bytes)
        if not isinstance(outer, dict) or set(outer) != {"format", "manifest", "files"}:
            raise MalformedError("bundle: must be a map of format, manifest and files")
        if outer["format"] != FORMAT:
            raise MalformedError(f"bundle: format is {str(outer['format'])[:40]!r}, this version reads {FORMAT!r}")
        manifest = _read_manifest(outer["manifest"])
        _check_manifest(manifest)
        files = _checked_files(manifest, outer["files"])
        weights = _checked_weights(manifest, files[WEIGHTS_FILE])
        for name in (GRAD_FILE, INFER_FILE):
            peak_elements(read_graph(files[name], name), 1, name)
        return Bundle(manifest, files[GRAD_FILE], files[INFER_FILE], weights, found)


def _encode(manifest: BundleManifest, files: dict[str, bytes]) -> bytes:
    return cbor.encode({"format": FORMAT, "manifest": _plain(manifest), "files": files})


def _plain(manifest: BundleManifest) -> Any:
    return msgspec.to_builtins(manifest, builtin_types=(bytes,))


def _read_manifest(value: object) -> BundleManifest:
    try:
        manifest = msgspec.convert(value, BundleManifest, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise MalformedError(f"bundle manifest: {error}") from error
    # msgspec reads the integer 1 where a float belongs; written again it would be 1.0, with another digest.
    if cbor.encode(_plain(manifest)) != cbor.encode(value):
        raise MalformedError("bundle manifest: a float is written as an integer", cause="non-canonical")
    return manifest


def _check_manifest(manifest: BundleManifest) -> None:
    if manifest.loss not in LOSSES:
        raise MalformedError(f"bundle manifest: loss {manifest.loss[:40]!r} is unknown, there are {', '.join(LOSSES)}")
    specs = [*manifest.state, manifest.input]
    for spec in specs:
        # A name is shown on terminals: no control characters.
        if not spec.name.isprintable():
            raise MalformedError(f"bundle manifest: tensor name {spec.name!r} is not printable")
    if len({spec.name for spec in specs}) != len(specs):
        raise MalformedError("bundle manifest: parameters, buffers and input must have distinct names")
    for field, shape in (
        ("input", manifest.input.shape),
        ("output", manifest.output),
        *(("noise", shape) for shape in manifest.noise),
    ):
        if (field == "input" and not shape) or math.prod(shape) > MAX_INPUT_SIZE:
            raise MalformedError(f"bundle manifest: {field} shape {shape} must have 1 to {MAX_INPUT_SIZE} elements")
    _check_target(manifest)
    _check_trace(manifest)


def _check_target(manifest: BundleManifest) -> None:
    if (manifest.loss == "cross-entropy") != (manifest.target == LABELS):
        raise MalformedError(f"bundle manifest: target {manifest.target!r} does not go with loss {manifest.loss!r}")
    if manifest.target == LABELS:
        if manifest.classes < 2 or manifest.output != [manifest.classes]:
            raise MalformedError(
                f"bundle manifest: classes are {manifest.classes}, must be 2 at least and what the output is: "
                f"{manifest.output}"
            )
    elif manifest.classes:
        raise MalformedError(f"bundle manifest: classes are {manifest.classes}, without labels there are none")
    if manifest.target == INPUT and manifest.output != manifest.input.shape:
        raise MalformedError(
            f"bundle manifest: output {manifest.output} must be shaped like the input {manifest.input.shape}"
        )


def _check_trace(manifest: BundleManifest) -> None:
    trace = manifest.trace
    target = {LABELS: 8, INPUT: 0}.get(manifest.target, 4 * manifest.output_size)
    for field, data, wanted in (
        ("x", trace.x, trace.batch * manifest.input.size * 4),
        ("y", trace.y, trace.batch * target),
        ("output", trace.output, trace.batch * manifest.output_size * 4),
    ):
        if len(data) != wanted:
            raise MalformedError(f"bundle trace: {field} has {len(data)} bytes, its shape says {wanted}")
    x, y = manifest.trace_batch()
    if not all(np.isfinite(array).all() for array in (x, y, manifest.trace_output())):
        raise MalformedError("bundle trace: holds values that are not finite")
    if trace.momentum >= 1.0:
        raise MalformedError(f"bundle trace: momentum is {trace.momentum}, must be below 1")
    if manifest.target == LABELS and (y.min() < 0 or y.max() >= manifest.classes):
        raise MalformedError(f"bundle trace: labels must be 0 to {manifest.classes - 1}")


def _checked_files(manifest: BundleManifest, files: Any) -> dict[str, bytes]:
    if not isinstance(files, dict) or set(files) != set(FILES) or set(manifest.files) != set(FILES):
        raise MalformedError(f"bundle: files and their digests must be exactly {', '.join(FILES)}")
    for name, data in files.items():
        if not isinstance(data, bytes) or not data:
            raise MalformedError(f"bundle: {name} must be a non-empty byte string")
        if not hmac.compare_digest(content_digest(data), manifest.files[name]):
            raise MalformedError(f"bundle: {name} does not have the digest that the manifest gives it")
    return files


def _checked_weights(manifest: BundleManifest, data: bytes) -> Float32:
    # Compared as Python integers, so a product of absurd dimensions neither wraps nor allocates.
    if len(data) != 4 * manifest.dimension:
        raise MalformedError(f"bundle: {WEIGHTS_FILE} has {len(data)} bytes, the shapes say {4 * manifest.dimension}")
    weights = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if not np.isfinite(weights).all():
        raise MalformedError(f"bundle: {WEIGHTS_FILE} holds values that are not finite")
    return weights
