"""Local training: a bundle's graphs on stock onnxruntime.

The gradients lie in ``grad.onnx`` and what is made of them in the protocol's optimiser; this module has batches drawn
and checks what goes in and what comes out. No randomness is made here: the caller passes a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from covey_agent.batches import batches
from covey_agent.data import Dataset
from covey_agent.graphs import Graph, Stepper
from covey_protocol import uniform
from covey_protocol.bundle import GRAD_FILE, INFER_FILE, TRACE_STEPS, Bundle, Float32
from covey_protocol.bundle_manifest import INPUT, LABELS
from covey_protocol.errors import ConfigError, LocalError, MalformedError
from covey_protocol.plan import Plan
from covey_protocol.score import Score

SEED_BYTES = 32
EVALUATION_BATCH = 256
# Processors and builds of onnxruntime sum in different orders: five steps agree to about 1e-5. A wrong kernel or
# graph is off by far more than this.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4

Cancel = Callable[[], bool]
Progress = Callable[[int, int], None]


class CancelledError(LocalError):
    """Training was told to stop; nothing of it is to be used."""

    cause = "cancelled"


class DivergedError(LocalError):
    """Loss or weights left the finite numbers; nothing of it is to be used."""

    cause = "diverged"


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a round of local training gave.

    Args:
        update: New weights − incoming weights, flat.
        loss: Mean loss of the incoming model on the local data.
        accuracy: Share of the local data that the incoming model gets right (see ``covey_protocol.score``).
        samples: Size of the local data.
        steps: Steps taken.
    """

    update: Float32
    loss: float
    accuracy: float
    samples: int
    steps: int


