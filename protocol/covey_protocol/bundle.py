"""The model bundle: one file that holds all a device needs to train, test and use a model.

A bundle is one deterministic CBOR map, uncompressed so that nothing can swell while it is read::

    {"format": "covey-bundle/1", "manifest": {...},
     "files": {"step.onnx": bytes, "infer.onnx": bytes, "weights.bin": bytes}}

What holds after ``Bundle.decode``, before onnxruntime has seen a byte:

- the bytes are the one canonical encoding of what was read, so a bundle has exactly one digest;
- each file has the digest that the manifest gives it;
- ``weights.bin`` is as long as the parameter shapes say, little-endian float32, all finite;
- shapes, counts and the reference trace lie within the limits below and agree with each other.

The graphs are bound **by position**, so that an author's tensor names never matter. With P parameters,
``step.onnx`` takes P parameters, P momentum buffers, the batch x (float32, N by the input shape), its labels y
(int64, N), the learning rate and the momentum (float32 scalars), and returns P new parameters, P new momentum
buffers and the mean loss before the step (float32 scalar). ``infer.onnx`` takes P parameters and x and returns
logits (float32, N by classes).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from covey_protocol import cbor
from covey_protocol.bundle_manifest import (
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

__all__ = [
    "FORMAT",
    "INFER_FILE",
    "MAX_BUNDLE_BYTES",
    "STEP_FILE",
    "TRACE_STEPS",
    "WEIGHTS_FILE",
    "Bundle",
    "BundleManifest",
    "Float32",
    "Int64",
    "TensorSpec",
    "Trace",
]

FORMAT = "covey-bundle/1"
STEP_FILE = "step.onnx"
INFER_FILE = "infer.onnx"
WEIGHTS_FILE = "weights.bin"
FILES = (STEP_FILE, INFER_FILE, WEIGHTS_FILE)

MAX_BUNDLE_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle; make one with ``create`` or ``decode``, never directly.

    Args:
        manifest: What it holds.
        step: Bytes of ``step.onnx``.
        infer: Bytes of ``infer.onnx``.
        weights: The initial weights, flat, read-only.
        digest: Content digest of the whole encoded bundle.
    """

    manifest: BundleManifest
    step: bytes
    infer: bytes
    weights: Float32
    digest: bytes

    @property
    def dimension(self) -> int:
        """Number of trainable weights."""
        return self.manifest.dimension

    @classmethod
    def create(
        cls,
        *,
        name: str,
        loss: str,
        input: TensorSpec,
        classes: int,
        parameters: list[TensorSpec],
        opset: int,
        trace: Trace,
        step: bytes,
        infer: bytes,
        weights: Float32,
    ) -> Bundle:
        """Put a bundle together and check it by the rules that ``decode`` applies.

        Raises:
            MalformedError: A part breaks a rule; the message names the field.
        """
        files = {STEP_FILE: step, INFER_FILE: infer, WEIGHTS_FILE: weights.astype("<f4").tobytes()}
        manifest = BundleManifest(
            name=name,
            loss=loss,
            input=input,
            classes=classes,
            parameters=parameters,
            opset=opset,
            trace=trace,
            files={file: content_digest(data) for file, data in files.items()},
        )
        return cls.decode(_encode(manifest, files))

    def encode(self) -> bytes:
        """Return the canonical bytes; ``decode`` of them gives an equal bundle with the same digest."""
        weights = self.weights.astype("<f4", copy=False).tobytes()
        return _encode(self.manifest, {STEP_FILE: self.step, INFER_FILE: self.infer, WEIGHTS_FILE: weights})

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
        return Bundle(manifest, files[STEP_FILE], files[INFER_FILE], weights, found)


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
    if manifest.loss != "cross-entropy":
        raise MalformedError(f"bundle manifest: loss {manifest.loss[:40]!r} is unknown, 'cross-entropy' is the one")
    specs = [*manifest.parameters, manifest.input]
    for spec in specs:
        # A name is shown on terminals: no control characters.
        if not spec.name.isprintable():
            raise MalformedError(f"bundle manifest: tensor name {spec.name!r} is not printable")
    if len({spec.name for spec in specs}) != len(specs):
        raise MalformedError("bundle manifest: parameters and input must have distinct names")
    if not manifest.input.shape or manifest.input.size > MAX_INPUT_SIZE:
        raise MalformedError(
            f"bundle manifest: input shape {manifest.input.shape} must have 1 to {MAX_INPUT_SIZE} elements"
        )
    _check_trace(manifest)


def _check_trace(manifest: BundleManifest) -> None:
    trace = manifest.trace
    for field, data, wanted in (
        ("x", trace.x, trace.batch * manifest.input.size * 4),
        ("y", trace.y, trace.batch * 8),
        ("logits", trace.logits, trace.batch * manifest.classes * 4),
    ):
        if len(data) != wanted:
            raise MalformedError(f"bundle trace: {field} has {len(data)} bytes, its shape says {wanted}")
    x, y = manifest.trace_batch()
    if not (np.isfinite(x).all() and np.isfinite(manifest.trace_logits()).all()):
        raise MalformedError("bundle trace: holds values that are not finite")
    if trace.momentum >= 1.0:
        raise MalformedError(f"bundle trace: momentum is {trace.momentum}, must be below 1")
    if y.min() < 0 or y.max() >= manifest.classes:
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
