"""What one step on held-out samples would change, class by class: the directions that sketches are held against.

They come from the bundle's own training graph, so that every model that devices can train can be probed.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from covey_protocol.bundle import Bundle, Float32, Int64
from covey_protocol.errors import ConfigError

MAX_CLASSES = 32
SAMPLES = 1024
"""Held-out samples that are looked at, at most; more would sharpen the gradients little."""

_PARTS = 3
HARD = 1 / _PARTS
"""So much of a class's samples, those that the model gets least right, is a direction of its own."""
_FEWEST = 2 * _PARTS


class Gradients:
    """Directions of one bundle's models on one held-out set.

    Args:
        bundle: Gives the graphs.
        x: Held-out samples.
        y: Their labels.

    Raises:
        ConfigError: There are too many classes, too few samples of one, or the graphs cannot be loaded.
    """

    def __init__(self, bundle: Bundle, x: Float32, y: Int64) -> None:
        manifest = self._manifest = bundle.manifest
        self.classes, self.dimension = manifest.classes, bundle.dimension
        if not self.classes:
            raise ConfigError(f"model {manifest.name!r} has no labels, and probes go by labels; leave probes off")
        if self.classes > MAX_CLASSES:
            raise ConfigError(f"model {manifest.name!r} has {self.classes} classes, probes know at most {MAX_CLASSES}")
        rows = np.random.default_rng(0).permutation(len(y))[:SAMPLES]
        self._x, self._y = np.ascontiguousarray(x[rows]), np.ascontiguousarray(y[rows])
        scarce = np.flatnonzero(np.bincount(self._y, minlength=self.classes) < _FEWEST)
        if len(scarce):
            raise ConfigError(f"probes need {_FEWEST} held-out samples of every class, there are fewer of {scarce[0]}")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._grad = ort.InferenceSession(bundle.grad, options, providers=["CPUExecutionProvider"])
            self._infer = ort.InferenceSession(bundle.infer, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise ConfigError(f"the graphs of {manifest.name!r} cannot be loaded: {error}") from error
        self._buffers = bundle.dimension - manifest.trainable

    def __call__(self, weights: Float32) -> NDArray[np.float32]:
        """Return 3·C directions, shape (3·C, d), down the loss's slope.

        The first C are of each class's easier samples under their own label, the next C of its harder ones, and the
        last C of all samples of other classes under the class's label.
        """
        hardness = self._losses(weights)
        easy, hard, off = [], [], []
        for label in range(self.classes):
            own = np.flatnonzero(self._y == label)
            own = own[np.argsort(hardness[own], kind="stable")]
            cut = len(own) - len(own) // _PARTS
            easy.append(self.down(weights, self._x[own[:cut]], label))
            hard.append(self.down(weights, self._x[own[cut:]], label))
            off.append(self.down(weights, self._x[self._y != label], label))
        return np.stack([*easy, *hard, *off])

    def down(self, weights: Float32, x: Float32, label: int) -> Float32:
        """Return the direction down the mean loss of samples under a label: minus its gradient.

        Buffers have none: there it is zero. Where a model drops out, nothing is dropped.
        """
        names = [value.name for value in self._grad.get_inputs()]
        labels = np.full(len(x), label, np.int64)
        noise = [np.ones((len(x), *shape), np.float32) for shape in self._manifest.noise]
        values = [*self._manifest.views(weights), x, labels, *noise]
        wanted = [value.name for value in self._grad.get_outputs()[: len(self._manifest.parameters)]]
        slopes = self._grad.run(wanted, dict(zip(names, values, strict=True)))
        return -np.concatenate([*(slope.ravel() for slope in slopes), np.zeros(self._buffers, np.float32)])

    def share(self, weights: Float32, x: Float32, label: int) -> float:
        """Return the share of samples that a model takes for a label."""
        return float((self._logits(weights, x).argmax(axis=1) == label).mean())

    def _losses(self, weights: Float32) -> NDArray[np.float64]:
        logits = self._logits(weights, self._x).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        losses: NDArray[np.float64] = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(self._y)), self._y]
        return losses

    def _logits(self, weights: Float32, x: Float32) -> Float32:
        names = [value.name for value in self._infer.get_inputs()]
        logits: Float32 = self._infer.run(None, dict(zip(names, [*self._manifest.views(weights), x], strict=True)))[0]
        return logits