class Trainer:
    """Trains and evaluates one model; sessions are made once and used for every round.

    Args:
        bundle: The model.
        threads: Threads of onnxruntime; one is fastest for small models.

    Raises:
        ConfigError: onnxruntime cannot load the graphs, or they do not take and give what the manifest says.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.bundle = bundle
        self._grad = Graph(bundle, GRAD_FILE, threads)
        self._infer = Graph(bundle, INFER_FILE, threads)

    def self_test(self) -> None:
        """Replay the bundle's reference trace.

        Raises:
            ConfigError: This device does not compute what the builder's machine did; the message names the value.
        """
        manifest, trace = self.bundle.manifest, self.bundle.manifest.trace
        x, y = manifest.trace_batch()
        plan = Plan(learning_rate=trace.learning_rate, momentum=trace.momentum)
        stepper = Stepper(self._grad, self.bundle, self.bundle.weights, batch=trace.batch, plan=plan)
        rows = np.arange(trace.batch)
        for step, expected in enumerate(trace.losses):
            self._compare(f"loss of step {step + 1}", stepper.step(x, y, rows), expected)
        moved = stepper.weights().astype(np.float64) - self.bundle.weights
        self._compare(f"change after {TRACE_STEPS} steps", np.linalg.norm(moved), trace.change)
        output = self._infer.run([*manifest.views(stepper.weights()), x])
        self._compare("output", output, manifest.trace_output())

    def train(
        self,
        weights: Float32,
        data: Dataset,
        plan: Plan,
        *,
        seed: bytes,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
    ) -> TrainResult:
        """Evaluate the incoming model, then train it on the local data.

        Args:
            weights: The incoming model, flat; it is not changed.
            data: The local data.
            plan: How long and how fast.
            seed: 32 bytes from the operating system, which decide the order of the samples and what Dropout drops.
            cancel: Asked before each batch; true stops the training.
            progress: Told after each step how many are done, and of how many.

        Raises:
            CancelledError: ``cancel`` said so.
            ConfigError: The data does not suit the model.
            DivergedError: Loss or weights are no longer finite.
            MalformedError: The incoming weights are not finite or not of the model's size.
            ValueError: The seed has the wrong length.
        """
        if len(seed) != SEED_BYTES:
            raise ValueError(f"the seed has {len(seed)} bytes, must have {SEED_BYTES}")
        loss, accuracy = self.evaluate(weights, data, cancel=cancel)
        entropy = int.from_bytes(seed, "big")
        noise = uniform.bits(entropy, 1)
        batch = min(plan.batch_size, len(data))
        stepper = Stepper(self._grad, self.bundle, weights, batch=batch, plan=plan, noise=noise)
        total = plan.steps_for(len(data))
        # Only labels come in classes that can be evened out.
        balance = plan.balance if self.bundle.manifest.target == LABELS else 0.0
        rows_of = batches(data.y, plan.batch_size, total, balance, np.random.default_rng(entropy))
        for done, rows in enumerate(rows_of, start=1):
            _stop_if(cancel)
            if not math.isfinite(stepper.step(data.x, data.y, rows)):
                raise DivergedError(f"model {self.bundle.manifest.name!r}: loss is not finite in step {done}")
            if progress is not None:
                progress(done, total)
        update = stepper.weights() - weights
        if not np.isfinite(update).all():
            raise DivergedError(f"model {self.bundle.manifest.name!r}: weights are not finite after {total} steps")
        return TrainResult(update, loss, accuracy, len(data), total)

    def evaluate(self, weights: Float32, data: Dataset, *, cancel: Cancel | None = None) -> tuple[float, float]:
        """Return mean loss and accuracy of a model on some data (see ``covey_protocol.score``).

        Args:
            weights: The model, flat.
            data: Samples and labels.
            cancel: Asked before each batch; true stops the evaluation.

        Raises:
            CancelledError: ``cancel`` said so.
            ConfigError: The data does not suit the model.
            DivergedError: The model's outputs are not finite.
            MalformedError: The weights are not finite or not of the model's size.
        """
        self._check_weights(weights)
        self._check_data(data)
        views, score = self.bundle.manifest.views(weights), Score(self.bundle.manifest)
        for start in range(0, len(data), EVALUATION_BATCH):
            _stop_if(cancel)
            part = slice(start, start + EVALUATION_BATCH)
            output = self._infer.run([*views, data.x[part]])
            if not np.isfinite(output).all():
                raise DivergedError(f"model {self.bundle.manifest.name!r}: output on local data is not finite")
            score.add(output, data.y[part])
        return score.result()

    def _check_weights(self, weights: Float32) -> None:
        name = self.bundle.manifest.name
        if weights.dtype != np.float32 or weights.shape != (self.bundle.dimension,):
            raise MalformedError(
                f"model {name!r}: weights are {weights.dtype} {weights.shape}, "
                f"must be float32 ({self.bundle.dimension},)"
            )
        if not np.isfinite(weights).all():
            raise MalformedError(f"model {name!r}: weights hold values that are not finite")

    def _check_data(self, data: Dataset) -> None:
        manifest = self.bundle.manifest
        if len(data) == 0:
            raise ConfigError(f"model {manifest.name!r}: there is no local data")
        if list(data.x.shape[1:]) != manifest.input.shape:
            raise ConfigError(
                f"model {manifest.name!r}: samples have shape {list(data.x.shape[1:])}, not {manifest.input.shape}"
            )
        if manifest.target == LABELS:
            if data.y.dtype != np.int64 or data.y.min() < 0 or data.y.max() >= manifest.classes:
                raise ConfigError(f"model {manifest.name!r}: labels must be 0 to {manifest.classes - 1}")
        elif data.y.dtype != np.float32 or list(data.y.shape[1:]) != manifest.output:
            wanted = "the samples themselves" if manifest.target == INPUT else f"numbers of shape {manifest.output}"
            raise ConfigError(f"model {manifest.name!r}: targets must be {wanted}")

    def _compare(self, what: str, found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
        if not np.allclose(found, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE):
            worst = float(np.max(np.abs(np.subtract(found, expected))))
            raise ConfigError(
                f"model {self.bundle.manifest.name!r} fails its self-test under onnxruntime {ort.__version__}: "
                f"{what} is off by {worst:.3g}"
            )


def _stop_if(cancel: Cancel | None) -> None:
    if cancel is not None and cancel():
        raise CancelledError("training was cancelled")
