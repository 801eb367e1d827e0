"""Running a bundle's graphs on onnxruntime.

Parameters and momentum live in two flat buffers that take turns: one is read while the other is written. An output
bound onto its own input would be silently wrong, because onnxruntime may write before it has read. Everything is bound
once and batches are copied into place, which for small models takes about half the time of passing arrays in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from covey_protocol.bundle import STEP_FILE, Bundle, Float32, Int64
from covey_protocol.errors import ConfigError


class Graph:
    """An onnxruntime session whose inputs and outputs are known to be what the manifest says."""

    def __init__(self, bundle: Bundle, file: str, threads: int, *, inputs: list[str], outputs: list[str]) -> None:
        self.where = f"model {bundle.manifest.name!r}: {file}"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait drain a battery and heat a small device for nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised
        content = bundle.step if file == STEP_FILE else bundle.infer
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no other base
            raise ConfigError(f"{self.where} cannot be loaded by onnxruntime {ort.__version__}: {error}") from error
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
    """A run of training steps, from given weights and momentum buffers at rest.

    Args:
        graph: The training step.
        bundle: The model that it belongs to.
        weights: Where to start, flat; not changed.
        batch: The most rows that a step will get.
        learning_rate: Of every step.
        momentum: Of every step.
    """

    def __init__(
        self, graph: Graph, bundle: Bundle, weights: Float32, *, batch: int, learning_rate: float, momentum: float
    ) -> None:
        self._graph = graph
        manifest, size = bundle.manifest, bundle.dimension
        self._buffers = [np.zeros((2, size), np.float32) for _ in range(2)]
        self._buffers[0][0] = weights
        self._x = np.empty((batch, *manifest.input.shape), np.float32)
        self._y = np.empty(batch, np.int64)
        self._loss = np.empty((), np.float32)
        self._state = [[_value(view) for half in buffer for view in manifest.views(half)] for buffer in self._buffers]
        self._scalars = [_value(np.array(number, np.float32)) for number in (learning_rate, momentum)]
        self._bindings: dict[int, list[ort.IOBinding]] = {}
        self._turn = 0

    def step(self, x: Float32, y: Int64, rows: Int64) -> float:
        """Take one step on some rows of the data and return the loss before it."""
        count = len(rows)
        # mode="clip" lets numpy write in place; the rows are in range by construction.
        np.take(x, rows, axis=0, out=self._x[:count], mode="clip")
        np.take(y, rows, out=self._y[:count], mode="clip")
        if count not in self._bindings:
            self._bindings[count] = [self._bind(count, source) for source in (0, 1)]
        self._graph.run_bound(self._bindings[count][self._turn])
        self._turn = 1 - self._turn
        return float(self._loss)

    def weights(self) -> Float32:
        """Return the present weights, as a view that the step after next overwrites."""
        current: Float32 = self._buffers[self._turn][0]
        return current

    def _bind(self, count: int, source: int) -> ort.IOBinding:
        binding = self._graph.session.io_binding()
        batch = [_value(self._x[:count]), _value(self._y[:count])]
        for name, value in zip(self._graph.inputs, [*self._state[source], *batch, *self._scalars], strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._graph.outputs, [*self._state[1 - source], _value(self._loss)], strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding


def tensor_type(shape: Sequence[int | None], kind: str = "float") -> str:
    """Describe a tensor; None stands for the batch dimension."""
    return f"{kind}{list(shape)}"


def _described(entry: ort.NodeArg) -> str:
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    return tensor_type([size if isinstance(size, int) else None for size in entry.shape], kind)


def _value(array: npt.NDArray[Any]) -> ort.OrtValue:
    """Wrap an array without copying: onnxruntime reads and writes the array's own memory and keeps it alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)
