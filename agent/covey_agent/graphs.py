"""Running a bundle's graphs on onnxruntime.

The weights live in one flat vector that ``grad.onnx`` reads, and their gradients in another that it writes, both bound
once: an output bound onto its own input would be silently wrong, because onnxruntime may write before it has read.
Batches are copied into place, which for small models takes about half the time of passing arrays in each step. Between
two runs the optimiser moves the weights where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from covey_protocol import uniform
from covey_protocol.bundle import GRAD_FILE, Bundle, Float32, Int64
from covey_protocol.bundle_manifest import INPUT, LABELS, BundleManifest
from covey_protocol.errors import ConfigError
from covey_protocol.optimiser import Optimiser
from covey_protocol.plan import Plan


class Graph:
    """An onnxruntime session whose inputs and outputs are known to be what the manifest says."""

    def __init__(self, bundle: Bundle, file: str, threads: int) -> None:
        self.where = f"model {bundle.manifest.name!r}: {file}"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait drain a battery and heat a small device for nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised
        content = bundle.grad if file == GRAD_FILE else bundle.infer
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no other base
            raise ConfigError(f"{self.where} cannot be loaded by onnxruntime {ort.__version__}: {error}") from error
        inputs, outputs = (_gradient_types if file == GRAD_FILE else _inference_types)(bundle.manifest)
        for kind, entries, expected in (
            ("inputs", self.session.get_inputs(), inputs),
            ("outputs", self.session.get_outputs(), outputs),
        ):
            found = [_described(entry) for entry in entries]
            if found != expected:
                raise ConfigError(f"{self.where} has {kind} {found}, the manifest says {expected}")
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def run(self, inputs: Sequence[npt.NDArray[Any]]) -> Float32:
        """Run the graph and return its first output."""
        try:
            result: Float32 = self.session.run(self.outputs[:1], dict(zip(self.inputs, inputs, strict=True)))[0]
        except Exception as error:
            raise ConfigError(f"{self.where} cannot be run by onnxruntime {ort.__version__}: {error}") from error
        return result

    def run_bound(self, binding: ort.IOBinding) -> None:
        """Run the graph on what is bound."""
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise ConfigError(f"{self.where} cannot be run by onnxruntime {ort.__version__}: {error}") from error


class Stepper:
    """A run of training steps, from given weights and an optimiser at rest.

    Args:
        graph: The gradients.
        bundle: The model that they belong to.
        weights: Where to start, flat; not changed.
        batch: The most rows that a step will get.
        plan: How the weights move.
        noise: Source of random numbers for models that take some.
    """

    def __init__(
        self,
        graph: Graph,
        bundle: Bundle,
        weights: Float32,
        *,
        batch: int,
        plan: Plan,
        noise: np.random.BitGenerator | None = None,
    ) -> None:
        self._graph = graph
        manifest = self._manifest = bundle.manifest
        self._weights, self._gradient = np.array(weights), np.zeros(len(weights), np.float32)
        self._optimiser = Optimiser(self._weights, manifest.trainable, plan)
        self._x = np.empty((batch, *manifest.input.shape), np.float32)
        self._y: npt.NDArray[Any] | None = None
        if manifest.target == LABELS:
            self._y = np.empty(batch, np.int64)
        elif manifest.target != INPUT:
            self._y = np.empty((batch, *manifest.output), np.float32)
        self._bits = noise if noise is not None else uniform.bits(0)
        self._noise = [np.empty((batch, *shape), np.float32) for shape in manifest.noise]
        self._loss = np.empty((), np.float32)
        self._bindings: dict[int, ort.IOBinding] = {}

    def step(self, x: Float32, y: npt.NDArray[Any], rows: Int64) -> float:
        """Take one step on some rows of the data and return the loss before it."""
        count = len(rows)
        # mode="clip" lets numpy write in place; the rows are in range by construction.
        np.take(x, rows, axis=0, out=self._x[:count], mode="clip")
        if self._y is not None:
            np.take(y, rows, axis=0, out=self._y[:count], mode="clip")
        for numbers in self._noise:
            uniform.fill(self._bits, numbers[:count])
        if count not in self._bindings:
            self._bindings[count] = self._bind(count)
        self._graph.run_bound(self._bindings[count])
        self._optimiser.step(self._gradient)
        return float(self._loss)

    def weights(self) -> Float32:
        """Return the present weights, as a view that the next step changes."""
        return self._weights

    def _bind(self, count: int) -> ort.IOBinding:
        binding = self._graph.session.io_binding()
        batch = [array[:count] for array in (self._x, self._y, *self._noise) if array is not None]
        for name, array in zip(self._graph.inputs, [*self._manifest.views(self._weights), *batch], strict=True):
            binding.bind_ortvalue_input(name, _value(array))
        results = [*self._manifest.views(self._gradient), self._loss]
        for name, array in zip(self._graph.outputs, results, strict=True):
            binding.bind_ortvalue_output(name, _value(array))
        return binding


def tensor_type(shape: Sequence[int | None], kind: str = "float") -> str:
    """Describe a tensor; None stands for the batch dimension."""
    return f"{kind}{list(shape)}"


def _gradient_types(manifest: BundleManifest) -> tuple[list[str], list[str]]:
    """Return what ``grad.onnx`` takes and gives."""
    state = [tensor_type(spec.shape) for spec in manifest.state]
    targets = {LABELS: [tensor_type([None], "int64")], INPUT: []}
    target = targets.get(manifest.target, [tensor_type([None, *manifest.output])])
    noise = [tensor_type([None, *shape]) for shape in manifest.noise]
    return [*state, tensor_type([None, *manifest.input.shape]), *target, *noise], [*state, tensor_type([])]


def _inference_types(manifest: BundleManifest) -> tuple[list[str], list[str]]:
    """Return what ``infer.onnx`` takes and gives."""
    state = [tensor_type(spec.shape) for spec in manifest.state]
    return [*state, tensor_type([None, *manifest.input.shape])], [tensor_type([None, *manifest.output])]


def _described(entry: ort.NodeArg) -> str:
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    return tensor_type([size if isinstance(size, int) else None for size in entry.shape], kind)


def _value(array: npt.NDArray[Any]) -> ort.OrtValue:
    """Wrap an array without copying: onnxruntime reads and writes the array's own memory and keeps it alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)
