"""What a model bundle says of itself: tensor shapes, limits and the reference trace.

The structs check what can be said of one field; how fields agree with each other and with the files is
checked where a bundle is read, in ``covey_protocol.bundle``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from covey_protocol.payload import prepare

MAX_PARAMETERS = 1_024
MAX_RANK = 8
MAX_INPUT_SIZE = 1 << 22
MAX_CLASSES = 65_536
MAX_TRACE_BATCH = 256
TRACE_STEPS = 5
MAX_NOISE = 64

LABELS, VALUES, INPUT = "labels", "values", "input"
LOSSES = ("cross-entropy", "binary-cross-entropy", "mse", "huber")

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Dimension = Annotated[int, Meta(ge=1, le=1 << 31)]
Number = Annotated[float, Meta(ge=0.0)]
BundleName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The name and static shape of a float32 tensor."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    shape: Annotated[list[Dimension], Meta(max_length=MAX_RANK)]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What five steps on one fixed batch gave on the machine that built the bundle.

    Args:
        batch: Samples in the batch.
        x: The batch, raw little-endian float32.
        y: Its labels, raw little-endian int64, or values, float32; empty where the input is the target.
        learning_rate: Of each step.
        momentum: Of each step.
        losses: The loss that each step returned.
        change: Euclidean length of (weights after the last step − initial weights).
        output: What ``infer.onnx`` says of the batch after the last step, raw little-endian float32.
    """

    batch: Annotated[int, Meta(ge=1, le=MAX_TRACE_BATCH)]
    x: bytes
    y: bytes
    learning_rate: Number
    momentum: Number
    losses: Annotated[list[Number], Meta(min_length=TRACE_STEPS, max_length=TRACE_STEPS)]
    change: Number
    output: bytes


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle holds.

    Args:
        name: The model's name: letters, digits, dot, dash and underscore.
        loss: What ``grad.onnx`` is the gradient of: one of ``LOSSES``.
        input: One sample, without the batch dimension.
        output: Shape of one sample's output; the logits of a classifier, one for each class.
        target: What the output is held against: ``labels`` (int64), ``values`` (float32, shaped like the output), or
            the ``input`` itself.
        classes: Number of labels; 0 where there are none.
        parameters: The trainable tensors, in the order of the flat weight vector.
        buffers: Running statistics, which come behind the parameters in that vector: averaged like them, but replaced
            in each step instead of moved down a gradient.
        noise: For each uniform random input of ``grad.onnx``, its shape for one sample.
        opset: ONNX operator set of the graphs.
        trace: The reference that a device replays before it trusts the bundle on its own processor.
        files: Content digest of each file.
    """

    name: BundleName
    loss: str
    input: TensorSpec
    output: Annotated[list[Dimension], Meta(min_length=1, max_length=MAX_RANK)]
    target: Literal["labels", "values", "input"]
    classes: Annotated[int, Meta(ge=0, le=MAX_CLASSES)]
    parameters: Annotated[list[TensorSpec], Meta(min_length=1, max_length=MAX_PARAMETERS)]
    buffers: Annotated[list[TensorSpec], Meta(max_length=MAX_PARAMETERS)]
    noise: Annotated[list[Annotated[list[Dimension], Meta(max_length=MAX_RANK)]], Meta(max_length=MAX_NOISE)]
    opset: Annotated[int, Meta(ge=1, le=100)]
    trace: Trace
    files: dict[str, bytes]

    @property
    def dimension(self) -> int:
        """Length of the flat weight vector, buffers and all."""
        return sum(spec.size for spec in self.state)

    @property
    def trainable(self) -> int:
        """How many of them move down a gradient: the first ones."""
        return sum(spec.size for spec in self.parameters)

    @property
    def state(self) -> list[TensorSpec]:
        """Parameters and buffers, in the order of the flat weight vector."""
        return [*self.parameters, *self.buffers]

    @property
    def output_size(self) -> int:
        """Number of elements of one sample's output."""
        return math.prod(self.output)

    def views(self, flat: Float32) -> list[Float32]:
        """Cut a flat weight vector into one view a parameter and buffer, in manifest order, without copying.

        Raises:
            ValueError: The vector has the wrong length.
        """
        if flat.shape != (self.dimension,):
            raise ValueError(f"weights have shape {flat.shape}, model {self.name!r} wants ({self.dimension},)")
        ends = np.cumsum([spec.size for spec in self.state])
        parts = np.split(flat, ends[:-1])
        return [part.reshape(spec.shape) for part, spec in zip(parts, self.state, strict=True)]

    def trace_batch(self) -> tuple[Float32, npt.NDArray[Any]]:
        """Return the batch x of the reference trace and its targets y."""
        x = np.frombuffer(self.trace.x, "<f4").reshape(self.trace.batch, *self.input.shape)
        x = x.astype(np.float32, copy=False)
        if self.target == INPUT:
            return x, x
        if self.target == LABELS:
            return x, np.frombuffer(self.trace.y, "<i8").astype(np.int64, copy=False)
        return x, np.frombuffer(self.trace.y, "<f4").astype(np.float32, copy=False).reshape(-1, *self.output)

    def trace_output(self) -> Float32:
        """Return the outputs of the reference trace, batch first."""
        output = np.frombuffer(self.trace.output, "<f4").reshape(self.trace.batch, *self.output)
        return output.astype(np.float32, copy=False)


prepare(globals())
